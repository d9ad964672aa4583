"""Runs a function in several processes that form torch's process group, as train workers do."""

from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing


def run_workers(function: Callable[..., None], *args: Any, workers: int = 2) -> None:
    """Call function(rank, *args) in forked processes, and raise if one of them fails.

    Forked processes need not import torch, and end without Python's clean-up, in which torch's
    threads abort a process now and then.
    """
    multiprocessing.start_processes(
        _on_one_thread, (function, args), nprocs=workers, start_method="fork"
    )


def _on_one_thread(rank: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # the pool of threads does not survive a fork
    function(rank, *args)
