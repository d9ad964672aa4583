"""Runs the training loop of one worker: clips -> steps -> ledger -> checkpoints.

Before each step the workers agree whether any of them still has clips, so that all stop together
and no clip is dropped. After each step its clips are entered in the ledger, the record of which
clips are in the weights. Checkpoints, with weights and ledger, are written by this package
(`runs/checkpoints.py`), not by `ray.train.report`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import ray.train
import torch

from liser_dist import storage
from liser_dist.errors import LiserError, StorageError, TrainingError
from liser_dist.pipeline.schedule import StoreReader, parts_to_read
from liser_dist.pipeline.store import Part, StoredParts
from liser_dist.pipeline.store_writer import StoreWriters
from liser_dist.pipeline.windows import Windows
from liser_dist.records import Example, Provenance
from liser_dist.runs.checkpoints import Checkpoint, load_checkpoint, load_newest
from liser_dist.runs.disagreement import DisagreementRecord, teacher_probabilities
from liser_dist.runs.ledger import Ledger
from liser_dist.runs.progress import PassTotal, Progress
from liser_dist.runs.rejections import require_within
from liser_dist.students.batches import Batcher, labelled_batch
from liser_dist.students.collectives import (
    all_gather,
    broadcast_from_rank0,
    failing_together,
    raise_first,
)
from liser_dist.students.counting import CountingLearner
from liser_dist.students.learner import Learner, StepResult
from liser_dist.students.scoring import LabelledSet
from liser_dist.students.variants import DISTILLED
from liser_dist.training.reporting import ProgressReporter
from liser_dist.training.saving import CheckpointSaver
from liser_dist.training.stream import (
    SUMMARY,
    TrainJob,
    TrainSummary,
    WorkerMessage,
    new_clips,
    next_clips,
)
from liser_dist.training.timing import Every, StepTimer

logger = logging.getLogger(__name__)

_NOTICE_EVERY_S = 5.0  # as often as Ray checks for nodes that are about to be taken away


def create_learner(job: TrainJob, device: torch.device) -> Learner:
    """Return the learner of a job; a counting student, if the spec asks for one."""
    known = torch.tensor(job.known)
    if not job.spec.student.answers:
        clips_of = {shard.place: shard.clips for shard in job.shards}
        return CountingLearner(job.spec, known, device, clips_of)
    return Learner(job.spec, known, job.embeddings, device)


class TrainLoop:
    """The training loop of one worker, over its part of the stream."""

    def __init__(
        self,
        job: TrainJob,
        stream: Iterator[Any],
        labelled: Sequence[Example],
        validation: Sequence[Example],
        device: torch.device,
    ) -> None:
        """Create the students; `run` restores them from the newest checkpoint of the run.

        Args:
            job: What all workers get.
            stream: This worker's batches of unlabelled clips, as Arrow tables.
            labelled: All labelled clips; each step mixes some of them in.
            validation: The clips on which students are scored.
            device: Where the students are trained.
        """
        self.job, self.spec, self.stream, self.labelled = job, job.spec, stream, labelled
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.total = PassTotal(job.shards, job.spec.train.epochs)
        self.learner = create_learner(job, device)
        self.batcher = Batcher.from_spec(self.spec, job.embeddings)
        self.validation = (
            LabelledSet.from_examples(validation, self.batcher) if validation else None
        )
        self.ledger = Ledger()
        self.disagreement = DisagreementRecord(np.all(job.known, axis=0).tolist())
        self.windows = Windows.of(self.spec.stream, centred=False)
        # Passes whose targets were computed; those read from the target store do not count.
        self.computing, self.computed = True, 0
        self.timer = StepTimer()
        self.notice_check = Every(_NOTICE_EVERY_S, at_once=True)
        self.leaving_nodes: set[str] = set()
        self.reporter: ProgressReporter | None = None
        self.saver: CheckpointSaver | None = None

    # ------------------------------------------------------------ start

    def _restore_or_start(self) -> None:
        """Restore the newest checkpoint, the same on all workers; else start as the spec says."""
        job, newest = self.job, None
        with failing_together():
            if self.rank == 0:
                self.reporter = ProgressReporter(job.run, job.coordinator, self.learner.variants)
                self.saver = CheckpointSaver(job.run, self.spec.train, self._note_checkpoint)
                newest = load_newest(job.run)
        path = broadcast_from_rank0(newest and newest[0])
        with failing_together():
            if path is not None:
                checkpoint = newest[1] if newest else load_checkpoint(path)
                self._restore(checkpoint)
                if self.saver is not None:
                    self.saver.resume(path, checkpoint.parts)
            elif self.spec.start_from is not None:
                self.learner.start_from(load_checkpoint(self.spec.start_from).best[DISTILLED])
        if self.rank == 0:
            verdicts, passes = self.ledger.verdicts(), self.ledger.passes
            ray.get(self.job.coordinator.begin.remote(verdicts, passes))

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.learner.restore(checkpoint)
        self.ledger = checkpoint.ledger
        for shard, clips in self.ledger.lengths.items():
            self.total.learn(shard, clips)
        if record := checkpoint.state.get("opinions"):  # an earlier version saved none
            self.disagreement = DisagreementRecord.from_json(record)
        self.timer.restore(checkpoint.state["clock"])
        self.computed = checkpoint.state["taught"]
        if self.rank == 0:
            logger.warning(
                "resuming from step %d: %d of %d clips, counted once per epoch, are done",
                self.learner.steps, self.ledger.passes, self.total.passes,
            )  # fmt: skip

    # ------------------------------------------------------------ loop

    def run(self) -> None:
        """Train on the stream, then on stored targets, until all clips of all epochs are seen.

        A LiserError of any worker ends all of them here, without a failure, after which Ray would
        start them again; the coordinator passes it to the driver.
        """
        try:
            self._restore_or_start()
        except LiserError as error:
            self._report_failure(error)
            return
        try:
            self._train_on(self.stream)
            self.computing = False
            if self.job.writers is not None:
                self._train_on_stored(self.job.writers)
            require_within(self.spec.budget, self.ledger, final=True)
            self._finish()
        except LiserError as error:
            # Where storage has failed, the checkpoint that is being written is the last.
            self._save(wait=not isinstance(error, StorageError))
            if self.saver is not None:
                with suppress(StorageError):  # logged; the error that ended the run matters more
                    self.saver.finish()
            self._report_failure(error)

    def _report_failure(self, error: LiserError) -> None:
        ray.get(self.job.coordinator.fail.remote(error))

    def _train_on(self, batches: Iterator[Any]) -> None:
        """Take steps until none of the workers has a clip left."""
        while self._step(batches):
            pass

    def _train_on_stored(self, writers: StoreWriters) -> None:
        """Train on targets that an earlier epoch, or another run, computed and stored."""
        store, batch = writers.store, self.spec.train.batch_size
        stored = None
        with failing_together():
            stored = self._find_stored(writers) if self.rank == 0 else None
        stored = broadcast_from_rank0(stored)
        assert stored is not None
        share = self.job.share(self.rank, self.workers)
        first = sum(self.job.share(rank, self.workers) for rank in range(self.rank))
        reader = StoreReader(store, batch, first, share, self._report_broken)
        visits, ledger = self.job.visits, self.ledger
        deterministic, seed = self.spec.deterministic, self.spec.seed
        for epoch in parts_to_read(visits, ledger, store, stored, deterministic, seed):
            self._train_on(reader.batches(epoch))

    def _find_stored(self, writers: StoreWriters) -> StoredParts:
        """List the store once all computed targets are written."""
        return writers.finish().list_parts()

    def _report_broken(self, part: Part) -> bool:
        """Report a part that cannot be read; return whether no worker has reported it yet."""
        new: bool = ray.get(self.job.coordinator.report_broken.remote(part))
        return new

    # ------------------------------------------------------------ step

    def _step(self, batches: Iterator[Any]) -> bool:
        """Take one step with all workers; return False when none of them has a clip left."""
        with self.timer.waiting():
            rows, failure = next_clips(batches)
            messages = self._exchange(rows, failure)  # waits for the slowest worker
        raise_first(message.failure for message in messages)
        gathered = [row for message in messages for row in message.rows]
        if not gathered:
            return False
        are_new = self.ledger.are_new(gathered)
        if any(are_new):  # a clip may come twice, from a task that Ray ran again
            result = self._learn(new_clips(self.rank, rows, messages, are_new))
            if not result.skipped:  # else its clips stay to be trained
                self._enter(gathered, messages, are_new)
            self._after_step(result, messages[0].check_notices)
        return True

    def _exchange(self, rows: Sequence[Example], failure: LiserError | None) -> list[WorkerMessage]:
        """Return what every worker has for this step, in rank order."""
        message = WorkerMessage(
            [Provenance(**row.provenance()) for row in rows],
            teacher_probabilities(rows, self.job.known),
            failure,
            self.notice_check.due(),
        )
        return all_gather(message)

    def _learn(self, clips: Sequence[Example]) -> StepResult:
        """Take the step itself, on this worker's clips and its share of the labelled ones."""
        step, labelled_size = self.learner.steps, self.spec.train.labelled_batch_size
        labelled = labelled_batch(
            self.labelled, labelled_size, step, self.spec.seed, self.spec.train.labelled_epochs
        )
        batch = self.batcher.batch(clips, labelled[self.rank :: self.workers], epoch=step)
        done = min(1.0, self.ledger.passes / max(1, self.total.passes))
        return self.learner.learn(batch, done, clips)

    def _enter(
        self,
        gathered: Sequence[Provenance],
        messages: Sequence[WorkerMessage],
        are_new: Sequence[bool],
    ) -> None:
        """Enter the new clips of all workers, alike on each of them.

        Raises:
            RejectionError: Too many clips were rejected.
        """
        rows = [row for row, new in zip(gathered, are_new, strict=True) if new]
        self.ledger.enter(rows)
        for row in rows:
            if row.ends_shard:
                self.total.learn(row.shard, row.index + 1)
        probabilities = np.concatenate([message.probabilities for message in messages])
        self.disagreement.enter(rows, probabilities[are_new], self.windows.start_share)
        self.computed += len(rows) if self.computing else 0
        require_within(self.spec.budget, self.ledger, final=False)

    def _after_step(self, result: StepResult, check_notices: bool) -> None:
        """Validate, save and report if it is time. All workers decide alike what to validate."""
        self.timer.stepped()
        steps, train = self.learner.steps, self.spec.train
        if steps % train.validate_every == 0:
            self._validate()
        urgent = check_notices and self._has_new_notice()
        # Before a resize nobody waits for a busy writer: the next checkpoint will do.
        due = check_notices and self._is_resized_next()
        due |= self.saver is not None and self.saver.overdue()
        if urgent or due or steps % train.checkpoint_every == 0:
            self._save(wait=urgent)
        if self.reporter is not None:
            self.reporter.report_step(result, self._progress(float(result.loss[0])))

    def _has_new_notice(self) -> bool:
        """Return whether a node got a preemption notice since the last call. All workers ask.

        Another node may get one while the first is still there.
        """
        notice = ray.train.get_preemption_info()
        known = self.leaving_nodes
        self.leaving_nodes = set(notice.preempted_node_ids) if notice else set()
        return not self.leaving_nodes <= known

    def _is_resized_next(self) -> bool:
        """Return whether the workers are about to be replaced; only the first one saves."""
        if self.saver is None:
            return False
        requested: bool = ray.get(self.job.coordinator.take_checkpoint_request.remote())
        return requested

    def _note_checkpoint(self, passes: int) -> None:
        """Tell the coordinator of a checkpoint that was committed, then upload the curves."""
        self.job.coordinator.note_checkpoint.remote(passes)
        if self.reporter is not None:
            self.reporter.upload()

    def _validate(self) -> None:
        scores = self.learner.keep_best(self.validation)
        if self.reporter is not None:
            self.reporter.report_scores(scores, self.learner.steps)

    def _progress(self, loss: float) -> Progress:
        done, total = self.ledger.passes, self.total.passes
        speed = self.timer.speed(done)
        return Progress(
            passes=done,
            total_passes=max(done, total),
            total_is_estimate=self.total.is_estimate,
            rejected=self.ledger.rejected,
            taught=self.computed,
            steps=self.learner.steps,
            skipped_steps=self.learner.skipped,
            loss=loss,
            clips_per_s=speed,
            data_wait_share=self.timer.wait_share,
            left_s=(total - done) / speed if speed and total > done else None,
            scores={kind: scores.uar for kind, scores in self.learner.best_scores.items()},
        )

    # ------------------------------------------------------------ checkpoints

    def _save(self, wait: bool) -> None:
        """Save a checkpoint on the first worker, whose state is that of all.

        Args:
            wait: Wait for the last checkpoint if it is still being written; else skip this one.
        """
        if self.saver is None:
            self.ledger.take_rejections()  # the first worker writes them
        elif not self.learner.has_finite_weights():
            logger.error(
                "the weights of step %d are NaN or infinite, so no checkpoint is saved; the job "
                "ends once `budget.max_skipped_in_a_row` steps are skipped: then lower "
                "`train.learning_rates`",
                self.learner.steps,
            )
        elif not self.saver.skips(self.learner.steps, wait):
            self.saver.save(self.learner.steps, self._checkpoint())

    def _checkpoint(self) -> Checkpoint:
        state = {
            "clock": self.timer.state(),
            "taught": self.computed,
            "opinions": self.disagreement.to_json(),
        }
        return Checkpoint(
            spec=self.spec,
            students=self.learner.tensors(),
            best=self.learner.best or self.learner.newest(),
            optimizer=self.learner.optimizer.state_dict(),
            state=self.learner.state() | state,
            ledger=self.ledger,
        )

    def _finish(self) -> None:
        """Validate, save the last checkpoint, and write the summary for the driver.

        Raises:
            TrainingError: The weights are not finite.
        """
        if not self.learner.has_finite_weights():
            raise TrainingError(
                f"the weights of step {self.learner.steps} are NaN or infinite: start a run under "
                "another `name` with lower `train.learning_rates`"
            )
        self._validate()
        self._save(wait=True)
        if self.saver is not None:
            try:
                self.saver.finish()
                self._write_summary(self.saver.newest or "")
            except StorageError as error:
                self._report_failure(error)

    def _write_summary(self, checkpoint: str) -> None:
        timer, ledger = self.timer, self.ledger
        summary = TrainSummary(
            checkpoint=checkpoint,
            complete=all(ledger.complete(visit.epoch, visit.shard) for visit in self.job.visits),
            passes=ledger.passes,
            first_step_at=timer.first_step_at,
            training_s=timer.training_s,
            data_wait_share=timer.wait_share,
        )
        content = json.dumps(asdict(summary)).encode()
        storage.write_bytes(storage.join(self.job.run, SUMMARY), content)
