"""A checkpoint that is due while the previous one is being written is skipped, unless forced."""

import logging
from pathlib import Path

import pytest

from liser_dist.config.distill import TrainSpec
from liser_dist.training.saving import CheckpointSaver


class BusyWriter:
    """A checkpoint writer that is writing."""

    busy = True


def test_a_busy_writer_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = CheckpointSaver(str(tmp_path), TrainSpec(), committed=lambda passes: None)
    assert not saver.skips(7, wait=False)
    assert not saver.overdue()  # not before its time
    monkeypatch.setattr(saver, "_writer", BusyWriter())
    assert not saver.skips(7, wait=True)
    with caplog.at_level(logging.WARNING):
        assert saver.skips(7, wait=False)
    assert "skipping the checkpoint of step 7" in caplog.text
