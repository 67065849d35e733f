"""Division of work among the processes of a run, and exchange of the results.

With one process, every function returns what it gets. With several, all of them must call the same functions
in the same order. Results come in the order of the processes, so they do not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from qgait_ptq.system.processes import lost_processes, processes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qgait_ptq.system.progress import Advance

Item = TypeVar("Item")


def share_of(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's share of a list: neighbouring items; none if there are fewer than processes."""
    own = processes()
    start, stop = (len(items) * number // own.count for number in (own.rank, own.rank + 1))
    return items[start:stop] if own.count > 1 else items


def exchange(value: Item) -> list[Item]:
    """Return the values of all processes, in the order of the processes.

    Args:
        value: value of this process, which can be pickled.

    Raises:
        ConfigError: another process has ended.
    """
    if processes().count == 1:
        return [value]
    import torch.distributed as dist

    values: list[Item | None] = [None] * processes().count
    with lost_processes():
        dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def first_only(action: Callable[[], Item]) -> Item:
    """Return the result of an action that only the first process takes; the others wait for it.

    Args:
        action: function whose result can be pickled, such as one that writes or measures time.

    Raises:
        ConfigError: another process has ended.
    """
    if processes().count == 1:
        return action()
    import torch.distributed as dist

    result: list[Item | None] = [action() if processes().first else None]
    with lost_processes():
        dist.broadcast_object_list(result, src=0)
    return result[0]  # type: ignore[return-value]


@contextmanager
def in_first(context: AbstractContextManager[object]) -> Iterator[None]:
    """Enter a context, such as a lock, in the first process only; the others wait until it is entered."""
    with ExitStack() as stack:
        if processes().first:
            stack.enter_context(context)
        first_only(lambda: None)
        yield


def for_all(advance: Advance) -> Advance:
    """Return a function that counts each step of this process as one step of every process."""

    def step() -> None:
        for _ in range(processes().count):
            advance()

    return step


def gather_rows(own: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the rows of all processes as one tensor on a device, without gradients.

    Args:
        own: tensors ``[k, ...]`` of this process; none if it has no work.
        device: device of the result.
    """
    import torch

    if processes().count == 1:
        return torch.cat(list(own))
    arrays = exchange([rows.detach().cpu().numpy() for rows in own])
    return torch.cat([torch.from_numpy(rows).to(device) for part in arrays for rows in part])


def mean_of(value: float) -> float:
    """Return the mean of a number over the processes: NaN or infinite if it is so in any of them."""
    values = exchange(value)
    return sum(values) / len(values)


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace the gradients of parameters by their sums over the processes.

    A parameter without gradient counts as zero; it stays without one if no process has one.
    """
    if processes().count > 1:
        _reduce_gradients(list(parameters), 1.0)


def mean_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace the gradients of parameters by their means over the processes; see `sum_gradients`."""
    if processes().count > 1:
        _reduce_gradients(list(parameters), 1 / processes().count)


def _reduce_gradients(parameters: list[torch.nn.Parameter], factor: float) -> None:
    """Sum the gradients in one message: all values, then one flag for each parameter with a gradient."""
    import torch
    import torch.distributed as dist

    if not parameters:
        return
    given = [parameter.grad is not None for parameter in parameters]
    values = [
        (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
        for parameter in parameters
    ]
    message = torch.cat([*values, torch.tensor(given, dtype=values[0].dtype, device=values[0].device)])
    with lost_processes():
        dist.all_reduce(message)
    *sums, flags = message.split([*map(len, values), len(parameters)])
    for parameter, total, flag in zip(parameters, sums, flags.tolist(), strict=True):
        parameter.grad = (factor * total).reshape(parameter.shape).to(parameter.dtype) if flag else None
