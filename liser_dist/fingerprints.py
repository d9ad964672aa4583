"""What a clip's targets depend on: the settings under whose fingerprint a target store keeps them.

Of a model its content counts, not its name: the same weights at another place are the same teacher.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from liser_dist import storage
from liser_dist.model_folder import SETTINGS_FILES, WEIGHTS_FILES, find_folder
from liser_dist.spec import DistillSpec
from liser_dist.teacher_spec import (
    BackboneTeacher,
    HuggingFaceTeacher,
    MockTeacher,
    OnnxTeacher,
    StudentTeacher,
)

VERSION = 2  # goes up when the same settings come to mean other targets, or parts look otherwise


def target_settings(spec: DistillSpec) -> dict[str, Any]:
    """All that what is kept of a clip follows from, as JSON. Raises LiserError."""
    clip = spec.clip.model_dump(exclude={"decode_limit_s", "decode_limit_bytes"})
    if Path(spec.clip.face_detector).is_file():
        clip["face_detector"] = _digest_file(Path(spec.clip.face_detector))
    if spec.clip.windows == "even":
        clip["windows"] = f"even over {spec.targets.windows}"
    teachers = {"speech": spec.teachers.speech, "face": spec.teachers.face}
    return {
        "version": VERSION,
        "clip": clip,
        "emotions": list(spec.emotions),
        "input": f"{spec.student.mels} mels" if spec.targets.input == "log_mel" else "waveform",
        "student_face_px": spec.student.seen_px,
        "embeddings": spec.loss.uses_embeddings,
        "one_by_one": spec.deterministic,
        "teachers": {name: _teacher(teacher) for name, teacher in teachers.items() if teacher},
    }


def _teacher(
    spec: HuggingFaceTeacher | BackboneTeacher | OnnxTeacher | StudentTeacher | MockTeacher,
) -> Any:
    settings = spec.model_dump(mode="json", exclude={"model", "seconds_per_clip"})
    match spec:
        case HuggingFaceTeacher() | BackboneTeacher():
            settings["weights"] = _digest_folder(spec.model)
        case OnnxTeacher():
            settings["weights"] = hashlib.sha256(storage.read_bytes(spec.model)).hexdigest()
        case StudentTeacher():
            # It holds the digests of the checkpoint's other files.
            marker = storage.read_bytes(storage.join(spec.model, "COMMITTED"))
            settings["weights"] = hashlib.sha256(marker).hexdigest()
        case MockTeacher():
            pass
    return settings


def _digest_folder(place: str) -> str:
    """Of a folder its files' content; of a hub repository its commit, which stands for that."""
    if not Path(place).expanduser().is_dir():
        return find_folder(place, SETTINGS_FILES).name
    folder = Path(place).expanduser()
    files = sorted({file for pattern in WEIGHTS_FILES for file in folder.glob(pattern)})
    parts = [f"{file.name} {_digest_file(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
