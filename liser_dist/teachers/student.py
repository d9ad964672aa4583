"""Uses an earlier student as a teacher, for self-training on its pseudo-labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from liser_dist import storage
from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import StudentTeacher, TeacherIdentity
from liser_dist.errors import CheckpointError, MissingError, TeacherError
from liser_dist.records import Clip, to_floats
from liser_dist.runs.checkpoint_files import COMMITTED
from liser_dist.teachers.identity import require_same_weights
from liser_dist.teachers.model_files import Modality
from liser_dist.teachers.model_teacher import (
    ModelOutput,
    ModelTeacher,
    TeacherFacts,
    known_emotions,
    map_names,
)

if TYPE_CHECKING:
    from liser_dist.students.models import Student


class StudentKind:
    """The kind `student`."""

    def __init__(self, spec: StudentTeacher) -> None:
        self._spec = spec

    def identify(self) -> TeacherIdentity:
        """Return the digest of the checkpoint's marker, which holds those of its other files."""
        model = self._spec.model
        return TeacherIdentity(kind=self._spec.kind, model=model, digest=_digest_marker(model))

    def describe(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> TeacherFacts:
        """Load the student, which is small, and describe it."""
        model = StudentModel(self._spec, clip.sample_rate_hz)
        mapping = map_names(self._spec.model, model.names, None, emotions)
        known = tuple(known_emotions(mapping).tolist())
        return TeacherFacts(known, model.embedding_dim, model.names, model.modality)

    def load(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> ModelTeacher:
        """Load the student, whose files are checked against its marker."""
        self._require(identity)
        model = StudentModel(self._spec, clip.sample_rate_hz)
        self._require(identity)  # it was not replaced meanwhile
        mapping = map_names(self._spec.model, model.names, None, emotions)
        return ModelTeacher(model, mapping, self._spec.temperature)

    def weights_bytes(self) -> int:
        """Return the size of the file with the best weights."""
        files = storage.list_files(storage.join(self._spec.model, "best.safetensors"))
        return sum(file.size_bytes for file in files)

    def _require(self, identity: TeacherIdentity | None) -> None:
        if identity is not None:
            require_same_weights(self._spec.model, _digest_marker(self._spec.model), identity)


def _digest_marker(model: str) -> str:
    try:
        marker = storage.read_bytes(storage.join(model, COMMITTED))
    except MissingError as error:
        raise TeacherError(
            f"teacher model {model!r} cannot be loaded as a trained student: {error}; give the "
            "checkpoint of a student, such as runs/NAME/N/checkpoints/step-..."
        ) from error
    return hashlib.sha256(marker).hexdigest()


class StudentModel:
    """A student's checkpoint as a model.

    Raises:
        TeacherError: there is no such student, or it was trained on another sample rate.
    """

    embedding_dim = 0

    def __init__(self, spec: StudentTeacher, sample_rate_hz: int) -> None:
        self._student, self.names = _load_student(spec)
        self.modality: Modality = "video" if self._student.encoder is None else "audio"
        rate = int(self._student.features.spectrogram.sample_rate)
        if rate != sample_rate_hz:
            raise TeacherError(
                f"teacher model {spec.model!r} was trained on audio at {rate} Hz, but the "
                f"job's `clip.sample_rate_hz` is {sample_rate_hz}: set it to {rate}"
            )

    def predict(self, clips: Sequence[Clip]) -> list[ModelOutput]:
        """Return logits [1, names] of each clip, computed one by one: a student is small."""
        return [(self._logits(clip), np.empty((1, 0), np.float32)) for clip in clips]

    def _logits(self, clip: Clip) -> NDArray[np.float32]:
        import torch

        from liser_dist.data.faces import shrink_faces

        waveform, px = torch.from_numpy(to_floats(clip.waveform))[None], self._student.seen_px
        with torch.inference_mode():
            mel = self._student.features(waveform)
            frames = self._student.features.frames(torch.tensor([waveform.shape[1]]))
            faces = torch.zeros(1, 0, 1, 1)
            if px:
                small = torch.from_numpy(shrink_faces(clip, px)) / 255
                faces = small.reshape(1, int(clip.has_face.sum()), px, px)
            has_face = torch.ones(faces.shape[:2], dtype=torch.bool)
            output = self._student.encode(mel, frames, faces, has_face)
        logits: NDArray[np.float32] = output.logits.float().numpy()
        return logits


def _load_student(spec: StudentTeacher) -> tuple[Student, tuple[str, ...]]:
    from liser_dist.students.pretrained import load_student

    try:
        student, emotions = load_student(spec.model, spec.which)
    except CheckpointError as error:
        raise TeacherError(
            f"the model {spec.model!r} of `kind: student` cannot be loaded: {error}"
        ) from error
    return student.eval().requires_grad_(False), emotions
