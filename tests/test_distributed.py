"""Several processes are one: the same weights, the same numbers for each task, and an end that names its cause."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import metaprox as mp
from conftest import records
from metaprox.distributed.meeting import met
from metaprox.distributed.pulse import Heart, Pulse
from metaprox.training import RunFolder

HERE = Path(__file__).parent
ALONE = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "METAPROX_PATIENCE")}
QUICK = (
    "training:1:loop-15",
    "training:2:vmap-15",
    "training:4:vmap-15",
    "failing:4:",
    "halting:4:kill",
    "halting:4:stop",
)


def outcomes(*runs):
    """What came of each run of tests/processes.py, by its name."""
    command = [sys.executable, str(HERE / "processes.py"), *runs]
    env = ALONE | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=env)
    lines = done.stdout.splitlines()
    assert len(lines) == len(runs), done.stderr
    return dict(zip(runs, map(json.loads, lines), strict=True))


@pytest.fixture(scope="module")
def quick():
    return outcomes(*QUICK)


def assert_one_training(alone, several):
    """All ranks have the weights of a single process, to rounding, and the same numbers of all tasks."""
    one = alone["ranks"][0]["found"]
    for rank in several["ranks"]:
        found = rank["found"]
        torch.testing.assert_close(torch.tensor(found["weights"]), torch.tensor(one["weights"]), rtol=0, atol=1e-5)
        for name in ("tasks", "evaluation", "info"):
            torch.testing.assert_close(found[name], one[name], rtol=1e-4, atol=1e-5, equal_nan=True)
        assert (found["counts"], found["draw"]) == (one["counts"], one["draw"])
        assert found["evaluation"]["id"] == list(range(9))
    assert len({tuple(rank["found"]["weights"]) for rank in several["ranks"]}) == 1


def test_several_processes_train_as_one_with_dropout_and_uneven_shards(quick):
    for several in ("training:2:vmap-15", "training:4:vmap-15"):
        assert_one_training(quick["training:1:loop-15"], quick[several])


@pytest.fixture
def calls(quick):
    """Of one call after another, what each of four ranks raised or got."""
    return list(zip(*(rank["found"] for rank in quick["failing:4:"]["ranks"]), strict=True))


def test_a_task_that_diverges_is_named_in_all_ranks(calls):
    for kind, message, task in (*calls[1], *calls[4]):
        assert (kind, task) == ("NonFiniteError", 4 if message.startswith("task 4: the gradient of the base") else 0)
    assert all(message.startswith("all 5 tasks diverged") for _, message, _ in calls[4])


@pytest.mark.parametrize(
    ("call", "curvatures"), [(0, [1, 1, 1, 0.5, 1]), (2, [1, 1, 1, 1, None]), (3, [1, 1, None, 0.5, 1])]
)
def test_all_ranks_have_the_mean_over_the_tasks_that_did_not_diverge(calls, call, curvatures):
    """For fhat = c w^2 / 2, f = w^2 / 2, lam = 1 and x = 1: y = 1 / (1 + c), g = 1 / (1 + c)^2, f(y) = g, of two w."""
    expected = [None if c is None else 1 / (1 + c) ** 2 for c in curvatures]
    kept = [g for g in expected if g is not None]
    for grad, skipped, losses in calls[call]:
        assert grad == pytest.approx([sum(kept) / len(kept)] * 2, rel=1e-4)
        assert skipped == [g is None for g in expected]
        assert [loss for loss in losses if loss == loss] == pytest.approx(kept, rel=1e-4)
        assert (grad, skipped) == (calls[call][0][0], calls[call][0][1])


def test_what_goes_wrong_in_one_rank_ends_the_call_in_all_and_names_it(calls):
    raised, argument, nobody, no_reduce, own = calls[5:10]
    assert [each[0] for each in raised] == ["ValueError"] + ["PeerError"] * 3
    assert {each[1] for each in raised[1:]} == {"rank 0 failed: ValueError: a curvature below 0"}
    assert all(each[0] == "InputError" and "weights must be finite and >= 0" in each[1] for each in argument)
    assert all(re.match("rank 1: ", argument[rank][1]) for rank in (0, 2, 3))
    assert all(each[1] == "no process has a task: give at least one" for each in nobody)
    for each in (*no_reduce, *own[2:]):
        assert "reduce=mp.distributed.AllReduce(), or, where that is meant, reduce=mp.Reduce()" in each[1]
    assert [len(each[1]) for each in own[:2]] == [2, 1]  # each its own tasks


def test_other_parameters_in_one_rank_are_refused_in_all(calls):
    values, shapes = calls[10:]
    assert all("the parameters of rank 1 have other values than those of rank 0" in each[1] for each in values)
    assert all("rank 1 have other names, shapes or dtypes" in each[1] for each in shapes)


@pytest.mark.parametrize(
    ("how", "said", "within"), [("kill", "ended without a word", 20), ("stop", "not been heard", 20)]
)
def test_a_rank_that_is_killed_or_stopped_is_named_by_the_others_within_seconds(quick, how, said, within):
    found = quick[f"halting:4:{how}"]
    ranks, halted = found["ranks"], found["halted"]
    assert ranks[2] is None
    for rank in (0, 1, 3):
        assert ranks[rank]["error"] == "PeerError"
        assert ranks[rank]["message"].startswith("rank 2 (process ")
        assert said in ranks[rank]["message"]
        assert 0 < ranks[rank]["at"] - halted < within


@pytest.mark.distributed
def test_several_processes_train_as_one_by_every_backend():
    """Fifty meta-steps: one, two and four processes, in the loop, under vmap and compiled."""
    runs = [f"training:{world}:{how}-50" for how in ("loop", "vmap", "compiled") for world in (1, 2, 4)]
    found = outcomes(*runs)
    for several in runs[1:]:
        assert_one_training(found[runs[0]], found[several])


@pytest.mark.distributed
def test_a_rank_that_fails_elsewhere_is_named_and_one_that_is_slow_is_waited_for():
    found = outcomes("halting:4:error", "halting:4:slow")
    ranks = found["halting:4:error"]["ranks"]
    assert ranks[2]["error"] == "ZeroDivisionError"
    assert all(ranks[rank]["message"].startswith("rank 2 (process ") for rank in (0, 1, 3))
    assert [rank["found"] for rank in found["halting:4:slow"]["ranks"]] == [6] * 4


@pytest.fixture(scope="module")
def runs():
    """What came of small runs of a Trainer in several processes."""
    alone, *several = "running:1:plain", "running:2:callbacks", "running:2:stream", "running:2:full", "running:2:locked"
    several += ["running:2:stopped-2-30", "running:4:stopped-5-6-7-7", "running:2:stopped-40-13"]
    return outcomes(alone, *several)


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "steps"), [("2:stopped-2-30", 2), ("4:stopped-5-6-7-7", 3), ("2:stopped-40-13", 1)])
def test_a_signal_to_any_rank_stops_all_after_the_same_step_and_the_run_goes_on(runs, name, steps):
    """Also to several, each at a moment of its own."""
    whole, *_ = runs["running:1:plain"]["ranks"]
    first, *others = (rank["found"] for rank in runs[f"running:{name}"]["ranks"])
    assert len(first["stops"]) == steps
    for other in others:
        assert [stop[:2] for stop in other["stops"]] == [stop[:2] for stop in first["stops"]]
    for status, where, last in first["stops"]:
        step = int(re.fullmatch(r"after meta-step (\d+) of 30", where)[1])
        assert (status, last) == (143, f"checkpoint-{step:08d}.safetensors")
    assert first["weights"] == pytest.approx(whole["found"]["weights"], abs=1e-6)
    for one, two in zip(whole["found"]["rows"], first["rows"], strict=True):
        same_to_rounding(one, two)


@pytest.mark.distributed
def test_rank_0_alone_tells_callbacks_and_tensorboard(runs):
    first, second = (rank["found"] for rank in runs["running:2:callbacks"]["ranks"])
    assert first["events"] == ["on_checkpoint", "on_end", "on_evaluating", "on_evaluation", "on_start", "on_step"]
    assert second["events"] == []
    assert first["tensorboard"] == 1


@pytest.mark.distributed
def test_a_stream_is_refused_in_all_ranks_before_there_is_a_folder(runs):
    for rank in runs["running:2:stream"]["ranks"]:
        assert "can't be shared out among processes: give a function of ids" in rank["found"]["message"]
        assert not rank["found"]["made"]


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "said"), [("full", "No space left on device"), ("locked", " is in use by process ")])
def test_what_rank_0_can_not_do_ends_all_with_its_cause_within_seconds(runs, name, said):
    first, second = runs[f"running:2:{name}"]["ranks"]
    assert first["error"] == {"full": "RunFolderError", "locked": "InUseError"}[name]
    assert second["error"] == "PeerError"
    assert said in first["message"]
    assert second["message"].startswith("rank 0 ")
    assert said in second["message"]
    assert abs(first["at"] - second["at"]) < 10


TRAIN = [
    "sinusoid",
    "--meta-batch",
    "5",
    "--eval-every",
    "20",
    "--eval-tasks",
    "7",
    "--test-tasks",
    "9",
    "--checkpoint-every",
    "5",
    "--compile",
    "off",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def start(*arguments, several=(), **env):
    command = [*(TORCHRUN if several else [sys.executable]), *several, "-m", "metaprox", *arguments]
    env = ALONE | {"OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def ended(process):
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def same_to_rounding(one, two, rel=1e-3):
    """Records, of whose sentences the words are compared."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            same_to_rounding(value, two[name], rel)
        elif isinstance(value, str):
            assert re.sub(r"[\d.e+-]+", "", value) == re.sub(r"[\d.e+-]+", "", two[name])
        else:
            assert two[name] == pytest.approx(value, rel=rel, abs=1e-4, nan_ok=True), name


FINE = re.compile("median|worst|error|health|warnings|gradient_norm")


def assert_one_run(folder, other):
    """Records and weights of two runs in float32, to rounding; not what is said of the error, which magnifies that."""
    for one, two in zip(records(RunFolder(folder)), records(RunFolder(other)), strict=True):
        assert one.keys() == two.keys()
        same_to_rounding(
            *({name: each[name] for name in each if not FINE.search(name)} for each in (one, two)), rel=0.02
        )
    one, two = (load_file(each / "weights.safetensors") for each in (folder, other))
    torch.testing.assert_close(two, one, rtol=0, atol=2e-2)  # of a path of 0.1 a meta-step


@pytest.mark.distributed
def test_torchrun_trains_as_one_process_and_goes_on_on_another_number(tmp_path):
    alone, several, changed = (tmp_path / name for name in ("alone", "several", "changed"))
    runs = [
        ended(start("train", *TRAIN, "--meta-steps", "40", "--out", str(alone))),
        ended(start("train", *TRAIN, "--meta-steps", "40", "--out", str(several), several=("--nproc-per-node", "3"))),
    ]
    assert [code for code, _ in runs] == [0, 0], runs
    assert runs[1][1].count("meta-step 40 of 40") == 1  # rank 0 alone tells
    assert_one_run(alone, several)
    one = start("train", *TRAIN, "--meta-steps", "40", "--out", str(changed))
    wait_for(lambda: steps(changed) > 6, one)
    one.kill()
    ended(one)
    code, said = ended(start("resume", str(changed), several=("--nproc-per-node", "2")))
    assert code == 0, said
    assert_one_run(alone, changed)
    starts = [json.loads(line) for line in (changed / "starts.jsonl").read_text().splitlines()]
    assert [one["processes"] for one in starts] == [1, 2]  # rank 0 alone writes
    assert starts[1]["command"] == f"metaprox resume {changed}"


@pytest.mark.distributed
def test_torchrun_goes_on_from_the_checkpoint_after_a_rank_was_killed(tmp_path):
    alone, restarted = tmp_path / "alone", tmp_path / "restarted"
    long = ("--meta-steps", "40")
    process = start(
        *("train", *TRAIN, *long, "--out", str(restarted)), several=("--nproc-per-node", "2", "--max-restarts", "1")
    )
    wait_for(lambda: steps(restarted) > 6, process)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    code, said = ended(process)
    assert code == 0, said
    assert ended(start("train", *TRAIN, *long, "--out", str(alone)))[0] == 0
    assert_one_run(alone, restarted)


@pytest.mark.distributed
def test_a_stopped_rank_ends_torchrun_and_other_commands_are_refused(tmp_path):
    out = tmp_path / "stopped"
    process = start(
        *("train", *TRAIN, "--meta-steps", "5000", "--out", str(out)),
        several=("--nproc-per-node", "2"),
        METAPROX_PATIENCE="3",
    )
    wait_for(lambda: steps(out) > 5, process)
    os.kill(workers(process.pid)[1], signal.SIGSTOP)
    began = time.time()
    code, said = ended(process)
    assert code != 0
    assert time.time() - began < 60  # 3 seconds of patience, and up to 30 in which torchrun asks the process to end
    assert "metaprox: error: rank 1 (process" in said
    code, said = ended(start("evaluate", str(out), several=("--nproc-per-node", "2")))
    assert code != 0
    assert "which train and resume alone are for" in said


OWN = """
import os, signal, sys
import metaprox as mp
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid

with mp.distributed.processes() as rank:
    problem = mp.ProximalProblem.from_module(mlp([1, 8, 1], seed=0), mean_squared_error, lam=0.5)
    meta = mp.FOBMAML(mp.GradientDescent(lr=0.01), steps=2, reduce=mp.distributed.AllReduce())
    for step in range(6):
        if [rank, step] == [int(word) for word in sys.argv[1:]]:
            os.kill(os.getpid(), signal.SIGSTOP)
        meta.backward(problem, Sinusoid().batch(mp.distributed.shard(range(4))))
    print("all steps", flush=True)
    if rank == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stopped", "step", "said"), [(1, 3, "rank 1 (process"), (1, 9, "rank 1 (process"), (0, 3, "store")]
)
def test_a_script_of_ones_own_ends_by_itself_where_another_process_is_stopped(stopped, step, said):
    """In a call, and after the last one, where all wait for each other; torch would wait for half an hour at exit."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    env = ALONE | {"OMP_NUM_THREADS": "1", "METAPROX_PATIENCE": "3", "WORLD_SIZE": "2", "MASTER_PORT": port}
    env["MASTER_ADDR"] = "127.0.0.1"
    command = [sys.executable, "-c", OWN, str(stopped), str(step)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [subprocess.Popen(command, env=env | {"RANK": str(rank)}, **pipes) for rank in range(2)]
    try:
        wait_for(lambda: stat(running[stopped]) == "T", running[stopped])
        began = time.time()
        told, _ = running[1 - stopped].communicate(timeout=60)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert time.time() - began < 30  # 3 seconds of patience
    assert running[1 - stopped].returncode == 1
    assert "PeerError" in told
    assert said in told
    assert ("all steps" in told) == (step == 9)


def stat(process):
    """T where it is stopped."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def steps(folder):
    place = folder / "metrics.jsonl"
    return place.read_text().count('"kind": "step"') if place.exists() else 0


def workers(parent):
    """Of torchrun, the processes by rank."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return sorted(int(child) for child in found if b"metaprox" in Path(f"/proc/{child}/cmdline").read_bytes())


def wait_for(condition, process, seconds=120):
    until = time.time() + seconds
    while not condition():
        assert time.time() < until
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def meeting(store, delays):
    """The word that each of several threads leaves with, which come after these many seconds."""

    def come(rank):
        time.sleep(delays[rank])
        return met(store, rank, len(delays), wait=20.0)

    with ThreadPoolExecutor(len(delays)) as pool:
        return list(pool.map(come, range(len(delays))))


def test_processes_meet_those_of_their_own_start_whatever_earlier_ones_have_left():
    store = torch.distributed.HashStore()
    words = [meeting(store, delays) for delays in ([0, 0, 0], [0, 0.2, 0.4], [0.4, 0, 0.2])]
    assert all(len(set(each)) == 1 for each in words)
    assert len({each[0] for each in words}) == 3


@pytest.mark.distributed
def test_processes_that_have_made_several_meshes_end_well():
    """Signs of life that went on into the end of the interpreter aborted every third run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(HERE / "meshes.py")]
    for _ in range(6):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=ALONE | {"OMP_NUM_THREADS": "1"}, timeout=120
        )
        assert done.returncode == 0, done.stderr


def test_one_thread_gives_signs_of_life_for_all_groups_and_ends():
    store, others = torch.distributed.HashStore(), torch.distributed.HashStore()
    beating = lambda: [one for one in threading.enumerate() if "_beat" in one.name]  # noqa: E731
    before = len(beating())
    pulses = [Pulse(store, 0, ranks, 1.0) for ranks in ([0, 1], [0, 2], [0, 3])]
    assert len(beating()) == before + 1
    Pulse(others, 0, [0, 1], 1.0)
    assert len(beating()) == before + 1
    wait_until(lambda: others.add("metaprox/0/beats", 0) > 0)
    assert [pulse.silence().keys() for pulse in pulses] == [{1}, {2}, {3}]
    Heart.end()
    assert len(beating()) == before


def wait_until(done):
    while not done():
        time.sleep(0.01)


class Counting:
    """A store that counts the messages that it gets."""

    def __init__(self, store):
        self.store, self.messages = store, Counter()

    def __getattr__(self, name):
        def call(*given):
            self.messages[name] += 1
            return getattr(self.store, name)(*given)

        return call


@pytest.mark.parametrize("size", [2, 4])
def test_messages_of_a_meeting_grow_as_the_number_of_processes(size):
    """Whoever comes last; and a few more where something is left of earlier ones."""
    store = torch.distributed.HashStore()
    for last, most in ((0, 0), (1, 0), (0, 8)):
        counted = Counting(store if last == 0 else torch.distributed.HashStore())
        assert len(set(meeting(counted, [0.3 if rank == last else 0 for rank in range(size)]))) == 1
        others = size - 1
        assert 0 <= counted.messages.total() - (2 + 6 * others) <= most * others, counted.messages


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_look_at_who_lives_takes_three_messages_of_however_many(size):
    store = torch.distributed.HashStore()
    pulse = Pulse(store, 0, range(size), 1.0)
    pulse._store = counted = Counting(pulse._store)
    pulse.silence()  # the first time each is asked for
    assert counted.messages["add"] == size
    time.sleep(0.1)
    counted.messages.clear()
    store.add(f"metaprox/{size - 1}/beats", 1)
    silent = pulse.silence()
    assert silent[size - 1] < 0.1
    assert all(silent[rank] > 0.1 for rank in range(1, size - 1))
    assert pulse.told() == {}
    assert counted.messages.pop("has_extended_api") == 1  # which is no message
    assert counted.messages.total() == 3
    other = Pulse(store, size - 1, range(size), 1.0)
    other.tell("a reason")
    assert pulse.told() == pulse.told() == {size - 1: "a reason"}
    other.tell("")
    assert pulse.told() == {}


@pytest.mark.parametrize(("rank", "missing"), [(0, r"ranks \[1, 2\]"), (1, "rank 0")])
def test_a_process_that_does_not_come_is_named(rank, missing):
    with pytest.raises(mp.PeerError, match=f"{missing} ha(s|ve) not come within 0 s"):
        met(torch.distributed.HashStore(), rank, 3, wait=0.1)


def test_in_one_process_nothing_changes():
    assert mp.distributed.shard(range(5)) == range(5)
    assert mp.distributed.shard([]) == []
    loss = lambda params, target: 0.5 * ((params["w"] - target) ** 2).sum()  # noqa: E731
    problem, params = mp.ProximalProblem(loss, loss, lam=1.0), {"w": torch.zeros(2)}
    batch = mp.Task(torch.randn(3, 2), torch.randn(3, 2))
    plain = mp.FOBMAML(mp.GradientDescent(0.5), 5)
    summed = mp.FOBMAML(mp.GradientDescent(0.5), 5, reduce=mp.distributed.AllReduce())
    assert torch.equal(plain(problem, params, batch).grad["w"], summed(problem, params, batch).grad["w"])
    one = mp.evaluate(problem, batch, None, mp.GradientDescent(0.5), 5, params=params)
    two = mp.distributed.evaluate(problem, batch, None, mp.GradientDescent(0.5), 5, params=params)
    assert torch.equal(one.values["loss"], two.values["loss"])


def test_a_process_of_several_that_have_not_been_joined_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(mp.InputError, match=r"one of 2 processes, which do not know each other yet: call torch\.dist"):
        mp.distributed.shard(range(4))


@pytest.mark.parametrize("odd", [3, "abc", {1: 2}])
def test_what_has_no_order_is_not_cut(odd):
    with pytest.raises(mp.InputError, match=r"tasks must be a mp\.Task, a list, a range or a tensor, got"):
        mp.distributed.shard(odd)


@pytest.mark.parametrize(
    ("rank", "devices", "own", "backend"), [(1, 4, 1, "cpu:gloo,cuda:nccl"), (3, 2, 1, "gloo"), (1, 0, None, "gloo")]
)
def test_each_process_has_a_device_and_nccl_where_there_are_enough(rank, devices, own, backend, monkeypatch):
    taken = []
    env = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for name, value in (("is_available", devices > 0), ("device_count", devices)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)

    def join(*args, **settings):
        taken.append(args[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    with pytest.raises(KeyboardInterrupt), mp.distributed.processes():
        pass
    assert taken == [*([] if own is None else [own]), backend]
