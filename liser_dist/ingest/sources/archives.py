"""Lists and opens the media files of a folder, including those inside its zip files."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import IO

from liser_dist.ingest.sources.base import Recording, name_recording
from liser_dist.ingest.sources.files import FileSource

logger = logging.getLogger(__name__)


class ArchiveSource:
    """Media files of a folder or S3 prefix, and those inside its zip files.

    Args:
        place: folder or S3 prefix, searched with everything below it.
        extensions: the file extensions to ingest, in lower case.
    """

    def __init__(self, place: str, extensions: Sequence[str]) -> None:
        self._files = FileSource(place, (*extensions, "zip"))
        self._extensions = extensions

    def list_recordings(self) -> list[Recording]:
        """List files and members of zip files; a zip file without any is listed itself.

        Raises:
            StorageError: `place` is missing or may not be listed.
        """
        return [
            recording for file in self._files.list_recordings() for recording in self._unpack(file)
        ]

    def _unpack(self, file: Recording) -> Iterator[Recording]:
        members = self._members(file) if file.place.lower().endswith(".zip") else []
        for member in members:
            name = name_recording(f"{file.name}/{member.filename}", file.version)
            yield replace(file, size_bytes=member.file_size, name=name, member=member.filename)
        if not members:
            yield file

    def _members(self, archive: Recording) -> list[zipfile.ZipInfo]:
        """Return the recordings in a zip file; none of a damaged one, which is rejected later."""
        try:
            with self._files.open(archive) as stream, zipfile.ZipFile(stream) as opened:
                members = opened.infolist()
        except zipfile.BadZipFile as error:
            logger.warning(
                "the zip file %s is damaged or incomplete (%s) and will be rejected",
                archive.place,
                error,
            )
            return []
        return [m for m in members if m.filename.rpartition(".")[2].lower() in self._extensions]

    @contextmanager
    def open(self, recording: Recording) -> Iterator[IO[bytes]]:
        """Open a file or a member of a zip file as a seekable stream.

        Raises:
            StorageError: it cannot be read.
            zipfile.BadZipFile: the zip file is damaged.
        """
        with self._files.open(recording) as stream:
            if not recording.member:
                yield stream
                return
            with zipfile.ZipFile(stream) as archive:
                # A member is not seekable; it is a video of seconds, so it fits in memory.
                yield io.BytesIO(archive.read(recording.member))

    def is_unchanged(self, recording: Recording) -> bool:
        """Return False if the file, or the zip file that holds it, was replaced or removed.

        Raises:
            StorageError: the storage does not answer.
        """
        return self._files.is_unchanged(recording)
