"""The loop trains each clip once per epoch, saves checkpoints, resumes exactly and reports."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.exceptions
import torch
from torch import distributed as dist

from liser_dist.config.distill import DistillSpec
from liser_dist.data.shard_list import Shard
from liser_dist.data.shards import ShardVisit
from liser_dist.errors import LiserError, RejectionError, SpecError, StorageError, TrainingError
from liser_dist.pipeline.store import TargetStore
from liser_dist.pipeline.tables import to_table
from liser_dist.records import Example, Targets
from liser_dist.runs.checkpoints import Checkpoint, load_newest
from liser_dist.runs.rejections import write_rejected
from liser_dist.students.batches import StudentBatch
from liser_dist.students.counting import COUNTS
from liser_dist.students.learner import StepResult
from liser_dist.training import loop
from liser_dist.training.loop import TrainLoop
from liser_dist.training.stream import SUMMARY, TrainJob
from tests.workers import run_workers

EMOTIONS = ("neutral", "happy", "sad")
CLIPS, EPOCHS = 10, 2


class Actor:
    """An actor whose methods are called at once; it notes what they were called with."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Any]] = {}
        self.checkpoint_requested = False

    def __getattr__(self, name: str) -> Any:
        note = self.calls.setdefault(name, [])
        return SimpleNamespace(remote=lambda *given: note.append(given[0] if given else None))

    @property
    def take_checkpoint_request(self) -> Any:
        return SimpleNamespace(remote=lambda: self.checkpoint_requested)


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Ray as a worker that is alone sees it."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    train = SimpleNamespace(get_context=lambda: context, get_preemption_info=lambda: None)
    fake = SimpleNamespace(get=lambda value: value, exceptions=ray.exceptions, train=train)
    monkeypatch.setattr(loop, "ray", fake)
    return train


def make_job(run: Path, **change: Any) -> TrainJob:
    content: dict[str, Any] = {
        "name": "a-job", "emotions": EMOTIONS, "deterministic": True, "compare": ["face_only"],
        "data": {"unlabelled": "clips"}, "clip": {"window_s": 0.2}, "output": str(run),
        "teachers": {"speech": {"kind": "mock"}, "face": {"kind": "mock"}},
        "student": {"kind": "cnn", "width": 8},
        "train": {"epochs": EPOCHS, "batch_size": 4, "checkpoint_every": 1, "validate_every": 2},
    }  # fmt: skip
    return TrainJob(
        spec=DistillSpec.model_validate(content | change),
        run=str(run),
        known=((True, True, True), (True, True, False)),
        embeddings={},
        visits=[ShardVisit(epoch, "a") for epoch in range(EPOCHS)],
        shards=[Shard("a", 1, "v1", CLIPS)],
        coordinator=Actor(),
    )


def clip(index: int, epoch: int, reason: str = "") -> Example:
    draw = np.random.default_rng(index)
    targets = {
        name: Targets(logits=np.log(draw.dirichlet(np.ones(3))).astype(np.float16), mass=1.0)
        for name in ("speech", "face")
    }
    return Example(
        key=f"k{index}", shard="a", index=index, epoch=epoch, ends_shard=index == CLIPS - 1,
        reason=reason, targets={} if reason else targets,
        waveform=(draw.standard_normal(3000) * 2000).astype(np.int16),
    )  # fmt: skip


def stream(job: TrainJob, done: int = 0, rejected: tuple[int, ...] = ()) -> Iterator[pa.Table]:
    """The batches of all epochs, without the first `done` clips; the first clips come twice."""
    clips = [
        clip(index, epoch, "silent" if index in rejected else "")
        for epoch in range(EPOCHS)
        for index in range(CLIPS)
    ][done:]
    size = job.spec.train.batch_size
    for start in range(0, len(clips), size):
        yield to_table(clips[start : start + size], Example)
        if start == 0:
            yield to_table(clips[:size], Example)


def train(job: TrainJob, batches: Iterator[pa.Table]) -> TrainLoop:
    trained = TrainLoop(job, batches, [], [], torch.device("cpu"))
    trained.run()
    return trained


def newest(job: TrainJob) -> Checkpoint:
    found = load_newest(job.run)
    assert found is not None
    return found[1]


def test_every_clip_of_every_epoch_is_trained_once(tmp_path: Path) -> None:
    job = make_job(tmp_path, student={"kind": "counting"}, compare=())
    train(job, stream(job, rejected=(3,)))
    counts = newest(job).students[COUNTS].view(EPOCHS, CLIPS)
    assert counts.tolist() == [[float(index != 3) for index in range(CLIPS)]] * EPOCHS
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert (summary["passes"], summary["complete"]) == (EPOCHS * CLIPS, True)


def test_progress_reaches_the_coordinator_and_teachers_are_compared(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    train(job, stream(job))
    last = job.coordinator.calls["set_progress"][-1]
    assert (last.passes, last.total_passes, last.taught, last.steps) == (20, 20, 20, 5)
    state = newest(job).state
    assert np.sum(state["opinions"]["counts"]) > 0
    assert set(state) >= {"clock", "taught", "opinions", "doubts", "balance", "best", "steps"}
    assert not job.coordinator.calls.get("fail")


def test_a_resumed_run_has_the_weights_of_one_that_never_stopped(tmp_path: Path) -> None:
    whole, stopped = make_job(tmp_path / "whole"), make_job(tmp_path / "stopped")
    train(whole, stream(whole))

    def wait_for_checkpoint(step: int) -> None:  # it is written in the background
        while (saved := load_newest(stopped.run)) is None or saved[1].state["steps"] < step:
            time.sleep(0.01)

    def until_killed() -> Iterator[pa.Table]:
        batches = stream(stopped)
        yield next(batches)
        yield next(batches)  # the clips of the first again
        wait_for_checkpoint(1)
        yield next(batches)
        wait_for_checkpoint(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, until_killed())
    resumed = train(stopped, stream(stopped, done=8))
    assert resumed.ledger.passes == EPOCHS * CLIPS
    expected, weights = newest(whole).students, newest(stopped).students
    assert expected.keys() == weights.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    records = [newest(job).state["opinions"] for job in (whole, stopped)]
    assert records[0] == records[1]


def test_a_resumed_run_keeps_the_rejections_of_its_checkpoint(tmp_path: Path) -> None:
    job = make_job(tmp_path, student={"kind": "counting"}, compare=())

    def until_killed() -> Iterator[pa.Table]:
        yield from islice(stream(job, rejected=(3, 9)), 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, until_killed())
    while load_newest(job.run) is None:
        pass  # the checkpoint is written in the background
    train(job, stream(job, done=4, rejected=(3, 9)))
    write_rejected(job.run, newest(job).parts, lambda shard, index: False, {})
    rows = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["k3", "k9"]


@pytest.mark.parametrize("where", ["stream", "budget"])
def test_an_error_of_the_user_saves_and_reaches_the_coordinator(tmp_path: Path, where: str) -> None:
    job = make_job(tmp_path, budget={"max_rejected_share": 0.2, "after_clips": 2})

    def failing() -> Iterator[pa.Table]:
        batches = stream(job)
        yield next(batches)
        raise ray.exceptions.RayTaskError("decode", "", SpecError("a field is wrong"))

    batches = failing() if where == "stream" else stream(job, rejected=(4, 5, 6))
    trained = train(job, batches)
    (error,) = job.coordinator.calls["fail"]
    assert isinstance(error, SpecError if where == "stream" else RejectionError)
    assert isinstance(error, LiserError)
    assert newest(job).state["steps"] == trained.learner.steps
    assert not (tmp_path / SUMMARY).exists()


def test_a_preemption_notice_saves_at_once_and_once(
    tmp_path: Path, one_worker: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_NOTICE_EVERY_S", 0.0)
    one_worker.get_preemption_info = lambda: SimpleNamespace(preempted_node_ids=["a node"])
    rare = {"checkpoint_every": 1000, "epochs": EPOCHS, "batch_size": 4}
    job = make_job(tmp_path, train=rare)
    started = TrainLoop(job, stream(job), [], [], torch.device("cpu"))
    waits: list[bool] = []
    monkeypatch.setattr(started, "_save", lambda wait: waits.append(wait))
    started.run()
    assert waits == [True, True]  # after the first step, and at the end


def test_a_notice_while_another_stands_saves_again(
    tmp_path: Path, one_worker: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_NOTICE_EVERY_S", 0.0)
    leaving = iter([["a"], ["a"], ["a", "b"], ["b"], []])
    one_worker.get_preemption_info = lambda: SimpleNamespace(preempted_node_ids=next(leaving))
    job = make_job(tmp_path, train={"checkpoint_every": 1000, "epochs": EPOCHS, "batch_size": 4})
    started = TrainLoop(job, stream(job), [], [], torch.device("cpu"))
    waits: list[int] = []
    monkeypatch.setattr(started, "_save", lambda wait: waits.append(started.learner.steps))
    started.run()
    assert waits == [1, 3, 5]  # the last is the end


def test_workers_that_are_about_to_be_replaced_save_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_NOTICE_EVERY_S", 0.0)
    job = make_job(tmp_path, train={"epochs": EPOCHS, "batch_size": 4, "keep": 9})
    job.coordinator.checkpoint_requested = True

    def unhurried() -> Iterator[pa.Table]:  # a step whose predecessor is still saved does not save
        for table in stream(job):
            yield table
            while trained.saver is not None and trained.saver._writer.busy:
                time.sleep(0.01)

    trained = TrainLoop(job, unhurried(), [], [], torch.device("cpu"))
    trained.run()
    assert job.coordinator.calls["note_checkpoint"] == [4, 8, 12, 16, 20, 20]


def test_the_learning_rate_follows_the_clips_that_shards_turn_out_to_have(tmp_path: Path) -> None:
    job = replace(make_job(tmp_path), shards=[Shard("a", 1, "v1", 5 * CLIPS, estimated=True)])
    trained = TrainLoop(job, stream(job), [], [], torch.device("cpu"))
    learn, progress = trained.learner.learn, list[float]()

    def noted(batch: StudentBatch, done: float, *clips: Any) -> StepResult:
        progress.append(done)
        return learn(batch, done, *clips)

    trained.learner.learn = noted  # type: ignore[method-assign]
    trained.run()
    assert progress == pytest.approx([0.0, 0.04, 0.08, 0.6, 0.8])  # shard a ends in the third step
    reported = job.coordinator.calls["set_progress"]
    assert (reported[0].total_passes, reported[0].total_is_estimate) == (100, True)
    assert (reported[-1].total_passes, reported[-1].total_is_estimate) == (20, False)
    resumed = TrainLoop(job, iter([]), [], [], torch.device("cpu"))
    resumed.run()
    assert resumed.total.passes == EPOCHS * CLIPS


def test_no_labelled_clip_is_used_more_often_than_the_spec_says(tmp_path: Path) -> None:
    sizes = {"epochs": EPOCHS, "batch_size": 4, "labelled_batch_size": 2, "labelled_epochs": 1}
    job = make_job(tmp_path, train=sizes)
    labelled = [replace(clip(n, 0), emotion="sad", targets={}) for n in range(3)]
    trained = TrainLoop(job, stream(job), labelled, [], torch.device("cpu"))
    batch, used = trained.batcher.batch, list[int]()

    def noted(clips: Sequence[Example], labelled: Sequence[Example], **rest: Any) -> StudentBatch:
        used.append(len(labelled))
        return batch(clips, labelled, **rest)

    trained.batcher.batch = noted  # type: ignore[method-assign]
    trained.run()
    assert used == [2, 1, 0, 0, 0]


def test_the_clips_of_a_skipped_step_stay_to_be_trained(tmp_path: Path) -> None:
    counting = {"kind": "counting", "infinite_steps": [1]}
    job = make_job(tmp_path, student=counting, compare=())
    trained = train(job, stream(job))
    counts = newest(job).students[COUNTS].view(EPOCHS, CLIPS)
    assert counts.sum() == EPOCHS * CLIPS - 4
    assert trained.ledger.passes == EPOCHS * CLIPS - 4
    assert not json.loads((tmp_path / SUMMARY).read_text())["complete"]
    assert trained.learner.skipped == 1
    missing = [clip(*divmod(int(n), CLIPS)[::-1]) for n in (counts == 0).flatten().nonzero()]
    train(job, iter([to_table(missing, Example)]))
    assert newest(job).students[COUNTS].tolist() == [1.0] * EPOCHS * CLIPS


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    counting = {"kind": "counting", "infinite_steps": [2, 3]}
    job = make_job(tmp_path, student=counting, compare=(), budget={"max_skipped_in_a_row": 2})
    train(job, stream(job))
    (error,) = job.coordinator.calls["fail"]
    assert isinstance(error, TrainingError)
    assert "budget.max_skipped_in_a_row" in str(error)
    assert newest(job).students[COUNTS].sum() == 8  # what was trained before is saved


def test_weights_that_are_no_numbers_are_never_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(tmp_path)
    trained = TrainLoop(job, stream(job), [], [], torch.device("cpu"))
    batches = stream(job)

    def broken_after_two_steps() -> Iterator[pa.Table]:
        for _ in range(3):  # the second has the clips of the first again
            yield next(batches)
        next(trained.learner.module.parameters()).data.fill_(float("nan"))
        yield from batches

    trained.stream = broken_after_two_steps()
    trained.run()
    assert isinstance(job.coordinator.calls["fail"][0], TrainingError)
    assert newest(job).state["steps"] == 2
    assert "NaN or infinite, so no checkpoint is saved" in caplog.text


def _fail_on_one_worker(rank: int, place: str, where: str) -> None:
    """Run the loop of one of two workers, of which the second cannot read the target store."""
    context = SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: 2)
    fake_train = SimpleNamespace(get_context=lambda: context, get_preemption_info=lambda: None)
    loop.ray = SimpleNamespace(  # type: ignore[attr-defined]
        get=lambda value: value, exceptions=ray.exceptions, train=fake_train
    )
    job = make_job(Path(place))
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/group", rank=rank, world_size=2,
        timeout=timedelta(seconds=60),
    )  # fmt: skip

    def broken() -> Iterator[pa.Table]:
        yield next(stream(job))
        if rank == 1:
            raise StorageError("cannot read s3://b/x.parquet")
        yield from stream(job)

    if where == "store":

        def cannot_list() -> None:
            raise StorageError("cannot list s3://b/targets")

        store = TargetStore("s", 1, True, {})
        job = replace(job, writers=SimpleNamespace(store=store, finish=cannot_list))
    batches = broken() if where == "step" else stream(job)
    trained = TrainLoop(job, batches, [], [], torch.device("cpu"))
    if where == "start" and rank == 0:
        Path(place, "checkpoints", "step-00000009").mkdir(parents=True)
        Path(place, "checkpoints", "step-00000009", "COMMITTED").write_text("damaged")
    trained.run()
    (error,) = job.coordinator.calls["fail"]
    Path(place, f"{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("where", "words"),
    [("step", "x.parquet"), ("start", "every checkpoint of the run"), ("store", "cannot list")],
)
def test_an_error_of_one_worker_ends_all_of_them(tmp_path: Path, where: str, words: str) -> None:
    run_workers(_fail_on_one_worker, str(tmp_path), where)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert words in first
