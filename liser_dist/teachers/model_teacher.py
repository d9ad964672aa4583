"""Computes the targets of clips from a model's outputs: its own classes become the job's emotions.

A model gives logits over its own class names. Several class names may map to the same emotion of
the job; the probability of those that map to none is left out, and `Targets.mass` is the share that
remains.

What all teacher kinds have in common is defined here, too: `Teacher`, `Model` and `TeacherKind`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import TeacherIdentity
from liser_dist.errors import TeacherError
from liser_dist.records import Clip, Targets
from liser_dist.teachers.model_files import Modality

logger = logging.getLogger(__name__)

_Floats = NDArray[np.float32]
# Logits [inputs, names] and embeddings [inputs, dim] of one clip. An image model has one input for
# each frame with a face, other models one for the clip.
ModelOutput = tuple[_Floats, _Floats]

_LARGEST = float(np.finfo(np.float16).max)
_LOWEST_LOGIT = -20.0  # log of 2e-9, which float16 holds to within 1 %


class Teacher(Protocol):
    """Computes the targets of clips.

    Attributes:
        known: [emotions] the job's emotions that it can name.
        embedding_dim: width of the embedding; 0 if it gives none.
    """

    known: NDArray[np.bool_]
    embedding_dim: int

    def teach(self, clips: Sequence[Clip]) -> list[Targets]:
        """Return the targets of each clip; empty if it is rejected or lacks the teacher's input."""
        ...


class Model(Protocol):
    """A frozen model behind a teacher.

    Attributes:
        modality: the part of a clip that is its input.
        names: its classes in the order of the logits; empty for a plain encoder.
        embedding_dim: width of the embedding; 0 if it gives none.
    """

    modality: Modality
    names: tuple[str, ...]
    embedding_dim: int

    def predict(self, clips: Sequence[Clip]) -> list[ModelOutput]:
        """Return logits and embeddings of each clip. A clip must have the model's modality."""
        ...


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What a job must know of a teacher before its weights are loaded."""

    known: tuple[bool, ...]  # for each of the job's emotions; all False for a plain encoder
    embedding_dim: int
    names: tuple[str, ...]  # the teacher's own classes; empty for a plain encoder
    modality: Modality | Literal["any"]
    layers: int = 1  # of a backbone, whose embedding is the embedding of each layer in turn


class TeacherKind(Protocol):
    """Operations of a kind of teacher on its spec. Each spec class has one such class."""

    def identify(self) -> TeacherIdentity:
        """Return which weights the teacher has now. Raises LiserError."""
        ...

    def describe(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None
    ) -> TeacherFacts:
        """Describe the teacher, from its JSON files if they suffice. Raises TeacherError.

        Of an identified hub model, that commit is described; files are not compared.
        """
        ...

    def load(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None
    ) -> Teacher:
        """Load the teacher, onto the GPU if there is one. Raises TeacherError.

        An identified teacher must have those weights.
        """
        ...

    def weights_bytes(self) -> int:
        """Return the size of the files that hold the weights. Raises LiserError."""
        ...


def map_names(
    model: str, names: Sequence[str], labels: Mapping[str, str] | None, emotions: Sequence[str]
) -> _Floats:
    """Return which of a teacher's classes means which emotion: [names, emotions], 0 or 1.

    Args:
        model: what error messages call the model.
        names: the teacher's classes.
        labels: emotions by class. If None, a class means the emotion of the same name.
        emotions: the job's emotions.

    Raises:
        TeacherError: `labels` has classes that the teacher lacks, or no class means an emotion.
    """
    classes = ", ".join(names) or "no classes: it is a plain encoder, which takes no `labels`"
    for name in labels or ():
        if name not in names:
            raise TeacherError(
                f"teacher model {model!r}: `labels` maps {name!r}, which is not one of the "
                f"model's classes; the model has {classes}"
            )
    meaning = {name: name for name in names} if labels is None else labels
    mapping = np.array(
        [[meaning.get(name) == emotion for emotion in emotions] for name in names], np.float32
    ).reshape(len(names), len(emotions))
    if names and not mapping.any():
        raise TeacherError(
            f"teacher model {model!r} has no emotion in common with the job: map its classes "
            f"({classes}) to the job's `emotions` ({', '.join(emotions)}) with `labels`"
        )
    return mapping


def known_emotions(mapping: _Floats) -> NDArray[np.bool_]:
    """Return which emotions [emotions] some class means."""
    return np.asarray(mapping.any(0))


def fold(probabilities: _Floats, mapping: _Floats) -> tuple[NDArray[np.float16], float]:
    """Turn a teacher's probabilities [names] into logits [emotions] and their total probability.

    A logit is the log of the probability of the classes that mean the emotion, -20 at least; 0 if
    no class means it.
    """
    shares = probabilities @ mapping
    logits = np.log(np.maximum(shares, np.exp(_LOWEST_LOGIT)))
    logits = np.where(known_emotions(mapping), logits, 0.0)
    return logits.astype(np.float16), float(min(shares.sum(), 1.0))


def to_probabilities(logits: _Floats, temperature: float) -> _Floats:
    """Return the softmax over the last axis, computed in float64 for a reproducible sum."""
    from scipy.special import softmax  # late: processes that only read settings do without SciPy

    return np.asarray(softmax(logits.astype(np.float64) / temperature, axis=-1), np.float32)


class ModelTeacher:
    """A model as a teacher. The targets of a clip do not depend on the other clips of a batch.

    Args:
        model: the model.
        mapping: [names, emotions] which class means which emotion, see `map_names`.
        temperature: what the model's logits are divided by.
    """

    def __init__(self, model: Model, mapping: _Floats, temperature: float) -> None:
        self.model = model
        self.known: NDArray[np.bool_] = known_emotions(mapping)
        self.embedding_dim = model.embedding_dim
        self._mapping = mapping
        self._temperature = temperature

    def teach(self, clips: Sequence[Clip]) -> list[Targets]:
        """Return the targets of each clip; empty if it is rejected or lacks the model's input."""
        usable = [n for n, clip in enumerate(clips) if clip.shows(self.model.modality)]
        targets = [Targets()] * len(clips)
        if usable:
            outputs = self.model.predict([clips[index] for index in usable])
            for index, output in zip(usable, outputs, strict=True):
                targets[index] = self._targets(clips[index], output)
        return targets

    def _targets(self, clip: Clip, output: ModelOutput) -> Targets:
        """Return the mean over a clip's inputs, of probabilities and of embeddings."""
        logits, embeddings = output
        if not (np.isfinite(logits).all() and np.isfinite(embeddings).all()):
            logger.warning(
                "the teacher for %s returned NaN or infinity for the clip %s; the clip gets no "
                "targets from this teacher",
                self.model.modality,
                clip.key,
            )
            return Targets()
        embedding = embeddings.mean(0).clip(-_LARGEST, _LARGEST).astype(np.float16)
        if not self.model.names:
            return Targets(embedding=embedding)
        probabilities = to_probabilities(logits, self._temperature).mean(0)
        folded, mass = fold(probabilities, self._mapping)
        return Targets(logits=folded, mass=mass, embedding=embedding)
