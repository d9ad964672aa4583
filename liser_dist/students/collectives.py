"""Exchanges values between train workers; a single worker gets its own values back.

Every worker must make the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional

from liser_dist.errors import LiserError

_T = TypeVar("_T")


def worker_count() -> int:
    """Return the number of workers in the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def worker_rank() -> int:
    """Return this worker's number in the group, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_gather(value: _T) -> list[_T]:
    """Return every worker's value, in rank order; values must be picklable."""
    values: list[Any] = [value] * worker_count()
    if worker_count() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast_from_rank0(value: _T) -> _T:
    """Return the value of the worker with rank 0; it must be picklable."""
    values = [value]
    if worker_count() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


@contextmanager
def failing_together() -> Iterator[None]:
    """Let every worker know how the block ended on all of them.

    A worker that ended alone would leave the others waiting in their next collective.

    Raises:
        LiserError: The block raised it on one of the workers; the first in rank order.
    """
    failure: LiserError | None = None
    try:
        yield
    except LiserError as error:
        failure = error
    raise_first(all_gather(failure))


def raise_first(failures: Iterable[LiserError | None]) -> None:
    """Raise the first error of what the workers sent, if there is any."""
    for failure in failures:
        if failure is not None:
            raise failure


def all_gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of every worker: [own, dim] -> [all, dim]; gradients flow back."""
    if worker_count() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(worker_count())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    padded = functional.pad(rows, (0, 0, 0, most - len(rows)))
    parts = zip(_GatherWithGradient.apply(padded), counts, strict=True)
    return torch.cat([part[: int(count)] for part, count in parts])


class _GatherWithGradient(torch.autograd.Function):
    """Gathers tensors of one shape from all workers; each gets the sum of its gradients on all."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        """Concatenate the workers' tensors in rank order: [...] -> [workers, ...]."""
        parts = [torch.empty_like(own) for _ in range(worker_count())]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        """Sum the gradients over the workers, and return the part of this one."""
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed[dist.get_rank()]


def sum_over_workers(*values: Tensor) -> list[Tensor]:
    """Return each tensor summed over all workers, as float32, in one reduction."""
    flat = torch.cat([value.flatten().float() for value in values])
    if worker_count() > 1:
        dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]
