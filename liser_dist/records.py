"""What crosses each boundary on a clip's way, and under which column names.

    Sample -> Clip -> Example (a Clip's sound with its Targets)

Between stages a record is a row of a Ray Dataset. Arrays travel as `bytes` columns, for a binary
column costs Arrow nothing and a rejected clip's is simply empty; their dtypes stand here and their
shapes follow from the spec.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]


class Reason(StrEnum):
    """Why a clip was rejected: a closed list; what else is known goes into the detail."""

    EMPTY = "empty"  # no bytes
    UNREADABLE = "unreadable"  # no video file that FFmpeg knows
    NO_AUDIO = "no_audio"
    NO_VIDEO = "no_video"
    TRUNCATED = "truncated"  # less in it than its header says
    TOO_SHORT = "too_short"
    SILENT = "silent"  # digital silence
    NO_SPEECH = "no_speech"
    CRASHED = "crashed"  # killed the process that decoded it
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"  # more memory than a clip may take
    SHARD_DAMAGED = "shard_damaged"  # the shard cannot be read from this clip on
    BAD_METADATA = "bad_metadata"  # the clip's JSON cannot be used
    # At ingest only:
    NO_FACE = "no_face"  # in too few of its frames
    SMALL_FACE = "small_face"
    OTHER_FACES = "other_faces"  # of like size, so that nobody knows who speaks
    NOT_SPEAKING = "not_speaking"  # the mouth does not move with the sound
    DUPLICATE = "duplicate"  # the same clip is there
    CHANGED = "changed"  # the source was replaced while it was read
    UNKNOWN_NAME = "unknown_name"  # of a labelled corpus: not as its files are named


def stable_hash(key: str) -> int:
    """A number that follows from the text alone, in every process."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def to_floats(waveform: NDArray[np.int16]) -> NDArray[np.float32]:
    """Samples in -1..1."""
    return waveform.astype(np.float32) / np.float32(32768)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a row came from. Every record keeps it, from the tar to the loss."""

    key: str  # the sample's name in its shard
    shard: str  # the shard's place
    index: int  # the sample's number in its shard
    epoch: int
    reason: str = ""  # a Reason when the clip was rejected
    detail: str = ""
    ends_shard: bool = False  # the last of its shard: from here on the shard's length is known

    def to_row(self) -> Row:
        """One column a field; arrays as bytes."""
        row: Row = {}
        for column in fields(self):
            value = getattr(self, column.name)
            row[column.name] = value.tobytes() if isinstance(value, np.ndarray) else value
        return row

    def provenance(self) -> Row:
        """The fields that every record shares, to build the next record from."""
        return {column.name: getattr(self, column.name) for column in fields(Provenance)}

    @property
    def rejected(self) -> bool:
        return bool(self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled(Provenance):
    """What a labelled shard says of a clip; nothing of it in others."""

    emotion: str = ""
    speaker: str = ""
    intensity: str = ""  # in the corpus's own words, or 0 to 1

    def labels(self) -> Row:
        """Those fields, to build the next record from."""
        return {name: getattr(self, name) for name in LABELS}


LABELS = ("emotion", "speaker", "intensity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Labelled):
    """One clip as it lies in its shard."""

    video: bytes = b""  # a whole file: mp4, mov, mkv, webm, avi
    faces: str = ""  # JSON [[t_s, x0, y0, x1, y1], ...] in pixels; "" = not known, "[]" = none

    @classmethod
    def from_row(cls, row: Row) -> Self:
        return cls(**{column.name: row[column.name] for column in fields(cls)})


# What an array is where there is nothing.
_NONE: dict[Any, Any] = {
    dtype: partial(np.empty, 0, dtype) for dtype in (np.int16, np.uint8, np.bool_, np.float16)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip(Labelled):
    """One window of a decoded clip: what the teachers see."""

    waveform: NDArray[np.int16] = field(
        default_factory=_NONE[np.int16]
    )  # [samples] mono; no padding
    faces: NDArray[np.uint8] = field(
        default_factory=_NONE[np.uint8]
    )  # [n, px, px, 3] RGB; 0 = none
    has_face: NDArray[np.bool_] = field(default_factory=_NONE[np.bool_])  # [n]

    def shows(self, modality: str) -> bool:
        """Whether there is anything in it for a net of "audio", "image" or "video"."""
        if self.rejected:
            return False
        return bool(self.waveform.size if modality == "audio" else self.has_face.any())

    @classmethod
    def from_row(cls, row: Row, face_px: int) -> Self:
        values = {column.name: row[column.name] for column in fields(cls)}
        values["waveform"] = np.frombuffer(row["waveform"], np.int16)
        values["faces"] = np.frombuffer(row["faces"], np.uint8).reshape(-1, face_px, face_px, 3)
        values["has_face"] = np.frombuffer(row["has_face"], np.bool_)
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What one teacher says of one clip."""

    logits: NDArray[np.float16] = field(
        default_factory=_NONE[np.float16]
    )  # [emotions], 0 where it knows none; or empty
    kept: float = 0.0  # share of its probability on names that the job knows
    embedding: NDArray[np.float16] = field(default_factory=_NONE[np.float16])  # [dim], or empty

    @property
    def given(self) -> bool:
        """Whether the teacher had anything to look at."""
        return bool(self.logits.size or self.embedding.size)


_HALVES = ("mel", "speech_logits", "speech_embedding", "face_logits", "face_embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(Labelled):
    """What reaches a train worker: the student's input and what both teachers said.

    The input is either the waveform, or its log-mel where the spec keeps no waveforms.
    """

    waveform: NDArray[np.int16] = field(
        default_factory=_NONE[np.int16]
    )  # [samples] mono; no padding
    mel: NDArray[np.float16] = field(
        default_factory=_NONE[np.float16]
    )  # [frames * mels], of the sound alone: no padding
    faces: NDArray[np.uint8] = field(
        default_factory=_NONE[np.uint8]
    )  # [n * px * px] grey, of the frames with a face; for students that see
    speech_logits: NDArray[np.float16] = field(
        default_factory=_NONE[np.float16]
    )  # [emotions], or empty
    speech_kept: float = 0.0
    speech_embedding: NDArray[np.float16] = field(
        default_factory=_NONE[np.float16]
    )  # [dim], or empty
    face_logits: NDArray[np.float16] = field(
        default_factory=_NONE[np.float16]
    )  # empty where no face was seen
    face_kept: float = 0.0
    face_embedding: NDArray[np.float16] = field(default_factory=_NONE[np.float16])

    @classmethod
    def from_row(cls, row: Row) -> Self:
        values = {column.name: row[column.name] for column in fields(cls)}
        values["waveform"] = np.frombuffer(row["waveform"], np.int16)
        values["faces"] = np.frombuffer(row["faces"], np.uint8)
        for name in _HALVES:
            values[name] = np.frombuffer(row[name], np.float16)
        return cls(**values)

    @classmethod
    def of(cls, clip: Clip, speech: Targets, face: Targets) -> Self:
        """The clip without its pixels, with what the teachers said."""
        return cls(
            **clip.provenance(),
            waveform=clip.waveform,
            speech_logits=speech.logits,
            speech_kept=speech.kept,
            speech_embedding=speech.embedding,
            face_logits=face.logits,
            face_kept=face.kept,
            face_embedding=face.embedding,
            **clip.labels(),
        )
