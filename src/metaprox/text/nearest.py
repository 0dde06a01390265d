"""What a frozen encoder can do without adaptation."""

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.checks import signatures
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.modules.head import nearest_mean
from metaprox.text.encoder import Inputs, mean_pooled


@torch.no_grad()
def nearest_mean_accuracy(encoder: nn.Module, tasks: Task) -> Tensor:
    """Returns the accuracy [T] of the rule that gives a query text the label of the nearest mean of support features.

    What the frozen encoder can do without adaptation. Tasks are as those of ``metaprox.tasks.BANKING77``; distances are
    Euclidean between mean-pooled features that are scaled to unit length. Costs a forward pass on all texts.

    Raises:
        InputError: ``encoder`` is no module, or ``tasks`` are not a Task of pairs (texts, labels).
    """
    signatures.module("encoder", encoder)
    if not isinstance(tasks, Task) or [isinstance(part, tuple) and len(part) for part in tasks] != [2, 2]:
        raise InputError(f"tasks must be a mp.Task of pairs (texts, labels), got {checks.shown(tasks)}")
    singles = zip(*(_unstack(part) for part in tasks), strict=True)
    return torch.stack([_nearest_mean(encoder, *single) for single in singles])


def _nearest_mean(encoder: nn.Module, support: tuple[Inputs, Tensor], query: tuple[Inputs, Tensor]) -> Tensor:
    (texts, labels), (query_texts, query_labels) = support, query
    features, query_features = (nn.functional.normalize(mean_pooled(encoder, t)) for t in (texts, query_texts))
    classes, places = labels.unique(return_inverse=True)
    weight, bias = nearest_mean(features, places)
    found = classes[(query_features @ weight.T + bias).argmax(1)]
    return (found == query_labels).to(features.dtype).mean()


def _unstack(part: tuple[Inputs, Tensor]) -> list[tuple[Inputs, Tensor]]:
    inputs, labels = part
    return [(pytree.tree_map(lambda leaf, i=i: leaf[i], inputs), row) for i, row in enumerate(labels)]
