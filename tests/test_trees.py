"""Trees are taken apart and built as torch does it."""

from collections import OrderedDict, defaultdict, namedtuple

import pytest
import torch
from torch.utils import _pytree as pytree

import metaprox as mp
from metaprox.checks.trees import flattened, mapped, unflattened

Pair = namedtuple("Pair", "one other")


class Own:
    """A kind of the user's, that torch is told of."""

    def __init__(self, items):
        self.items = items


pytree.register_pytree_node(Own, lambda own: (list(own.items), None), lambda items, _: Own(list(items)))
TREES = {
    "leaf": 1,
    "none": None,
    "empty": (),
    "task": mp.Task((1, 2), [3]),
    "nested": {"b": (1, [2, {"c": 3}]), "a": Pair(4, (5,))},
    "ordered": OrderedDict(b=1, a=(2, 3)),
    "default": (defaultdict(list, a=1), 2),
    "own": [Own([1, (2, 3)]), 4],
    "structure of torch": (torch.return_types.max((1, 2)), 3),
    "subclass of a list": (type("Special", (list,), {})([1, 2]), 3),
}


@pytest.mark.parametrize("name", TREES)
def test_leaves_are_those_of_torch_in_its_order_and_the_tree_is_built_as_it_was(name):
    tree = TREES[name]
    found, form = flattened(tree)
    assert found == pytree.tree_leaves(tree)
    again = unflattened(iter(found), form)
    assert pytree.tree_structure(again) == pytree.tree_structure(tree)
    assert pytree.tree_leaves(again) == found
    assert type(again) is type(tree)
    doubled = mapped(lambda leaf: (leaf, leaf), tree)
    assert flattened(doubled)[0] == [one for leaf in found for one in (leaf, leaf)]


@pytest.mark.parametrize("name", TREES)
def test_forms_are_keys_that_tell_trees_apart(name):
    form = flattened(TREES[name])[1]
    same = flattened(pytree.tree_map(lambda leaf: leaf, TREES[name]))[1]
    assert form == same
    assert hash(form) == hash(same)
    others = [flattened(tree)[1] for other, tree in TREES.items() if other not in (name, "none", "leaf")]
    assert form not in others
    assert flattened({"a": 1})[1] != flattened({"b": 1})[1]
    assert flattened((1, 2))[1] != flattened([1, 2])[1]
