"""Runs one cell of a study: a draw of labels, a head for each teacher, a student for each method.

1. each teacher's head is fitted to the labels drawn for the cell, on embeddings that the teacher's
   backbone gave for the target store (`targets.store`)
2. the students are trained side by side on the same batches of unlabelled clips
3. students and teachers predict the test clips

Each student keeps its last weights, because choosing weights by validation would need labels that
the cell does not have.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liser_dist.config.student import LossSpec
from liser_dist.config.study import Method, StudySpec
from liser_dist.data.shard_list import Shard
from liser_dist.data.shard_order import shard_order
from liser_dist.data.splits import require_disjoint_speakers
from liser_dist.errors import StorageError
from liser_dist.pipeline.schedule import PartGroup, StoreReader, parts_to_read
from liser_dist.pipeline.store import Part, TargetStore
from liser_dist.pipeline.tables import to_examples
from liser_dist.records import TEACHERS, Example, Targets
from liser_dist.runs.ledger import Ledger
from liser_dist.students.batches import Batcher, labelled_batch
from liser_dist.students.learner import Learner
from liser_dist.students.models import Student
from liser_dist.students.scoring import LabelledSet, predict_logits
from liser_dist.students.variants import Variant
from liser_dist.teachers.heads import Head, fit_calibrated_head
from liser_dist.teachers.model_teacher import fold

logger = logging.getLogger(__name__)

_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One label share, fold and seed; the seed draws the labels and the students' first weights."""

    label_share: float
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the cell's file, without its ending."""
        return f"share-{self.label_share:g}-fold-{self.fold}-seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class MethodPredictions:
    """Predictions of one student, or one teacher, on the test clips of a cell.

    Attributes:
        method: Name of the student's method, or of the teacher.
        keys: Key of each clip.
        speakers: Speaker of each clip.
        labels: Index of the true emotion of each clip [clips].
        logits: Predictions [clips, emotions].
    """

    method: str
    keys: Sequence[str]
    speakers: Sequence[str]
    labels: NDArray[np.int64]
    logits: _Floats


class CellPredictions(NamedTuple):
    """Predictions of all students and teachers of a cell. The field names are stored in files."""

    students: list[MethodPredictions]
    teachers: list[MethodPredictions]


@dataclass(frozen=True, slots=True)
class Study:
    """Inputs that all cells of a study share.

    Attributes:
        spec: Spec of the study.
        store: The target store, filled with the backbones' embeddings of all clips.
        shards: The unlabelled shards.
        layers: Number of layers of each teacher's backbone.
    """

    spec: StudySpec
    store: TargetStore
    shards: Sequence[Shard]
    layers: Mapping[str, int]


def run_cell(
    study: Study, cell: Cell, known: Sequence[Example], test: Sequence[Example]
) -> CellPredictions:
    """Train the heads and the students of a cell, and predict its test clips.

    Args:
        study: What every cell needs.
        cell: Which cell.
        known: Labelled clips whose labels may be used.
        test: Labelled clips to predict, of other speakers.

    Raises:
        LiserError: Speakers overlap, or the target store is damaged.
    """
    require_disjoint_speakers({"labelled": known, "test": test})
    heads = {name: fit_cell_head(known, name, study) for name in TEACHERS}
    students = train_methods(study, cell, known, heads)
    batcher = Batcher.from_spec(study.spec)
    test_set = LabelledSet.from_examples(test, batcher)
    student_predictions = [
        _predictions(method, test, test_set.labels, predict_logits(student, test_set))
        for method, student in students.items()
    ]
    teacher_predictions = [
        predictions
        for name, head in heads.items()
        if (predictions := predict_with_head(head, name, test, study)) is not None
    ]
    return CellPredictions(student_predictions, teacher_predictions)


def _predictions(
    method: str, clips: Sequence[Example], labels: NDArray[np.int64], logits: _Floats
) -> MethodPredictions:
    keys, speakers = [clip.key for clip in clips], [clip.speaker for clip in clips]
    return MethodPredictions(method, keys, speakers, labels, logits)


# ---------------------------------------------------------------- teachers


def _embedding(clip: Example, name: str) -> NDArray[np.float16]:
    """Return the embedding that the backbone gave of a clip [layers * dim], or an empty one."""
    return clip.targets_from(name).embedding


def _embeddings(clips: Sequence[Example], name: str, layers: int) -> Tensor:
    """Return the embeddings [clips, layers, dim] of clips that have one."""
    rows = [_embedding(clip, name).astype(np.float32) for clip in clips]
    return torch.from_numpy(np.stack(rows)).unflatten(1, (layers, -1))


def fit_cell_head(known: Sequence[Example], name: str, study: Study) -> Head:
    """Fit and calibrate a teacher's head on the labels of a cell."""
    emotions = study.spec.emotions
    labels = torch.tensor([emotions.index(clip.emotion) for clip in known])
    speakers = [clip.speaker for clip in known]
    embeddings = _embeddings(known, name, study.layers[name])
    return fit_calibrated_head(embeddings, labels, speakers, len(emotions))


def add_targets(clips: Sequence[Example], name: str, head: Head, layers: int) -> list[Example]:
    """Return the clips with a head's logits and its mix of the layers as a teacher's targets.

    Args:
        clips: Clips with embeddings of the teacher's backbone, as far as it gave any.
        name: The teacher.
        head: Its head.
        layers: Number of layers of its backbone.
    """
    rows = [row for row, clip in enumerate(clips) if _embedding(clip, name).size]
    examples = list(clips)
    if not rows:
        return examples
    embeddings = _embeddings([clips[row] for row in rows], name, layers)
    probabilities = head.logits(embeddings).softmax(1).numpy()
    mixed = head.mixed(embeddings).numpy().astype(np.float16)
    mapping = np.eye(probabilities.shape[1], dtype=np.float32)
    for row, of_clip, embedding in zip(rows, probabilities, mixed, strict=True):
        logits, mass = fold(of_clip, mapping)
        targets = Targets(logits=logits, mass=mass, embedding=embedding)
        examples[row] = replace(clips[row], targets={**clips[row].targets, name: targets})
    return examples


def predict_with_head(
    head: Head, name: str, test: Sequence[Example], study: Study
) -> MethodPredictions | None:
    """Return a teacher's predictions on the test clips with an embedding; None without any."""
    clips = [clip for clip in test if _embedding(clip, name).size]
    if not clips:
        return None
    labels = np.array([study.spec.emotions.index(clip.emotion) for clip in clips])
    logits = head.logits(_embeddings(clips, name, study.layers[name])).numpy()
    return _predictions(name, clips, labels, logits)


# ---------------------------------------------------------------- students


# The teachers of each method, and the sources of its loss: see `LossSpec.limited_to`.
_LEARNS_FROM: Mapping[Method, tuple[Sequence[str], Sequence[str]]] = {
    "labels_only": ((), ["labels"]),
    "embeddings_first": (TEACHERS, ["embeddings"]),
    "speech_teacher": (("speech",), ["speech", "labels"]),
    "face_teacher": (("face",), ["face", "labels"]),
    "both": (TEACHERS, [*TEACHERS, "labels"]),
    "both_embeddings": (TEACHERS, [*TEACHERS, "embeddings", "labels"]),
}


def variant_of(method: Method, loss: LossSpec, learning_rate: float) -> Variant:
    """Return the student variant of a method."""
    teachers, sources = _LEARNS_FROM[method]
    second = loss.limited_to(["labels"]) if method == "embeddings_first" else None
    return Variant(method, learning_rate, loss.limited_to(sources), teachers, second_loss=second)


def train_methods(
    study: Study, cell: Cell, known: Sequence[Example], heads: Mapping[str, Head]
) -> dict[Method, Student]:
    """Train a student for each method, from the same first weights and on the same batches."""
    spec = study.spec.model_copy(update={"seed": cell.seed})
    (rate,) = spec.train.learning_rates
    variants = [variant_of(method, spec.loss, rate) for method in spec.study.methods]
    widths = {name: head.weight.shape[1] for name, head in heads.items()}
    knows_all = torch.ones(len(TEACHERS), len(spec.emotions), dtype=torch.bool)
    learner = Learner(spec, knows_all, widths, torch.device("cpu"), variants)
    batcher, labelled_size = Batcher.from_spec(spec, widths), spec.train.labelled_batch_size
    visits = shard_order(study.shards, spec.train.epochs, cell.seed)
    stored = study.store.list_parts()
    epochs = list(parts_to_read(visits, Ledger(), study.store, stored, False, cell.seed))
    total = sum(-(-sum(map(len, epoch)) // spec.train.batch_size) for epoch in epochs)
    for step, clips in enumerate(read_unlabelled(study, epochs)):
        for name, head in heads.items():
            clips = add_targets(clips, name, head, study.layers[name])
        batch = batcher.batch(
            clips,
            labelled_batch(known, labelled_size, step, cell.seed, spec.train.labelled_epochs),
            epoch=step,
        )
        learner.learn(batch, step / total)
    if learner.skipped:
        logger.warning(
            "study cell %s: %d of %d training steps changed no weights, because the gradient was "
            "NaN or infinite; lower `train.learning_rates`",
            cell.name,
            learner.skipped,
            total,
        )
    return dict(zip(spec.study.methods, learner.students(), strict=True))


def read_unlabelled(study: Study, epochs: Sequence[Sequence[PartGroup]]) -> Iterator[list[Example]]:
    """Yield the unlabelled clips of each step from the target store, without rejected ones.

    Raises:
        StorageError: A part of the store is damaged.
    """

    def refuse(part: Part) -> bool:
        raise StorageError(
            f"`targets.store`: the file {study.store.path_of(part)} is damaged: delete it, then "
            "run the same command again"
        )

    size = study.spec.train.batch_size
    rereader = StoreReader(study.store, size, 0, size, refuse)
    for epoch in epochs:
        for table in rereader.batches(epoch):
            yield [clip for clip in to_examples(table) if not clip.rejected]
