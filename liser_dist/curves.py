"""A run's TensorBoard files: a convenience, given up when it cannot be written."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from liser_dist import storage
from liser_dist.errors import StorageError

logger = logging.getLogger(__name__)


class Curves:
    """Written aside, for TensorBoard appends to its files, which S3 cannot."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._folder = tempfile.TemporaryDirectory(prefix="liser-curves-")
        self._board: SummaryWriter | None = SummaryWriter(self._folder.name)

    def add(self, name: str, value: float, step: int) -> None:
        if self._board is not None:
            try:
                self._board.add_scalar(name, value, step)
            except OSError as error:
                self._board = None
                logger.warning("there are no more curves from here on: %s", error)

    def upload(self) -> None:
        """Bring what there is to the run's folder."""
        try:
            if self._board is not None:
                self._board.flush()
            storage.upload_folder(Path(self._folder.name), storage.join(self._run, "tensorboard"))
        except (OSError, StorageError) as error:
            logger.warning("the curves could not be kept: %s", error)

    def close(self) -> None:
        self._folder.cleanup()
