"""How coarsely a loss computes, by the graph that autograd keeps of it: autocast, and float32 products in TF32."""

from typing import Any

import torch
from torch import Tensor

from metaprox.losses.graph import nodes

TF32 = 2.0**-10  # its machine epsilon
PRODUCTS = {name + "Backward0" for name in ("Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Linear", "Mv", "Addmv")}
CONVOLUTIONS = {"ConvolutionBackward0", "CudnnConvolutionBackward0"}


def coarseness(value: Tensor, dtype: torch.dtype) -> float:
    """Returns the largest machine epsilon that the graph of ``value`` shows; 0 where ``dtype`` has as large a one.

    Graphs show the dtypes of what operations give, not those within compiled models and functions of one's own.
    """
    found = {_epsilon(node.name(), one) for node in nodes(value.grad_fn) for one in _outputs(node)}
    largest = max(found, default=0.0)
    return largest if largest > torch.finfo(dtype).eps else 0.0


def arithmetic(device: torch.device) -> tuple[Any, ...]:
    """What decides how coarse it is, beside the loss itself: autocast, and what is asked of products, as a key."""
    kind = device.type
    products = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), *products


def _outputs(node: Any) -> Any:
    return getattr(node, "_input_metadata", ())


def _epsilon(name: str, output: Any) -> float:
    dtype: torch.dtype = output.dtype
    if not dtype.is_floating_point:
        return 0.0
    own = float(torch.finfo(dtype).eps)
    if dtype != torch.float32 or torch.device(output.device).type != "cuda":
        return own
    precision = torch.get_float32_matmul_precision()
    if name in PRODUCTS and precision != "highest":
        return max(own, TF32 if precision == "high" else float(torch.finfo(torch.bfloat16).eps))
    if name in CONVOLUTIONS and torch.backends.cudnn.allow_tf32:
        return max(own, TF32)
    return own
