"""What each train worker does: clips -> steps -> ledger -> checkpoints, in step with the others.

The workers agree at every step whether any of them still has clips, so that uneven streams end
together and no tail is dropped. The clips of a step enter the ledger after it, and our checkpoints
keep both; `ray.train.report` carries nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import ray.train
import torch

from liser_dist import metrics, storage
from liser_dist.batches import Batcher, labelled_turn
from liser_dist.budget import require_within
from liser_dist.checkpoints import Checkpoint, CheckpointWriter, load_checkpoint, load_newest
from liser_dist.clock import Clock
from liser_dist.committed import remove_later
from liser_dist.counting import CountingLearner
from liser_dist.curves import Curves
from liser_dist.desk import Progress
from liser_dist.errors import LiserError, StorageError
from liser_dist.evaluation import LabelledSet
from liser_dist.learning import DISTILLED, Learner, Step
from liser_dist.ledger import Ledger
from liser_dist.opinions import Floats, Opinions, said_of
from liser_dist.pipeline import finish_keeping, ours_in
from liser_dist.records import Example, Provenance
from liser_dist.rejections import forget_after
from liser_dist.rereading import Rereader
from liser_dist.schedule import to_read
from liser_dist.stages import Keeping
from liser_dist.tables import to_examples
from liser_dist.targets import Part, Stored
from liser_dist.together import gather, told_by_the_first
from liser_dist.train_job import SUMMARY, Summary, TrainJob
from liser_dist.windows import Windows

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 1.0
NOTICE_EVERY_S = 5.0  # as often as Ray looks for nodes that are about to go


@dataclass(frozen=True, slots=True)
class Message:
    """What a worker tells the others before a step."""

    rows: Sequence[Provenance]
    said: Floats  # by both teachers of these rows: see `opinions.said_of`
    failure: LiserError | None  # its stream ended with this
    look_for_notices: bool  # the first worker's clock says so, for all


def make_learner(job: TrainJob, device: torch.device) -> Learner:
    if job.spec.student.kind == "counting":
        return CountingLearner(job.total_passes, job.spec, torch.tensor(job.known), {}, device)
    return Learner(job.spec, torch.tensor(job.known), job.embeddings, device)


class TrainLoop:
    """One worker's loop over its part of the stream."""

    def __init__(
        self,
        job: TrainJob,
        stream: Iterator[Any],
        labelled: Sequence[Example],
        validation: Sequence[Example],
        device: torch.device,
    ) -> None:
        self.job, self.spec, self.stream, self.labelled = job, job.spec, stream, labelled
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.learner = make_learner(job, device)
        self.batcher = Batcher.of(self.spec, job.embeddings, job.first_clips)
        self.validation = LabelledSet.of(validation, self.batcher) if validation else None
        self.ledger, self.opinions = Ledger(), Opinions(np.all(job.known, axis=0).tolist())
        self.windows = Windows.of(self.spec, centred=False)
        self.teaching, self.taught = True, 0  # passes for which no store was read
        self.clock = Clock()
        self.notices = Clock()
        self.saves = Clock()
        self.saves.due(0)  # not before its time
        self.told_to_leave = False
        self.writer = CheckpointWriter(job.run, self.spec.train.keep)
        self.curves = Curves(job.run) if self.rank == 0 else None
        self._begin()

    def _begin(self) -> None:
        """From the run's newest checkpoint, the same on all workers; else as the spec says."""
        newest = load_newest(self.job.run) if self.rank == 0 else None
        place = told_by_the_first(newest and newest[0])
        if place is not None:
            self._restore(newest[1] if newest else load_checkpoint(place))
        elif self.spec.start_from is not None:
            self.learner.start_from(load_checkpoint(self.spec.start_from).best[DISTILLED])
        if self.rank == 0:
            ray.get(self.job.desk.begin.remote(self.ledger.verdicts()))
            remove_later(self.job.run, self.learner.steps)
            forget_after(self.job.run, self.learner.steps)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.learner.restore(checkpoint)
        self.ledger = checkpoint.ledger
        if told := checkpoint.state.get("opinions"):  # an earlier version has none
            self.opinions = Opinions.from_json(told)
        self.clock.restore(checkpoint.state["clock"])
        self.taught = checkpoint.state["taught"]
        if self.rank == 0:
            done, total = self.ledger.passes, self.job.total_passes
            logger.warning("going on from step %d: %d/%d clips", self.learner.steps, done, total)

    def run(self) -> None:
        try:
            self._train_on(self.stream)
            self.teaching = False
            if self.job.keeping is not None:
                self._train_on_stored(self.job.keeping)
            require_within(self.spec.budget, self.ledger, at_the_end=True)
            self._finish()
        except LiserError as error:
            # All workers end here together, and not with a failure, which Ray would repeat.
            self._save(at_once=True)
            with suppress(StorageError):  # told in the log; what ended the run matters more
                self.writer.finish()
            ray.get(self.job.desk.fail.remote(error))

    def _train_on(self, batches: Iterator[Any]) -> None:
        """Until none of the workers has a clip left."""
        while self._step(batches):
            pass

    def _train_on_stored(self, keeping: Keeping) -> None:
        """What an earlier epoch, or another run, has had taught."""
        store, batch = keeping.store, self.spec.train.batch_size
        stored = told_by_the_first(self._find_stored(keeping) if self.rank == 0 else None)
        assert stored is not None
        share = self.job.share(self.rank, self.workers)
        first = sum(self.job.share(rank, self.workers) for rank in range(self.rank))
        rereader = Rereader(store, batch, first, share, self._tell_broken)
        visits, ledger = self.job.visits, self.ledger
        for epoch in to_read(visits, ledger, store, stored, self.spec.deterministic):
            self._train_on(rereader.batches(epoch))

    def _find_stored(self, keeping: Keeping) -> Stored:
        """A listing of the store, when all that was taught is written."""
        finish_keeping(keeping)
        return keeping.store.find()

    def _tell_broken(self, part: Part) -> bool:
        new: bool = ray.get(self.job.desk.tell_broken.remote(part))
        return new

    def _step(self, batches: Iterator[Any]) -> bool:
        """One step on all workers; False when none of them has a clip left."""
        with self.clock.waiting():
            rows, failure = self._next_rows(batches)
            told = self._tell(rows, failure)  # waits for the slowest of the workers
        for message in told:
            if message.failure is not None:
                raise message.failure
        gathered = [row for message in told for row in message.rows]
        if not gathered:
            return False
        new = self.ledger.new(gathered)
        if not any(new):
            return True  # all were read twice: no step
        first = sum(len(message.rows) for message in told[: self.rank])
        mine = [row for row, is_new in zip(rows, new[first : first + len(rows)], strict=True)
                if is_new]  # fmt: skip
        step = self._learn([row for row in mine if not row.rejected])
        entered = [row for row, is_new in zip(gathered, new, strict=True) if is_new]
        self.ledger.enter(entered)
        said = np.concatenate([message.said for message in told])[new]
        self.opinions.enter(entered, said, self.windows.start_share)
        self.taught += sum(new) if self.teaching else 0
        require_within(self.spec.budget, self.ledger, at_the_end=False)
        self._after(step, look_for_notices=told[0].look_for_notices)
        return True

    def _next_rows(self, batches: Iterator[Any]) -> tuple[list[Example], LiserError | None]:
        """The next clips; or what the user has to mend, which ended the stream."""
        try:
            table = next(batches, None)
        except ray.exceptions.RayError as error:
            cause = ours_in(error)
            if isinstance(cause, LiserError):
                return [], cause
            raise
        return (to_examples(table) if table is not None else []), None

    def _tell(self, rows: Sequence[Example], failure: LiserError | None) -> list[Message]:
        """What all workers have for this step, in the order of their ranks; no clip's content."""
        bare = [Provenance(**row.provenance()) for row in rows]
        said = said_of(rows, self.job.known)
        message = Message(bare, said, failure, self.notices.due(NOTICE_EVERY_S))
        return gather(message)

    def _learn(self, rows: Sequence[Example]) -> Step:
        step = self.learner.steps
        batch = self.batcher.batch(rows, self._labelled_rows(step), epoch=step)
        return self.learner.learn(batch, self.progress)

    def _labelled_rows(self, step: int) -> list[Example]:
        """This worker's labelled clips of a step."""
        wanted = self.spec.train.labelled_batch_size
        turn = labelled_turn(self.labelled, wanted, step, self.spec.seed)
        return turn[self.rank :: self.workers]

    @property
    def progress(self) -> float:
        return min(1.0, self.ledger.passes / max(1, self.job.total_passes))

    def _after(self, step: Step, look_for_notices: bool) -> None:
        """What is due after a step, alike on all workers."""
        self.clock.stepped()
        steps = self.learner.steps
        if steps % self.spec.train.validate_every == 0:
            self._validate()
        leaving = look_for_notices and self._is_told_to_leave()
        overdue = self.rank == 0 and self.saves.due(self.spec.train.checkpoint_every_s)
        if leaving or overdue or steps % self.spec.train.checkpoint_every == 0:
            self._save(at_once=leaving)
        if self.rank == 0:
            self._show(step)

    def _is_told_to_leave(self) -> bool:
        """Whether a node has been given notice since this was last asked. All workers ask."""
        notice = ray.train.get_preemption_info() is not None
        since, self.told_to_leave = notice and not self.told_to_leave, notice
        return since

    def _validate(self) -> None:
        scores = self.learner.keep_best(self.validation)
        if self.curves is not None:
            for kind, found in scores.items():
                self.curves.add(f"validation/{kind}_uar", found.uar, self.learner.steps)

    def _finish(self) -> None:
        self._validate()
        self._save(at_once=True)
        if self.rank == 0:
            try:
                self.writer.finish()
                self._summarise()
            except StorageError as error:
                ray.get(self.job.desk.fail.remote(error))

    def _summarise(self) -> None:
        clock, ledger = self.clock, self.ledger
        summary = Summary(
            checkpoint=self.writer.newest or "",
            complete=all(ledger.complete(visit.epoch, visit.shard) for visit in self.job.visits),
            passes=ledger.passes,
            first_step_at=clock.first_step_at,
            training_s=clock.training_s,
            data_wait_share=clock.wait_share,
        )
        content = json.dumps(asdict(summary)).encode()
        storage.write_bytes(storage.join(self.job.run, SUMMARY), content)

    def _save(self, at_once: bool) -> None:
        """The first worker writes; all hold the same. One that is still busy is not waited for."""
        if self.rank:
            self.ledger.take_rejections()
            return
        if self.writer.busy and not at_once:
            logger.warning(
                "step %d has no checkpoint: the last is being written", self.learner.steps
            )
            return
        self.writer.save(
            self.learner.steps,
            Checkpoint(
                spec=self.spec,
                students=self.learner.tensors(),
                best=self.learner.best or self.learner.newest(),
                optimizer=self.learner.optimizer.state_dict(),
                state=self.learner.facts() | self._facts(),
                ledger=self.ledger,
            ),
            then=self.curves.upload if self.curves is not None else lambda: None,
        )

    def _facts(self) -> dict[str, Any]:
        """What else a checkpoint holds, as JSON."""
        return {
            "clock": self.clock.facts(),
            "taught": self.taught,
            "opinions": self.opinions.to_json(),
        }

    def _show(self, step: Step) -> None:
        if self.curves is not None:
            for position, arm in enumerate(self.learner.arms):
                name = f"train/{arm.kind}_{arm.learning_rate:g}_loss"
                self.curves.add(name, float(step.loss[position]), self.learner.steps)
            for name, share in step.agreed.items():
                self.curves.add(f"train/agrees_with_{name}", share, self.learner.steps)
        if self.clock.due(PROGRESS_EVERY_S) or self.progress == 1.0:
            self._report(float(step.loss[0]))

    def _report(self, loss: float) -> None:
        done, total = self.ledger.passes, self.job.total_passes
        speed = self.clock.speed(done)
        progress = Progress(
            passes=done,
            total_passes=max(done, total),
            rejected=self.ledger.rejected,
            taught=self.taught,
            steps=self.learner.steps,
            loss=loss,
            clips_per_s=speed,
            data_wait_share=self.clock.wait_share,
            left_s=(total - done) / speed if speed and total > done else None,
            scores={kind: found.uar for kind, found in self.learner.best_scores.items()},
        )
        metrics.tell(progress.numbers)
        self.job.desk.set_progress.remote(progress)
