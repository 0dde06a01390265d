"""Random numbers of operations on several tasks at once, drawn for each task from a stream of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

State = list[Tensor]


class DrawsByTask(TorchDispatchMode):
    """Within it, what ``torch.func.vmap`` draws for all tasks in one operation is drawn task by task.

    The draws of a task are those of an evaluation of this task alone: they depend neither on how many others there are
    nor on its place among them. Serves compiled graphs too, where these call torch's own random operations. Costs some
    5 us for each task and operation that draws.

    Args:
        seed: brings the generators to where the stream of a task begins, by its position.
        state: of the generators. put_back: sets it.
        tasks: how many rows vmap has. Set ``rows`` where a batch is padded.
    """

    def __init__(
        self, seed: Callable[[int], None], state: Callable[[], State], put_back: Callable[[State], None], tasks: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = tasks
        self._seed, self._state, self._put_back = seed, state, put_back
        self.restart()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Whether torch.compile works within it."""
        return True

    def restart(self) -> None:
        """All streams begin anew, where ``seed`` now says."""
        self._streams: dict[int, State] = {}
        self._permutations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func.overloadpacket is torch.ops.aten.randperm:  # vmap calls it for one task after another
            task, self._permutations = self._permutations % self.rows, self._permutations + 1
            return self._draw(task, func, args, kwargs)
        return self._draw_all(func, args, kwargs)

    def _draw_all(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        leading, dims = _leading(given)
        if leading % self.rows:
            raise RuntimeError(f"{func} draws {leading} rows for {self.rows} tasks, which can't be told apart")
        parts = {name: _split(name, value, leading, dims, self.rows) for name, value in given.items()}
        found = [
            self._draw(task, func, (), {name: part[task] for name, part in parts.items()}) for task in range(self.rows)
        ]
        written = [argument.name for argument in func._schema.arguments if argument.is_write]
        if written:
            return given[written[0]]
        return pytree.tree_map(lambda *each: torch.cat(each), *found)

    def _draw(self, task: int, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if task in self._streams:
            self._put_back(self._streams[task])
        else:
            self._seed(task)
        found = func(*args, **kwargs)
        self._streams[task] = self._state()
        return found


def _leading(given: dict[str, Any]) -> tuple[int, int]:
    """The size of the dimension that vmap adds for the tasks, which comes first; and how many dimensions there are."""
    if "size" in given:
        return given["size"][0], len(given["size"])
    first = next(value for value in given.values() if isinstance(value, Tensor))
    return first.shape[0], first.dim()


def _split(name: str, value: Any, leading: int, dims: int, rows: int) -> Sequence[Any]:
    """An argument of each task's own operation."""
    if name == "size":
        return [[leading // rows, *value[1:]]] * rows
    if isinstance(value, Tensor) and value.dim() == dims and value.shape[0] == leading:
        return value.split(leading // rows)
    return [value] * rows
