"""The loops of other libraries in docs/migrating.md take the step that ours beside them takes."""

import copy
import re

import pytest
import torch

import metaprox as mp
from test_docs import ROOT, blocks, others

PAGE = ROOT / "docs" / "migrating.md"
THEIRS = {re.search(r"^import (\w+)", block, flags=re.MULTILINE)[1]: block for block in blocks(PAGE, "py")}


def after(block, names):
    """The weights in float64 after a block of the page, from the start of the others."""
    model = copy.deepcopy(names["model"]).double()
    model.load_state_dict(names["start"])
    doubled = [mp.Task(*(tuple(part.double() for part in pair) for pair in task)) for task in names["tasks"]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exec(compile(block, str(PAGE), "exec"), {**names, "model": model, "tasks": doubled, "optimizer": optimizer})
    return torch.cat([value.flatten() for value in model.state_dict().values()])


@pytest.fixture(scope="module")
def page():
    """What the first block leaves behind, and our block with MAML."""
    ours = blocks(PAGE, "python")
    names = {}
    exec(compile(ours[0], str(PAGE), "exec"), names)
    return names, next(block for block in ours if "mp.MAML(" in block)


@others
@pytest.mark.parametrize("package", THEIRS)
def test_their_loop_takes_our_step(package, page):
    pytest.importorskip(
        package, reason=f"{package} is not installed; higher and torchopt: pip install 'metaprox[peers]'"
    )
    names, ours = page
    theirs, found = after(THEIRS[package], names), after(ours, names)
    start = torch.cat([value.flatten() for value in names["start"].values()])
    assert (found - start).norm() > 1e-3  # a step was taken
    assert (theirs - found).norm() < 1e-12 * found.norm()


def test_all_three_are_there():
    assert list(THEIRS) == ["learn2learn", "higher", "torchopt"]
    assert (THEIRS["learn2learn"].count(".clone()"), THEIRS["learn2learn"].count(".adapt(")) == (1, 1)
