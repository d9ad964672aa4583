"""What a student learns from targets and labels.

Every term is a sum over a worker's clips divided by the count of such clips over all workers, so
that any split of a batch over workers, empty ones too, adds up to the gradient of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from liser_dist.batches import NO_LABEL, TEACHERS, StudentBatch, TeacherBatch
from liser_dist.relations import shared_relation_loss
from liser_dist.spec import LossSpec
from liser_dist.students import StudentOutput

# What is counted over all workers before the losses are divided: see `counts`.
COUNTED = ("speech", "face", "speech_embedding", "face_embedding", "label", "either")


def counts(batch: StudentBatch) -> Tensor:
    """[6] clips on this worker that each term of the loss speaks of, in the order of COUNTED."""
    masks = (
        batch.speech.given,
        batch.face.given,
        batch.speech.embedded,
        batch.face.embedded,
        batch.label != NO_LABEL,
        batch.speech.given | batch.face.given,
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


@dataclass(frozen=True, slots=True)
class Target:
    """What a student is compared with: one teacher's word, or one made of both."""

    counted: str  # in COUNTED: the clips that it speaks of
    weight: float  # of its divergence in the loss
    logits: Tensor  # [batch, emotions]
    known: Tensor  # [emotions] or [batch, emotions] bool
    shares: Tensor  # [batch] how much each clip counts, 0 where nothing was said


def targets_of(batch: StudentBatch, balance: ClassBalance, spec: LossSpec) -> list[Target]:
    """One for each teacher that has a weight; or one of all of them."""
    found = []
    weights = zip(TEACHERS, (spec.speech_kl, spec.face_kl), strict=True)
    for position, (name, weight) in enumerate(weights):
        if weight:
            said = batch.teacher(name)
            logits, rarity = balance.balanced(position, said)
            shares = said.kept * said.given * rarity
            found.append(Target(name, weight, logits, balance.known[position], shares))
    if spec.fusion != "separate" and len(found) > 1:
        return [fused(found, spec.fusion)]
    return found


def fused(targets: Sequence[Target], how: str) -> Target:
    """One target of several; where one alone spoke, its own.

    `mean` of the probabilities by the targets' weights; `product` of the experts (Hinton, 2002),
    each to the power of its weight; `confidence`: a mean that weighs each by how far it is from
    even, 1 - H(p) / ln(emotions), too. What one does not know, the others say.
    """
    weight = sum(target.weight for target in targets)
    knows = torch.stack([target.known for target in targets])[:, None]  # [targets, 1, emotions]
    log_shares = torch.stack([masked_log_softmax(t.logits, t.known) for t in targets])
    spoke = torch.stack([target.shares for target in targets])  # [targets, batch]
    trust = torch.stack([target.weight / weight * target.shares for target in targets])
    if how == "confidence":
        trust = trust * (certainty(log_shares, knows) + 1e-6)
    trust = trust[:, :, None] * knows  # [targets, batch, emotions]
    trust = trust / trust.sum(dim=0).clamp(min=1e-9)
    if how == "product":
        logits = (trust * log_shares).sum(dim=0)
    else:
        logits = (trust * log_shares.exp()).sum(dim=0).clamp(min=1e-9).log()
    known = ((spoke[:, :, None] > 0) & knows).any(dim=0)
    return Target("either", weight, logits, known, spoke.amax(dim=0))


def certainty(log_shares: Tensor, known: Tensor) -> Tensor:
    """1 where all lies on one emotion, 0 where it is even: [..., emotions] -> [...]."""
    entropy = -(log_shares.exp() * log_shares * known).sum(dim=-1)
    return 1 - entropy / known.sum(dim=-1).clamp(min=2).log()


def confidence(batch: StudentBatch, known: Tensor) -> Tensor:
    """[batch] the largest probability that any teacher gives an emotion; 0 where none spoke."""
    found = [
        masked_softmax(said.logits, known[position]).amax(dim=1) * said.kept * said.given
        for position, said in enumerate(map(batch.teacher, TEACHERS))
    ]
    return torch.stack(found).amax(dim=0)


def heeded(known: Tensor, spec: LossSpec) -> Tensor:
    """[2, emotions] what the teachers know whose word has a weight in the loss."""
    weights = torch.tensor([spec.speech_kl, spec.face_kl], device=known.device)
    return known & (weights > 0)[:, None]


def doubts(batch: StudentBatch, known: Tensor, spec: LossSpec) -> Tensor:
    """[2] clips of this worker that no teacher is sure enough of, and on which they differ."""
    known = heeded(known, spec)
    both = known.all(dim=0)
    likeliest = [
        masked_softmax(batch.teacher(name).logits, both).argmax(dim=1) for name in TEACHERS
    ]
    heard = batch.speech.given | batch.face.given
    unsure = heard & (confidence(batch, known) < spec.min_confidence)
    spoke = batch.speech.given & batch.face.given & both.any()
    differ = spoke & (likeliest[0] != likeliest[1])
    return torch.stack([unsure.sum(), differ.sum()]).float()


def agreed(logits: Tensor, batch: StudentBatch, known: Tensor) -> Tensor:
    """[2] clips of this worker on which a student says what each teacher does.

    `logits` [batch, emotions]: its own, of which those count that the teacher knows.
    """
    found = []
    for position, said in enumerate(map(batch.teacher, TEACHERS)):
        ours, theirs = (masked_softmax(one, known[position]) for one in (logits, said.logits))
        found.append((said.given & (ours.argmax(dim=1) == theirs.argmax(dim=1))).sum())
    return torch.stack(found).float()


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
    `totals` [6]: `counts` summed over all workers.
    """
    share = dict(zip(COUNTED, 1 / totals.clamp(min=1), strict=True))
    loss = output.logits.sum() * 0  # a batch that no term speaks of still has a gradient
    known = heeded(balance.known, spec)
    agree = agreement(batch, known, spec.agreement) if spec.agreement else 1.0
    agree = agree * (confidence(batch, known) >= spec.min_confidence)
    for target in targets_of(batch, balance, spec):
        kl = divergence(output.logits, target.logits, target.known, spec.temperature)
        loss = loss + target.weight * share[target.counted] * (kl * target.shares * agree).sum()
    for name in TEACHERS:
        said = batch.teacher(name)
        if spec.embedding and name in projected:
            distance = 1 - functional.cosine_similarity(projected[name], said.embedding, dim=1)
            part = share[f"{name}_embedding"] * (distance * said.embedded).sum()
            loss = loss + spec.embedding * part
        if spec.relations and said.embedding.shape[1]:
            part = shared_relation_loss(output.embedding, said.embedding, said.embedded)
            loss = loss + spec.relations * part
    if spec.label_ce:
        loss = loss + spec.label_ce * share["label"] * label_losses(output, batch, spec).sum()
    return loss


def label_losses(output: StudentOutput, batch: StudentBatch, spec: LossSpec) -> Tensor:
    """[batch] cross entropy with labels, softer where what is felt is weak; 0 without a label."""
    firm = (1 - spec.label_smoothing) * (1 - spec.intensity * (1 - batch.intensity))
    log_shares = torch.log_softmax(output.logits, dim=1)
    labelled = batch.label != NO_LABEL
    of_label = log_shares.gather(1, batch.label.clamp(min=0)[:, None])[:, 0]
    return -(firm * of_label + (1 - firm) * log_shares.mean(dim=1)) * labelled
