"""Reads the curves of a run from its TensorBoard files, on disk or on S3."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liser_dist import storage


def read_scalars(run: str) -> Mapping[str, NDArray[np.float64]]:
    """Return the scalars that a run has logged to TensorBoard.

    Args:
        run: the folder of the run.

    Returns:
        Each scalar's wall times in seconds, steps and values, [n, 3], by name, in order of time.
        Empty if the run has no TensorBoard files.

    Raises:
        StorageError: the files cannot be read.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = storage.join(run, "tensorboard")
    if not storage.exists(folder):
        return {}
    # TensorBoard cannot read from S3 itself.
    with tempfile.TemporaryDirectory(prefix="liser-curves-") as copy:
        for file in storage.list_files(folder):
            name = file.place.rpartition("/")[2]
            Path(copy, name).write_bytes(storage.read_bytes(file.place))
        events: Any = EventAccumulator(copy, size_guidance={"scalars": 0})
        events.Reload()
        # Sorted, because files that were begun in the same second are not read in order.
        return {
            name: np.array(sorted([e.wall_time, e.step, e.value] for e in events.Scalars(name)))
            for name in events.Tags()["scalars"]
        }
