"""What losses take and return, in names."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Params = Mapping[str, Tensor]
LossValue = Tensor | tuple[Tensor, Mapping[str, Any]]
Loss = Callable[[Params, Any], LossValue]
Metrics = dict[str, Any]  # of scalar tensors; internally, of any tree of tensors
