"""The TensorBoard scalars of a run are read back in full, with their times."""

import time
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from liser_dist import storage
from liser_dist.runs.curves import read_scalars
from liser_dist.training.tensorboard import TensorBoardWriter

STEPS = 20_000  # more than TensorBoard shows by default


def test_scalars_are_read_back_with_their_times_and_steps(tmp_path: Path) -> None:
    before = time.time()
    with SummaryWriter(str(tmp_path / "tensorboard")) as board:
        for step in range(STEPS):
            board.add_scalar("train/loss", 1 / (1 + step), step)
        board.add_scalar("validation/uar", 0.5, 7)
    scalars = read_scalars(str(tmp_path))
    assert set(scalars) == {"train/loss", "validation/uar"}
    times_s, steps, values = scalars["train/loss"].T
    assert steps.tolist() == list(range(STEPS))
    np.testing.assert_allclose(values, 1 / (1 + np.arange(STEPS)), rtol=1e-6)
    assert before <= times_s.min()
    assert times_s.max() <= time.time()
    assert scalars["validation/uar"][:, 1:].tolist() == [[7, 0.5]]


def test_what_was_uploaded_is_never_uploaded_again(tmp_path: Path) -> None:
    curves = TensorBoardWriter(str(tmp_path))
    folder = str(tmp_path / "tensorboard")
    uploaded: set[storage.StoredFile] = set()
    for checkpoint in range(12):
        for step in range(100 * checkpoint, 100 * (checkpoint + 1)):
            curves.add("train/loss", 1 / (1 + step), step)
        curves.upload()
        curves.upload()  # no points since
        files = set(storage.list_files(folder))
        assert uploaded < files
        assert len(files - uploaded) == 1
        uploaded = files
    curves.close()
    sizes = [file.size_bytes for file in uploaded]
    assert max(sizes) < 1.1 * min(sizes)
    assert read_scalars(str(tmp_path))["train/loss"][:, 1].tolist() == list(range(1200))


def test_points_that_were_not_uploaded_come_with_the_next(tmp_path: Path) -> None:
    curves = TensorBoardWriter(str(tmp_path))
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    for step in (1, 2):
        curves.add("train/loss", 0.5, step)
        curves.upload()
    (tmp_path / "tensorboard").unlink()
    curves.upload()
    assert read_scalars(str(tmp_path))["train/loss"][:, 1:].tolist() == [[1, 0.5], [2, 0.5]]


def test_a_run_without_curves_has_none(tmp_path: Path) -> None:
    assert read_scalars(str(tmp_path)) == {}
