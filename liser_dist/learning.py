"""StudentBatch -> loss -> step, on one or many workers, without Ray.

Several students learn from the same batches: for each way of learning that is compared, one for
each learning rate. Teaching is what costs; a small student more is nearly free, and comparisons
share every clip, every draw of augmentation and every step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from liser_dist import together
from liser_dist.batches import TEACHERS, StudentBatch
from liser_dist.checkpoints import Checkpoint
from liser_dist.evaluation import LabelledSet, Scores, score_student
from liser_dist.losses import ClassBalance, agreed, counts, doubts, student_loss
from liser_dist.spec import DistillSpec, LossSpec
from liser_dist.students import Student

DISTILLED = "distilled"
AVERAGED = "averaged."  # before the names of averaged weights
FINAL_RATE = 0.02  # of the learning rate, where the cosine ends


@dataclass(frozen=True, slots=True)
class Arm:
    """One student in training: how it learns, and how fast."""

    kind: str  # "distilled", or a comparison
    learning_rate: float
    loss: LossSpec
    heard: Sequence[str] = TEACHERS  # the teachers that it learns from
    second_loss: LossSpec | None = None  # in the second half, where that is another

    def loss_at(self, progress: float) -> LossSpec:
        """`progress` 0 to 1."""
        return self.second_loss if self.second_loss and progress >= 0.5 else self.loss


def arms_of(spec: DistillSpec) -> list[Arm]:
    """The students of a run: each way of learning with each learning rate."""
    return [
        Arm(kind, rate, loss_of(heard, spec.loss), heard)
        for kind in (DISTILLED, *spec.compare)
        for rate in spec.train.learning_rates
        for heard in [HEARD.get(kind, TEACHERS)]
    ]


# Of ways to learn, the teachers that a student hears; of those not named here, both.
HEARD: Mapping[str, Sequence[str]] = {
    "labels_only": (),
    "speech_only": ("speech",),
    "face_only": ("face",),
    "swapped_faces": ("face",),
}


def loss_of(heard: Sequence[str], loss: LossSpec) -> LossSpec:
    """What is learned of the teachers that are heard, and of labels."""
    unheard = {f"{name}_kl": 0.0 for name in TEACHERS if name not in heard}
    if not heard:
        unheard |= {"embedding": 0.0, "relations": 0.0}
    return loss.model_copy(update=unheard)


def treated(arm: Arm, batch: StudentBatch, draw: torch.Generator) -> StudentBatch:
    """The batch as an arm sees it: without what it does not hear, targets moved in comparisons."""
    for name in TEACHERS:
        if name not in arm.heard:
            batch = batch.with_teacher(name, batch.teacher(name).silent())
    if arm.kind not in ("shuffled_targets", "swapped_faces"):
        return batch
    # Among the clips that were taught, and none keeps its own: what is taken away is whose
    # target it was, and nothing else.
    said = [batch.teacher(name) for name in arm.heard]
    heard = torch.stack([one.given | one.embedded for one in said]).any(dim=0)
    taught = heard.nonzero()[:, 0].cpu()
    if len(taught) < 2:
        return batch
    distance = int(torch.randint(1, len(taught), (1,), generator=draw))
    order = torch.arange(len(heard))
    order[taught] = taught.roll(distance)
    moved = batch.rows(order.to(heard.device))
    for name in arm.heard:
        batch = batch.with_teacher(name, moved.teacher(name))
    return batch


class Arms(nn.Module):
    """All students as one module, so that one backward pass and one reduction serve them."""

    def __init__(self, arms: Sequence[Arm], students: Sequence[Student], balance: ClassBalance):
        super().__init__()
        self.arms = arms
        self.students = nn.ModuleList(students)
        # In a list, for it is nobody's parameter and must not be broadcast by DDP.
        self._balance = [balance]

    def __iter__(self) -> Iterator[Student]:
        return iter(cast("list[Student]", list(self.students)))

    def forward(
        self, batch: StudentBatch, totals: Tensor, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """[arms] this worker's part of each student's loss; [2] see `agreed`, of the first arm."""
        losses, first = [], None
        for arm, student in zip(self.arms, self, strict=True):
            seen = treated(arm, batch, draw)
            output = student.encode(seen.mel, seen.frames, seen.faces, seen.seen)
            projected = student.project(output.embedding)
            loss = arm.loss_at(progress)
            losses.append(student_loss(output, projected, seen, totals, self._balance[0], loss))
            first = output.logits.detach() if first is None else first
        assert first is not None
        return torch.stack(losses), agreed(first, batch, self._balance[0].known)


@dataclass(frozen=True, slots=True)
class Step:
    """What came of a step, over all workers."""

    loss: Tensor  # [arms]
    agreed: Mapping[str, float] = field(default_factory=dict)  # share of the clips of which a
    # teacher said something, on which the first student says the same


class Learner:
    """The students of a run, their optimizer, and all that is carried from step to step."""

    def __init__(
        self,
        spec: DistillSpec,
        known: Tensor,
        embeddings: Mapping[str, int],
        device: torch.device,
        arms: Sequence[Arm] = (),
    ) -> None:
        """`known` [2, emotions] bool of the two teachers; `embeddings` widths the loss needs.

        `arms`: the spec's, when not given.
        """
        self.spec, self.device = spec, device
        self.arms = list(arms) or arms_of(spec)
        self.balance = ClassBalance(spec.loss.balance, known).to(device)
        self.module: Any = self._new_module(embeddings).to(device)
        self.averaged = (
            AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(spec.train.average))
            if spec.train.average
            else None
        )
        self.optimizer = self._new_optimizer()
        self.workers = together.workers()
        self.parallel: nn.Module = self._parallel() if self.workers > 1 else self.module
        self.steps = 0
        # Clips so far: see `losses.doubts`.
        self.doubts = torch.zeros(2, dtype=torch.float64, device=device)
        self._first = [arm for arm in self.arms if arm.second_loss]
        self.best: dict[str, dict[str, Tensor]] = {}
        self.best_scores: dict[str, Scores] = {}
        self.best_rates: dict[str, float] = {}

    def _parallel(self) -> nn.Module:
        with warnings.catch_warnings():
            # Of the argument's new name, which older releases do not know.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(self.module, broadcast_buffers=False)

    def _new_module(self, embeddings: Mapping[str, int]) -> nn.Module:
        students = [
            self._new_student(
                {n: dim for n, dim in embeddings.items() if arm.loss.embedding and n in arm.heard}
            )
            for arm in self.arms
        ]
        return Arms(self.arms, students, self.balance)

    def _new_student(self, embeddings: Mapping[str, int]) -> Student:
        """Every one from the same start, for they are compared."""
        torch.manual_seed(self.spec.seed)
        spec = self.spec
        assert spec.student.kind != "counting"
        return Student(spec.student, len(spec.emotions), spec.clip.sample_rate_hz, embeddings)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            [
                {"params": list(student.parameters()), "lr": arm.learning_rate}
                for arm, student in zip(self.arms, self.module, strict=True)
            ],
            weight_decay=self.spec.train.weight_decay,
        )

    def tensors(self) -> dict[str, Tensor]:
        """All weights, the averaged ones too."""
        averaged = self.averaged.module.state_dict() if self.averaged is not None else {}
        named = self.module.state_dict() | {AVERAGED + name: w for name, w in averaged.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}

    def facts(self) -> dict[str, Any]:
        """What else is carried from step to step, as JSON."""
        return {
            "steps": self.steps,
            "balance": self.balance.running.tolist(),
            "doubts": self.doubts.tolist(),
            "best": {kind: asdict(scores) for kind, scores in self.best_scores.items()},
            "learning_rates": self.best_rates,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint as if nothing had been."""
        weights = {n: w for n, w in checkpoint.students.items() if not n.startswith(AVERAGED)}
        self.module.load_state_dict(weights)
        if self.averaged is not None:
            kept = {n.removeprefix(AVERAGED): w for n, w in checkpoint.students.items()
                    if n.startswith(AVERAGED)}  # fmt: skip
            self.averaged.module.load_state_dict(kept)
            self.averaged.n_averaged.fill_(checkpoint.state["steps"])
        self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        self.steps = checkpoint.state["steps"]
        self.balance.running.copy_(torch.tensor(checkpoint.state["balance"]))
        self.doubts.copy_(torch.tensor(checkpoint.state.get("doubts", [0.0] * 2)))
        self.best = dict(checkpoint.best)
        self.best_scores = {k: Scores(**found) for k, found in checkpoint.state["best"].items()}
        self.best_rates = dict(checkpoint.state["learning_rates"])

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with a trained student's weights; what projects onto teachers is learned anew."""
        for student in self.module:
            known = {n: w for n, w in weights.items() if not n.startswith("projections.")}
            student.load_state_dict(student.state_dict() | known)

    def learn(self, batch: StudentBatch, progress: float) -> Step:
        """One step on this worker's part of the batch. Every worker takes every step.

        `progress`: share of the run that is done, which sets the learning rate.
        """
        batch = batch.to(self.device)
        # Drawn from the step alone, so that no random state need be kept.
        torch.manual_seed(hash((self.spec.seed, self.steps, together.rank())))
        draw = torch.Generator().manual_seed(hash((self.spec.seed, self.steps)))
        self.module.train()
        self._begin_second_losses(progress)
        totals, sums, doubted = self._over_all_workers(
            counts(batch),
            self.balance.sums(batch),
            doubts(batch, self.balance.known, self.spec.loss),
        )
        self.doubts += doubted
        self.balance.update(sums, totals[:2])
        precision = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.spec.train.precision == "bf16"
        )
        with precision:
            losses, same = self.parallel(batch, totals, draw, progress)
        self.optimizer.zero_grad(set_to_none=True)
        # DDP takes the mean over workers, while our parts add up.
        (losses.sum() * self.workers).backward()
        self._update(progress)
        total_loss, total_same = self._over_all_workers(losses.detach(), same)
        said = zip(TEACHERS, (total_same / totals[:2]).tolist(), totals.tolist(), strict=False)
        return Step(total_loss.cpu(), {name: share for name, share, clips in said if clips})

    def _begin_second_losses(self, progress: float) -> None:
        """An arm that turns to another loss forgets the averages of the first one's gradients."""
        for arm, student in zip(self.arms, self.module, strict=True):
            if arm.second_loss and arm.loss_at(progress) is arm.second_loss and arm in self._first:
                assert self.workers == 1, "DDP would miss the gradients of what is not used"
                self._first.remove(arm)
                for weight in student.parameters():
                    self.optimizer.state.pop(weight, None)

    def _update(self, progress: float) -> None:
        scale = rate_scale(progress, self.spec.train.warmup)
        for group, arm, student in zip(
            self.optimizer.param_groups, self.arms, self.module, strict=True
        ):
            group["lr"] = arm.learning_rate * scale
            nn.utils.clip_grad_norm_(student.parameters(), self.spec.train.gradient_norm)
        self.optimizer.step()
        self.steps += 1
        if self.averaged is not None:
            self.averaged.update_parameters(self.module)

    def _over_all_workers(self, *values: Tensor) -> list[Tensor]:
        """Each summed over all workers, in one reduction."""
        flat = torch.cat([value.flatten().float() for value in values])
        if self.workers > 1:
            dist.all_reduce(flat)
        parts = flat.split([value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    def students(self) -> Sequence[Student]:
        """As they would be used: the averaged weights, where an average is kept."""
        return list(self.module if self.averaged is None else cast(Arms, self.averaged.module))

    def keep_best(self, validation: LabelledSet | None) -> dict[str, Scores]:
        """Score all students and keep, of each kind, the best so far; without a set, the newest.

        Returns the best score of each kind now.
        """
        now: dict[str, Scores] = {}
        for arm, student in zip(self.arms, self.students(), strict=True):
            if validation is None:
                self._keep(arm, student)
                continue
            scores = score_student(student, validation)
            if arm.kind not in now or scores.uar > now[arm.kind].uar:
                now[arm.kind] = scores
            best = self.best_scores.get(arm.kind)
            if best is None or (scores.uar, scores.macro_f1) > (best.uar, best.macro_f1):
                self.best_scores[arm.kind] = scores
                self._keep(arm, student)
        return now

    def newest(self) -> dict[str, dict[str, Tensor]]:
        """One student of each kind as it is now, for a checkpoint from before any was scored."""
        pairs = zip(self.arms, self.students(), strict=True)
        return {arm.kind: _weights(student) for arm, student in pairs}

    def _keep(self, arm: Arm, student: Student) -> None:
        self.best[arm.kind] = _weights(student)
        self.best_rates[arm.kind] = arm.learning_rate


def _weights(student: Student) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}


def rate_scale(progress: float, warmup: float) -> float:
    """Of the learning rate: up in a line, then down a half cosine. `progress` 0 to 1."""
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    rest = min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * rest))
