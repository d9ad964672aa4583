"""Defines what an ingest source does: lists recordings, opens them, detects changed ones.

A new source is a module of this folder with a class that follows `VideoSource`, a line in
`kinds.KINDS`, and its name in `IngestSpec.kind`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Protocol


@dataclass(frozen=True, slots=True)
class Recording:
    """One file of video or sound to be ingested.

    Attributes:
        place: path or URI of the file, or of the zip file that holds it.
        size_bytes: balances the groups of recordings; 0 means that the file is empty.
        version: differs when the content does.
        name: first part of its clips' keys; see `name_recording`.
        member: path inside the zip file, or "".
        fold: fold of a labelled corpus, or 0. No two folds share a speaker.
    """

    place: str
    size_bytes: int
    version: str
    name: str
    member: str = ""
    fold: int = 0

    @property
    def title(self) -> str:
        """The path by which a person finds the recording."""
        return f"{self.place}/{self.member}" if self.member else self.place


class VideoSource(Protocol):
    """Where the recordings of an ingest job come from."""

    def list_recordings(self) -> Sequence[Recording]:
        """List all recordings, the finished ones included, in a fixed order.

        Raises:
            StorageError: the source is missing or may not be listed.
        """
        ...

    def open(self, recording: Recording) -> AbstractContextManager[IO[bytes]]:
        """Open a recording as a seekable stream.

        Raises:
            StorageError: it cannot be read.
        """
        ...

    def is_unchanged(self, recording: Recording) -> bool:
        """Return False if the recording was replaced or removed since it was listed.

        Raises:
            StorageError: this cannot be found out.
        """
        ...


def name_recording(path: str, version: str) -> str:
    """Return 16 hexadecimal digits that name a recording, readable for any tool."""
    return hashlib.sha256(f"{path}\n{version}".encode()).hexdigest()[:16]
