"""Inputs whose outcome is not yet the wanted one, by the module that is to be mended; the test fails once one is."""

TODO: dict[str, tuple[str, ...]] = {
    "batch.py": (
        "estimate(tasks=None)",
        "estimate(tasks=5)",
        "estimate(tasks=<function square>)",
        "exact(tasks=None)",
        "exact(tasks=5)",
        "exact(tasks=<function square>)",
        "backward(tasks=None)",
        "backward(tasks=5)",
        "backward(tasks=<function square>)",
        "evaluate: batch returns None",
        "tasks: on meta",
        "tasks: support on meta",
        "auto on unlike trees",
    ),
    "noise.py": (
        "estimate under default device meta",
        "adapt under default device meta",
        "evaluate under default device meta",
        "backward under default device meta",
        "MAML under default device meta",
        "IMAML under default device meta",
        "Tangent under default device meta",
        "FOMAML under default device meta",
        "Reptile under default device meta",
    ),
    "backends.py": ("adapt under inference_mode", "Tangent under inference_mode"),
    "problem.py": (
        "Task.stack: shapes",
        "Task.stack: trees",
        "Task.stack: dtypes",
        "Task.stack: kinds",
        "Task.stack: Task of Task",
        "Task.stack: no tasks",
        "Task.stack(5)",
        "Task.stack(ab)",
    ),
    "gradients.py": ("loss returns a complex tensor",),
    "evaluation.py": (
        "evaluate: a metric called loss",
        "evaluate: a string metric",
        "evaluate: NaN query loss",
        "adapt: the last step overflows",
        "Statistic.of([])",
        "Statistic.of(list)",
    ),
    "optim.py": (
        "normalized(momentum=Fraction(1, 2))",
        "clipped(gamma=np.float16(0.5))",
        *(
            f"{kind}: group lr={value}"
            for kind in ("normalized", "clipped")
            for value in ("-1.0", "nan", "'0.1'", "inf", "None")
        ),
        *(f"normalized: group momentum={value}" for value in ("-1.0", "nan", "'0.1'", "inf", "None", "2.0")),
        *(f"clipped: group gamma={value}" for value in ("-1.0", "nan", "'0.1'", "inf", "None")),
        *(f"normalized: buffer {kind}" for kind in ("NaN", "infinite", "shape")),
        "normalized: tiny",
        "normalized: huge",
        *(
            f"{kind}: params {what}"
            for kind in ("NormalizedSGD", "ClippedSGD")
            for what in ("an empty list", "None", "a string", "a number")
        ),
    ),
}
MODULE_OF = {label: module for module, labels in TODO.items() for label in labels}
