"""Maps each `kind` of ingest job to its source of recordings and its source of labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from liser_dist.data.public_corpora import CorpusName, parse_file_name
from liser_dist.ingest.sources.base import Recording, VideoSource
from liser_dist.ingest.sources.corpora import CorpusSource
from liser_dist.ingest.sources.files import FileSource

Labeller = Callable[[Recording], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class IngestKind:
    """The sources of recordings and labels of one `kind` of ingest job.

    Attributes:
        open_source: makes the source from the job's `source`.
        labels: returns the labels of a recording, which then becomes one clip, or None if the
            recording is not part of the labelled corpus. Without it recordings are unlabelled and
            are cut into clips.
    """

    open_source: Callable[[str], VideoSource]
    labels: Labeller | None = None


def _labels_by_name(corpus: CorpusName, recording: Recording) -> Mapping[str, Any] | None:
    utterance = parse_file_name(corpus, recording.member or recording.place)
    return None if utterance is None else utterance.labels


KINDS: Mapping[str, IngestKind] = {
    "video": IngestKind(FileSource),
    "ravdess": IngestKind(
        partial(CorpusSource, corpus="ravdess"), partial(_labels_by_name, "ravdess")
    ),
    "cremad": IngestKind(
        partial(CorpusSource, corpus="cremad"), partial(_labels_by_name, "cremad")
    ),
}
