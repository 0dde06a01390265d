"""Inputs whose outcome is not yet the wanted one, by the module that is to be mended; the test fails once one is."""

TODO: dict[str, tuple[str, ...]] = {
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
