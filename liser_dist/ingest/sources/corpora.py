"""Lists and opens a download of RAVDESS or CREMA-D: one recording of each utterance."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import IO

from liser_dist.data.public_corpora import (
    CORPUS_EXTENSIONS,
    CorpusName,
    Utterance,
    missing_utterances,
    parse_file_name,
)
from liser_dist.ingest.sources.archives import ArchiveSource
from liser_dist.ingest.sources.base import Recording

logger = logging.getLogger(__name__)

_MISSING_SHOWN = 20


class CorpusSource:
    """The best recording of each utterance of a public corpus, sorted by fold.

    Args:
        place: folder or S3 prefix of the download; zip files are read without unpacking them.
        corpus: the corpus whose file names are read.
    """

    def __init__(self, place: str, corpus: CorpusName) -> None:
        self._files = ArchiveSource(place, CORPUS_EXTENSIONS)
        self._corpus = corpus

    def list_recordings(self) -> list[Recording]:
        """List one recording of each utterance, and log which utterances are missing.

        Files that are not named like the corpus come last; they are rejected when they are read.

        Raises:
            StorageError: the download is missing or may not be listed.
        """
        best: dict[str, tuple[Utterance, Recording]] = {}
        unknown = []
        for recording in self._files.list_recordings():
            utterance = parse_file_name(self._corpus, recording.member or recording.place)
            if utterance is None:
                unknown.append(recording)
            elif utterance.id not in best or utterance.rank < best[utterance.id][0].rank:
                best[utterance.id] = utterance, recording
        self._log_missing([utterance for utterance, _ in best.values()])
        chosen = [replace(recording, fold=utterance.fold) for utterance, recording in best.values()]
        chosen.sort(key=lambda recording: (recording.fold, recording.place, recording.member))
        return chosen + unknown

    def _log_missing(self, utterances: list[Utterance]) -> None:
        if missing := missing_utterances(self._corpus, utterances):
            logger.warning(
                "the download of %s lacks %s; the ingest continues without %s (missing: %s%s)",
                self._corpus,
                "1 utterance" if len(missing) == 1 else f"{len(missing)} utterances",
                "it" if len(missing) == 1 else "them",
                ", ".join(missing[:_MISSING_SHOWN]),
                ", ..." if len(missing) > _MISSING_SHOWN else "",
            )  # fmt: skip

    def open(self, recording: Recording) -> AbstractContextManager[IO[bytes]]:
        """Open a recording as a seekable stream.

        Raises:
            StorageError: it cannot be read.
            zipfile.BadZipFile: the zip file that holds it is damaged.
        """
        return self._files.open(recording)

    def is_unchanged(self, recording: Recording) -> bool:
        """Return False if the recording was replaced or removed since it was listed.

        Raises:
            StorageError: the storage does not answer.
        """
        return self._files.is_unchanged(recording)
