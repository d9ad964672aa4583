"""Computes the loss of a student: a weighted sum of terms, from teacher targets and from labels.

A worker sums a term over the clips to which it applies, and divides by the number of such clips on
all workers. So the workers' parts add up to the gradient of the complete batch, however it is
split, even if a worker has no clip.

To add a term: add its weight to `config.student.LossSpec`, marked with what the term learns from,
and yield the weighted term in `_terms`. A worker without clips gets a batch of one silent row,
which no term may count: see the masks `given`, `embedded` and `label` of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from liser_dist.config.student import LossSpec
from liser_dist.students.batches import NO_LABEL, StudentBatch, TeacherBatch
from liser_dist.students.collectives import all_gather_rows, worker_count
from liser_dist.students.models import StudentOutput


@dataclass(frozen=True, slots=True)
class TermCounts:
    """The number of clips to which each term applies: of one worker, or of all."""

    given: Tensor  # [teachers] clips for which a teacher has logits
    embedded: Tensor  # [teachers] clips of which a teacher has an embedding
    labelled: Tensor  # []
    given_by_any: Tensor  # [] clips for which some teacher has logits

    @classmethod
    def of_batch(cls, batch: StudentBatch) -> Self:
        """Return the counts of this worker's batch."""
        teachers = batch.teachers.values()
        return cls(
            torch.stack([teacher.given.sum() for teacher in teachers]).float(),
            torch.stack([teacher.embedded.sum() for teacher in teachers]).float(),
            (batch.label != NO_LABEL).sum().float(),
            given_by_any(batch).sum().float(),
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the counts in the order of the fields, to be summed over all workers."""
        return self.given, self.embedded, self.labelled, self.given_by_any


def given_by_any(batch: StudentBatch) -> Tensor:
    """Return [batch] bool: some teacher has logits for the clip."""
    return torch.stack([teacher.given for teacher in batch.teachers.values()]).any(dim=0)


def given_by_all(batch: StudentBatch) -> Tensor:
    """Return [batch] bool: every teacher has logits for the clip."""
    return torch.stack([teacher.given for teacher in batch.teachers.values()]).all(dim=0)


class ClassBalance(nn.Module):
    """Corrects for the emotions that teachers give most often, such as neutral in web video.

    `distribution_alignment` divides a teacher's probabilities by their running mean (Berthelot et
    al., "ReMixMatch", 2020, eq. 2, with a uniform prior).
    """

    known: Tensor  # [teachers, emotions] bool
    running: Tensor  # [teachers, emotions] mean probabilities so far

    def __init__(self, kind: str, known: Tensor, momentum: float = 0.95) -> None:
        """`known` [teachers, emotions] bool: the emotions that each teacher knows."""
        super().__init__()
        self.kind, self.momentum = kind, momentum
        self.register_buffer("known", known)
        share = known / known.sum(dim=1, keepdim=True).clamp(min=1)
        self.register_buffer("running", share)

    def sums(self, batch: StudentBatch) -> Tensor:
        """Return [teachers, emotions] probabilities, summed over this worker's clips."""
        rows = []
        for position, teacher in enumerate(batch.teachers.values()):
            probabilities = masked_softmax(teacher.logits, self.known[position])
            rows.append((probabilities * teacher.given[:, None]).sum(dim=0))
        return torch.stack(rows)

    def update(self, sums: Tensor, given: Tensor) -> None:
        """Update the running means with the clips of a step.

        Args:
            sums: [teachers, emotions] probabilities, summed over the clips of all workers.
            given: [teachers] number of these clips.
        """
        for position in range(len(self.known)):
            mean = sums[position] / given[position]
            if mean.isfinite().all():  # there were clips, and their targets are numbers
                self.running[position].lerp_(mean, 1 - self.momentum)

    def balanced(self, position: int, teacher: TeacherBatch) -> Tensor:
        """Return a teacher's corrected logits [batch, emotions]; `position`: its row in `known`."""
        if self.kind == "distribution_alignment":
            level = self.running[position].clamp(min=1e-3)
            return teacher.logits - level.log()
        return teacher.logits


# ---------------------------------------------------------------- probabilities


def masked_softmax(logits: Tensor, known: Tensor) -> Tensor:
    """Return probabilities over the known emotions; 0 for the others, and where none is known."""
    return torch.softmax(logits.masked_fill(~known, -1e9), dim=-1) * known


def masked_log_softmax(logits: Tensor, known: Tensor) -> Tensor:
    """Return the logarithm of `masked_softmax`; 0 (not -inf) for the others, to multiply by 0."""
    return torch.log_softmax(logits.masked_fill(~known, -1e9), dim=-1) * known


def kl_divergence(student: Tensor, teacher: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Return [batch] KL(teacher || student) over the emotions that the teacher knows.

    It is multiplied by the squared temperature, which keeps the size of the gradient (Hinton et
    al., 2015, section 2).

    Args:
        student: [batch, emotions] logits.
        teacher: [batch, emotions] logits.
        known: [emotions] or [batch, emotions] bool.
        temperature: Divides both logits.
    """
    target = masked_softmax(teacher / temperature, known)
    log_target = masked_log_softmax(teacher / temperature, known)
    log_student = masked_log_softmax(student / temperature, known)
    return (target * (log_target - log_student)).sum(dim=1) * temperature**2


# ---------------------------------------------------------------- how much a clip counts


def confidence(batch: StudentBatch, known: Tensor) -> Tensor:
    """Return [batch] the largest probability of any teacher; 0 where none has logits.

    `known` [teachers, emotions] bool.
    """
    largest = [
        masked_softmax(teacher.logits, known[position]).amax(dim=1) * teacher.mass * teacher.given
        for position, teacher in enumerate(batch.teachers.values())
    ]
    return torch.stack(largest).amax(dim=0)


def agreement(batch: StudentBatch, known: Tensor, strength: float) -> Tensor:
    """Return [batch] exp(-strength * JS / ln 2); 1 where not all teachers have logits.

    JS is the Jensen-Shannon divergence of the teachers, over the emotions that all of them know.
    """
    shared = known.all(dim=0)
    parts = torch.stack(
        [masked_softmax(teacher.logits, shared) for teacher in batch.teachers.values()]
    )
    middle = (parts.sum(dim=0) / len(parts)).clamp(min=1e-9).log()
    js = (parts * (parts.clamp(min=1e-9).log() - middle)).sum(dim=(0, 2)) / len(parts)
    comparable = given_by_all(batch) & shared.any()
    return torch.where(comparable, torch.exp(-strength * js / math.log(2)), torch.ones_like(js))


def weighted_teachers(batch: StudentBatch, known: Tensor, loss: LossSpec) -> Tensor:
    """Return [teachers, emotions] `known`, all False for teachers without weight in the loss."""
    by_name = loss.teacher_weights
    weights = torch.tensor([by_name[name] for name in batch.teachers], device=known.device)
    return known & (weights > 0)[:, None]


# ---------------------------------------------------------------- counts for reports


def count_unsure(batch: StudentBatch, known: Tensor, loss: LossSpec) -> Tensor:
    """Return [1] clips of this worker of which no teacher is sure enough.

    They are left out of the loss (`min_confidence`).
    """
    known = weighted_teachers(batch, known, loss)
    unsure = given_by_any(batch) & (confidence(batch, known) < loss.min_confidence)
    return unsure.sum()[None].float()


def count_agreements(logits: Tensor, batch: StudentBatch, known: Tensor) -> Tensor:
    """Return [teachers] clips of this worker on which a student agrees with each teacher.

    They agree if the same emotion is likeliest, among those that the teacher knows. `logits`
    [batch, emotions]: the student's.
    """
    same = []
    for position, teacher in enumerate(batch.teachers.values()):
        own, other = (masked_softmax(x, known[position]) for x in (logits, teacher.logits))
        same.append((teacher.given & (own.argmax(dim=1) == other.argmax(dim=1))).sum())
    return torch.stack(same).float()


# ---------------------------------------------------------------- the loss


@dataclass(frozen=True, slots=True)
class Target:
    """What a student's logits are compared with: the targets of one teacher, or their mean."""

    clips: Tensor  # [] number of clips on all workers that have it
    weight: float  # of its divergence in the loss
    logits: Tensor  # [batch, emotions]
    known: Tensor  # [emotions] or [batch, emotions] bool
    mass: Tensor  # [batch] how much each clip counts, 0 where there is no target


def student_loss(
    output: StudentOutput,
    projected: Mapping[str, Tensor],
    batch: StudentBatch,
    totals: TermCounts,
    balance: ClassBalance,
    loss: LossSpec,
) -> Tensor:
    """Return this worker's part of the loss; the parts of all workers add up to the loss.

    Args:
        output: The student's output for the batch.
        projected: Its embedding in the space of each teacher's, [batch, dim], where that is
            learned.
        batch: This worker's batch.
        totals: The clips of all workers.
        balance: Corrects the teachers' logits.
        loss: The weights of the terms.
    """
    total = output.logits.sum() * 0  # a batch without any term still has a gradient
    for term in _terms(output, projected, batch, totals, balance, loss):
        total = total + term
    return total


def _terms(
    output: StudentOutput,
    projected: Mapping[str, Tensor],
    batch: StudentBatch,
    totals: TermCounts,
    balance: ClassBalance,
    loss: LossSpec,
) -> Iterator[Tensor]:
    """Yield each weighted term. Their order is the order of the floating-point sum."""
    known = weighted_teachers(batch, balance.known, loss)
    factor = agreement(batch, known, loss.agreement) if loss.agreement else 1.0
    factor = factor * (confidence(batch, known) >= loss.min_confidence)
    for target in targets_of(batch, totals, balance, loss):
        kl = kl_divergence(output.logits, target.logits, target.known, loss.temperature)
        yield target.weight * _share(target.clips) * (kl * target.mass * factor).sum()
    for position, (name, teacher) in enumerate(batch.teachers.items()):
        if loss.embedding and name in projected:
            distance = 1 - functional.cosine_similarity(projected[name], teacher.embedding, dim=1)
            part = _share(totals.embedded[position]) * (distance * teacher.embedded).sum()
            yield loss.embedding * part
        if loss.relations and teacher.embedding.shape[1]:
            part = shared_relation_loss(output.embedding, teacher.embedding, teacher.embedded)
            yield loss.relations * part
    if loss.label_ce:
        yield loss.label_ce * _share(totals.labelled) * label_losses(output, batch, loss).sum()


def _share(clips: Tensor) -> Tensor:
    """Return the share of one clip in a mean over so many."""
    return 1 / clips.clamp(min=1)


def targets_of(
    batch: StudentBatch, totals: TermCounts, balance: ClassBalance, loss: LossSpec
) -> list[Target]:
    """Return a target for each teacher that has a weight; or their mean, with `fusion: mean`."""
    targets, weights = [], loss.teacher_weights
    for position, (name, teacher) in enumerate(batch.teachers.items()):
        if weight := weights[name]:
            logits = balance.balanced(position, teacher)
            mass = teacher.mass * teacher.given
            known = balance.known[position]
            targets.append(Target(totals.given[position], weight, logits, known, mass))
    if loss.fusion == "mean" and len(targets) > 1:
        return [mean_target(targets, totals.given_by_any)]
    return targets


def mean_target(targets: Sequence[Target], clips: Tensor) -> Target:
    """Return the mean of the targets' probabilities, by their weights.

    A clip that has one target alone keeps that; so does an emotion that one teacher alone knows.

    Args:
        targets: The targets of the teachers.
        clips: [] number of clips on all workers that have any of them.
    """
    weight = sum(target.weight for target in targets)
    knows = torch.stack([target.known for target in targets])[:, None]  # [targets, 1, emotions]
    log_shares = torch.stack([masked_log_softmax(t.logits, t.known) for t in targets])
    mass = torch.stack([target.mass for target in targets])  # [targets, batch]
    trust = torch.stack([target.weight / weight * target.mass for target in targets])
    trust = trust[:, :, None] * knows  # [targets, batch, emotions]
    trust = trust / trust.sum(dim=0).clamp(min=1e-9)
    logits = (trust * log_shares.exp()).sum(dim=0).clamp(min=1e-9).log()
    known = ((mass[:, :, None] > 0) & knows).any(dim=0)
    return Target(clips, weight, logits, known, mass.amax(dim=0))


def label_losses(output: StudentOutput, batch: StudentBatch, loss: LossSpec) -> Tensor:
    """Return [batch] cross entropy with the labels; 0 without a label.

    Labels are softer by `label_smoothing`, and where the emotion is weakly expressed.
    """
    firm = (1 - loss.label_smoothing) * (1 - loss.intensity * (1 - batch.intensity))
    log_shares = torch.log_softmax(output.logits, dim=1)
    labelled = batch.label != NO_LABEL
    of_label = log_shares.gather(1, batch.label.clamp(min=0)[:, None])[:, 0]
    return -(firm * of_label + (1 - firm) * log_shares.mean(dim=1)) * labelled


def relation_loss(student: Tensor, teacher: Tensor, embedded: Tensor) -> Tensor:
    """Compare the distances between clips in the student's and in a teacher's embedding.

    Distance-wise relational knowledge distillation (Park et al., 2019, equations 4 to 6), with the
    mean over pairs; distances are divided by their mean. The widths may differ: nothing is
    projected.

    Args:
        student: [clips, dim].
        teacher: [clips, other dim].
        embedded: [clips] bool: the teacher has an embedding of the clip.
    """
    student, teacher = student[embedded], teacher[embedded]
    if len(student) < 2:
        return student.sum() * 0
    return functional.smooth_l1_loss(_distances(student), _distances(teacher))


def _distances(rows: Tensor) -> Tensor:
    """Return [pairs] distances of rows, divided by their mean."""
    distances = functional.pdist(rows.float())
    return distances / distances.mean().clamp(min=1e-6)


def shared_relation_loss(student: Tensor, teacher: Tensor, embedded: Tensor) -> Tensor:
    """Return this worker's part of `relation_loss` over the clips of all workers."""
    of_all = all_gather_rows(torch.cat([teacher, embedded[:, None].to(teacher.dtype)], dim=1))
    all_students = all_gather_rows(student)
    return relation_loss(all_students, of_all[:, :-1], of_all[:, -1] > 0) / worker_count()
