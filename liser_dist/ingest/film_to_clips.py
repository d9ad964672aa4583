"""Turns one recording into clips in a local folder, inside the child process of an ingest worker.

Unlabelled video is cut into clips:

1. one pass through the film finds speech and shot changes     scan
2. from these, the pieces that may become clips are chosen     scan
3. each piece becomes a clip, or is rejected with a reason     clip_maker

A recording of a labelled corpus becomes one clip, whatever it shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from liser_dist.config.ingest import CutSpec, IngestSpec
from liser_dist.errors import SampleError
from liser_dist.ingest.clip_maker import FilmClip, cut_clip
from liser_dist.ingest.film import MediaReader
from liser_dist.ingest.scan import Span, cut_pieces, scan_film
from liser_dist.ingest.sources.base import Recording, VideoSource
from liser_dist.ingest.sources.kinds import KINDS, Labeller
from liser_dist.records import Reason

_LONGEST_LABELLED_S = 60.0  # recordings of labelled corpora last some seconds


@dataclass(frozen=True, slots=True)
class CutClip:
    """A clip that lies in the folder as `KEY.mp4` and `KEY.json`.

    Attributes:
        key: the clip's key, also in the shards.
        start_s: where it begins in the recording.
        length_s: its length.
        digest: equal for equal clips.
        fingerprint: hexadecimal; nearly equal for clips that sound alike.
    """

    key: str
    start_s: float
    length_s: float
    digest: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class PieceRejection:
    """A piece of a recording, or all of it (0 to 0 s), that became no clip."""

    source: str
    start_s: float
    end_s: float
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class IngestedRecording:
    """The clips and the rejections of one recording."""

    recording: Recording
    clips: Sequence[CutClip]
    rejections: Sequence[PieceRejection]
    length_s: float


def ingest_recording(recording: Recording, spec: IngestSpec, folder: Path) -> IngestedRecording:
    """Write the clips of a recording to a folder.

    Raises:
        SampleError: nothing of the recording can be used.
        StorageError: it cannot be read.
    """
    if not recording.size_bytes:
        raise SampleError(Reason.EMPTY)
    kind = KINDS[spec.kind]
    source = kind.open_source(spec.source)
    if kind.labels is None:
        ingested = _cut_film(recording, source, spec, folder)
    else:
        ingested = _keep_complete(recording, source, kind.labels, spec, folder)
    if not source.is_unchanged(recording):
        raise SampleError(Reason.CHANGED, "the recording was replaced or removed while it was read")
    return ingested


def _keep_complete(
    recording: Recording, source: VideoSource, labels: Labeller, spec: IngestSpec, folder: Path
) -> IngestedRecording:
    """Make one clip of a labelled recording, also where it shows no face or no picture."""
    facts = labels(recording)
    if facts is None:
        path = recording.member or recording.place
        raise SampleError(
            Reason.UNKNOWN_NAME,
            f"the file name {path} does not follow the naming scheme of {spec.kind}",
        )
    with (
        source.open(recording) as stream,
        MediaReader.opened(stream, require_picture=False) as film,
    ):
        piece = 0.0, min(film.length_s, _LONGEST_LABELLED_S)
        clip = cut_clip(film, piece, spec.face, spec.normalise, require_face=False)
    cut = _store_clip(clip, recording, folder, facts)
    return IngestedRecording(recording, [cut], [], cut.length_s)


def _cut_film(
    recording: Recording, source: VideoSource, spec: IngestSpec, folder: Path
) -> IngestedRecording:
    """Cut unlabelled video into clips of speech."""
    clips: list[CutClip] = []
    rejections: list[PieceRejection] = []
    with source.open(recording) as stream, MediaReader.opened(stream) as film:
        scan = scan_film(film, spec.cut)
        pieces, short = cut_pieces(scan, spec.cut)
        if not scan.speech:
            raise SampleError(Reason.NO_SPEECH, "no speech was detected in the audio")
        for piece in short:
            error = _too_short(piece[1] - piece[0], spec.cut)
            rejections.append(_reject_piece(recording, piece, error))
        for piece in pieces:
            try:
                clip = cut_clip(film, piece, spec.face, spec.normalise)
                if clip.length_s < spec.cut.min_s:  # a piece whose first frame is late is shorter
                    raise _too_short(clip.length_s, spec.cut)
            except SampleError as error:
                rejections.append(_reject_piece(recording, piece, error))
            else:
                clips.append(_store_clip(clip, recording, folder, {}))
    return IngestedRecording(recording, clips, rejections, scan.length_s)


def _too_short(length_s: float, spec: CutSpec) -> SampleError:
    detail = f"{length_s:.2f} s of speech, below cut.min_s {spec.min_s:g}"
    return SampleError(Reason.TOO_SHORT, detail)


def _reject_piece(recording: Recording, piece: Span, error: SampleError) -> PieceRejection:
    start_s, end_s = (round(edge, 3) for edge in piece)
    return PieceRejection(recording.title, start_s, end_s, str(error.reason), error.detail)


def _store_clip(
    clip: FilmClip, recording: Recording, folder: Path, labels: Mapping[str, object]
) -> CutClip:
    key = f"{recording.name}-{round(1000 * clip.facts['start_s']):09d}"
    facts = {
        "source": recording.title,
        "source_version": recording.version,
        **clip.facts,
        **labels,
    }
    (folder / f"{key}.mp4").write_bytes(clip.video)
    (folder / f"{key}.json").write_text(json.dumps(facts))
    start_s, end_s = clip.facts["start_s"], clip.facts["end_s"]
    return CutClip(key, start_s, end_s - start_s, clip.digest, clip.fingerprint.tobytes().hex())


def read_cut_clips(
    folder: Path, clips: Sequence[CutClip]
) -> Iterator[tuple[str, bytes, dict[str, object]]]:
    """Yield (key, mp4 bytes, metadata) of clips that lie in a folder."""
    for clip in clips:
        facts = json.loads((folder / f"{clip.key}.json").read_text())
        yield clip.key, (folder / f"{clip.key}.mp4").read_bytes(), facts
