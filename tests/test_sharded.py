"""A model that ``fully_shard`` has put into shards has the meta-gradients, and the trainings, of the whole model."""

import math

import pytest
import torch
import torch.distributed.fsdp

from metaprox.modules.sharded import AGAIN
from test_distributed import outcomes

pytestmark = pytest.mark.skipif(
    not hasattr(torch.distributed.fsdp.FSDPModule, AGAIN), reason=f"this torch has no FSDPModule.{AGAIN}"
)
QUICK = (
    "sharded:2:equal-loss+center forward corrected+adaptive+anderson+fomaml+reptile+tol+clipped",
    "sharded:2:refused",
    "sharded:2:failing",
    "sharded:2:memory",
    "sharded:2:offload-center forward corrected+anderson+adapt",
)


@pytest.fixture(scope="module")
def quick():
    return {name.split(":")[2].partition("-")[0]: found["ranks"] for name, found in outcomes(*QUICK).items()}


def assert_equal(ranks, cases):
    """Weights, gradients, buffers, losses, diagnostics and counts of all ranks."""
    assert len(ranks) == 2
    for rank in ranks:
        found = rank["found"]
        assert len(found) == cases
        for name, case in found.items():
            assert max(case["apart"].values()) < 1e-12, (name, case["apart"])
            assert case["counts"][0] == case["counts"][1]
            assert case["size"] > 0.01, name


def test_meta_steps_in_shards_are_those_of_the_whole_model(quick):
    assert_equal(quick["equal"], 8)
    assert "sum" in quick["equal"][0]["found"]["loss"]["apart"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "cases",
    [
        "loss forward+loss corrected+center+predictor+fourth order",
        "rtol+truncation+nesterov+conjugate+adam+optimizer",
        "adapt+adamw+weights+frozen",
    ],
)
def test_every_method_and_solver_in_shards_is_that_of_the_whole_model(cases):
    (found,) = outcomes(f"sharded:2:equal-{cases}").values()
    assert_equal(found["ranks"], len(cases.split("+")))


@pytest.mark.distributed
def test_groups_of_ranks_share_tasks_out_and_shards_within():
    (found,) = outcomes("sharded:4:grid").values()
    for rank in found["ranks"]:
        apart, size, (error, message), (lengths, whole) = rank["found"]
        assert apart < 1e-12 < size
        assert error == "InputError"
        assert "reduce is None in 2, which share a model's shards, of 4 processes" in message
        assert len(lengths) == 8
        for each in lengths:
            assert each == pytest.approx(whole, rel=1e-12)


def test_each_rank_holds_half_of_every_vector(quick):
    for rank in quick["memory"]:
        whole, shards = rank["found"]
        assert whole >= 3 * 1056
        assert 2 * shards == whole


def test_vectors_that_rest_elsewhere_come_back_as_they_were_on_each_rank(quick):
    assert_back(quick["offload"], 3)


@pytest.mark.distributed
def test_those_of_every_kind_of_branch_and_solver_do():
    cases = ["loss", "fourth order", "predictor", "nesterov", "adam", "frozen"]
    (found,) = outcomes(f"sharded:2:offload-{'+'.join(cases)}").values()
    assert_back(found["ranks"], len(cases))


def assert_back(ranks, cases):
    for rank in ranks:
        assert len(rank["found"]) == cases
        for name, case in rank["found"].items():
            assert all(case["same"].values()), (name, case["same"])
            assert case["counts"][0] == case["counts"][1]
            assert case["went"] > 0


def test_a_gradient_that_is_not_finite_on_one_rank_is_seen_on_both_and_x_is_put_back(quick):
    for rank in quick["failing"]:
        fine, diverges, raises, again = rank["found"]["calls"]
        assert fine[0] == again[0] == ["nothing", ""]
        assert diverges[0][0] == "NonFiniteError"
        assert diverges[0][1].startswith("task 1: the gradient of the base solve became non-finite at step 0 of 3")
        assert raises[0] == ["ValueError", "as asked for"]
        for _, left, same_buffers, _ in (fine, diverges, raises, again):
            assert left == [0.0, 1.0, 2.0, 3.0]
            assert same_buffers
        assert [each[3] for each in (fine, diverges, raises, again)] == [1, 2, 3, 4]  # of the user's own calls alone


def test_a_task_that_diverges_on_one_rank_is_left_out_on_both(quick):
    for rank in quick["failing"]:
        assert rank["found"]["skipped"] == [False, True, False]
        one, other = rank["found"]["grads"]
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-12, atol=0)
        assert all(map(math.isfinite, one))


SAID = {
    "vmap": "backend='vmap' and compile=True are not for a model in shards",
    "compile": "backend='vmap' and compile=True are not for a model in shards",
    "MAML": "MAML does not take a model in shards",
    "IMAML": "IMAML does not take a model in shards",
    "Tangent": "Tangent does not take a model in shards",
    "adapt": r"mp.adapt does not take a model in shards",
    "check": r"mp.check does not take a model in shards",
    "suggest": r"mp.suggest does not take a model in shards",
    "learner": r"mp.Learner does not take a model in shards",
    "trainer": "training.Trainer, whose checkpoints are of whole parameters, does not take a model in shards",
    "head": "per_task= or head= does not take a model in shards",
    "writes": "writes on parameters of a model in shards",
    "own solver": "or takes its sums over all ranks, says so: takes_shards = True",
    "shaped solver": "mp.TorchOptimizer(..., elementwise=True)",
    "own reduce": "Clipping does not say that it takes the gradients of a model in shards",
    "all-reduce": "AllReduce is over ranks [0, 1], of which several share the model's shards, [0, 1]",
    "other tasks": "rank 1 was given other tasks, or weights of tasks, than rank 0",
    "more tasks": "rank 1 was given other tasks, or weights of tasks, than rank 0",
    "other weights": "rank 1 was given other tasks, or weights of tasks, than rank 0",
    "shared out": "rank 1 was given other tasks, or weights of tasks, than rank 0",
    "whole": "the model is in shards, but params are whole",
    "plain": "params are DTensors, but the losses are not those of a model in shards",
    "precision": "a MixedPrecisionPolicy, too coarse for differences of solutions: use torch.autocast in the loss",
    "part": "parameter '3.weight' is whole and '0.weight' is in shards: call fully_shard on the model itself",
    "mesh": "of several: shard over a mesh of one dimension",
    "sync": "set_requires_gradient_sync(False): set it to True",
    "factor": "a gradient divide factor, where the mean over ranks is wanted",
}


def test_what_shards_are_not_for_is_refused_by_name_on_all_ranks(quick):
    for rank in quick["refused"]:
        assert rank["found"].keys() == SAID.keys()
        for name, (kind, message, unchanged) in rank["found"].items():
            assert kind == "InputError", (name, kind, message)
            assert SAID[name] in message
            assert unchanged
