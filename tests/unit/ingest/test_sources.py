"""Sources list recordings, open them, and detect those that were replaced."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import get_args

import pytest

from liser_dist.config.ingest import IngestSpec
from liser_dist.errors import MissingError, StorageError
from liser_dist.ingest.sources.archives import ArchiveSource
from liser_dist.ingest.sources.base import Recording, VideoSource
from liser_dist.ingest.sources.corpora import CorpusSource
from liser_dist.ingest.sources.files import FileSource
from liser_dist.ingest.sources.kinds import KINDS

MP4 = "01-01-03-01-01-01-05.mp4"  # RAVDESS: happy, actor 5, with a picture
WAV = "03-01-03-01-01-01-05.wav"  # the same utterance, sound alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.MP4").write_bytes(b"first")
    (tmp_path / "deep" / "b.mkv").write_bytes(b"second")
    (tmp_path / "notes.txt").write_text("no video")
    return tmp_path


def read(source: VideoSource, recording: Recording) -> bytes:
    with source.open(recording) as stream:
        return stream.read()


def test_every_kind_of_the_spec_has_its_source() -> None:
    assert set(get_args(IngestSpec.model_fields["kind"].annotation)) == set(KINDS)


def test_files_are_listed_by_extension_and_opened(folder: Path) -> None:
    source = FileSource(str(folder))
    recordings = source.list_recordings()
    assert [Path(r.place).name for r in recordings] == ["a.MP4", "b.mkv"]
    assert [r.size_bytes for r in recordings] == [5, 6]
    assert [read(source, r) for r in recordings] == [b"first", b"second"]


def test_the_name_of_a_recording_follows_from_path_and_version(
    folder: Path, tmp_path: Path
) -> None:
    (first, _) = FileSource(str(folder)).list_recordings()
    (again, _) = FileSource(str(folder)).list_recordings()
    assert first == again
    assert len(first.name) == 16
    (folder / "a.MP4").write_bytes(b"other content")
    (changed, _) = FileSource(str(folder)).list_recordings()
    assert changed.name != first.name


def test_a_replaced_or_removed_file_has_changed(folder: Path) -> None:
    source = FileSource(str(folder))
    first, second = source.list_recordings()
    assert source.is_unchanged(first)
    (folder / "a.MP4").write_bytes(b"other content")
    (folder / "deep" / "b.mkv").unlink()
    assert not source.is_unchanged(first)
    assert not source.is_unchanged(second)
    with pytest.raises(MissingError):
        read(source, second)


def test_a_missing_folder_is_refused_by_its_field(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="`source`"):
        FileSource(str(tmp_path / "nowhere")).list_recordings()


def test_members_of_zip_files_are_recordings(folder: Path) -> None:
    with zipfile.ZipFile(folder / "c.zip", "w") as archive:
        archive.writestr("inside/x.mp4", b"third")
        archive.writestr("readme.txt", b"no video")
    (folder / "d.zip").write_bytes(b"no zip file")
    source = ArchiveSource(str(folder), ("mp4", "mkv"))
    recordings = source.list_recordings()
    assert [r.title.removeprefix(f"{folder}/") for r in recordings] == [
        "a.MP4", "c.zip/inside/x.mp4", "d.zip", "deep/b.mkv",
    ]  # fmt: skip
    member = recordings[1]
    assert (member.size_bytes, read(source, member)) == (5, b"third")
    assert source.is_unchanged(member)
    (folder / "c.zip").unlink()
    assert not source.is_unchanged(member)


def test_of_each_utterance_the_best_recording_is_listed_with_its_fold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (WAV, MP4, "holiday.mp4"):
        (tmp_path / name).write_bytes(b"x")
    recordings = CorpusSource(str(tmp_path), "ravdess").list_recordings()
    assert [(Path(r.place).name, r.fold) for r in recordings] == [(MP4, 2), ("holiday.mp4", 0)]
    assert "the download of ravdess lacks 1439 utterances" in caplog.text


def test_labels_come_from_the_file_name() -> None:
    labels = KINDS["ravdess"].labels
    assert labels(Recording(f"s3://b/{MP4}", 1, "v", "n")) == {
        "speaker": "ravdess-05", "emotion": "happy", "intensity": "normal", "fold": 2,
    }  # fmt: skip
    assert labels(Recording("s3://b/holiday.mp4", 1, "v", "n")) is None
    assert labels(Recording("s3://b/a.zip", 1, "v", "n", member=f"Actor_05/{MP4}")) is not None
    assert KINDS["video"].labels is None
