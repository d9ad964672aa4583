"""Downloads of labelled corpora become labelled shards, one fold per shard."""

import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.films import Scene, sound_file, talking_film
from tests.integration.test_ingest import Ingest, ingest  # noqa: F401


@pytest.fixture
def ravdess(tmp_path: Path) -> Path:
    """Two actors of one fold in folders, one of another in a zip file; sound alone; a stranger."""
    place = tmp_path / "ravdess"
    film = talking_film([Scene(2.0)])
    for actor in (1, 2):
        folder = place / f"Actor_{actor:02d}"
        folder.mkdir(parents=True)
        (folder / f"01-01-03-02-01-01-{actor:02d}.mp4").write_bytes(film)
        (folder / f"02-01-03-02-01-01-{actor:02d}.mp4").write_bytes(film)  # the same, mute
        (folder / f"03-01-05-01-01-01-{actor:02d}.wav").write_bytes(sound_file(2.0))
    (place / "Actor_01" / "holiday.mp4").write_bytes(film)
    with zipfile.ZipFile(place / "Video_Speech_Actor_24.zip", "w") as archive:
        archive.writestr("Actor_24/01-01-08-01-01-01-24.mp4", film)
    return place


def labels_in(output: Path) -> dict[str, list[dict]]:
    """What the JSON of each clip says, by shard."""
    found = {}
    for shard in json.loads((output / "index.json").read_text())["shardlist"]:
        with tarfile.open(output / shard["url"]) as tar:
            files = [m for m in tar.getmembers() if m.name.endswith(".json")]
            found[shard["url"]] = [json.loads(tar.extractfile(m).read()) for m in files]
    return found


def test_ravdess_becomes_labelled_shards(ingest: Ingest, ravdess: Path, tmp_path: Path) -> None:  # noqa: F811
    done = ingest(ravdess, tmp_path / "made", "--kind", "ravdess", "--deduplicate", "off")
    assert done.code == 0, done.err
    labels = labels_in(tmp_path / "made")
    said = sorted(
        (one["fold"], one["speaker"], one["emotion"], one["intensity"], bool(one["faces"]))
        for clips in labels.values()
        for one in clips
    )
    assert said == [
        (1, "ravdess-01", "angry", "normal", False),
        (1, "ravdess-01", "happy", "strong", True),
        (1, "ravdess-02", "angry", "normal", False),
        (1, "ravdess-02", "happy", "strong", True),
        (6, "ravdess-24", "surprised", "normal", True),
    ]
    assert all(len({one["fold"] for one in clips}) == 1 for clips in labels.values())
    rejected = pq.read_table(tmp_path / "made" / "rejected.parquet").to_pylist()
    assert [(Path(r["source"]).name, r["reason"]) for r in rejected] == [
        ("holiday.mp4", "unknown_name")
    ]
    assert "the download of ravdess lacks" in done.err
