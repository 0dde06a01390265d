"""What ranks do with a model in shards, for tests/processes.py: beside each, the same with the whole model."""

import gc
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import metaprox as mp
from metaprox.estimators import finite_difference
from metaprox.training import Pace, Trainer
from metaprox.vectors.norms import joint_norm, largest_of
from test_offload import Elsewhere, InNumpy

STEPS = 3


def net(width=7, seed=0):
    """On two ranks: shards of unequal size, and of the last bias one that is empty."""
    torch.manual_seed(seed)
    layers = [nn.Linear(3, width), nn.Tanh(), nn.Dropout(0.3), nn.Linear(width, 5), nn.BatchNorm1d(5), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(5, 1)).double()


def in_shards(model, **settings):
    fully_shard(model[0], **settings)
    return fully_shard(model, **settings)


def loss(model, batch):
    error = model(batch[0]) - batch[1]
    return error.square().mean(), {"absolute": error.abs().mean()}


def task(i):
    source = torch.Generator().manual_seed(i)
    x = torch.randn(12, 3, generator=source, dtype=torch.float64)
    y = x[:, :1].sin() * torch.randn(1, generator=source, dtype=torch.float64)
    return mp.Task((x[:6], y[:6]), (x[6:], y[6:]))


def tasks(ids):
    return mp.Task.stack([task(i) for i in ids])


def whole(tensor):
    return tensor.full_tensor().detach() if hasattr(tensor, "full_tensor") else tensor.detach()


def flat(values):
    return torch.cat([whole(value).flatten() for value in values])


GD = mp.GradientDescent(0.1)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.5)
CASES = {
    "loss": (mp.FOBMAML(GD, 3), {"all_of_it": True}),
    "loss forward": (mp.FOBMAML(GD, 3, scheme="forward"), {}),
    "loss corrected": (mp.FOBMAML(GD, 3, residual_correction=True), {}),
    "center": (mp.FOBMAML(GD, 3, perturb="center"), {}),
    "center forward corrected": (mp.FOBMAML(GD, 3, perturb="center", scheme="forward", residual_correction=True), {}),
    "predictor": (mp.FOBMAML(GD, 3, perturb="center", start="predictor", branch_steps=2), {}),
    "fourth order": (mp.FOBMAML(GD, 3, scheme="central4", perturb="center"), {}),
    "tol": (mp.FOBMAML(GD, tol=0.3, max_steps=40, perturb="center"), {}),
    "rtol": (mp.FOBMAML(GD, 30, rtol=0.5, perturb="center"), {}),
    "truncation": (mp.FOBMAML(GD, 3, estimate_truncation=True), {}),
    "adaptive": (mp.FOBMAML(mp.AdaptiveGradientDescent(), 6), {}),
    "nesterov": (mp.FOBMAML(mp.Nesterov(0.1), 4), {}),
    "conjugate": (mp.FOBMAML(GD, 3, nu=0.1, branch_solver=mp.ConjugateGradient(0.1)), {}),
    "anderson": (mp.FOBMAML(GD, 3, branch_solver=mp.Anderson(0.1, memory=3)), {}),
    "adam": (mp.FOBMAML(mp.Adam(0.02, eps=1e-3), 4, branch_solver=GD), {}),
    "optimizer": (mp.FOMAML(mp.TorchOptimizer(SGD, elementwise=True), 4), {}),
    "fomaml": (mp.FOMAML(GD, 3), {}),
    "reptile": (mp.Reptile(mp.AdaptiveGradientDescent(), 4), {}),
    "adapt": (mp.FOBMAML(GD, 3), {"adapt": ["6.*", "3.weight"], "all_of_it": True}),
    "clipped": (mp.FOBMAML(GD, 3), {"outer": partial(mp.optim.ClippedSGD, lr=0.5, gamma=0.05)}),
    "adamw": (mp.FOMAML(GD, 3), {"outer": partial(torch.optim.AdamW, lr=0.01, eps=1e-3)}),
    "weights": (mp.FOBMAML(GD, 3), {"weights": [1.0, 3.0]}),
    "frozen": (mp.FOBMAML(GD, 3), {"frozen": True}),
}


def trained(meta, sharded, *, adapt=None, outer=None, weights=None, frozen=False, all_of_it=False):
    """Meta-steps: the parameters' values and gradients afterwards, and what is known of the last step."""
    model = net()
    if frozen:
        model[0].requires_grad_(False)
    if sharded:
        in_shards(model)
    problem = mp.ProximalProblem.from_module(model, loss, lam=0.5, adapt=adapt)
    optimizer = (outer or partial(mp.optim.NormalizedSGD, lr=0.05))([p for p in model.parameters() if p.requires_grad])
    torch.manual_seed(5)
    for step in range(STEPS):
        optimizer.zero_grad()
        out = meta.backward(problem, tasks(range(2 * step, 2 * step + 2)), weights=weights)
        optimizer.step()
    found = {
        "weights": flat(model.parameters()),
        "gradients": flat(value.grad for value in problem.live_parameters().values()),
        "buffers": flat(model.buffers()),
        "loss": out.query_loss,
        "info": torch.tensor(list(out.info.summary().values()), dtype=torch.float64),
    }
    return found | (judged(meta, problem) if all_of_it else {}), vars(out.info.counts)


def judged(meta, problem):
    """A gradient on top of the one that is there, one of each task, solutions, and an evaluation."""
    meta.backward(problem, tasks(range(2)))
    params = problem.live_parameters()
    out = meta(problem, params, tasks(range(2)), per_task=True)
    evaluation = mp.evaluate(problem, tasks, range(3), GD, 2, batch_size=2)
    return {
        "sum": flat(value.grad for value in params.values()),
        "per_task": flat(out.per_task[name] for name in params),
        "adapted": flat(out.adapted.values()),
        "evaluation": torch.stack(list(evaluation.values.values())),
    }


def equal(rank, argument):
    """How far apart two runs are, of each case: in every number, and in what was evaluated."""
    found = {}
    for name in argument.split("+") if argument else CASES:
        meta, settings = CASES[name]
        one, counts = trained(replace(meta, backend="loop", reduce=mp.Reduce()), sharded=False, **settings)
        two, others = trained(meta, sharded=True, **settings)
        apart = {key: float((one[key] - two[key]).abs().nan_to_num().max()) for key in one}
        apart["nan"] = float(any((one[key].isnan() != two[key].isnan()).any() for key in one))
        found[name] = {"apart": apart, "counts": [counts, others], "size": float(one["gradients"].norm())}
    return found


def made(sharder=in_shards, lam=0.5, loss=loss, **settings):
    """A model, the problem of it, and its parameters as they are now."""
    model = net()
    sharder(model)
    problem = mp.ProximalProblem.from_module(model, loss, lam=lam, **settings)
    return model, problem, flat(model.parameters())


@torch.no_grad()
def clip(module, given):
    module.weight.clamp_(-0.1, 0.1)


def writing(model, batch):
    """Clips weights as it goes, after they are gathered."""
    hook = model[3].register_forward_pre_hook(clip)
    try:
        return loss(model, batch)
    finally:
        hook.remove()


def said(act):
    try:
        act()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


class Clipping(mp.Reduce):
    def of_tasks(self, tasks):
        return tasks.grad / tasks.grad.norm()


class Own:
    def init(self, y):
        return None

    def step(self, grad, y, state):
        return y - 0.1 * grad / grad.norm(), None


def refused(rank, argument):
    """What is said of what a model in shards is not for, and whether the model is as it was."""
    meta, found = mp.FOBMAML(GD, 2), {}

    def of(name, act, **settings):
        model, problem, before = made(**settings)
        found[name] = [*said(lambda: act(problem)), bool(torch.equal(before, flat(model.parameters())))]

    of("vmap", lambda problem: replace(meta, backend="vmap").backward(problem, tasks([0, 1])))
    of("compile", lambda problem: replace(meta, compile=True).backward(problem, tasks([0, 1])))
    of("MAML", lambda problem: mp.MAML(GD, 2).backward(problem, tasks([0, 1])), lam=0.0)
    of("IMAML", lambda problem: mp.IMAML(GD, 2).backward(problem, tasks([0, 1])))
    of("Tangent", lambda problem: mp.Tangent(GD, 2).backward(problem, tasks([0, 1])))
    of("own solver", lambda problem: mp.FOMAML(Own(), 2).backward(problem, tasks([0, 1])))
    branches = replace(meta, branch_solver=mp.TorchOptimizer(SGD))
    of("shaped solver", lambda problem: branches.backward(problem, tasks([0, 1])))
    of("own reduce", lambda problem: replace(meta, reduce=Clipping()).backward(problem, tasks([0, 1])))
    of("all-reduce", lambda problem: replace(meta, reduce=mp.distributed.AllReduce()).backward(problem, tasks([0, 1])))
    of("other tasks", lambda problem: meta.backward(problem, tasks([0, 1 + rank])))
    of("more tasks", lambda problem: meta.backward(problem, tasks(range(2 + rank))))
    of("other weights", lambda problem: meta.backward(problem, tasks([0, 1]), weights=[1.0, 1.0 + rank]))
    of("shared out", lambda problem: mp.distributed.evaluate(problem, tasks, range(4), GD, 2))
    of("adapt", lambda problem: mp.adapt(problem, task(0).support, GD, 2))
    of("check", lambda problem: mp.check(problem, tasks([0, 1]), GD, 2))
    of("suggest", lambda problem: mp.suggest(problem, tasks([0, 1]), steps=2))
    of("learner", lambda problem: mp.Learner.of(problem, meta))
    of("writes", lambda problem: meta.backward(problem, tasks([0, 1])), loss=writing)
    of("head", lambda problem: meta.backward(problem, tasks([0, 1])), head=mp.Head("6"))
    of("whole", lambda problem: meta(problem, dict(net().named_parameters()), tasks([0, 1])))
    optimizer = lambda problem: mp.optim.NormalizedSGD(problem.live_parameters().values(), 0.1)  # noqa: E731
    sources = dict.fromkeys(("train", "validation", "test"), tasks)
    of("trainer", lambda problem: Trainer(problem, meta, optimizer(problem), sources, Pace(2, 2)))
    bfloat = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    shards_of = {
        "precision": partial(in_shards, mp_policy=bfloat),
        "part": lambda model: fully_shard(model[0]),
        "mesh": partial(in_shards, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("tasks", "shards"))),
        "sync": lambda model: in_shards(model).set_requires_gradient_sync(False),
        "factor": lambda model: in_shards(model).set_gradient_divide_factor(1.0),
    }
    for name, sharder in shards_of.items():
        found[name] = [*said(lambda one=sharder: made(one)), True]
    model = in_shards(net())
    plain = mp.ProximalProblem(lambda params, data: params["0.bias"].sum(), lambda params, data: data[0].sum(), lam=0.5)
    found["plain"] = [*said(lambda: meta(plain, dict(model.named_parameters()), tasks([0, 1]))), True]
    return found


class Rooted(nn.Module):
    """v[0] is 0, where the root of |v| has no slope: its gradient is NaN on the rank that has v[0], and there alone."""

    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64))
        self.register_buffer("calls", torch.zeros(1))
        self.seen = []

    def forward(self, x, root):
        self.seen.append(len(x))
        self.calls.add_(1.0)
        return x * (self.v.abs().sqrt() if root else self.v).sum()


def rough(model, batch):
    """Diverges on one rank, or raises, as the data ask for, after it has written on the model."""
    x, y, kind = batch
    error = model(x, kind == "diverges") - y
    if kind == "raises":
        raise ValueError("as asked for")
    return error.square().mean()


def odd(i, kind):
    (x, y), (a, b) = task(i)
    return mp.Task((x, y, kind), (a, b, "fine"))


def failing(rank, argument):
    """Calls that fail, on one rank or on both; what is left of the model; and that calls go on afterwards."""
    found, meta, model = [], mp.FOBMAML(GD, 3), fully_shard(Rooted())
    problem = mp.ProximalProblem.from_module(model, rough, lam=0.5)
    for kind in ("fine", "diverges", "raises", "fine"):
        with torch.no_grad():
            model(task(0).support[0], root=False)  # leaves whole parameters, and is to be seen on the model
        calls = model.calls.clone()
        some = [odd(0, "fine"), odd(1, kind)]
        what = said(lambda some=some: meta(problem, problem.live_parameters(), some))
        left = flat(problem.live_parameters().values()).tolist()
        found.append([what, left, bool(torch.equal(calls, model.calls)), len(model.seen)])
    skipped = replace(meta, on_nonfinite="skip")(
        problem, problem.live_parameters(), [odd(0, "fine"), odd(1, "diverges"), odd(2, "fine")]
    )
    alone = meta(problem, problem.live_parameters(), [odd(0, "fine"), odd(2, "fine")])
    grads = [whole(out.grad["v"]).tolist() for out in (skipped, alone)]
    return {"calls": found, "skipped": skipped.info.skipped.tolist(), "grads": grads}


def memory(rank, argument):
    """The most numbers in vectors at an evaluation: of the whole model, and of its shards with their x beside them."""
    found = []
    for sharded in (False, True):
        model = nn.Sequential(nn.Linear(31, 32, bias=False), nn.Tanh(), nn.Linear(32, 2, bias=False)).double()
        if sharded:
            fully_shard(model)
        sizes = []

        def counted(model, batch, sizes=sizes):
            vectors = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.dim() == 3 and t.shape[-1] >= 528]
            begin = [torch._C._data_address(t) - 8 * t.storage_offset() for t in vectors]  # data_ptr() copies lazy ones
            numbers = [t.untyped_storage().nbytes() // 8 for t in vectors]
            sizes.append(sum(dict(zip(begin, numbers, strict=True)).values()))
            return model(batch).square().mean()

        problem = mp.ProximalProblem.from_module(model, counted, lam=0.5)
        data = torch.randn(1, 4, 31, dtype=torch.float64)
        meta = mp.FOBMAML(GD, 3, backend="loop", reduce=mp.Reduce())
        meta.backward(problem, mp.Task(data, data))
        found.append(max(sizes))
    return found


def offload(rank, argument):
    """Meta-steps in shards whose vectors rest elsewhere, and where they do not: whether all numbers are the same."""
    finite_difference.rest_on = lambda device: InNumpy()
    found = {}
    for name in argument.split("+"):
        meta, settings = CASES[name]
        Elsewhere.went = 0
        runs = [trained(replace(meta, offload=on), sharded=True, **settings) for on in (False, True)]
        (one, counts), (two, others) = runs
        same = {key: torch.equal(one[key].nan_to_num(-7.0), two[key].nan_to_num(-7.0)) for key in one}
        found[name] = {"same": same, "counts": [counts, others], "went": Elsewhere.went}
    return found


def grid(rank, argument):
    """Four ranks: two groups with tasks of their own, each with a model in two shards; and one process's gradient."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("tasks", "shards"))
    _, problem, _ = made(partial(in_shards, mesh=mesh["shards"]))
    everyone = mesh.get_group("tasks")
    meta = mp.FOBMAML(GD, 3, reduce=mp.distributed.AllReduce(group=everyone))
    torch.manual_seed(5)
    ids = mp.distributed.shard(range(5), group=everyone)
    meta.backward(problem, tasks(ids))
    several = flat(value.grad for value in problem.live_parameters().values())
    lone = said(lambda: replace(meta, reduce=None).backward(problem, tasks(ids)))
    torch.manual_seed(6)
    judged = mp.distributed.evaluate(problem, tasks, range(5), GD, 2, group=everyone)
    _, problem, _ = made(lambda model: None)
    torch.manual_seed(5)
    replace(meta, backend="loop", reduce=mp.Reduce()).backward(problem, tasks(range(5)))
    alone = flat(value.grad for value in problem.live_parameters().values())
    torch.manual_seed(6)
    one = mp.evaluate(problem, tasks, range(5), GD, 2, backend="loop")
    apart = [several - alone, *(judged.values[name] - one.values[name] for name in one.values)]
    return [max(float(each.abs().max()) for each in apart), float(alone.norm()), lone, lengths(mesh)]


def lengths(mesh):
    """Of a vector placed over two dimensions in every way, and a huge one: its norm and largest, by what is here."""
    source = torch.Generator().manual_seed(0)
    one, found = torch.randn(5, 3, generator=source, dtype=torch.float64), []
    for size in (1.0, 1e200):
        for placed in ((Replicate(), Shard(0)), (Shard(0), Shard(1)), (Shard(1), Replicate()), (Replicate(),) * 2):
            tensors = [distribute_tensor(one * size, mesh, placed), one[0] * size]
            scale, rest = joint_norm(tensors)
            found.append([scale / size * rest, *(value / size for value in largest_of(tensors))])
    whole = [float(torch.cat([one.flatten(), one[0]]).norm()), float(one.abs().max()), float(one[0].abs().max())]
    return [found, whole]


SHARDED = {"equal": equal, "refused": refused, "failing": failing, "memory": memory, "grid": grid, "offload": offload}


def sharded(rank, argument):
    name, _, more = argument.partition("-")
    return SHARDED[name](rank, more)
