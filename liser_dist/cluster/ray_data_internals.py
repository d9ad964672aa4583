"""Wraps the private API of Ray Data that this package uses.

Written for Ray 2.60, which `pyproject.toml` pins; each item says what to check when the pin
changes.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.data import DataContext, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback

from liser_dist.cluster.ray_errors import is_no_user_error

# These loggers report an error that ends a dataset, with its traceback. At an upgrade, check that
# a damaged spec or teacher still ends a job with one line (tests/integration/test_bad_input.py).
_ERROR_LOGGERS = (
    "ray.data._internal.execution.streaming_executor_state",
    "ray.data._internal.iterator.stream_split_iterator",
)
_PROGRESS_LOGGER = "ray.data._internal.progress"


def silence_progress() -> None:
    """Suppress the log line with which each process announces that progress bars are off.

    Read in Ray 2.60. At an upgrade, check that no such line appears in a job's log.
    """
    logging.getLogger(_PROGRESS_LOGGER).setLevel(logging.ERROR)


class HideUserErrors(ExecutionCallback):
    """Keeps LiserErrors out of Ray Data's log, where they would appear with a traceback.

    The job prints such an error once, as its last line. Read in Ray 2.60; Ray Data has no public
    hook before an execution starts, in the process that runs it. At an upgrade, check that
    `DataContext.custom_execution_callback_classes` still exists.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Install the filter on Ray Data's loggers, in the process that runs the execution."""
        for name in _ERROR_LOGGERS:
            logging.getLogger(name).addFilter(is_no_user_error)


class ForgetBlockStats(ExecutionCallback):
    """Discards the statistics that Ray Data stores of every block until the dataset ends.

    They take 200 MB per million clips. Read in Ray 2.60: a stage appends to its private
    `_output_blocks_stats` and reads the list only for `Dataset.stats()`. At an upgrade, check that
    the attribute still exists (tests/unit/cluster/test_ray_internals.py), or that the list is gone.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Clear the lists of all stages."""
        for stage in executor._topology or ():
            getattr(stage, "_output_blocks_stats", []).clear()


def allow_blocks_ahead(context: DataContext, blocks: int) -> None:
    """Let a task produce this many blocks before the first of them is consumed.

    Read in Ray 2.60, for the simulation of teachers alone. At an upgrade, check that the attribute
    still exists; without it the simulated decoders stall.
    """
    context._max_num_blocks_in_streaming_gen_buffer = blocks


def block_bundles(dataset: Dataset) -> Any:
    """Iterate over references to the dataset's blocks, without fetching them.

    Read in Ray 2.60, for the simulation of teachers alone. At an upgrade, check that each bundle
    still has `num_rows()`.
    """
    return dataset.iter_internal_ref_bundles()
