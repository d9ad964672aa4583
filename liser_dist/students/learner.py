"""Trains the students of a run: batch -> loss -> optimizer step, on one or many workers.

The distilled student and each comparison (`compare` in the spec) are trained once per learning
rate. All see the same batches, with the same augmentation, in the same steps. Computing targets is
expensive; one more small student is nearly free. This module does not need Ray.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from liser_dist.config.distill import DistillSpec
from liser_dist.config.student import EmotionStudent
from liser_dist.errors import TrainingError
from liser_dist.records import Provenance
from liser_dist.runs.checkpoints import Checkpoint
from liser_dist.students.batches import StudentBatch
from liser_dist.students.collectives import sum_over_workers, worker_count, worker_rank
from liser_dist.students.losses import (
    ClassBalance,
    TermCounts,
    count_agreements,
    count_unsure,
    student_loss,
)
from liser_dist.students.models import Student
from liser_dist.students.scoring import LabelledSet, Scores, score_student
from liser_dist.students.variants import Variant, apply_variant, variants_of

logger = logging.getLogger(__name__)

AVERAGED = "averaged."  # prefix of the names of averaged weights
FINAL_RATE = 0.02  # share of the learning rate at the end of the cosine


class StudentGroup(nn.Module):
    """All students as one module: one backward pass and one reduction serve them all."""

    def __init__(
        self, variants: Sequence[Variant], students: Sequence[Student], balance: ClassBalance
    ) -> None:
        super().__init__()
        self.variants = variants
        self.students = nn.ModuleList(students)
        # In a list, so that it is not a submodule: DDP must not broadcast its buffers.
        self._balance = [balance]

    def __iter__(self) -> Iterator[Student]:
        return iter(cast("list[Student]", list(self.students)))

    def forward(
        self, batch: StudentBatch, totals: TermCounts, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of a batch, and how often the first student agrees with the teachers.

        Args:
            batch: This worker's batch.
            totals: The clips of all workers.
            draw: Draws how controls move their targets.
            progress: Share of the training that is done, 0 to 1.

        Returns:
            [variants] this worker's part of each student's loss; [teachers] see
            `count_agreements`, of the first student.
        """
        losses, first = [], None
        for variant, student in zip(self.variants, self, strict=True):
            own = apply_variant(variant, batch, draw)
            output = student.encode(own.mel, own.frames, own.faces, own.has_face)
            projected = student.project(output.embedding)
            loss = variant.loss_at(progress)
            losses.append(student_loss(output, projected, own, totals, self._balance[0], loss))
            first = output.logits.detach() if first is None else first
        assert first is not None
        return torch.stack(losses), count_agreements(first, batch, self._balance[0].known)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results of a training step, over all workers.

    Attributes:
        loss: [variants].
        agreement: By teacher, the share of the clips with its targets on which the first student
            agrees with it; teachers without a clip are absent.
        skipped: The gradient was not finite, so no weight was changed.
    """

    loss: Tensor
    agreement: Mapping[str, float] = field(default_factory=dict)
    skipped: bool = False


class Learner:
    """The students of a run, their optimizer, and all other state from step to step."""

    def __init__(
        self,
        spec: DistillSpec,
        known: Tensor,
        embeddings: Mapping[str, int],
        device: torch.device,
        variants: Sequence[Variant] = (),
    ) -> None:
        """Create the students with their first weights.

        Args:
            spec: The job.
            known: [teachers, emotions] bool, the emotions that each teacher knows.
            embeddings: Width of each teacher's embedding that the loss needs, by teacher.
            device: Where the students are trained.
            variants: The students; none: those of the spec.
        """
        self.spec, self.device = spec, device
        self.variants = list(variants) or variants_of(
            spec.loss, spec.compare, spec.train.learning_rates
        )
        self.balance = ClassBalance(spec.loss.balance, known).to(device)
        self.module: Any = self._new_module(embeddings).to(device)
        self.averaged = (
            AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(spec.train.average))
            if spec.train.average
            else None
        )
        self.optimizer = self._new_optimizer()
        self.workers = worker_count()
        self.parallel: nn.Module = self._parallel() if self.workers > 1 else self.module
        self.steps = 0
        self.skipped = self._skipped_in_a_row = 0  # steps whose gradient was not finite
        self.unsure = torch.zeros(1, dtype=torch.float64, device=device)  # see `count_unsure`
        self._in_first_loss = [
            number for number, variant in enumerate(self.variants) if variant.second_loss
        ]
        self.best: dict[str, dict[str, Tensor]] = {}
        self.best_scores: dict[str, Scores] = {}
        self.best_rates: dict[str, float] = {}

    def _parallel(self) -> nn.Module:
        with warnings.catch_warnings():
            # The argument has a new name, which older releases do not know.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(self.module, broadcast_buffers=False)

    def _new_module(self, embeddings: Mapping[str, int]) -> nn.Module:
        students = [
            self._new_student(
                {
                    name: dim
                    for name, dim in embeddings.items()
                    if variant.loss.embedding and name in variant.teachers
                }
            )
            for variant in self.variants
        ]
        return StudentGroup(self.variants, students, self.balance)

    def _new_student(self, embeddings: Mapping[str, int]) -> Student:
        """Return a student with the same first weights for every variant, as they are compared."""
        torch.manual_seed(self.spec.seed)
        spec = self.spec
        assert isinstance(spec.student, EmotionStudent)
        return Student(spec.student, len(spec.emotions), spec.clip.sample_rate_hz, embeddings)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            [
                {"params": list(student.parameters()), "lr": variant.learning_rate}
                for variant, student in zip(self.variants, self.module, strict=True)
            ],
            weight_decay=self.spec.train.weight_decay,
        )

    # ------------------------------------------------------------ state

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of all weights by name, the averaged ones included."""
        averaged = self.averaged.module.state_dict() if self.averaged is not None else {}
        named = self.module.state_dict() | {AVERAGED + name: w for name, w in averaged.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}

    def state(self) -> dict[str, Any]:
        """Return the state that is no tensor of a file of its own, as JSON."""
        return {
            "steps": self.steps,
            "balance": self.balance.running.tolist(),
            "doubts": self.unsure.tolist(),
            "in_first_loss": self._in_first_loss,
            "skipped_steps": self.skipped,
            "best": {kind: asdict(scores) for kind, scores in self.best_scores.items()},
            "learning_rates": self.best_rates,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set all state as it was when the checkpoint was saved."""
        weights = {n: w for n, w in checkpoint.students.items() if not n.startswith(AVERAGED)}
        self.module.load_state_dict(weights)
        if self.averaged is not None:
            averaged = {
                name.removeprefix(AVERAGED): weight
                for name, weight in checkpoint.students.items()
                if name.startswith(AVERAGED)
            }
            self.averaged.module.load_state_dict(averaged)
            self.averaged.n_averaged.fill_(checkpoint.state["steps"])
        self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        self.steps = checkpoint.state["steps"]
        self.balance.running.copy_(torch.tensor(checkpoint.state["balance"]))
        self.unsure.copy_(torch.tensor(checkpoint.state.get("doubts", [0.0])[:1]))
        self.skipped = checkpoint.state.get("skipped_steps", 0)
        self._in_first_loss = list(checkpoint.state.get("in_first_loss", self._in_first_loss))
        self.best = dict(checkpoint.best)
        self.best_scores = {
            kind: Scores(**scores) for kind, scores in checkpoint.state["best"].items()
        }
        self.best_rates = dict(checkpoint.state["learning_rates"])

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Start from a trained student's weights; projections onto embeddings start anew."""
        for student in self.module:
            trained = {n: w for n, w in weights.items() if not n.startswith("projections.")}
            student.load_state_dict(student.state_dict() | trained)

    # ------------------------------------------------------------ steps

    def learn(
        self, batch: StudentBatch, progress: float, clips: Sequence[Provenance] = ()
    ) -> StepResult:
        """Take one step. All workers take every step, each with its part of the batch.

        Args:
            batch: This worker's part of the batch.
            progress: Share of the training that is done, which sets the learning rate.
            clips: The unlabelled clips of the batch, for learners that tell clips apart.
        """
        batch = batch.to(self.device)
        # Seeded by the step alone, so that no random state has to be saved.
        torch.manual_seed(hash((self.spec.seed, self.steps, worker_rank())))
        draw = torch.Generator().manual_seed(hash((self.spec.seed, self.steps)))
        self.module.train()
        self._begin_second_losses(progress)
        totals = self._count(batch)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.spec.train.precision == "bf16"
        ):
            losses, agreements = self.parallel(batch, totals, draw, progress)
        self.optimizer.zero_grad(set_to_none=True)
        # DDP takes the mean over workers; the workers' parts have to be added.
        (losses.sum() * self.workers).backward()
        skipped = not self._update(progress)
        loss, agreements = sum_over_workers(losses.detach(), agreements)
        shares = (agreements / totals.given).tolist()
        given = zip(batch.teachers, shares, totals.given.tolist(), strict=True)
        agreement = {name: share for name, share, clips in given if clips}
        return StepResult(loss.cpu(), agreement, skipped)

    def _count(self, batch: StudentBatch) -> TermCounts:
        """Return the clips of all workers; update the class balance and the unsure clips."""
        *totals, sums, unsure = sum_over_workers(
            *TermCounts.of_batch(batch).tensors(),
            self.balance.sums(batch),
            count_unsure(batch, self.balance.known, self.spec.loss),
        )
        counts = TermCounts(*totals)
        self.unsure += unsure
        self.balance.update(sums, counts.given)
        return counts

    def _begin_second_losses(self, progress: float) -> None:
        """Reset the optimizer state of students that change to their second loss.

        The averages of the first loss's gradients do not apply to it.
        """
        students = list(self.module)
        for number in tuple(self._in_first_loss):
            variant = self.variants[number]
            if variant.loss_at(progress) is variant.second_loss:
                assert self.workers == 1, "DDP needs a gradient for every weight"
                self._in_first_loss.remove(number)
                for weight in students[number].parameters():
                    self.optimizer.state.pop(weight, None)

    def _update(self, progress: float) -> bool:
        """Change the weights; return False if they stay as they were.

        The gradient is that of all workers, so that they decide alike.
        """
        scale = rate_scale(progress, self.spec.train.warmup)
        norms = []
        for group, variant, student in zip(
            self.optimizer.param_groups, self.variants, self.module, strict=True
        ):
            group["lr"] = variant.learning_rate * scale
            limit = self.spec.train.gradient_norm
            norms.append(nn.utils.clip_grad_norm_(student.parameters(), limit))
        if not self._begin_update(bool(torch.stack(norms).isfinite().all())):
            return False
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.module)
        return True

    def _begin_update(self, finite: bool) -> bool:
        """Count a step; return whether it may change the weights, because its gradient is finite.

        Raises:
            TrainingError: Too many in a row are not.
        """
        self.steps += 1
        if finite:
            self._skipped_in_a_row = 0
            return True
        self.skipped += 1
        self._skipped_in_a_row += 1
        if worker_rank() == 0:
            logger.warning(
                "step %d is skipped, because its gradient is NaN or infinite; its unlabelled clips "
                "will be trained on later",
                self.steps,
            )
        if self._skipped_in_a_row >= (most := self.spec.budget.max_skipped_in_a_row):
            raise TrainingError(
                f"the gradients of {most} steps in a row, up to step {self.steps}, are NaN or "
                "infinite (`budget.max_skipped_in_a_row`): start a run under another `name` with "
                "lower `train.learning_rates` or with `train.precision: fp32`"
            )
        return False

    def has_finite_weights(self) -> bool:
        """Return whether no weight of any student is NaN or infinite."""
        state = self.module.state_dict().values()
        return all(bool(tensor.isfinite().all()) for tensor in state if tensor.is_floating_point())

    # ------------------------------------------------------------ students

    def students(self) -> Sequence[Student]:
        """Return the students as they would be used: with averaged weights, if there are any."""
        return list(
            self.module if self.averaged is None else cast(StudentGroup, self.averaged.module)
        )

    def keep_best(self, validation: LabelledSet | None) -> dict[str, Scores]:
        """Score all students and keep the best weights of each kind.

        Args:
            validation: The clips to score on; None: the newest weights are kept.

        Returns:
            The best score of each kind at this step.
        """
        now: dict[str, Scores] = {}
        for variant, student in zip(self.variants, self.students(), strict=True):
            if validation is None:
                self._keep(variant, student)
                continue
            scores = score_student(student, validation)
            if variant.kind not in now or scores.uar > now[variant.kind].uar:
                now[variant.kind] = scores
            best = self.best_scores.get(variant.kind)
            if best is None or (scores.uar, scores.macro_f1) > (best.uar, best.macro_f1):
                self.best_scores[variant.kind] = scores
                self._keep(variant, student)
        return now

    def newest(self) -> dict[str, dict[str, Tensor]]:
        """Return the weights of one student of each kind, for checkpoints before any is scored."""
        pairs = zip(self.variants, self.students(), strict=True)
        return {variant.kind: _weights(student) for variant, student in pairs}

    def _keep(self, variant: Variant, student: Student) -> None:
        self.best[variant.kind] = _weights(student)
        self.best_rates[variant.kind] = variant.learning_rate


def _weights(student: Student) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}


def rate_scale(progress: float, warmup: float) -> float:
    """Return the learning-rate multiplier: linear warm-up, then half-cosine decay to FINAL_RATE.

    `progress` and `warmup` are shares of the training, 0 to 1.
    """
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    rest = min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * rest))
