"""Tensors that were made in inference mode, which autograd refuses, as tensors that it takes."""

from typing import Any

import torch
from torch import Tensor

from metaprox.checks.trees import flattened, unflattened


def normal(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy of one that was made in inference mode."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def normal_tree(data: Any) -> Any:
    """``data``, with copies of the tensors in it that were made in inference mode."""
    leaves, form = flattened(data)
    if not any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in leaves):
        return data
    return unflattened([normal(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form)
