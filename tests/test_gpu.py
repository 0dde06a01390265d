"""On a CUDA device, by `make gpu`: results are those of the CPU, where tensors lie, noise, graphs, precision, memory.

Skipped where there is no such device.
"""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

import metaprox as mp
import test_first_order_only as first_order
from conftest import LAM, SCHEMES, SOLVERS, relative_error
from metaprox.checks.trees import on_device
from metaprox.comparison import peak_memory
from metaprox.losses import compiled
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.modules.sharded import AGAIN
from metaprox.tasks import Quadratic, Sinusoid
from metaprox.tasks import quadratic as closed_form
from metaprox.training import Pace, Trainer

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's compiler itself, as the next
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]
GD = mp.GradientDescent(0.05)
SPLITS = ("train", "validation", "test")
METHODS = {
    "loss": mp.FOBMAML(GD, 5, perturb="loss"),
    "center": mp.FOBMAML(GD, 5, perturb="center", scheme="forward", residual_correction=True),
    "adaptive": mp.FOBMAML(mp.AdaptiveGradientDescent(), 5, branch_steps=3, perturb="center"),
    "conjugate": mp.FOBMAML(GD, 5, branch_solver=mp.ConjugateGradient(0.05), estimate_truncation=True),
    "tangent": mp.Tangent(GD, 5),
    "maml": mp.MAML(GD, 5),
    "imaml": mp.IMAML(GD, 5),
    "fomaml": mp.FOMAML(GD, 5),
    "reptile": mp.Reptile(GD, 5),
}


def sinusoids(model, count=6, loss=mean_squared_error):
    """(problem, tasks) in the dtype of the model, on the device."""
    model = copy.deepcopy(model).to(DEVICE)
    dtype = next(model.parameters()).dtype
    tasks = Sinusoid().batch(range(count))
    tasks = mp.Task(*(tuple(leaf.to(DEVICE, dtype) for leaf in part) for part in tasks))
    return mp.ProximalProblem.from_module(model, loss, LAM), tasks


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(1, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 1)
    )


def convolutional(width=16):
    torch.manual_seed(0)
    layers = []
    for inputs in (1, width, width):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width, track_running_stats=False), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def pictures(tasks=4, queries=15):
    source = torch.Generator().manual_seed(0)

    def part(count):
        return torch.randn(tasks, count, 1, 28, 28, generator=source), (torch.arange(count) % 5).expand(tasks, count)

    return on_device(mp.Task(part(5), part(5 * queries)), DEVICE)


def called(estimator, problem, tasks):
    return estimator(problem, problem.live_parameters(), tasks)


def flat(out):
    return torch.cat([g.flatten().double() for g in out.grad.values()])


@pytest.mark.parametrize("on", [False, True], ids=["eager", "compiled"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(on, tmp_path):
    """A model with dropout, trained by `Trainer` on the device; compiled steps included."""
    compiled.forget()

    def trainer():
        problem, _ = sinusoids(net(dropout=0.2))
        meta = mp.FOBMAML(GD, 3, perturb="center", compile=on, backend="vmap", chunk_size=None)
        outer = mp.optim.NormalizedSGD(problem.live_parameters().values(), lr=0.05)
        pace = Pace(meta_steps=8, meta_batch=4, eval_tasks=4, test_tasks=4, checkpoint_every=2)
        return Trainer(problem, meta, outer, {split: Sinusoid(split=split) for split in SPLITS}, pace)

    def interrupt(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    straight, stopped, resumed = trainer(), trainer(), trainer()
    straight.train(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        stopped.train(tmp_path / "stopped", interrupt)
    resumed.resume(tmp_path / "stopped")
    for one, other in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert one.is_cuda
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["center", "fomaml"])
def test_compiled_equals_eager(method):
    compiled.forget()
    problem, tasks = sinusoids(net().double())
    meta = replace(METHODS[method], backend="vmap", chunk_size=None)
    for steps in (5, 8):
        ours, theirs = (called(replace(meta, steps=steps, compile=on), problem, tasks) for on in (True, False))
        assert relative_error(flat(ours), flat(theirs)) < 1e-7
        torch.testing.assert_close(ours.query_loss, theirs.query_loss)
        assert ours.info.counts == theirs.info.counts


def test_compiled_noise_is_that_of_eager_mode():
    compiled.forget()
    problem, tasks = sinusoids(net(dropout=0.5).double())
    found = []
    for on in (True, False):
        torch.manual_seed(1)
        meta = replace(METHODS["center"], eps=1e-3, backend="vmap", chunk_size=None, compile=on)
        found.append(flat(called(meta, problem, tasks)))
    assert relative_error(*found) < 1e-8


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("solver", "backend"), [*((name, "vmap") for name in SOLVERS if name != "adam"), ("gd", "loop")]
)
def test_the_closed_form_is_met(solver, scheme, backend):
    family = Quadratic(dim=8, condition=10.0, seed=3)
    tasks = on_device(family.batch(range(5)), DEVICE)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64, device=DEVICE)
    meta = mp.FOBMAML(SOLVERS[solver], tol=1e-13, max_steps=150, scheme=scheme, backend=backend)
    out = meta(family.problem(LAM), {"y": x}, tasks)
    truth = closed_form.meta_gradient(x, tasks, LAM).mean(0)
    assert relative_error(out.grad["y"], truth) < (1e-5 if solver == "anderson" or scheme == "forward" else 1e-7)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("method", METHODS)
def test_results_are_those_of_the_cpu(method, backend):
    meta = replace(METHODS[method], backend=backend)
    problem, tasks = sinusoids(net().double())
    ours = called(meta, problem, tasks)
    model = net().double()
    theirs = called(meta, mp.ProximalProblem.from_module(model, mean_squared_error, LAM), on_device(tasks, "cpu"))
    assert relative_error(flat(ours).cpu(), flat(theirs)) < 1e-6
    torch.testing.assert_close(ours.query_loss.cpu(), theirs.query_loss)
    assert ours.info.counts == theirs.info.counts
    assert {*map(str, (ours.query_loss.device, *(g.device for g in ours.grad.values())))} == {"cuda:0"}


@pytest.mark.parametrize("entry", first_order.ZOO)
@pytest.mark.parametrize("method", ["loop", "auto", "center"])
def test_what_second_derivatives_trip_over_has_the_gradients_of_the_cpu(entry, method):
    found = []
    for device in ("cpu", DEVICE):
        one = first_order.ZOO[entry]
        model, tasks = first_order.case(one)
        problem = mp.ProximalProblem.from_module(model.to(device), one.loss, first_order.LAM)
        found.append(flat(called(first_order.METHODS[method], problem, on_device(tasks, device))).cpu())
    assert relative_error(found[1], found[0]) < (2e-2 if entry == "bfloat16-backbone" else 1e-6)


class Elsewhere(TorchDispatchMode):
    """Notes the operations with results of some size that are not on the device."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor) and one.is_floating_point() and one.numel() > 64 and not one.is_cuda:
                self.found.add(f"{func}: {tuple(one.shape)}")
        return out


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("method", METHODS)
def test_no_vector_is_anywhere_else(method, backend):
    problem, tasks = sinusoids(net(dropout=0.5))
    with Elsewhere() as elsewhere:
        called(replace(METHODS[method], backend=backend), problem, tasks)
    assert not elsewhere.found


@pytest.mark.parametrize("method", ["center", "maml", "fomaml"])
def test_noise_is_that_of_the_task_whatever_the_backend_and_the_chunks(method):
    problem, tasks = sinusoids(net(dropout=0.5).double())
    found = []
    for settings in (
        {"backend": "loop"},
        {"backend": "vmap", "chunk_size": 2},
        {"backend": "vmap", "chunk_size": None},
    ):
        torch.manual_seed(7)
        found.append(flat(called(replace(METHODS[method], **settings), problem, tasks)))
    assert relative_error(found[2], found[1]) < 1e-7
    assert relative_error(found[1], found[0]) < 1e-7
    torch.manual_seed(8)
    assert relative_error(flat(called(METHODS[method], problem, tasks)), found[0]) > 1e-2


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_branches_share_their_noise(backend):
    """Fresh noise would be divided by eps = 1e-6; the derivative takes its own noise from the same seed."""
    problem, tasks = sinusoids(net(dropout=0.5).double())
    found = []
    for meta in (mp.FOBMAML(GD, 5, perturb="center", eps=1e-6), mp.Tangent(GD, 5, perturb="center")):
        torch.manual_seed(7)
        found.append(flat(called(replace(meta, backend=backend), problem, tasks)))
    assert relative_error(*found) < 1e-6


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_the_callers_generators_are_left(backend):
    problem, tasks = sinusoids(net(dropout=0.5))
    torch.manual_seed(3)
    torch.rand(5, device=DEVICE)
    before, own = torch.cuda.get_rng_state(DEVICE), torch.get_rng_state()
    called(replace(METHODS["center"], backend=backend), problem, tasks)
    assert torch.equal(torch.cuda.get_rng_state(DEVICE), before)
    torch.set_rng_state(own)  # of which one number was drawn


def precise(model, tasks, steps=10):
    """The derivative that differences approximate, in float64."""
    wide = mp.Task(*((inputs.double(), labels) for inputs, labels in tasks))
    problem = mp.ProximalProblem.from_module(copy.deepcopy(model).double(), cross_entropy, LAM)
    return flat(called(mp.Tangent(GD, steps, perturb="center", backend="loop"), problem, wide))


@pytest.mark.parametrize("backend", ["auto", "loop"])  # vmap takes no convolutions in autocast, which torch has not
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_in_tf32_and_bfloat16_are_differenced_over_steps_that_suit_them(dtype, backend):
    """cuDNN takes products of float32 in TF32, 10 bits, unless told otherwise."""
    assert torch.backends.cudnn.allow_tf32
    model, tasks = convolutional().to(DEVICE), pictures()

    def loss(net, batch):
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = net(batch[0])
        return nn.functional.cross_entropy(out.float(), batch[1])

    truth = precise(model, tasks)
    meta = mp.FOBMAML(GD, 10, perturb="center", backend=backend)
    out = called(meta, mp.ProximalProblem.from_module(model, loss, LAM), tasks)
    error = relative_error(flat(out), truth)
    print(f"\n{dtype} {backend}: error {error:.2e}, estimated {out.info.relative_error.tolist()}")
    assert error < (0.1 if dtype == torch.bfloat16 else 0.02)


def test_chunks_fit_the_memory(monkeypatch):
    """A quarter of 1 GiB, where all tasks at once take more than that."""
    limit = 2**30
    monkeypatch.setattr("metaprox.losses.choose.memory_of", lambda device: limit)
    problem = mp.ProximalProblem.from_module(convolutional(64).to(DEVICE), cross_entropy, LAM)
    tasks, meta = pictures(tasks=32), mp.FOMAML(GD, 2, backend="vmap")
    whole, chunked = (
        peak_memory(lambda size=size: called(replace(meta, chunk_size=size), problem, tasks), DEVICE)
        for size in (None, "auto")
    )
    print(f"\nall at once {whole / 2**20:.0f} MiB, in chunks {chunked / 2**20:.0f} MiB")
    assert whole > limit / 2
    assert chunked < limit / 2


def test_memory_does_not_grow_with_steps_and_that_of_maml_does():
    problem = mp.ProximalProblem.from_module(convolutional(32).to(DEVICE), cross_entropy, LAM)
    tasks, peaks = pictures(), {}
    for name in ("center", "maml"):
        for steps in (4, 4, 16):
            meta = replace(METHODS[name], steps=steps, backend="loop")
            if name == "center":
                meta = replace(meta, branch_steps=4)
            peaks[name, steps] = peak_memory(lambda meta=meta: called(meta, problem, tasks), DEVICE)
    print("\n", peaks)
    assert peaks["center", 16] <= 1.02 * peaks["center", 4]
    assert peaks["maml", 16] > 2 * peaks["maml", 4]


@pytest.mark.parametrize(
    ("method", "given", "stay"), [("loss", {"perturb": "loss", "nu": 0.1}, (5, 2)), ("center", {}, (5, 3))]
)
def test_offload_leaves_the_vectors_that_are_claimed_and_the_same_results(method, given, stay):
    """Beside them are a parameter's gradient, a sixteenth of a vector, and blocks of 4 MiB; one branch of "center"."""
    torch.manual_seed(0)
    model = mlp([16, *[1024] * 17, 1])
    problem, (support, query) = sinusoids(model)[0], torch.randn(2, 2, 8, 16, device=DEVICE)
    tasks = mp.Task(*((inputs, inputs[..., :1].sin()) for inputs in (support, query)))
    vector, found, peaks = 4 * sum(p.numel() for p in model.parameters()), [], []
    for offload in (False, True):
        meta = replace(METHODS[method], **given, backend="loop", offload=offload)
        found.append(called(meta, problem, tasks))
        live = problem.live_parameters().values()
        for _ in range(2):  # the first one warms up
            for value in live:
                value.grad = None
            one = mp.Task(*(tuple(leaf[:1] for leaf in half) for half in tasks))
            peak = peak_memory(lambda meta=meta, one=one: meta.backward(problem, one), DEVICE)
        peaks.append(peak / vector)
    print(f"\n{method}: {peaks[0]:.2f} vectors, with offload {peaks[1]:.2f}")
    for name, grad in found[0].grad.items():
        assert torch.equal(grad, found[1].grad[name])
        assert torch.equal(found[0].adapted[name], found[1].adapted[name])
        assert found[1].grad[name].is_cuda
    assert torch.equal(found[0].info.relative_error, found[1].info.relative_error)
    assert peaks[0] - peaks[1] > stay[0] - stay[1] - 0.5
    assert peaks[1] < stay[1] + 0.7


def of_many_parameters(dtype):
    """(problem, tasks) of a model whose x is not copied."""
    model = mlp([16, *[256] * 50, 1]).to(DEVICE, dtype)
    support, query = torch.randn(2, 2, 8, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    tasks = mp.Task(*((inputs, inputs[..., :1].sin()) for inputs in (support, query)))
    return mp.ProximalProblem.from_module(model, mean_squared_error, LAM), tasks


@pytest.mark.parametrize("method", ["center", "loss"])
def test_results_of_many_parameters_are_those_of_the_cpu(method):
    meta, (problem, tasks) = replace(METHODS[method], backend="loop"), of_many_parameters(torch.float64)
    ours = called(meta, problem, tasks)
    model = mlp([16, *[256] * 50, 1]).double()
    theirs = called(meta, mp.ProximalProblem.from_module(model, mean_squared_error, LAM), on_device(tasks, "cpu"))
    assert relative_error(flat(ours).cpu(), flat(theirs)) < 1e-6
    torch.testing.assert_close(ours.info.relative_error.cpu(), theirs.info.relative_error, rtol=0.1, atol=0)


class Attention(nn.Module):
    def __init__(self, width=64, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, 5)

    def forward(self, x):
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        return self.out(scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2).mean(1))


def test_flash_attention_has_a_meta_gradient_of_ours_and_none_of_second_order():
    torch.manual_seed(0)
    model = Attention().to(DEVICE)
    tasks = on_device(
        mp.Task(
            (torch.randn(2, 5, 32, 64), torch.arange(5).expand(2, 5)),
            (torch.randn(2, 20, 32, 64), (torch.arange(20) % 5).expand(2, 20)),
        ),
        DEVICE,
    )

    def loss(net, batch):
        with torch.autocast("cuda", torch.bfloat16):
            out = net(batch[0])
        return nn.functional.cross_entropy(out.float(), batch[1])

    problem = mp.ProximalProblem.from_module(model, loss, LAM)
    with sdpa_kernel(SDPBackend.MATH):
        truth = precise(model, tasks)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = called(mp.FOBMAML(GD, 10, perturb="center"), problem, tasks)
        with pytest.raises(RuntimeError, match="flash_attention_backward"):
            called(mp.MAML(GD, 2, backend="loop"), problem, tasks)
    assert relative_error(flat(out), truth) < 0.1


def test_tasks_that_lie_elsewhere_are_named():
    problem, tasks = sinusoids(net())
    with pytest.raises(mp.InputError, match=r"on cpu.*parameters.*cuda:0"):
        called(METHODS["center"], problem, on_device(tasks, "cpu"))


def command(*words, **env):
    settings = {"capture_output": True, "text": True, "check": False, "timeout": 300, "env": os.environ | env}
    done = subprocess.run([sys.executable, *words], **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_line_trains_evaluates_and_reports_on_it(tmp_path):
    run = tmp_path / "run"
    training = ("sinusoid", "--device", "cuda", "--meta-steps", "20", "--eval-every", "10", "--eval-tasks", "20")
    command("-m", "metaprox", "train", *training, "--test-tasks", "50", "--out", str(run))
    assert json.loads((run / "config.json").read_text())["device"] == "cuda"
    command("-m", "metaprox", "report", str(run))
    assert (run / "report.html").exists()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_processes_share_a_device_and_come_to_what_one_comes_to(device, tmp_path):
    """Two on one GPU, or on the CPU of a machine that has one: gloo."""
    found = []
    for name, processes in (("one", 1), ("two", 2)):
        start = (
            [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        )
        command(
            *start, "-m", "metaprox", "train", "sinusoid", "--device", device, "--meta-steps", "6", "--eval-every", "6",
            "--eval-tasks", "8", "--test-tasks", "8", "--out", str(tmp_path / name), OMP_NUM_THREADS="1",
        )  # fmt: skip
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found.append([record["loss"]["mean"] for record in map(json.loads, lines) if record["kind"] == "evaluation"])
    assert len(found[0]) == 3
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.skipif(not hasattr(FSDPModule, AGAIN), reason=f"this torch has no FSDPModule.{AGAIN}")
def test_a_model_in_shards_on_one_device_has_the_gradients_of_the_whole(tmp_path):
    script = Path(__file__).with_name("processes_gpu.py")
    found = json.loads(command(str(script), MASTER_ADDR="127.0.0.1", MASTER_PORT="29511").splitlines()[-1])
    assert found["apart"] < 1e-10
    assert found["size"] > 1e-3


def test_an_adapted_learner_answers_on_it():
    torch.manual_seed(0)
    inputs, labels = torch.randn(15, 4, device=DEVICE), torch.arange(3, device=DEVICE).repeat_interleave(5)
    answers = []
    for device in (DEVICE, "cpu"):
        learner = mp.Learner(mlp([4, 8, 3], seed=1).to(device), cross_entropy, 0.1, mp.GradientDescent(0.3), 15)
        answers.append(learner.adapt((inputs.to(device), labels.to(device))).predict(inputs).outputs)
    torch.testing.assert_close(answers[0].cpu(), answers[1], rtol=1e-4, atol=1e-5)
