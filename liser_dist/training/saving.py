"""Saves the checkpoints of a run from its first worker; all workers hold the same state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from liser_dist.config.distill import TrainSpec
from liser_dist.runs.checkpoints import Checkpoint, CheckpointWriter
from liser_dist.training.timing import Every

logger = logging.getLogger(__name__)


class CheckpointSaver:
    """Saves checkpoints in the background. Only the worker with rank 0 has one."""

    def __init__(self, run: str, train: TrainSpec, committed: Callable[[int], None]) -> None:
        """Create a saver.

        Args:
            run: The folder of the run.
            train: How often checkpoints are saved, and how many are kept.
            committed: Called in the background when a checkpoint is committed, with the number of
                passes in it.

        Raises:
            StorageError: The run's folder cannot be read or written.
        """
        self._writer = CheckpointWriter(run, train.keep)
        self._alarm = Every(train.checkpoint_every_s, at_once=False)
        self._committed = committed

    def resume(self, path: str, parts: Sequence[str]) -> None:
        """Continue after the checkpoint at a path, with its parts of rejections."""
        self._writer.resume(path, parts)

    @property
    def newest(self) -> str | None:
        """Path of the newest checkpoint that was written."""
        return self._writer.newest

    def overdue(self) -> bool:
        """Return whether `checkpoint_every_s` has passed since this last returned True."""
        return self._alarm.due()

    def skips(self, step: int, wait: bool) -> bool:
        """Return whether this checkpoint is skipped, because the last is still being written.

        Args:
            step: The step of the checkpoint.
            wait: Wait for the last checkpoint instead.
        """
        if self._writer.busy and not wait:
            logger.warning(
                "skipping the checkpoint of step %d, because the previous one is still being "
                "written; the next one will include this step", step,
            )  # fmt: skip
            return True
        return False

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Start writing a checkpoint.

        Raises:
            Exception: The one before failed for a reason other than storage.
        """
        then = partial(self._committed, checkpoint.ledger.passes)
        self._writer.save(step, checkpoint, then=then)

    def finish(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            StorageError: It could not be written.
        """
        self._writer.finish()
