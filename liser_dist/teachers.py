"""Clip -> targets: what a large net hears or sees, in the job's emotions.

1. `describe_teacher`   what a teacher knows, without its weights; refuses one that does not fit
2. `load_teacher`       the teacher itself, where it is to work
3. `Teacher.teach`      clips -> targets

A net's answer is over its own names. Several names may mean one of the job's emotions; what falls
on names that mean none is left out, and `kept` says how much was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from liser_dist.errors import CheckpointError, TeacherError
from liser_dist.huggingface_model import Answer, Floats, HuggingFaceModel
from liser_dist.model_folder import Modality, read_model_folder
from liser_dist.records import Clip, Targets, stable_hash, to_floats
from liser_dist.spec import ClipSpec
from liser_dist.teacher_spec import (
    BackboneTeacher,
    HuggingFaceTeacher,
    MockTeacher,
    OnnxTeacher,
    StudentTeacher,
    TeachersSpec,
)

if TYPE_CHECKING:
    from liser_dist.students import Student

__all__ = [
    "HuggingFaceModel",
    "ModelTeacher",
    "SeededTeacher",
    "StudentModel",
    "Teacher",
    "TeacherFacts",
    "describe_teacher",
    "load_teacher",
]

log = logging.getLogger(__name__)

TeacherSpec = HuggingFaceTeacher | BackboneTeacher | OnnxTeacher | StudentTeacher | MockTeacher

_LARGEST = float(np.finfo(np.float16).max)
_LEAST_LOG = -20.0  # of a probability: exp(-20) = 2e-9, and float16 holds it to 1 %
_MOCK_ANSWERS = 1024


class Teacher(Protocol):
    """Something that says of clips which emotion it hears or sees."""

    known: NDArray[np.bool_]  # [emotions]
    embedding_dim: int

    def teach(self, clips: Sequence[Clip]) -> list[Targets]:
        """One `Targets` for each clip; empty where the clip is rejected or shows nothing."""
        ...


class Model(Protocol):
    """A frozen net behind a teacher: `HuggingFaceModel`, `OnnxModel` or `StudentModel`."""

    modality: Modality
    names: tuple[str, ...]
    embedding_dim: int

    def answer(self, clips: Sequence[Clip]) -> list[Answer]: ...


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What the driver must know of a teacher before it is loaded."""

    known: tuple[bool, ...]  # for each of the job's emotions; all False for an encoder
    embedding_dim: int
    names: tuple[str, ...]  # the teacher's own; empty for an encoder
    modality: Modality | Literal["any"]
    layers: int = 1  # of a backbone, whose embedding is one after the other


def describe_teacher(spec: TeacherSpec, emotions: Sequence[str], clip: ClipSpec) -> TeacherFacts:
    """What a teacher knows. Of a Hugging Face model only the JSON files are read.

    Raises:
        TeacherError: the model cannot be reached or used, or does not fit the job.
    """
    match spec:
        case MockTeacher():
            known = (True,) * len(emotions)
            return TeacherFacts(known, spec.embedding, tuple(emotions), "any")
        case HuggingFaceTeacher():
            folder = read_model_folder(spec.model)
            found = folder.names, folder.embedding_dim, folder.modality
        case BackboneTeacher():
            from liser_dist.huggingface_backbone import backbone_shape

            layers, dim = backbone_shape(spec.model)
            modality = read_model_folder(spec.model).modality
            return TeacherFacts((False,) * len(emotions), layers * dim, (), modality, layers)
        case OnnxTeacher() | StudentTeacher():
            model = _load_model(spec, clip)
            found = model.names, model.embedding_dim, model.modality
    names, embedding_dim, modality = found
    mapping = map_names(spec.model, names, _labels_of(spec), emotions)
    known = tuple(bool(some) for some in _known(mapping))
    return TeacherFacts(known, embedding_dim, names, modality)


def take_threads(spec: TeachersSpec, threads: int) -> None:
    """So many for torch and ONNX. Where all teachers are mock ones torch is not even loaded."""
    if any(not isinstance(one, MockTeacher) for one in (spec.speech, spec.face) if one):
        import torch

        torch.set_num_threads(threads)


def load_teacher(spec: TeacherSpec, emotions: Sequence[str], clip: ClipSpec) -> Teacher:
    """A teacher ready to work, on the GPU when there is one.

    Raises:
        TeacherError: as `describe_teacher`; or the weights do not fit the architecture.
    """
    if isinstance(spec, MockTeacher):
        return SeededTeacher(spec, emotions)
    model = _load_model(spec, clip)
    mapping = map_names(spec.model, model.names, _labels_of(spec), emotions)
    return ModelTeacher(model, mapping, getattr(spec, "temperature", 1.0))


def _load_model(
    spec: HuggingFaceTeacher | BackboneTeacher | OnnxTeacher | StudentTeacher, clip: ClipSpec
) -> Model:
    match spec:
        case BackboneTeacher():
            from liser_dist.huggingface_backbone import HuggingFaceBackbone

            return HuggingFaceBackbone(spec.model, clip.sample_rate_hz)
        case HuggingFaceTeacher():
            return HuggingFaceModel(spec.model, clip.sample_rate_hz)
        case OnnxTeacher():
            from liser_dist.onnx_model import OnnxModel

            return OnnxModel(spec, clip)
        case StudentTeacher():
            return StudentModel(spec, clip.sample_rate_hz)


# ---------------------------------------------------------------- names -> emotions


def _labels_of(spec: TeacherSpec) -> Mapping[str, str] | None:
    return getattr(spec, "labels", None)


def map_names(
    model: str, names: Sequence[str], labels: Mapping[str, str] | None, emotions: Sequence[str]
) -> Floats:
    """Which of a teacher's names means which emotion: 0 or 1, [names, emotions].

    Without `labels` a name means the emotion of the same name.

    Raises:
        TeacherError: `labels` has names that the teacher lacks, or no name means an emotion.
    """
    has = ", ".join(names) or "no classes: it is a plain encoder, which takes no `labels`"
    for name in labels or ():
        if name not in names:
            raise TeacherError(
                f"teacher model {model!r}: `labels` maps {name!r}, which is none of its classes; "
                f"it has {has}"
            )
    meant = {name: name for name in names} if labels is None else labels
    mapping = np.array(
        [[meant.get(name) == emotion for emotion in emotions] for name in names], np.float32
    ).reshape(len(names), len(emotions))
    if names and not mapping.any():
        raise TeacherError(
            f"teacher model {model!r} has no emotion in common with the job: map its classes "
            f"({has}) onto the job's `emotions` ({', '.join(emotions)}) with `labels`"
        )
    return mapping


def _known(mapping: Floats) -> NDArray[np.bool_]:
    """Which emotions [emotions] some name means."""
    return np.asarray(mapping.any(0))


def fold(probabilities: Floats, mapping: Floats) -> tuple[NDArray[np.float16], float]:
    """A teacher's probabilities [names] -> logits [emotions], and the share that is kept.

    A logit is the log of the probability on the names that mean the emotion, -20 at least; 0
    where no name means it.
    """
    shares = probabilities @ mapping
    logits = np.log(np.maximum(shares, np.exp(_LEAST_LOG)))
    logits = np.where(_known(mapping), logits, 0.0)
    return logits.astype(np.float16), float(min(shares.sum(), 1.0))


def softmax(logits: Floats, temperature: float) -> Floats:
    """Over the last axis; computed in float64, so that no order of adding shows."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)


# ---------------------------------------------------------------- teachers


class ModelTeacher:
    """A frozen net whose answers are told in the job's emotions.

    What is said of a clip does not depend on the clips that share its batch.
    """

    def __init__(self, model: Model, mapping: Floats, temperature: float) -> None:
        self.model = model
        self.known: NDArray[np.bool_] = _known(mapping)
        self.embedding_dim = model.embedding_dim
        self._mapping = mapping
        self._temperature = temperature

    def teach(self, clips: Sequence[Clip]) -> list[Targets]:
        usable = [n for n, clip in enumerate(clips) if clip.shows(self.model.modality)]
        targets = [Targets()] * len(clips)
        if usable:
            answers = self.model.answer([clips[index] for index in usable])
            for index, answer in zip(usable, answers, strict=True):
                targets[index] = self._targets(clips[index], answer)
        return targets

    def _targets(self, clip: Clip, answer: Answer) -> Targets:
        """The mean over looks, of probabilities and of embeddings."""
        logits, embeddings = answer
        if not (np.isfinite(logits).all() and np.isfinite(embeddings).all()):
            log.warning("a teacher gave NaN or infinity for %s: no targets for it", clip.key)
            return Targets()
        embedding = embeddings.mean(0).clip(-_LARGEST, _LARGEST).astype(np.float16)
        if not self.model.names:
            return Targets(embedding=embedding)
        probabilities = softmax(logits, self._temperature).mean(0)
        folded, kept = fold(probabilities, self._mapping)
        return Targets(logits=folded, kept=kept, embedding=embedding)


class StudentModel:
    """A student's checkpoint, heard by later students.

    Raises:
        TeacherError: there is no such student, or it was trained on sound of another rate.
    """

    embedding_dim = 0

    def __init__(self, spec: StudentTeacher, sample_rate_hz: int) -> None:
        self._student, self.names = _load_student(spec)
        self.modality: Modality = "video" if self._student.encoder is None else "audio"
        rate = int(self._student.features.spectrogram.sample_rate)
        if rate != sample_rate_hz:
            raise TeacherError(
                f"teacher model {spec.model!r} is a student of sound at {rate} Hz, and the job's "
                f"`clip.sample_rate_hz` is {sample_rate_hz}: make it {rate}"
            )

    def answer(self, clips: Sequence[Clip]) -> list[Answer]:
        """Logits [1, names] of each clip; alone, for speed matters little at a student's size."""
        return [(self._logits(clip), np.empty((1, 0), np.float32)) for clip in clips]

    def _logits(self, clip: Clip) -> Floats:
        import torch

        from liser_dist.faces import shrink_faces

        waveform, px = torch.from_numpy(to_floats(clip.waveform))[None], self._student.seen_px
        with torch.inference_mode():
            mel = self._student.features(waveform)
            frames = self._student.features.frames(torch.tensor([waveform.shape[1]]))
            faces = torch.zeros(1, 0, 1, 1)
            if px:
                small = torch.from_numpy(shrink_faces(clip, px)) / 255
                faces = small.reshape(1, int(clip.has_face.sum()), px, px)
            seen = torch.ones(faces.shape[:2], dtype=torch.bool)
            output = self._student.encode(mel, frames, faces, seen)
        logits: Floats = output.logits.float().numpy()
        return logits


def _load_student(spec: StudentTeacher) -> tuple[Student, tuple[str, ...]]:
    from liser_dist.checkpoints import load_student

    try:
        student, emotions = load_student(spec.model, spec.which)
    except CheckpointError as error:
        raise TeacherError(f"teacher model {spec.model!r} is no student: {error}") from error
    return student.eval().requires_grad_(False), emotions


class SeededTeacher:
    """Says something that follows from the clip's key alone, after a given time."""

    def __init__(self, spec: MockTeacher, emotions: Sequence[str]) -> None:
        self.known: NDArray[np.bool_] = np.ones(len(emotions), np.bool_)
        self.embedding_dim = spec.embedding
        self._spec = spec
        self._answers = [self._targets(seed) for seed in range(_MOCK_ANSWERS)]

    def teach(self, clips: Sequence[Clip]) -> list[Targets]:
        started_s = time.perf_counter()
        said = [
            Targets()
            if clip.rejected
            else self._answers[stable_hash(clip.key) % len(self._answers)]
            for clip in clips
        ]
        wanted_s = self._spec.seconds_per_clip * sum(not clip.rejected for clip in clips)
        time.sleep(max(0.0, wanted_s - (time.perf_counter() - started_s)))
        return said

    def _targets(self, seed: int) -> Targets:
        random = np.random.default_rng(seed)
        emotions = len(self.known)
        shares = softmax(random.standard_normal(emotions, np.float32) * 2, 1.0)
        logits, kept = fold(shares, np.eye(emotions, dtype=np.float32))
        embedding = random.standard_normal(self.embedding_dim).astype(np.float16)
        return Targets(logits=logits, kept=kept, embedding=embedding)
