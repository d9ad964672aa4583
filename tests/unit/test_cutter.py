"""A film that cannot be used costs itself: what is said of it, and what comes after it."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from liser_dist.cutter import FilmCutter
from liser_dist.film_clips import Outcome
from liser_dist.ingest_spec import IngestSpec
from liser_dist.sources import find_sources, find_takes
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


def reasons(outcome: Outcome) -> list[str]:
    return [piece.reason for piece in outcome.refused]


def test_a_film_that_was_replaced_or_removed_since_it_was_found(
    cutter: FilmCutter, folder: Path, talk: bytes, tmp_path: Path
) -> None:
    for name in ("a.mp4", "b.mp4", "c::d.mp4"):
        (folder / name).write_bytes(talk)
    replaced, removed, untouched = find_sources(str(folder))
    (folder / "a.mp4").write_bytes(talk + b"more")
    (folder / "b.mp4").unlink()
    assert reasons(cutter.cut(replaced, tmp_path)) == ["changed"]
    assert reasons(cutter.cut(removed, tmp_path)) == ["changed"]
    assert len(cutter.cut(untouched, tmp_path).clips) == 1


def test_two_films_in_one_file_are_not_mixed(
    cutter: FilmCutter, folder: Path, talk: bytes, tmp_path: Path
) -> None:
    (folder / "a.ts").write_bytes(2 * talking_film([Scene(4.0)], "mpegts"))
    (folder / "b.mp4").write_bytes(talk)
    twice, once = find_sources(str(folder))
    outcome = cutter.cut(twice, tmp_path)
    assert reasons(outcome) == ["unreadable"]
    assert "jumps back" in outcome.refused[0].detail
    assert len(cutter.cut(once, tmp_path).clips) == 1


def test_a_film_that_takes_too_long(folder: Path, talk: bytes, tmp_path: Path) -> None:
    (folder / "a.mp4").write_bytes(talk)
    (film,) = find_sources(str(folder))
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
        found = [cutter.cut(source, tmp_path) for source in find_takes(str(folder), "ravdess")]
    finally:
        cutter.close()
    assert sorted((len(one.clips), reasons(one)) for one in found) == [
        (0, ["unknown_name"]),
        (0, ["unreadable"]),
        (1, []),
    ]
