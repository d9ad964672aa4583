"""Describes and loads a job's teachers, and identifies their weights.

A kind of teacher is a spec class in `config.teachers`, a module here, and a case in `kind_of`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import (
    BackboneTeacher,
    HuggingFaceTeacher,
    MockTeacher,
    OnnxTeacher,
    StudentTeacher,
    TeacherIdentity,
    TeacherSpec,
)
from liser_dist.errors import TeacherError
from liser_dist.teachers.backbone import BackboneKind
from liser_dist.teachers.huggingface import HuggingFaceKind
from liser_dist.teachers.mock import MockKind
from liser_dist.teachers.model_teacher import Teacher, TeacherFacts, TeacherKind
from liser_dist.teachers.onnx import OnnxKind
from liser_dist.teachers.student import StudentKind


def kind_of(spec: TeacherSpec) -> TeacherKind:
    """Return the operations of a teacher's kind, bound to its spec."""
    match spec:
        case HuggingFaceTeacher():
            return HuggingFaceKind(spec)
        case BackboneTeacher():
            return BackboneKind(spec)
        case OnnxTeacher():
            return OnnxKind(spec)
        case StudentTeacher():
            return StudentKind(spec)
        case MockTeacher():
            return MockKind(spec)


@contextmanager
def naming_field(field: str) -> Iterator[None]:
    """Put the field of the spec that describes a teacher before the message of a TeacherError."""
    try:
        yield
    except TeacherError as error:
        raise TeacherError(f"`{field}`: {error}") from error


def identify_teacher(spec: TeacherSpec) -> TeacherIdentity:
    """Return which weights a teacher has now. All of its files are read, of hub models the JSON.

    Raises:
        LiserError: the weights cannot be read.
    """
    return kind_of(spec).identify()


def describe_teacher(
    spec: TeacherSpec,
    emotions: Sequence[str],
    clip: ClipSpec,
    identity: TeacherIdentity | None = None,
) -> TeacherFacts:
    """Describe a teacher. Of a Hugging Face model only the JSON files are read.

    Args:
        spec: the teacher.
        emotions: the job's emotions.
        clip: how clips are decoded.
        identity: says which commit of a hub model is described.

    Raises:
        TeacherError: the model cannot be reached or used, or does not fit the job.
    """
    return kind_of(spec).describe(emotions, clip, identity)


def load_teacher(
    spec: TeacherSpec,
    emotions: Sequence[str],
    clip: ClipSpec,
    identity: TeacherIdentity | None = None,
) -> Teacher:
    """Load a teacher, onto the GPU if there is one.

    Args:
        spec: the teacher.
        emotions: the job's emotions.
        clip: how clips are decoded.
        identity: the weights that it must have; None: whatever is there is loaded.

    Raises:
        TeacherError: as `describe_teacher`, the weights do not fit the architecture, or they are
            not those that were identified.
    """
    return kind_of(spec).load(emotions, clip, identity)


def weights_bytes(spec: TeacherSpec) -> int:
    """Return the size in bytes of the files that hold a teacher's weights.

    Raises:
        LiserError: they cannot be listed.
    """
    return kind_of(spec).weights_bytes()


def teacher_settings(spec: TeacherSpec, identity: TeacherIdentity | None = None) -> dict[str, Any]:
    """Return the settings on which a teacher's targets depend, with a digest of its weights.

    Args:
        spec: the teacher.
        identity: its weights; None: they are identified here.

    Raises:
        LiserError: the weights cannot be read.
    """
    settings = spec.model_dump(mode="json", exclude=set(spec.without_effect))
    weights = (identity or identify_teacher(spec)).weights
    return settings if weights is None else {**settings, "weights": weights}


def set_threads(teachers: Iterable[TeacherSpec], threads: int) -> None:
    """Set the number of threads of torch and ONNX Runtime.

    Mock teachers use neither; a job that has no other does not even load torch.
    """
    if any(not isinstance(teacher, MockTeacher) for teacher in teachers):
        import torch

        torch.set_num_threads(threads)
