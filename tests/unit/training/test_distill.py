"""Training goes on until all is done, and says why it needs another stream."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from liser_dist.errors import ShardError
from liser_dist.pipeline.store import TargetStore
from liser_dist.pipeline.store_writer import StoreWriters
from liser_dist.pipeline.tables import to_table
from liser_dist.records import Example
from liser_dist.runs.progress import Progress
from liser_dist.training.distill import train_to_the_end
from liser_dist.training.loop import TrainLoop
from liser_dist.training.stream import TrainJob, TrainSummary, read_summary
from tests.unit.training.test_loop import CLIPS, EPOCHS, clip, make_job, one_worker

__all__ = ["one_worker"]  # a fixture
LOST, PLANNED, NOT_STORED = "were lost", "an epoch is complete", "the target store lacks them"


@pytest.fixture(autouse=True)
def _no_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liser_dist.training.distill.read_progress", lambda _: Progress())


class Streams:
    """Trains on one stream after another, each with some clips of an epoch."""

    def __init__(self, *streams: tuple[int, range]) -> None:
        self.left = list(streams)

    def train(self, job: TrainJob, _labelled: object) -> TrainSummary:
        epoch, clips = self.left.pop(0)
        tables = iter([to_table([clip(n, epoch) for n in clips], Example)])
        without_store = replace(job, writers=None)
        TrainLoop(without_store, tables, [], [], torch.device("cpu")).run()
        summary = read_summary(job.run)
        assert summary is not None
        return summary


ALL = range(CLIPS)


@pytest.mark.parametrize(
    ("deterministic", "has_store", "streams", "expected"),
    [
        (True, True, [(0, ALL), (1, ALL)], PLANNED),
        (True, True, [(0, range(7)), (0, range(7, CLIPS)), (1, ALL)], LOST),
        (True, False, [(0, ALL), (1, ALL)], LOST),
        (False, False, [(0, ALL), (1, ALL)], LOST),
        (False, True, [(0, ALL), (1, ALL)], NOT_STORED),
    ],
)
def test_another_stream_is_explained(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    deterministic: bool,
    has_store: bool,
    streams: list[tuple[int, range]],
    expected: str,
) -> None:
    caplog.set_level(logging.INFO)
    writers = StoreWriters(TargetStore("s", 2, True, {}), []) if has_store else None
    job = replace(make_job(tmp_path, deterministic=deterministic), writers=writers)
    summary = train_to_the_end(job, {}, Streams(*streams).train)
    assert (summary.complete, summary.passes) == (True, CLIPS * EPOCHS)
    assert [text for text in (LOST, PLANNED, NOT_STORED) if text in caplog.text] == [
        *([expected] if len(streams) == 2 else [LOST, PLANNED])
    ]


def test_streams_that_give_nothing_end_the_run(tmp_path: Path) -> None:
    streams = Streams((0, ALL), (0, ALL))
    with pytest.raises(ShardError, match="10 of the expected ~20 clips"):
        train_to_the_end(make_job(tmp_path), {}, streams.train)
