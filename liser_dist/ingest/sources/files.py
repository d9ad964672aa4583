"""Lists and opens the media files in a folder or under an S3 prefix."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import IO

from liser_dist import storage
from liser_dist.data.shards import VIDEO_EXTENSIONS
from liser_dist.errors import MissingError, StorageError
from liser_dist.ingest.sources.base import Recording, name_recording

logger = logging.getLogger(__name__)


class FileSource:
    """Files whose extension is that of a media file.

    Args:
        place: folder or S3 prefix, searched with everything below it.
        extensions: the file extensions to ingest, in lower case.
    """

    def __init__(self, place: str, extensions: Sequence[str] = VIDEO_EXTENSIONS) -> None:
        self._place = place
        self._extensions = extensions

    def list_recordings(self) -> list[Recording]:
        """List the files by name, and log how many other files are ignored.

        Raises:
            StorageError: `place` is missing or may not be listed.
        """
        try:
            files = storage.list_files(self._place)
        except StorageError as error:
            raise StorageError(f"`source`: {error}") from error
        media = [f for f in files if f.place.rpartition(".")[2].lower() in self._extensions]
        if ignored := len(files) - len(media):
            logger.info(
                "`source`: ignoring %s without the extension of a media file", _count_files(ignored)
            )
        readable = [f for f in media if _is_utf8(f.place)]
        if unreadable := len(media) - len(readable):
            logger.warning(
                "`source`: ignoring %s whose name is not valid UTF-8, such as %a: rename them to "
                "ingest them",
                _count_files(unreadable),
                next(f.place for f in media if not _is_utf8(f.place)),
            )
        root = storage.resolve(self._place)
        return [
            Recording(
                f.place,
                f.size_bytes,
                f.version,
                name_recording(f.place.removeprefix(root), f.version),
            )
            for f in readable
        ]

    def open(self, recording: Recording) -> AbstractContextManager[IO[bytes]]:
        """Open a file as a seekable stream.

        Raises:
            StorageError: it cannot be read.
        """
        return storage.open_read(recording.place)

    def is_unchanged(self, recording: Recording) -> bool:
        """Return False if the file was replaced or removed since it was listed.

        Raises:
            StorageError: the storage does not answer.
        """
        try:
            return storage.version_of(recording.place) == recording.version
        except MissingError:
            return False


def _count_files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
