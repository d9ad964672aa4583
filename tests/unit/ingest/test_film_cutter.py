"""A recording that cannot be used is rejected alone, and the ones after it are cut."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from liser_dist.config.ingest import IngestSpec
from liser_dist.ingest.film_cutter import FilmCutter
from liser_dist.ingest.film_to_clips import IngestedRecording
from liser_dist.ingest.sources.corpora import CorpusSource
from liser_dist.ingest.sources.files import FileSource
from tests.films import Scene, talking_film


@pytest.fixture(scope="module")
def talk() -> bytes:
    return talking_film([Scene(4.0)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "films").mkdir()
    return tmp_path / "films"


def spec_for(folder: Path, **change: object) -> IngestSpec:
    content = {"source": str(folder), "output": str(folder.parent / "made"), **change}
    return IngestSpec.model_validate(content)


@pytest.fixture
def cutter(folder: Path) -> Iterator[FilmCutter]:
    cutter = FilmCutter(spec_for(folder))
    yield cutter
    cutter.close()


def reasons(ingested: IngestedRecording) -> list[str]:
    return [piece.reason for piece in ingested.rejections]


def test_a_film_that_was_replaced_or_removed_since_it_was_found(
    cutter: FilmCutter, folder: Path, talk: bytes, tmp_path: Path
) -> None:
    for name in ("a.mp4", "b.mp4", "c::d.mp4"):
        (folder / name).write_bytes(talk)
    replaced, removed, untouched = FileSource(str(folder)).list_recordings()
    (folder / "a.mp4").write_bytes(talk + b"more")
    (folder / "b.mp4").unlink()
    assert reasons(cutter.cut(replaced, tmp_path)) == ["changed"]
    assert reasons(cutter.cut(removed, tmp_path)) == ["changed"]
    assert len(cutter.cut(untouched, tmp_path).clips) == 1


def test_speech_that_is_too_short_says_how_short(folder: Path, talk: bytes, tmp_path: Path) -> None:
    (folder / "a.mp4").write_bytes(talk)
    (film,) = FileSource(str(folder)).list_recordings()
    cutter = FilmCutter(spec_for(folder, cut={"min_s": 6.0}))
    try:
        (rejection,) = cutter.cut(film, tmp_path).rejections
    finally:
        cutter.close()
    assert rejection.reason == "too_short"
    assert rejection.detail.endswith("s of speech, below cut.min_s 6")


def test_two_films_in_one_file_are_not_mixed(
    cutter: FilmCutter, folder: Path, talk: bytes, tmp_path: Path
) -> None:
    (folder / "a.ts").write_bytes(2 * talking_film([Scene(4.0)], "mpegts"))
    (folder / "b.mp4").write_bytes(talk)
    twice, once = FileSource(str(folder)).list_recordings()
    outcome = cutter.cut(twice, tmp_path)
    assert reasons(outcome) == ["unreadable"]
    assert "timestamps jump back" in outcome.rejections[0].detail
    assert len(cutter.cut(once, tmp_path).clips) == 1


def test_a_film_that_takes_too_long(folder: Path, talk: bytes, tmp_path: Path) -> None:
    (folder / "a.mp4").write_bytes(talk)
    (film,) = FileSource(str(folder)).list_recordings()
    cutter = FilmCutter(spec_for(folder, limits={"seconds": 0.2}))
    try:
        assert reasons(cutter.cut(film, tmp_path)) == ["timeout"]
    finally:
        cutter.close()


def test_damaged_zip_files_cost_themselves(folder: Path, talk: bytes, tmp_path: Path) -> None:
    archive = folder / "Actor_01.ZIP"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("Actor_01/01-01-03-01-01-01-01.mp4", talk)
        opened.writestr("Actor_01/01-01-04-01-01-01-01.mp4", talk)
    content = bytearray(archive.read_bytes())
    content[len(talk) // 2] ^= 1  # of the first recording: its check sum is off
    archive.write_bytes(content)
    (folder / "Actor_02.zip").write_bytes(content[: len(content) // 2])
    cutter = FilmCutter(spec_for(folder, kind="ravdess"))
    try:
        recordings = CorpusSource(str(folder), "ravdess").list_recordings()
        ingested = [cutter.cut(recording, tmp_path) for recording in recordings]
    finally:
        cutter.close()
    assert sorted((len(one.clips), reasons(one)) for one in ingested) == [
        (0, ["unknown_name"]),
        (0, ["unreadable"]),
        (1, []),
    ]
