"""Files are written atomically, and errors name the path and a remedy."""

import os
from pathlib import Path

import pytest

from liser_dist import storage
from liser_dist.errors import StorageError


def test_what_is_written_is_read_and_listed(tmp_path: Path) -> None:
    place = storage.join(str(tmp_path), "a", "b.bin")
    storage.write_bytes(place, b"one")
    storage.write_bytes(place, b"second")
    assert storage.read_bytes(place) == b"second"
    (found,) = storage.list_files(str(tmp_path))
    assert (found.place, found.size_bytes) == (place, 6)
    assert storage.list_folders(str(tmp_path)) == ["a"]


def test_a_version_changes_with_the_content(tmp_path: Path) -> None:
    place = storage.join(str(tmp_path), "a.bin")
    versions = set()
    for content in (b"one", b"three"):
        storage.write_bytes(place, content)
        versions.add(storage.list_files(place)[0].version)
    assert len(versions) == 2


def test_a_version_is_that_of_the_list(tmp_path: Path) -> None:
    place = storage.join(str(tmp_path), "a.bin")
    storage.write_bytes(place, b"one")
    assert storage.version_of(place) == storage.list_files(place)[0].version
    for missing in (storage.join(str(tmp_path), "missing"), str(tmp_path)):
        with pytest.raises(StorageError, match="no such file"):
            storage.version_of(missing)


def test_a_link_has_the_version_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "a.tar"
    file.write_bytes(b"a")
    os.utime(file, (1, 1))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").symlink_to(file)
    (found,) = storage.list_files(str(tmp_path / "shards"))
    assert found.version == storage.version_of(found.place)


def test_no_half_written_file_is_left_when_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()  # a folder lies where the file should go
    with pytest.raises(StorageError, match="cannot write"):
        storage.write_bytes(str(tmp_path / "place"), b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_place_that_cannot_be_written_is_told_by_the_field(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=r"`output`.*file"):
        storage.require_writable(str(tmp_path / "file" / "runs"), "output")


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        storage.read_bytes(str(tmp_path / "missing"))


def test_one_call_claims_a_file(tmp_path: Path) -> None:
    place = str(tmp_path / "jobs" / "001")
    assert [storage.claim(place) for _ in range(2)] == [True, False]
    os.utime(place, (1, 1))
    assert storage.age_s(place) > 1e9
