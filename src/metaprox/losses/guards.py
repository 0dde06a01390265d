"""What torch looks at before it uses a graph."""

import re
import sys
from collections.abc import Callable, Collection, Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch

# Guards that torch leaves out by default: without them a graph would not see a hook, or another default argument.
STRICT = {"skip_nnmodule_hook_guards": False, "skip_guards_on_constant_func_defaults": False}
# What guards are on, by the names that they have for it: a module of this library, or something in one; an argument, or
# what a function closes over. Further words say what is looked at there.
OWN = re.compile(r"G\['__import_(metaprox(?:_dot_\w+)?)'\](?:\.(\w+))?")
LOCAL = re.compile(r"(?:L\[')?(\w+)")


def only_needed(same: Collection[str]) -> dict[str, Callable[[Sequence[Any]], list[bool]]]:
    """Returns options of torch.compile that leave out guards on what does not change from call to call.

    Each takes time at every call. Left out are those on functions, classes and modules of this library, which its code
    finds by name, and on what is the ``same`` at all calls: names of arguments and of what the function closes over.
    Nothing is left out by a torch that knows no such option.
    """
    if not hasattr(torch.compiler, "skip_guard_on_globals_unsafe"):  # whose documentation names the option
        return {}
    return {"guard_filter_fn": lambda guards: [not (_is_own(one.name) or _local(one.name) in same) for one in guards]}


def _local(name: str) -> str | None:
    found = LOCAL.match(name)
    return found and found[1]


def _is_own(name: str) -> bool:
    found = OWN.match(name)
    if found is None:
        return False
    module, member = sys.modules.get(found[1].replace("_dot_", ".")), found[2]
    what = getattr(module, member, None) if member else module  # which may be another's, as torch
    home = what.__name__ if isinstance(what, ModuleType) else getattr(what, "__module__", None)
    return isinstance(what, (type, FunctionType, ModuleType)) and str(home).partition(".")[0] == "metaprox"
