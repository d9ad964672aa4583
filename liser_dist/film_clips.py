"""One film -> its clips in a folder on disk: what the child process of an ingest worker does.

1. one pass: where there is speech, where the shot changes        scanning.py
2. pieces of it                                                   cutting.py
3. each piece a clip, or a reason why not                         clipping.py
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from liser_dist import storage
from liser_dist.clipping import Clip, make_clip
from liser_dist.cutting import cut_pieces
from liser_dist.errors import SampleError
from liser_dist.film import Film
from liser_dist.ingest_spec import IngestSpec
from liser_dist.labelled_corpora import read_take
from liser_dist.records import Reason
from liser_dist.scanning import Span, scan_film

LONGEST_TAKE_S = 60.0  # of a labelled corpus: theirs are of some seconds


@dataclass(frozen=True, slots=True)
class Made:
    """A clip that lies in the folder as `KEY.mp4` and `KEY.json`."""

    key: str
    start_s: float
    length_s: float
    digest: str  # the same for the same clip
    likeness: str  # hex, nearly the same for what sounds alike


@dataclass(frozen=True, slots=True)
class Refused:
    """A piece of a source, or with no end all of it, that gave no clip."""

    source: str
    start_s: float
    end_s: float
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is to be ingested. `version` is another when its content is."""

    place: str
    size_bytes: int
    version: str
    name: str  # what its clips' keys begin with
    member: str = ""  # of a zip file, which is the place then
    fold: int = 0  # of a labelled corpus: of those with a number, no two share a speaker

    @property
    def title(self) -> str:
        """What a person finds it by."""
        return f"{self.place}/{self.member}" if self.member else self.place


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a source."""

    source: Source
    clips: Sequence[Made]
    refused: Sequence[Refused]
    length_s: float


@contextmanager
def open_source(source: Source) -> Iterator[IO[bytes]]:
    """Its bytes, as a stream that can be sought in. Raises StorageError."""
    with storage.open_read(source.place) as stream:
        if not source.member:
            yield stream
            return
        with zipfile.ZipFile(stream) as archive:
            yield io.BytesIO(archive.read(source.member))  # seconds of video: no zip can be sought


def ingest_source(source: Source, spec: IngestSpec, folder: Path) -> Outcome:
    """All that becomes of a source. Raises SampleError where it as a whole cannot be used."""
    if not source.size_bytes:
        raise SampleError(Reason.EMPTY)
    done = (
        cut_film(source, spec, folder) if spec.kind == "video" else take_whole(source, spec, folder)
    )
    if storage.version_of(source.place) != source.version:
        raise SampleError(Reason.CHANGED, "it was replaced while it was read")
    return done


def take_whole(source: Source, spec: IngestSpec, folder: Path) -> Outcome:
    """A recording of a labelled corpus is one clip, whatever is seen in it."""
    assert spec.kind != "video"
    path = source.member or source.place
    take = read_take(spec.kind, path)
    if take is None:
        raise SampleError(Reason.UNKNOWN_NAME, f"{path} is not as {spec.kind} names its files")
    with open_source(source) as stream, Film.opened(stream, sound_alone=True) as film:
        piece = 0.0, min(film.length_s, LONGEST_TAKE_S)
        clip = make_clip(film, piece, spec.face, spec.normalise, anyhow=True)
    made = _keep(clip, source, folder, take.facts)
    return Outcome(source, [made], [], made.length_s)


def cut_film(source: Source, spec: IngestSpec, folder: Path) -> Outcome:
    """The clips of a film."""
    made: list[Made] = []
    refused: list[Refused] = []
    with open_source(source) as stream, Film.opened(stream) as film:
        scan = scan_film(film, spec.cut)
        pieces, short = cut_pieces(scan, spec.cut)
        if not scan.speech:
            raise SampleError(Reason.NO_SPEECH)
        for piece in short:
            refused.append(_refuse(source, piece, SampleError(Reason.TOO_SHORT)))
        for piece in pieces:
            try:
                clip = make_clip(film, piece, spec.face, spec.normalise)
                if clip.length_s < spec.cut.min_s:  # its pictures begin late
                    raise SampleError(Reason.TOO_SHORT)
            except SampleError as error:
                refused.append(_refuse(source, piece, error))
            else:
                made.append(_keep(clip, source, folder, {}))
    return Outcome(source, made, refused, scan.length_s)


def _refuse(source: Source, piece: Span, error: SampleError) -> Refused:
    start_s, end_s = (round(edge, 3) for edge in piece)
    return Refused(source.title, start_s, end_s, str(error.reason), error.detail)


def _keep(clip: Clip, source: Source, folder: Path, labels: Mapping[str, object]) -> Made:
    key = f"{source.name}-{round(1000 * clip.facts['start_s']):09d}"
    facts = {"source": source.title, "source_version": source.version, **clip.facts, **labels}
    (folder / f"{key}.mp4").write_bytes(clip.video)
    (folder / f"{key}.json").write_text(json.dumps(facts))
    start_s, end_s = clip.facts["start_s"], clip.facts["end_s"]
    return Made(key, start_s, end_s - start_s, clip.digest, clip.likeness.tobytes().hex())


def read_clips(
    folder: Path, clips: Sequence[Made]
) -> Iterator[tuple[str, bytes, dict[str, object]]]:
    """(key, mp4 bytes, metadata) of clips that lie in a folder."""
    for clip in clips:
        facts = json.loads((folder / f"{clip.key}.json").read_text())
        yield clip.key, (folder / f"{clip.key}.mp4").read_bytes(), facts
