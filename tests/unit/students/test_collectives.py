"""A single worker gets its own values; several workers get all values, in rank order."""

from pathlib import Path

import torch
from torch import distributed as dist

from liser_dist.students.collectives import (
    all_gather,
    all_gather_rows,
    broadcast_from_rank0,
    sum_over_workers,
    worker_count,
)
from tests.workers import run_workers


def test_a_worker_that_is_alone_gets_its_own() -> None:
    rows = torch.ones(2, 3)
    assert worker_count() == 1
    assert all_gather("a") == ["a"]
    assert broadcast_from_rank0("a") == "a"
    assert all_gather_rows(rows) is rows
    assert [value.tolist() for value in sum_over_workers(rows, torch.tensor(2))] == [
        rows.tolist(),
        2.0,
    ]


def _exchange(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        assert all_gather(rank) == [0, 1]
        assert broadcast_from_rank0(rank) == 0
        rows = torch.full((rank + 1, 2), float(rank), requires_grad=True)
        gathered = all_gather_rows(rows)
        assert gathered.tolist() == [[0, 0], [1, 1], [1, 1]]
        gathered.sum().backward()
        assert rows.grad is not None
        assert rows.grad.tolist() == [[2, 2]] * (rank + 1)  # a part from each worker
        numbers, matrix = sum_over_workers(torch.tensor([rank, 1]), torch.ones(1, 2))
        assert (numbers.tolist(), matrix.tolist()) == ([1, 2], [[2, 2]])
    finally:
        dist.destroy_process_group()


def test_two_workers_get_the_values_of_both(tmp_path: Path) -> None:
    run_workers(_exchange, str(tmp_path / "store"))
