"""Writes the TensorBoard files of a run; if they cannot be written, training continues."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from liser_dist import storage
from liser_dist.errors import StorageError

logger = logging.getLogger(__name__)


class TensorBoardWriter:
    """Writes scalars to local files and uploads them with each checkpoint.

    TensorBoard appends to its files, which S3 cannot. Each upload therefore ends a file, which is
    uploaded once; TensorBoard shows all files of a folder as one.
    """

    def __init__(self, run: str) -> None:
        """`run`: the folder of the run; the files go to its sub-folder `tensorboard`."""
        self._run = run
        self._folder = tempfile.TemporaryDirectory(prefix="liser-curves-")
        self._lock = threading.Lock()  # points are added while another thread uploads
        self._writer: SummaryWriter | None = None
        self._files = 0
        self._failed = False

    def add(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        if self._failed:
            return
        try:
            with self._lock:
                if self._writer is None:
                    self._files += 1
                    self._writer = SummaryWriter(f"{self._folder.name}/{self._files:06d}")
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            self._failed = True
            logger.warning(
                "writing TensorBoard curves failed: %s; training continues without them", error
            )

    def upload(self) -> None:
        """Move the points so far to the folder of the run."""
        try:
            with self._lock:
                current = f"{self._files + 1:06d}"
                writer, self._writer = self._writer, None
                if writer is not None:
                    writer.close()
            for folder in sorted(Path(self._folder.name).iterdir()):
                if folder.name < current:
                    storage.upload_folder(folder, storage.join(self._run, "tensorboard"))
                    shutil.rmtree(folder)
        except (OSError, StorageError) as error:
            logger.warning(
                "uploading TensorBoard files failed: %s; will try again at the next checkpoint",
                error,
            )

    def close(self) -> None:
        """Remove the local folder."""
        self._folder.cleanup()
