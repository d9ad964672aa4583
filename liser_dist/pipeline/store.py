"""Reads the target store: the targets of each clip, with the student's input.

    STORE/FINGERPRINT/
      settings.json                                    what the targets depend on
      SHARD/window-0-00000256-00000512.parquet         a part: the shard's clips 256 to 511
      SHARD/window-0-00000512-00000600-end.parquet     its last part
      SHARD/window-1-00000000-00000256-retry-9.parquet clips 0 and 3 are to be tried again

A part holds a range of a shard's clips in one window: a stretch of time that is taken from each
clip. The epochs use windows 0, 1 and so on in turn. A part appears in the store complete or not at
all. Its name states window and range, so two jobs may write the same part without harm. Rejected
clips have rows, too: no clip of a part is missing. FINGERPRINT is a digest of settings.json, all
settings on which targets depend.

The store states facts about clips. A rejection for a reason that depends on the machine (a
time-out, a crash, too little memory: `Reason.depends_on_machine`) is not such a fact: each run has
to try the clip again. The name of a part lists such clips, as a bit mask in hexadecimal whose
lowest bit is the part's first clip, so that no part has to be opened to find them. A run that has
itself rejected one of them reads the row in its later epochs; for any other run the store lacks the
clip.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from liser_dist import storage
from liser_dist.config.base import fingerprint
from liser_dist.config.stream import StreamSpec
from liser_dist.errors import MissingError, StorageError, one_line
from liser_dist.pipeline.tables import EXAMPLES, to_examples
from liser_dist.records import Example
from liser_dist.teachers.model_files import digest_file
from liser_dist.teachers.teachers import teacher_settings

logger = logging.getLogger(__name__)

TARGETS_VERSION = 3  # increased when the same settings give other targets or files
SETTINGS_KEY = b"liser_dist.settings"  # of the fingerprint in the metadata of a part
STRETCH = 256  # clips in a part: 25 MB of waveforms of 3 s
ROW_GROUP = 32  # clips that can be read without the rest of the part
SETTINGS = "settings.json"
NO_CLIPS = BitMap()
_NAME = re.compile(
    r"(?P<view>.+)-(?P<start>\d{8})-(?P<stop>\d{8})(?P<ends>-end)?(-retry-(?P<retry>[0-9a-f]+))?"
    r"\.parquet"
)


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """A stretch of a shard's clips that the store has, in one view: one window of each clip."""

    shard: str
    view: str
    start: int
    stop: int
    ends: bool  # the shard's last clip is in it
    retry_mask: int = 0  # bit n: its clip `start + n` was rejected for a reason of the machine

    @property
    def clips(self) -> BitMap:
        """The numbers, in their shard, of the clips about which it states facts."""
        clips = BitMap(range(self.start, self.stop))
        return clips - self.retry if self.retry_mask else clips

    @property
    def retry(self) -> BitMap:
        """The numbers of its clips that each run tries again."""
        mask = self.retry_mask
        return BitMap(self.start + n for n in range(mask.bit_length()) if mask >> n & 1)

    def readable(self, rejected: BitMap) -> BitMap:
        """Return the clips that a run can read from it.

        Args:
            rejected: The clips of the shard that the run itself has rejected.
        """
        return self.clips | (self.retry & rejected) if self.retry_mask else self.clips

    @property
    def name(self) -> str:
        """The name of its file."""
        ends = "-end" * self.ends
        retry = f"-retry-{self.retry_mask:x}" if self.retry_mask else ""
        return f"{self.view}-{self.start:08d}-{self.stop:08d}{ends}{retry}.parquet"

    @classmethod
    def from_name(cls, shard: str, name: str) -> Part | None:
        """Return the part of a shard whose file has this name; None if it is not a part's."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        start, stop, retry_mask = int(match["start"]), int(match["stop"]), match["retry"] or "0"
        return cls(shard, match["view"], start, stop, bool(match["ends"]), int(retry_mask, 16))


def labelled_view(*, with_targets: bool) -> str:
    """Return the view of labelled clips: the centre window, with or without teacher targets."""
    return "centre-taught" if with_targets else "centre"


class BrokenPartError(Exception):
    """A part cannot be read, or holds other clips or other targets than its path says."""

    def __init__(self, path: str, reason: str) -> None:
        """Name the part's file and what is wrong with it."""
        super().__init__(
            f"`targets.store`: the file {path} cannot be used ({reason}); the job computes its "
            "targets again"
        )


@dataclass(frozen=True, slots=True)
class TargetStore:
    """The folder of a store that has the job's fingerprint."""

    path: str
    windows: int
    writable: bool
    versions: Mapping[str, str]  # of the job's shards, by path

    @property
    def settings(self) -> str:
        """The fingerprint of the settings and teachers that the targets depend on."""
        return self.path.rpartition("/")[2]

    def view(self, epoch: int) -> str:
        """Return the view of unlabelled clips in an epoch; epochs use the windows in turn."""
        return f"window-{epoch % self.windows}"

    def folder(self, shard: str) -> str:
        """Return the name of a shard's folder; a shard that was replaced has another."""
        name = shard.rpartition("/")[2].removesuffix(".tar")
        digest = hashlib.sha256(f"{shard} {self.versions[shard]}".encode()).hexdigest()[:16]
        return f"{name}-{digest}"

    def path_of(self, part: Part) -> str:
        """Return the path of a part's file."""
        return storage.join(self.path, self.folder(part.shard), part.name)

    def list_parts(self) -> StoredParts:
        """List what the store has of the job's shards.

        Raises:
            StorageError: The store cannot be listed.
        """
        shards = {self.folder(shard): shard for shard in self.versions}
        parts = []
        for file in _files_under(self.path):
            folder, name = file.place.rsplit("/", 2)[1:]
            if folder in shards and (part := Part.from_name(shards[folder], name)):
                parts.append(part)
        return StoredParts(parts)

    def read(self, part: Part, indices: Sequence[int]) -> pa.Table:
        """Read some clips of a part.

        Args:
            part: The part.
            indices: Numbers of the clips in their shard, ascending.

        Returns:
            The rows of these clips, in this order, with 0 as their epoch.

        Raises:
            BrokenPartError: The part is damaged, or holds other clips or targets of other settings.
            StorageError: The store cannot be reached.
        """
        path = self.path_of(part)
        groups = sorted({(index - part.start) // ROW_GROUP for index in indices})
        try:
            with storage.open_read(path) as stream:
                table, settings = _read_groups(stream, groups)
        except MissingError as error:
            raise BrokenPartError(path, "it was removed") from error
        except _DamagedPartError as error:
            raise BrokenPartError(path, f"it is damaged: {error}") from error
        if settings != self.settings:
            raise BrokenPartError(path, "it holds targets computed with other settings or teachers")
        rows = np.searchsorted(table["index"].to_numpy(), indices)
        table = table.take(rows.clip(max=max(0, len(table) - 1)))
        if table["index"].to_pylist() != list(indices):
            raise BrokenPartError(path, "its rows are not the clips that its name states")
        return table

    def read_shard(self, parts: Sequence[Part]) -> list[Example]:
        """Return the clips of these parts. Raises the errors of `read`."""
        return [
            example for part in parts for example in to_examples(self.read(part, list(part.clips)))
        ]


class _DamagedPartError(Exception):
    """A file is not the Parquet file that was written."""


def _read_groups(stream: IO[bytes], groups: Sequence[int]) -> tuple[pa.Table, str]:
    """Read row groups, and the fingerprint of their settings; storage errors pass through."""
    try:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        settings = (file.schema_arrow.metadata or {}).get(SETTINGS_KEY, b"").decode()
        return file.read_row_groups(groups).cast(EXAMPLES), settings
    except (pa.ArrowException, ValueError, OSError, KeyError) as error:
        raise _DamagedPartError(one_line(error)) from error


def _files_under(path: str) -> list[storage.StoredFile]:
    try:
        return storage.list_files(path, ".parquet", storage.PATIENCE_S)
    except MissingError:
        return []


class StoredParts:
    """The parts that a store had when it was listed."""

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self._parts: dict[tuple[str, str], list[Part]] = defaultdict(list)
        for part in sorted(parts):
            of_view = self._parts[part.shard, part.view]
            if of_view and of_view[-1].start == part.start:  # two jobs computed the same clips
                of_view[-1] = min(of_view[-1], part, key=lambda each: len(each.retry))
            else:
                of_view.append(part)

    def parts(self, shard: str, view: str) -> Sequence[Part]:
        """Return the parts of a shard in one view, by their first clip."""
        return self._parts.get((shard, view), ())

    def clips(self, shard: str, view: str, rejected: BitMap = NO_CLIPS) -> BitMap:
        """Return the numbers of the shard's clips that a run can read in this view.

        Args:
            shard: Path of the shard.
            view: The view.
            rejected: The clips of the shard that the run itself has rejected.
        """
        parts = self.parts(shard, view)
        return BitMap.union(BitMap(), *(part.readable(rejected) for part in parts))

    def retry(self, shard: str, view: str) -> BitMap:
        """Return the numbers of the shard's clips that each run tries again."""
        return BitMap.union(BitMap(), *(part.retry for part in self.parts(shard, view)))

    def is_complete(self, shard: str, view: str, rejected: BitMap = NO_CLIPS) -> bool:
        """Return whether a run can read every clip of the shard in this view. Args: see `clips`."""
        parts = self.parts(shard, view)
        return (
            bool(parts)
            and parts[-1].ends
            and len(self.clips(shard, view, rejected)) == parts[-1].stop
        )

    def is_filled(self, shard: str, view: str) -> bool:
        """Return whether no clip of the shard is missing, but for those to be tried again."""
        return self.is_complete(shard, view, self.retry(shard, view))

    def without(self, broken: Iterable[Part]) -> StoredParts:
        """Return the listing without these parts."""
        left_out = set(broken)
        return StoredParts(
            part for parts in self._parts.values() for part in parts if part not in left_out
        )


# ---------------------------------------------------------------- opening


def open_store(stream: StreamSpec, versions: Mapping[str, str]) -> TargetStore | None:
    """Open the store of a stream. Nothing else decides whether there is one.

    Logs a warning if the store has targets that this stream cannot use, or is read-only.

    Args:
        stream: The stream whose targets are read and stored.
        versions: Versions of the job's shards, by path.

    Returns:
        The store, or None if the spec names none.

    Raises:
        StorageError: The store cannot be read.
        TeacherError: The weights of a teacher cannot be read.
    """
    if stream.store is None:
        return None
    settings = target_settings(stream)
    path = storage.join(stream.store, fingerprint(settings))
    if not storage.exists(storage.join(path, SETTINGS)):
        _warn_of_other_targets(stream.store, settings)
    writable = True
    try:
        content = json.dumps(settings, indent=1).encode()
        storage.write_bytes(storage.join(path, SETTINGS), content, storage.CHECK_PATIENCE_S)
    except StorageError as error:
        logger.warning(
            "the target store is not writable: %s; the job continues without storing new targets",
            error,
        )
        writable = False
    return TargetStore(path, stream.windows, writable, versions)


def _warn_of_other_targets(store: str, settings: Mapping[str, Any]) -> None:
    """Log which settings keep this job from using targets of other jobs."""
    others = [storage.join(store, name, SETTINGS) for name in storage.list_folders(store)]
    for other in filter(storage.exists, others):
        other_settings = json.loads(storage.read_bytes(other))
        differing = [name for name, value in settings.items() if other_settings.get(name) != value]
        logger.warning(
            "the targets in %s are not reused, because they were computed with other settings: %s",
            other.rpartition("/")[0],
            ", ".join(differing),
        )


# ---------------------------------------------------------------- fingerprint


def target_settings(stream: StreamSpec) -> dict[str, Any]:
    """Return all settings on which the stored targets of a clip depend, as JSON.

    Raises:
        LiserError: A file that is part of the settings cannot be read.
    """
    clip = stream.clip.model_dump(exclude={"decode_limit_s", "decode_limit_bytes"})
    if Path(stream.clip.face_detector).is_file():
        clip["face_detector"] = digest_file(Path(stream.clip.face_detector))
    if stream.clip.windows == "even":
        clip["windows"] = f"even over {stream.stored_windows}"
    student = stream.student_input
    return {
        "version": TARGETS_VERSION,
        "clip": clip,
        "emotions": list(stream.emotions),
        "input": f"{student.mels} mels" if student.audio == "log_mel" else "waveform",
        "student_face_px": student.face_px,
        "embeddings": stream.embeddings,
        "one_by_one": stream.deterministic,
        "teachers": {
            name: teacher_settings(teacher, stream.identities.get(name))
            for name, teacher in stream.teachers.items()
        },
    }
