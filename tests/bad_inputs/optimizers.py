"""The outer optimizers."""

import torch

import metaprox as mp
from bad_inputs import values
from bad_inputs.rows import Row, refused, taken


def parameter():
    return torch.nn.Parameter(torch.tensor([3.0, 4.0]))


def normalized(**settings):
    return stepped(mp.optim.NormalizedSGD, **{"lr": 0.5, "momentum": 0.5} | settings)


def clipped(**settings):
    return stepped(mp.optim.ClippedSGD, **{"lr": 0.5, "gamma": 0.5} | settings)


def stepped(kind, grad=(3.0, 4.0), change=lambda optimizer: None, **settings):
    """Where one step leads."""
    x = parameter()
    optimizer = kind([x], **settings)
    x.grad = torch.tensor(grad)
    change(optimizer)
    optimizer.step()
    return x.detach()


def group(name, value):
    def change(optimizer):
        optimizer.param_groups[0][name] = value

    return change


def buffer(value):
    def change(optimizer):
        x = optimizer.param_groups[0]["params"][0]
        optimizer.state[x]["momentum_buffer"] = value

    return change


def rows() -> list[Row]:
    found: list[Row] = []
    for call in (normalized, clipped):
        found += refused(call, "lr", values.NEGATIVE) + taken(call, "lr", values.NUMBERS)
    found += refused(normalized, "momentum", values.NO_FRACTIONS) + refused(clipped, "gamma", values.NOT_POSITIVE)
    found += taken(normalized, "momentum", values.NUMBERS[:4]) + taken(clipped, "gamma", values.NUMBERS)
    for call, names in ((normalized, ("lr", "momentum")), (clipped, ("lr", "gamma"))):
        for name in names:
            for value in (-1.0, values.NAN, "0.1", values.INF, None):
                what = f"{call.__name__}: group {name}={value!r}"
                found.append(Row(what, lambda c=call, n=name, v=value: c(change=group(n, v)), name))
    found.append(Row("normalized: group momentum=2.0", lambda: normalized(change=group("momentum", 2.0)), "momentum"))
    buffers = {
        "NaN": torch.tensor([values.NAN, 0.0]),
        "infinite": torch.tensor([values.INF, 0.0]),
        "shape": torch.zeros(3),
    }
    found += [
        Row(f"normalized: buffer {name}", lambda b=b: normalized(change=buffer(b)), "momentum|buffer")
        for name, b in buffers.items()
    ]
    for call in (normalized, clipped):
        for grad in ((values.NAN, 0.0), (values.INF, 0.0)):
            found.append(
                Row(
                    f"{call.__name__}: grad {grad}",
                    lambda c=call, g=grad: c(grad=g),
                    "the gradient of parameter 0 of group 0 has an entry of",
                )
            )
    tiny, huge = (1.5e-22, 2e-22), (3e20, 4e20)
    along = torch.tensor([2.7, 3.6])
    found += [
        Row("normalized: tiny", lambda: normalized(grad=tiny).allclose(along), reference=lambda: True),
        Row("normalized: huge", lambda: normalized(grad=huge).allclose(along), reference=lambda: True),
    ]
    for kind in (mp.optim.NormalizedSGD, mp.optim.ClippedSGD):
        extra = {} if kind is mp.optim.NormalizedSGD else {"gamma": 1.0}
        found.append(Row(f"{kind.__name__} without lr", lambda k=kind: k([parameter()]), "lr"))
        none = {"an empty list": [], "None": None, "a string": "w", "a number": 5}
        found += [
            Row(f"{kind.__name__}: params {name}", lambda k=kind, p=p, e=extra: k(p, lr=0.1, **e), "param")
            for name, p in none.items()
        ]
    return found
