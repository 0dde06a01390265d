"""What torch looks at before it uses a graph, and what it does not."""

import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from metaprox.losses.methods import is_alien, replaced_of_tensors
from metaprox.losses.origin import is_ours

# Guards that torch leaves out by default: without them a graph would not see a hook, or another default argument.
STRICT = {"skip_nnmodule_hook_guards": False, "skip_guards_on_constant_func_defaults": False}
# What guards are on, by the names that they have for it: a module, or something in one; an argument, or what a function
# closes over. Further words say what is looked at there.
GLOBAL = re.compile(r"G\['__import_(\w+)'\](?:\.(\w+))?")
LOCAL = re.compile(r"(?:L\[')?(\w+)")


def only_needed(
    same: Collection[str], saw: Callable[[Iterable[type]], object]
) -> dict[str, Callable[[Sequence[Any]], list[bool]]]:
    """Returns options of torch.compile that leave out guards on what does not change from call to call.

    Each takes time at every call. Left out are those on functions and classes of this library, and of torch's private
    modules, where code finds them by name, and on what is the ``same`` at all calls: names of arguments and of what the
    function closes over. Nothing is left out by a torch that knows no such option.

    ``saw`` is called with the classes, and those of the objects, that torch came by outside of its own modules and of
    this library's: it guards few of their methods.
    """
    if not hasattr(torch.compiler, "skip_guard_on_globals_unsafe"):  # whose documentation names the option
        return {}

    def kept(guards: Sequence[Any]) -> list[bool]:
        values = [one.value for one in guards if one.has_value and not _is_of_a_library(one.name)]
        saw({value if isinstance(value, type) else type(value) for value in values})
        return [not (_is_code(one.name) or _local(one.name) in same) for one in guards]

    return {"guard_filter_fn": kept}


def unseen() -> str:
    """What changes evaluations now although no guard looks at it, in words; "" where there is nothing."""
    if _has_any_global_hook():
        return "a hook is registered for all modules"
    modes = _get_current_function_mode_stack() if torch._C._len_torch_function_stack() else ()
    if others := [type(mode).__name__ for mode in modes if not isinstance(mode, DeviceContext)]:
        return f"{others[-1]} stands in for functions of torch"
    name = replaced_of_tensors()
    return f"something stands in for torch.Tensor.{name}" if name else ""


def replaced_in(graph: torch.fx.GraphModule) -> str:
    """Returns the name of a Python function of torch called in ``graph`` that something stands in for, or "".

    While torch lowers a graph it finds such a function by name: what stands in for it, and calls it, is called twice.
    """
    parts = [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]
    called = {node.target for part in parts for node in part.graph.nodes if isinstance(node.target, FunctionType)}
    for function in called:
        if is_alien(getattr(sys.modules.get(function.__module__), function.__name__, None)):
            return f"{function.__module__}.{function.__name__}"
    return ""


def _local(name: str) -> str | None:
    found = LOCAL.match(name)
    return found and found[1]


def _is_of_a_library(name: str) -> bool:
    """Whether it is that of what is in a module of torch, or in one of ours."""
    found = GLOBAL.match(name)
    return found is not None and (is_ours(home := _module(found)) or home.split(".")[0] == "torch")


def _is_code(name: str) -> bool:
    """Whether it is that of a module that nobody writes on, or of a function or class in one."""
    found = GLOBAL.match(name)
    if found is None or not _is_closed(home := _module(found)):
        return False
    if found[2] is None:
        return True
    member = getattr(sys.modules.get(home), found[2], None)  # which may be another module, or made elsewhere
    return isinstance(member, (type, FunctionType)) and _is_closed(str(member.__module__))


def _module(found: re.Match[str]) -> str:
    return found[1].replace("_dot_", ".")


def _is_closed(module: str) -> bool:
    return is_ours(module) or (module.startswith("torch.") and "._" in module)
