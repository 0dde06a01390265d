"""``ProximalProblem`` and ``from_module``."""

import torch
from torch import nn

import metaprox as mp
from bad_inputs import values
from bad_inputs.rows import Row, refused, taken
from metaprox.models import mean_squared_error

MODEL = nn.Linear(3, 1)
GD = mp.GradientDescent(0.5)
BATCH = (torch.ones(2, 3), torch.ones(2, 1))


def square(params, data):
    return (params["w"] - data).square().sum()


def one_argument(model):
    return model


def three_arguments(model, inputs, targets):
    return model


def by_name_alone(*, params):
    return params


class Model(nn.Module):
    def forward(self, x, mask):
        return x


class AsLoss(nn.Module):
    """A loss that is a module, but takes (model, batch) as a loss does."""

    def forward(self, model, batch):
        return mean_squared_error(model, batch)


def adapted(**settings):
    """What one step on a module's problem gives."""
    defaults = {"model": MODEL, "loss": mean_squared_error, "lam": 0.5}
    problem = mp.ProximalProblem.from_module(**defaults | settings)
    return mp.adapt(problem, BATCH, GD, steps=1)


def of_losses(**settings):
    return mp.ProximalProblem(**{"inner_loss": square, "outer_loss": square, "lam": 0.5} | settings)


def from_module(**settings):
    return mp.ProximalProblem.from_module(**{"model": MODEL, "loss": mean_squared_error, "lam": 0.5} | settings)


def backward(**settings):
    """A meta-gradient of a module's problem."""
    tasks = mp.Task(*(tuple(part[None] for part in BATCH) for _ in range(2)))
    return mp.FOMAML(GD, steps=1)(from_module(**settings), dict(MODEL.named_parameters()), tasks)


NO_ADAPT = [
    5,
    True,
    ["weight", 1],
    b"weight",
    [None],
    MODEL,
    torch.ones(2),
    {"weight": True},
    0.5,
    ["weight", ["bias"]],
]


def rows() -> list[Row]:
    found = refused(of_losses, "lam", values.NEGATIVE) + refused(from_module, "lam", values.NEGATIVE)
    found += taken(of_losses, "lam", values.NUMBERS) + taken(adapted, "lam", values.NUMBERS)
    found += refused(of_losses, "adapt", NO_ADAPT) + refused(from_module, "adapt", NO_ADAPT)
    found += taken(
        adapted,
        "adapt",
        [
            (("weight",), "weight"),
            (iter(["weight"]), "weight"),
            ({"weight"}, "weight"),
            ("w*", "weight"),
            ((name for name in ["weight", "bias"]), None),
        ],
    )
    found += [
        Row("adapt=[]", lambda: adapted(adapt=[]), r"adapt=.*no parameter|adapt.*empty"),
        Row("adapt=''", lambda: adapted(adapt=""), "adapt='' fits no parameter"),
        Row("adapt=typo", lambda: adapted(adapt="head.*"), r"adapt='head\.\*' fits no parameter; there are: weight"),
    ]
    for role in ("inner_loss", "outer_loss"):
        no_losses = ["mse", None, 0.5, [square], nn.MSELoss(), nn.MSELoss, MODEL, torch.ones(1)]
        found += refused(of_losses, role, no_losses)
        found += refused(of_losses, role, [one_argument, three_arguments, by_name_alone])
    found += refused(
        of_losses, "parameters", [MODEL.parameters(), list(MODEL.parameters()), {"w": torch.ones(1)}, "w", 5]
    )
    found += refused(of_losses, "transductive", [True, "no", 1])
    found += refused(
        from_module, "model", [nn.Linear, None, square, "net", 0.5, [MODEL], dict(MODEL.named_parameters())]
    )
    losses = [
        "mse",
        0.5,
        [square],
        nn.MSELoss(),
        nn.MSELoss,
        nn.CrossEntropyLoss(),
        torch.ones(1),
        nn.functional.mse_loss,
    ]
    found += refused(from_module, "loss", [*losses, None, one_argument, three_arguments, MODEL])
    found += refused(from_module, "outer_loss", [*losses, three_arguments])
    found += taken(
        adapted,
        "loss",
        [(AsLoss(), mean_squared_error), (lambda m, b, scale=1.0: mean_squared_error(m, b), mean_squared_error)],
    )
    found.append(
        Row("loss: a module of tensors", lambda: adapted(loss=Model()), "inner_loss must return a scalar tensor")
    )
    swapped = {
        "loss and model": (
            lambda: mp.ProximalProblem.from_module(mean_squared_error, MODEL, 0.5),
            "model must be.*function",
        ),
        "lam and loss": (lambda: mp.ProximalProblem.from_module(MODEL, 0.5, mean_squared_error), "loss must be.*0.5"),
        "lam and outer_loss": (
            lambda: mp.ProximalProblem.from_module(MODEL, mean_squared_error, mean_squared_error, 0.5),
            "outer_loss must be.*0.5",
        ),
        "lam first": (lambda: mp.ProximalProblem(0.5, square, square), "inner_loss must be.*0.5"),
        "without lam": (lambda: mp.ProximalProblem(square, square), "lam"),
        "model in losses": (
            lambda: mp.ProximalProblem(MODEL, mean_squared_error, 0.5),
            "inner_loss must be.*from_module",
        ),
    }
    found += [Row(f"swapped: {name}", call, pattern) for name, (call, pattern) in swapped.items()]
    return found + _modules()


def _modules() -> list[Row]:
    lazy, meta = nn.LazyLinear(1), nn.Linear(3, 1, device="meta")
    half, frozen = nn.Linear(3, 1).half(), nn.Linear(3, 1).requires_grad_(False)
    broken = nn.Linear(3, 1)
    with torch.no_grad():
        broken.weight[0, 1] = values.NAN
    models = {
        "lazy": (lazy, "'weight'.*not initialized.*once"),
        "meta": (meta, "'weight'.*meta"),
        "half": (half, "'weight' has dtype torch.float16"),
        "frozen": (frozen, "no parameter of the model requires gradients"),
        "without parameters": (nn.ReLU(), "no parameter of the model requires gradients"),
        "NaN": (broken, "'weight' has non-finite values"),
        "bfloat16": (nn.Linear(3, 1).bfloat16(), "'weight' has dtype torch.bfloat16"),
        "complex": (nn.Linear(3, 1, dtype=torch.complex64), "'weight' has dtype torch.complex64"),
    }
    return [
        Row(f"model: {name}", lambda m=model: adapted(model=m), pattern) for name, (model, pattern) in models.items()
    ]
