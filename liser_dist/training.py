"""Examples -> student: Ray Train workers, and the loop that each of them runs.

The workers agree at every step whether any of them still has clips, so that uneven streams end
together and no tail is dropped. The clips of a step enter the ledger after it. Our own checkpoints
carry the weights; `ray.train.report` carries nothing.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from numpy.typing import NDArray
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import distributed as dist
from torch.utils.tensorboard import SummaryWriter

from liser_dist import storage
from liser_dist.batches import Batcher
from liser_dist.checkpoints import (
    Checkpoint,
    checkpoint_place,
    load_checkpoint,
    remove_old,
    save_checkpoint,
)
from liser_dist.desk import Progress
from liser_dist.errors import RejectionError
from liser_dist.evaluation import LabelledSet
from liser_dist.features import LogMel
from liser_dist.learning import DISTILLED, Learner, Step
from liser_dist.ledger import Ledger
from liser_dist.pipeline import execution_options, ours_in, to_examples
from liser_dist.records import Example, Provenance
from liser_dist.spec import DistillSpec

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 1.0
STREAM = "clips"
SUMMARY = "training.json"


@dataclass(frozen=True, slots=True)
class Summary:
    """What the first worker leaves in the run's folder when the stream has ended."""

    checkpoint: str
    first_step_at: float | None  # time.time()
    training_s: float
    data_wait_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What every train worker is given."""

    spec: DistillSpec
    run: str  # the run's place
    known: tuple[tuple[bool, ...], tuple[bool, ...]]  # emotions of the speech, the face teacher
    embeddings: dict[str, int]  # width of each teacher's embedding that the loss needs
    total_passes: int  # clips times epochs, as far as it is known
    desk: Any


class UnevenSplit(DataConfig):
    """Hands every row to one worker, whoever is emptiest; Ray's own drops an uneven tail."""

    def __init__(self, options: ExecutionOptions) -> None:
        super().__init__(execution_options=options, enable_shard_locality=False)

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, Any]]:
        splits = {}
        for name, dataset in datasets.items():
            dataset = dataset.copy(dataset)
            dataset.context.execution_options = self._resolve_execution_options(name)
            splits[name] = dataset.streaming_split(world_size, equal=False)
        return [{name: parts[rank] for name, parts in splits.items()} for rank in range(world_size)]


def make_batcher(spec: DistillSpec, embeddings: dict[str, int]) -> Batcher:
    return Batcher(
        LogMel(spec.clip.sample_rate_hz, spec.student.mels),
        spec.emotions,
        embeddings,
        spec.augment,
        spec.seed,
        round(spec.clip.window_s * spec.clip.sample_rate_hz),
    )


def train_students(
    job: TrainJob, stream: Dataset, clips: Mapping[str, Sequence[Example]]
) -> Summary:
    """Run the job's train workers over the stream.

    `clips`: the labelled ones that each of them mixes in, under "labelled", and "validation".

    Raises LiserError where the data or the spec are at fault.
    """
    resources, train = job.spec.resources, job.spec.train
    per_worker = {"CPU": resources.worker_cpus}
    if resources.worker_gpus:
        per_worker["GPU"] = resources.worker_gpus
    backend = "nccl" if resources.worker_gpus and torch.cuda.is_available() else "gloo"
    with tempfile.TemporaryDirectory(prefix="liser-train-") as scratch:
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "job": job,
                "labelled": ray.put(clips.get("labelled", [])),
                "validation": ray.put(clips.get("validation", [])),
            },
            torch_config=TorchConfig(backend=backend),
            scaling_config=ScalingConfig(
                num_workers=train.workers,
                use_gpu=resources.worker_gpus > 0,
                resources_per_worker=per_worker,
            ),
            run_config=RunConfig(
                name=job.spec.name,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=0),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
            datasets={STREAM: stream},
            dataset_config=UnevenSplit(execution_options(job.spec)),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise ours_in(error) from error
    return Summary(**json.loads(storage.read_bytes(storage.join(job.run, SUMMARY))))


def _work(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in each worker."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message).1900s")
    job: TrainJob = config["job"]
    torch.set_num_threads(max(1, int(job.spec.resources.worker_cpus)))
    torch.use_deterministic_algorithms(job.spec.deterministic, warn_only=True)
    TrainLoop(job, ray.get(config["labelled"]), ray.get(config["validation"])).run()


class TrainLoop:
    """One worker's loop over its part of the stream."""

    def __init__(
        self, job: TrainJob, labelled: Sequence[Example], validation: Sequence[Example]
    ) -> None:
        self.job, self.spec, self.labelled = job, job.spec, labelled
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        device = ray.train.torch.get_device()
        self.learner = Learner(self.spec, torch.tensor(job.known), job.embeddings, device)
        if self.spec.start_from is not None:
            self.learner.start_from(load_checkpoint(self.spec.start_from).best[DISTILLED])
        self.batcher = make_batcher(self.spec, job.embeddings)
        self.validation = LabelledSet.of(validation, self.batcher) if validation else None
        self.ledger = Ledger()
        self.clock = Clock()
        self.scratch = tempfile.TemporaryDirectory(prefix="liser-board-")
        self.board = SummaryWriter(self.scratch.name) if self.rank == 0 else None

    def run(self) -> None:
        stream = ray.train.get_dataset_shard(STREAM).iter_batches(
            batch_size=self._mine(self.spec.train.batch_size),
            batch_format="pyarrow",
            prefetch_batches=2,
        )
        batches = iter(stream)
        while True:
            with self.clock.waiting():
                rows = to_examples(table) if (table := next(batches, None)) is not None else []
                gathered = self._gather(rows)  # waits for the slowest of the workers
            if not gathered:
                break
            step = self._learn([row for row in rows if not row.rejected])
            self.ledger.enter(gathered)
            self._check_budget(at_the_end=False)
            self._after(step)
        self._check_budget(at_the_end=True)
        self._finish()

    def _mine(self, rows: int) -> int:
        """This worker's share of a count over all workers."""
        return rows // self.workers + (self.rank < rows % self.workers)

    def _gather(self, rows: Sequence[Example]) -> list[Provenance]:
        """The clips of this step on all workers, without their content."""
        bare = [Provenance(**row.provenance()) for row in rows]
        if self.workers == 1:
            return bare
        parts: list[list[Provenance]] = [[] for _ in range(self.workers)]
        dist.all_gather_object(parts, bare)
        return [row for part in parts for row in part]

    def _learn(self, rows: Sequence[Example]) -> Step:
        step = self.learner.steps
        batch = self.batcher.batch(rows, self._labelled_rows(step), epoch=step)
        return self.learner.learn(batch, self.progress)

    def _labelled_rows(self, step: int) -> list[Example]:
        """This worker's labelled clips of a step: a walk through seeded shuffles of them all."""
        wanted = min(self.spec.train.labelled_batch_size, len(self.labelled))
        if not wanted:
            return []
        first = step * wanted
        places = [
            divmod(position, len(self.labelled))
            for position in range(first, first + wanted)[self.rank :: self.workers]
        ]
        order = {lap: self._order(lap) for lap in {lap for lap, _ in places}}
        return [self.labelled[order[lap][place]] for lap, place in places]

    def _order(self, lap: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.spec.seed, lap]).permutation(len(self.labelled))

    @property
    def progress(self) -> float:
        return min(1.0, self.ledger.passes / max(1, self.job.total_passes))

    def _check_budget(self, at_the_end: bool) -> None:
        """Raise RejectionError when so many clips are bad that the data as a whole must be."""
        budget, seen = self.spec.budget, self.ledger.total
        share = self.ledger.rejected / max(1, seen)
        enough = at_the_end or seen >= budget.after_clips
        if enough and share > budget.max_rejected_share:
            reasons = ", ".join(
                f"{reason} {count}" for reason, count in self.ledger.reasons().most_common()
            )
            raise RejectionError(
                f"{share:.0%} of {seen} clips were rejected ({reasons}), more than "
                f"`budget.max_rejected_share` {self.spec.budget.max_rejected_share:.0%}: look at "
                "the shards, or raise it"
            )

    def _after(self, step: Step) -> None:
        """What is due after a step, alike on all workers."""
        self.clock.stepped()
        steps = self.learner.steps
        if steps % self.spec.train.validate_every == 0:
            self._validate()
        if steps % self.spec.train.checkpoint_every == 0:
            self._save(finished=False)
        if self.rank == 0:
            self._show(step)

    def _validate(self) -> None:
        scores = self.learner.keep_best(self.validation)
        if self.board is not None:
            for kind, found in scores.items():
                self.board.add_scalar(f"validation/{kind}_uar", found.uar, self.learner.steps)

    def _finish(self) -> None:
        self._validate()
        place = self._save(finished=True)
        if self.rank == 0:
            clock = self.clock
            summary = Summary(place, clock.first_step_at, clock.training_s, clock.wait_share)
            content = json.dumps(asdict(summary)).encode()
            storage.write_bytes(storage.join(self.job.run, SUMMARY), content)
        self.scratch.cleanup()

    def _save(self, finished: bool) -> str:
        """The first worker writes; all hold the same."""
        place = checkpoint_place(self.job.run, self.learner.steps)
        if self.rank:
            return place
        if not self.learner.best:
            self.learner.keep_best(self.validation)
        save_checkpoint(
            place,
            Checkpoint(
                spec=self.spec,
                students=_tensors(self.learner),
                best=self.learner.best,
                optimizer=self.learner.optimizer.state_dict(),
                state={
                    "steps": self.learner.steps,
                    "finished": finished,
                    "balance": self.learner.balance.running.tolist(),
                    "best": {k: asdict(v) for k, v in self.learner.best_scores.items()},
                    "learning_rates": self.learner.best_rates,
                },
                ledger=self.ledger,
            ),
        )
        remove_old(self.job.run, self.spec.train.keep)
        if self.board is not None:
            self.board.flush()
            curves = storage.join(self.job.run, "tensorboard")
            storage.upload_folder(Path(self.scratch.name), curves)
        return place

    def _show(self, step: Step) -> None:
        if self.board is not None:
            for position, arm in enumerate(self.learner.arms):
                name = f"train/{arm.kind}_{arm.learning_rate:g}_loss"
                self.board.add_scalar(name, float(step.loss[position]), self.learner.steps)
        if self.clock.due(PROGRESS_EVERY_S) or self.progress == 1.0:
            self._report(float(step.loss[0]))

    def _report(self, loss: float) -> None:
        done, total = self.ledger.passes, self.job.total_passes
        speed = self.clock.speed(done)
        self.job.desk.set_progress.remote(
            Progress(
                passes=done,
                total_passes=max(done, total),
                rejected=self.ledger.rejected,
                steps=self.learner.steps,
                loss=loss,
                clips_per_s=speed,
                data_wait_share=self.clock.wait_share,
                left_s=(total - done) / speed if speed and total > done else None,
                scores={kind: found.uar for kind, found in self.learner.best_scores.items()},
            )
        )


def _tensors(learner: Learner) -> dict[str, torch.Tensor]:
    module = learner.module.state_dict()
    averaged = learner.averaged.module.state_dict() if learner.averaged is not None else {}
    named = module | {f"averaged.{name}": tensor for name, tensor in averaged.items()}
    return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}


class Clock:
    """Where a worker's time goes."""

    def __init__(self) -> None:
        self.first_step_at: float | None = None  # time.time()
        self._last_step_at = 0.0
        self._waited_s = 0.0  # since the first step
        self._shown = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        if self.first_step_at is not None:
            self._waited_s += time.monotonic() - start

    def stepped(self) -> None:
        self._last_step_at = time.time()
        if self.first_step_at is None:
            self.first_step_at = self._last_step_at

    def due(self, every_s: float) -> bool:
        now = time.monotonic()
        if now - self._shown < every_s:
            return False
        self._shown = now
        return True

    @property
    def training_s(self) -> float:
        """From the end of the first step to the end of the last."""
        return self._last_step_at - (self.first_step_at or self._last_step_at)

    @property
    def wait_share(self) -> float:
        """Share of that time spent waiting for clips."""
        return min(1.0, self._waited_s / self.training_s) if self.training_s > 0 else 0.0

    def speed(self, clips: int) -> float:
        """Clips a second."""
        return clips / self.training_s if self.training_s > 0 else 0.0
