"""What a student learns from targets and labels.

Every term is a sum over a worker's clips divided by the count of such clips over all workers, so
that any split of a batch over workers, empty ones too, adds up to the gradient of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from liser_dist.batches import NO_LABEL, TEACHERS, StudentBatch, TeacherBatch
from liser_dist.spec import LossSpec
from liser_dist.students import StudentOutput

# What is counted over all workers before the losses are divided: see `counts`.
COUNTED = ("speech", "face", "speech_embedding", "face_embedding", "label")


def counts(batch: StudentBatch) -> Tensor:
    """[5] clips on this worker that each term of the loss speaks of, in the order of COUNTED."""
    masks = (
        batch.speech.given,
        batch.face.given,
        batch.speech.embedded,
        batch.face.embedded,
        batch.label != NO_LABEL,
    )
    return torch.stack([mask.sum() for mask in masks]).float()


class ClassBalance(nn.Module):
    """Against the neutral that fills web video, by what each teacher has said so far.

    `distribution_alignment` divides a teacher's probabilities by their running mean (Berthelot et
    al., "ReMixMatch", 2020, eq. 2, with a uniform prior). `resample` weighs a clip by how rare its
    emotion has been: in expectation a balanced draw, but no clip is left out.
    """

    known: Tensor  # [2, emotions] bool
    running: Tensor  # [2, emotions] mean probabilities so far

    def __init__(self, kind: str, known: Tensor, momentum: float = 0.95) -> None:
        """`known` [2, emotions] bool: the emotions of the speech and of the face teacher."""
        super().__init__()
        self.kind, self.momentum = kind, momentum
        self.register_buffer("known", known)
        share = known / known.sum(dim=1, keepdim=True).clamp(min=1)
        self.register_buffer("running", share)

    def sums(self, batch: StudentBatch) -> Tensor:
        """[2, emotions] each teacher's probabilities, summed over this worker's clips."""
        rows = []
        for position, name in enumerate(TEACHERS):
            said = batch.teacher(name)
            shares = masked_softmax(said.logits, self.known[position])
            rows.append((shares * said.given[:, None]).sum(dim=0))
        return torch.stack(rows)

    def update(self, sums: Tensor, given: Tensor) -> None:
        """`sums` [2, emotions] and `given` [2] clips, both over all workers."""
        for position in range(len(TEACHERS)):
            if given[position] > 0:
                seen = sums[position] / given[position]
                self.running[position].lerp_(seen, 1 - self.momentum)

    def balanced(self, position: int, said: TeacherBatch) -> tuple[Tensor, Tensor]:
        """A teacher's logits [batch, emotions] as the student shall see them, weights [batch]."""
        level = self.running[position].clamp(min=1e-3)
        weights = torch.ones_like(said.kept)
        if self.kind == "distribution_alignment":
            return said.logits - level.log(), weights
        if self.kind == "resample":
            likeliest = masked_softmax(said.logits, self.known[position]).argmax(dim=1)
            fair = 1 / self.known[position].sum().clamp(min=1)
            weights = (fair / level)[likeliest].clamp(0.1, 10)
        return said.logits, weights


def masked_softmax(logits: Tensor, known: Tensor) -> Tensor:
    """Probabilities over the known emotions; 0 for the others, and where none is known."""
    return torch.softmax(logits.masked_fill(~known, -1e9), dim=-1) * known


def masked_log_softmax(logits: Tensor, known: Tensor) -> Tensor:
    """As masked_softmax, its logarithm; 0 (not -inf) for the others, to be multiplied by 0."""
    return torch.log_softmax(logits.masked_fill(~known, -1e9), dim=-1) * known


def divergence(student: Tensor, teacher: Tensor, known: Tensor, temperature: float) -> Tensor:
    """[batch] KL(teacher || student) at a temperature, over the emotions that the teacher knows.

    Times T squared, which keeps the gradient's size (Hinton et al., 2015, section 2).
    """
    target = masked_softmax(teacher / temperature, known)
    log_target = masked_log_softmax(teacher / temperature, known)
    log_student = masked_log_softmax(student / temperature, known)
    return (target * (log_target - log_student)).sum(dim=1) * temperature**2


def agreement(batch: StudentBatch, known: Tensor, strength: float) -> Tensor:
    """[batch] exp(-strength * JS / ln 2) between the teachers, 1 where only one of them spoke."""
    both = known.all(dim=0)
    speech, face = (masked_softmax(batch.teacher(name).logits, both) for name in TEACHERS)
    middle = ((speech + face) / 2).clamp(min=1e-9).log()
    parts = torch.stack([speech, face])
    js = (parts * (parts.clamp(min=1e-9).log() - middle)).sum(dim=(0, 2)) / 2
    spoke = batch.speech.given & batch.face.given & both.any()
    return torch.where(spoke, torch.exp(-strength * js / math.log(2)), torch.ones_like(js))


def student_loss(
    output: StudentOutput,
    projected: Mapping[str, Tensor],
    batch: StudentBatch,
    totals: Tensor,
    balance: ClassBalance,
    spec: LossSpec,
) -> Tensor:
    """This worker's part of the loss: summed over all workers, it is the loss of the batch.

    `projected`: the student's embedding [batch, dim] in each teacher's space, where it is learned.
    `totals` [5]: `counts` summed over all workers.
    """
    share = dict(zip(COUNTED, 1 / totals.clamp(min=1), strict=True))
    loss = output.logits.sum() * 0  # a batch that no term speaks of still has a gradient
    agree = agreement(batch, balance.known, spec.agreement) if spec.agreement else 1.0
    for position, (name, weight) in enumerate(
        zip(TEACHERS, (spec.speech_kl, spec.face_kl), strict=True)
    ):
        said = batch.teacher(name)
        if weight:
            logits, weights = balance.balanced(position, said)
            known = balance.known[position]
            kl = divergence(output.logits, logits, known, spec.temperature)
            loss = (
                loss + weight * share[name] * (kl * said.kept * said.given * weights * agree).sum()
            )
        if spec.embedding and name in projected:
            distance = 1 - functional.cosine_similarity(projected[name], said.embedding, dim=1)
            loss = (
                loss
                + spec.embedding * share[f"{name}_embedding"] * (distance * said.embedded).sum()
            )
    if spec.label_ce:
        loss = loss + spec.label_ce * share["label"] * functional.cross_entropy(
            output.logits,
            batch.label,
            ignore_index=NO_LABEL,
            label_smoothing=spec.label_smoothing,
            reduction="sum",
        )
    return loss
