"""One cell of a study: a draw of labels, heads for the teachers, a student for each method.

1. each teacher's head is fitted on the labels that were drawn for the cell, over the embeddings
   that the target store has
2. the students learn side by side from the same batches of unlabelled clips
3. students and teachers are asked about the test clips

No step counts on validation, for its labels would be labels too: the last weights are the ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liser_dist.batches import TEACHERS, Batcher, labelled_turn
from liser_dist.errors import StorageError
from liser_dist.evaluation import LabelledSet, answer_student
from liser_dist.heads import Head, fit_calibrated_head
from liser_dist.label_draws import require_disjoint
from liser_dist.learning import Arm, Learner, loss_of
from liser_dist.ledger import Ledger
from liser_dist.records import Example
from liser_dist.rereading import Rereader
from liser_dist.schedule import PartVisit, to_read
from liser_dist.shards import Shard, shard_order
from liser_dist.students import Student
from liser_dist.study_spec import Method, StudySpec
from liser_dist.tables import to_examples
from liser_dist.targets import Part, TargetStore
from liser_dist.teachers import fold

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """What all methods share: which labels, whose clips are tested, which draw and start."""

    label_share: float
    fold: int
    seed: int

    @property
    def name(self) -> str:
        return f"share-{self.label_share:g}-fold-{self.fold}-seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class Answers:
    """What one student, or one teacher, said of the test clips."""

    method: str
    keys: Sequence[str]
    speakers: Sequence[str]
    labels: NDArray[np.int64]  # [clips]
    logits: Floats  # [clips, emotions]


class Said(NamedTuple):
    """All that was said in a cell."""

    students: list[Answers]
    teachers: list[Answers]


@dataclass(frozen=True, slots=True)
class Study:
    """What every cell is given."""

    spec: StudySpec
    store: TargetStore
    shards: Sequence[Shard]  # unlabelled
    layers: Mapping[str, int]  # of each teacher's backbone


def run_cell(study: Study, cell: Cell, known: Sequence[Example], test: Sequence[Example]) -> Said:
    """`known`: the clips whose labels it may use. Raises LiserError."""
    require_disjoint(known, test)
    heads = {name: fit(known, name, study) for name in TEACHERS}
    students = train(study, cell, known, heads)
    batcher = Batcher.of(study.spec)
    heard = LabelledSet.of(test, batcher)
    said = [
        _answers(method, test, heard.labels, answer_student(student, heard))
        for method, student in students.items()
    ]
    asked = [ask(head, name, test, study) for name, head in heads.items()]
    return Said(said, [one for one in asked if one is not None])


def _answers(method: str, clips: Sequence[Example], labels: NDArray[np.int64], logits: Floats
             ) -> Answers:  # fmt: skip
    keys, speakers = [clip.key for clip in clips], [clip.speaker for clip in clips]
    return Answers(method, keys, speakers, labels, logits)


# ---------------------------------------------------------------- teachers


def _embedding(clip: Example, name: str) -> NDArray[np.float16]:
    """[layers * dim], or empty."""
    found: NDArray[np.float16] = getattr(clip, f"{name}_embedding")
    return found


def _embeddings(clips: Sequence[Example], name: str, layers: int) -> Tensor:
    """[clips, layers, dim] of clips that have some."""
    rows = [_embedding(clip, name).astype(np.float32) for clip in clips]
    return torch.from_numpy(np.stack(rows)).unflatten(1, (layers, -1))


def fit(known: Sequence[Example], name: str, study: Study) -> Head:
    """A teacher's head on the labels that the cell knows."""
    emotions = study.spec.emotions
    labels = torch.tensor([emotions.index(clip.emotion) for clip in known])
    speakers = [clip.speaker for clip in known]
    embeddings = _embeddings(known, name, study.layers[name])
    return fit_calibrated_head(embeddings, labels, speakers, len(emotions))


def taught(clips: Sequence[Example], name: str, head: Head, layers: int) -> list[Example]:
    """The clips with a head's logits, and with its mix of the layers for their embedding."""
    there = [n for n, clip in enumerate(clips) if _embedding(clip, name).size]
    told = list(clips)
    if not there:
        return told
    embeddings = _embeddings([clips[n] for n in there], name, layers)
    shares = head.logits(embeddings).softmax(1).numpy()
    mixed = head.mixed(embeddings).numpy().astype(np.float16)
    names = np.eye(shares.shape[1], dtype=np.float32)
    for n, share, vector in zip(there, shares, mixed, strict=True):
        logits, kept = fold(share, names)
        said = {"logits": logits, "kept": kept, "embedding": vector}
        told[n] = replace(clips[n], **{f"{name}_{what}": value for what, value in said.items()})
    return told


def ask(head: Head, name: str, test: Sequence[Example], study: Study) -> Answers | None:
    """A teacher on the test clips that show it something; None where none does."""
    clips = [clip for clip in test if _embedding(clip, name).size]
    if not clips:
        return None
    labels = np.array([study.spec.emotions.index(clip.emotion) for clip in clips])
    logits = head.logits(_embeddings(clips, name, study.layers[name])).numpy()
    return _answers(name, clips, labels, logits)


# ---------------------------------------------------------------- students


# Which teachers a method hears, and whether it learns from the backbones' embeddings.
LEARNS_FROM: Mapping[Method, tuple[Sequence[str], bool]] = {
    "labels_only": ((), False),
    "embeddings_first": (TEACHERS, True),
    "speech_teacher": (("speech",), False),
    "face_teacher": (("face",), False),
    "both": (TEACHERS, False),
    "both_embeddings": (TEACHERS, True),
}


def arm_of(method: Method, spec: StudySpec) -> Arm:
    """A student that learns in this way."""
    heard, embeddings = LEARNS_FROM[method]
    (rate,) = spec.train.learning_rates
    loss = loss_of(heard, spec.loss)
    if not embeddings:
        loss = loss.model_copy(update={"embedding": 0.0, "relations": 0.0})
    if method != "embeddings_first":
        return Arm(method, rate, loss, heard)
    first = loss.model_copy(update={"speech_kl": 0.0, "face_kl": 0.0, "label_ce": 0.0})
    return Arm(method, rate, first, heard, second_loss=loss_of((), spec.loss))


def train(
    study: Study, cell: Cell, known: Sequence[Example], heads: Mapping[str, Head]
) -> dict[Method, Student]:
    """A student for each method, from the same start and on the same batches."""
    spec = study.spec.model_copy(update={"seed": cell.seed})
    arms = [arm_of(method, spec) for method in spec.study.methods]
    widths = {name: head.weight.shape[1] for name, head in heads.items()}
    knows_all = torch.ones(len(TEACHERS), len(spec.emotions), dtype=torch.bool)
    learner = Learner(spec, knows_all, widths, torch.device("cpu"), arms)
    batcher, wanted = Batcher.of(spec, widths), spec.train.labelled_batch_size
    visits = shard_order(study.shards, spec.train.epochs, cell.seed)
    epochs = list(to_read(visits, Ledger(), study.store, study.store.find(), False))
    total = sum(-(-sum(len(v.clips) for v in epoch) // spec.train.batch_size) for epoch in epochs)
    for step, clips in enumerate(unlabelled(study, epochs)):
        for name, head in heads.items():
            clips = taught(clips, name, head, study.layers[name])
        batch = batcher.batch(clips, labelled_turn(known, wanted, step, cell.seed), epoch=step)
        learner.learn(batch, step / total)
    return dict(zip(spec.study.methods, learner.students(), strict=True))


def unlabelled(study: Study, epochs: Sequence[Sequence[PartVisit]]) -> Iterator[list[Example]]:
    """The unlabelled clips in steps, but for the rejected, from the target store."""

    def refuse(part: Part) -> bool:
        raise StorageError(
            f"`targets.store`: {study.store.place_of(part)} is broken: remove it, and give the "
            "same command again"
        )

    size = study.spec.train.batch_size
    rereader = Rereader(study.store, size, 0, size, refuse)
    for epoch in epochs:
        for table in rereader.batches(epoch):
            yield [clip for clip in to_examples(table) if not clip.rejected]
