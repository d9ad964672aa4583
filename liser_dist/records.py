"""Defines the records that stages of the pipeline pass on: the forms that a clip takes.

    Sample (a clip as it is in its shard) -> Clip (a decoded window of it)
    -> Example (the student's input for that window, with the teachers' Targets)

Between stages a record is a row of a Ray Dataset with a column per field (several for an Example's
targets: see `pipeline/tables.py`). Arrays are stored as raw bytes, which saves a conversion; they
are empty for a rejected clip. Their dtypes are given here; their shapes follow from the spec.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
TEACHERS = ("speech", "face")  # the teachers' names, in the order of every [teachers, ...] array
CENTRE_SHARE = 0.5  # start share of a window in the middle of its clip; 0 = start, 1 = end


class Reason(StrEnum):
    """Why a clip was rejected: a closed list. Further facts go into the rejection's `detail`."""

    description: str  # one or two sentences; docs/reference/rejection-reasons.md is made of them
    # The same clip may be accepted on another machine, at another time or with other limits, so
    # that the target store does not keep the rejection as a fact about the clip.
    depends_on_machine: bool

    def __new__(cls, value: str, description: str, depends_on_machine: bool = False) -> Self:
        """Build a member from its name in files, its description and what it depends on."""
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.description = description
        reason.depends_on_machine = depends_on_machine
        return reason

    EMPTY = "empty", "The video file has no bytes."
    UNREADABLE = (
        "unreadable",
        "FFmpeg cannot read the file as video, or decoding it failed. `detail` holds the decoder's "
        "message.",
    )
    NO_AUDIO = "no_audio", "The file has no audio stream."
    NO_VIDEO = (
        "no_video",
        "The file has no video stream or no frames, or the shard holds no video file for this key.",
    )
    TRUNCATED = (
        "truncated",
        "The audio, the video or the file ends more than 0.3 s before its header says.",
    )
    TOO_SHORT = (
        "too_short",
        "The clip is shorter than `clip.min_duration_s`; during ingest, a stretch of speech is "
        "shorter than `cut.min_s`.",
    )
    SILENT = "silent", "All audio samples have the same value (digital silence)."
    NO_SPEECH = (
        "no_speech",
        "The clip has less speech than `clip.min_speech_s`; during ingest, no speech was found in "
        "the video. Music and noise count as no speech.",
    )
    CRASHED = "crashed", "The file crashed the child process that decoded it.", True
    TIMEOUT = (
        "timeout",
        "Decoding took longer than `clip.decode_limit_s`; during ingest, longer than "
        "`limits.seconds`.",
        True,
    )
    TOO_LARGE = (
        "too_large",
        "Decoding the clip needs more memory than `clip.decode_limit_bytes`, or its file is larger "
        "than a quarter of that; during ingest, the video needs more than `limits.memory_bytes`.",
        True,
    )
    SHARD_DAMAGED = (
        "shard_damaged",
        "The shard cannot be read from this clip on. The clips before it are unaffected.",
    )
    BAD_METADATA = "bad_metadata", "The clip's JSON cannot be parsed, or a field of it is invalid."
    OTHER_EMOTION = (
        "other_emotion",
        "The clip is in a labelled set, and its emotion is not in `emotions`. `detail` holds the "
        "emotion.",
    )
    # At ingest, or when a face teacher is trained:
    NO_FACE = (
        "no_face",
        "The face is visible in a smaller fraction of the frames than `face.share`; when a face "
        "teacher is trained, no frame shows a face.",
    )
    # At ingest only:
    SMALL_FACE = (
        "small_face",
        "The face is smaller than `face.least_px`, measured at a frame height of 480 pixels.",
    )
    OTHER_FACES = (
        "other_faces",
        "Another face of similar size is visible most of the time, so that the speaker is "
        "ambiguous (`face.alone`).",
    )
    NOT_SPEAKING = (
        "not_speaking",
        "The mouth movement correlates with the loudness less than `face.speaking` requires.",
    )
    DUPLICATE = (
        "duplicate",
        "The output already holds the same clip or, with `deduplicate: perceptual`, one that "
        "sounds alike.",
    )
    CHANGED = "changed", "The recording was replaced or removed during ingest."
    UNKNOWN_NAME = (
        "unknown_name",
        "The file name does not follow the corpus's naming scheme (`kind: ravdess`, `cremad`).",
    )


def stable_hash(key: str) -> int:
    """Return a 64-bit hash of a text that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def to_floats(waveform: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return 16-bit audio as floats in -1..1."""
    return waveform.astype(np.float32) / np.float32(32768)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a record comes from; it stays with the clip from the shard to the loss."""

    key: str  # the sample's name in its shard
    shard: str  # path or URI of the shard
    index: int  # the sample's number in its shard, from 0
    epoch: int
    reason: str = ""  # a Reason if the clip was rejected
    detail: str = ""  # further facts of the rejection
    ends_shard: bool = False  # the last sample of its shard, which gives the shard's length

    def to_row(self) -> Row:
        """Return one column per field, arrays as bytes."""
        return self.provenance()

    def provenance(self) -> Row:
        """Return the fields that every record shares, to build the next record from."""
        return {
            "key": self.key,
            "shard": self.shard,
            "index": self.index,
            "epoch": self.epoch,
            "reason": self.reason,
            "detail": self.detail,
            "ends_shard": self.ends_shard,
        }

    @property
    def rejected(self) -> bool:
        """Whether the clip was rejected."""
        return bool(self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled(Provenance):
    """A record with the labels of a clip; they are empty unless its shard is labelled."""

    emotion: str = ""
    speaker: str = ""
    intensity: str = ""  # a word of the corpus, or a number from 0 to 1

    def to_row(self) -> Row:
        """Return one column per field, arrays as bytes."""
        return self.provenance() | self.labels()

    def labels(self) -> Row:
        """Return the label fields, to build the next record from."""
        return {"emotion": self.emotion, "speaker": self.speaker, "intensity": self.intensity}


LABELS = ("emotion", "speaker", "intensity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Labelled):
    """One clip as it is stored in its shard."""

    video: bytes = b""  # a complete file: mp4, mov, mkv, webm, avi
    faces: str = ""  # JSON [[t_s, x0, y0, x1, y1], ...] in pixels; "": unknown, "[]": no face

    def to_row(self) -> Row:
        """Return one column per field."""
        return Labelled.to_row(self) | {"video": self.video, "faces": self.faces}

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Build the record from a row of a Ray Dataset."""
        return cls(**{column.name: row[column.name] for column in fields(cls)})


# The default of array fields, by dtype: an empty array.
_NONE: dict[Any, Any] = {
    dtype: partial(np.empty, 0, dtype) for dtype in (np.int16, np.uint8, np.bool_, np.float16)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip(Labelled):
    """One window of a decoded clip: the teachers' input."""

    waveform: NDArray[np.int16] = field(
        default_factory=_NONE[np.int16]
    )  # [samples] mono; no padding
    faces: NDArray[np.uint8] = field(
        default_factory=_NONE[np.uint8]
    )  # [n, px, px, 3] RGB crops; 0 where the frame has no face
    has_face: NDArray[np.bool_] = field(default_factory=_NONE[np.bool_])  # [n]

    def shows(self, modality: str) -> bool:
        """Return whether the clip has input for a model of "audio", "image" or "video"."""
        if self.rejected:
            return False
        return bool(self.waveform.size if modality == "audio" else self.has_face.any())

    def to_row(self) -> Row:
        """Return one column per field, arrays as bytes."""
        return Labelled.to_row(self) | {
            "waveform": self.waveform.tobytes(),
            "faces": self.faces.tobytes(),
            "has_face": self.has_face.tobytes(),
        }

    @classmethod
    def from_row(cls, row: Row, face_px: int) -> Self:
        """Build the record from a row whose face crops are `face_px` pixels wide."""
        values = {column.name: row[column.name] for column in fields(cls)}
        values["waveform"] = np.frombuffer(row["waveform"], np.int16)
        values["faces"] = np.frombuffer(row["faces"], np.uint8).reshape(-1, face_px, face_px, 3)
        values["has_face"] = np.frombuffer(row["has_face"], np.bool_)
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The targets that one teacher gives for one clip."""

    logits: NDArray[np.float16] = field(
        default_factory=_NONE[np.float16]
    )  # [emotions] log probabilities, 0 for emotions that it does not know; or empty
    mass: float = 0.0  # share of its probability on emotions of the job
    embedding: NDArray[np.float16] = field(default_factory=_NONE[np.float16])  # [dim], or empty

    @property
    def given(self) -> bool:
        """Whether the teacher returned targets; it returns none for a clip without its input."""
        return bool(self.logits.size or self.embedding.size)


_NO_TARGETS = Targets()


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(Labelled):
    """One clip for a train worker: the student's input and the teachers' targets.

    The audio input is the waveform, or its log-mel spectrogram with `targets.input: log_mel`.
    `pipeline/tables.py` alone knows the columns of the targets.
    """

    waveform: NDArray[np.int16] = field(
        default_factory=_NONE[np.int16]
    )  # [samples] mono; no padding
    mel: NDArray[np.float16] = field(
        default_factory=_NONE[np.float16]
    )  # [frames * mels] of the audio, without padding
    faces: NDArray[np.uint8] = field(
        default_factory=_NONE[np.uint8]
    )  # [n * px * px] grey crops of the frames with a face; for students with face input
    targets: Mapping[str, Targets] = field(
        default_factory=dict
    )  # by teacher name; a teacher that gave nothing is absent

    def targets_from(self, teacher: str) -> Targets:
        """Return a teacher's targets for this clip; empty arrays if it returned none."""
        return self.targets.get(teacher, _NO_TARGETS)

    @classmethod
    def from_clip(cls, clip: Clip, targets: Mapping[str, Targets]) -> Self:
        """Build the example of a clip: without pixels, with the targets that teachers returned."""
        return cls(
            **clip.provenance(),
            **clip.labels(),
            waveform=clip.waveform,
            targets={name: given for name, given in targets.items() if given.given},
        )
