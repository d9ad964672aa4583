"""What the workers of a group tell each other; of one alone, what it says itself.

All of them ask at the same time, in the same order.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional

T = TypeVar("T")


def workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gather(value: T) -> list[T]:
    """Every worker's."""
    told: list[Any] = [value] * workers()
    if workers() > 1:
        dist.all_gather_object(told, value)
    return told


def told_by_the_first(value: T) -> T:
    told = [value]
    if workers() > 1:
        dist.broadcast_object_list(told, src=0)
    return told[0]


def gather_rows(rows: Tensor) -> Tensor:
    """Every worker's [own, dim] -> [all, dim]; gradients find their way back."""
    if workers() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(workers())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    padded = functional.pad(rows, (0, 0, 0, most - len(rows)))
    parts = zip(all_gather(padded), counts, strict=True)
    return torch.cat([part[: int(count)] for part, count in parts])
