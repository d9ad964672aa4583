"""Ingest turns raw video into shards, with each clip once even if processes are killed."""

import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import pyarrow.parquet as pq
import pytest

from liser_dist import storage
from liser_dist.benchmarks.testbed.flaky_s3 import FlakyS3
from liser_dist.benchmarks.testbed.local_cluster import wait_until
from liser_dist.errors import MissingError
from tests.films import Scene, talking_film
from tests.integration.conftest import ROOT, Finished, Job
from tests.real import CLIPS, needs_clips

JOB = ROOT / "jobs" / "ingest.py"
LITTLE = ("--resources.workers", "[1, 1]", "--resources.worker_cpus", "0.5")
Ingest = Callable[..., Finished]


@pytest.fixture(scope="session")
def talks() -> list[bytes]:
    """Films with one, two and three clips."""
    return [
        talking_film([Scene(4.0 + number, shade=30 + 50 * shot) for shot in range(number + 1)])
        for number in range(3)
    ]


@pytest.fixture
def ingest(ray_cluster: dict[str, str]) -> Ingest:
    def run(source: object, output: object, *arguments: str) -> Finished:
        command = [sys.executable, JOB, "--source", source, "--output", output, *LITTLE, *arguments]
        done = subprocess.run(
            [str(part) for part in command],
            env=ray_cluster, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        return Finished(done)

    return run


def clips_in(output: object) -> dict[str, str]:
    """By the source's name and second: what the picture and the sound of the clip are."""
    index = json.loads(storage.read_bytes(f"{output}/index.json"))
    digests = {}
    for shard in index["shardlist"]:
        content = io.BytesIO(storage.read_bytes(f"{output}/{shard['url']}"))
        with tarfile.open(fileobj=content) as tar:
            facts = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        for name in (name for name in facts if name.endswith(".json")):
            metadata = json.loads(facts[name])
            key = f"{Path(metadata['source']).name} {metadata['start_s']:.1f}"
            assert key not in digests, "twice"
            digests[key] = hashlib.sha256(facts[name[:-4] + "mp4"]).hexdigest()
    assert len(digests) == index["clips"]
    return digests


def rejected_in(output: Path) -> dict[str, str]:
    """The reason, by the source's name."""
    rows = pq.read_table(output / "rejected.parquet").to_pylist()
    return {Path(row["source"]).name: row["reason"] for row in rows}


@pytest.fixture
def folder(talks: list[bytes], tmp_path: Path) -> Path:
    place = tmp_path / "films"
    place.mkdir()
    for number, talk in enumerate(talks):
        (place / f"talk {number} é'\".mp4").write_bytes(talk)
    return place


def test_new_video_on_s3_becomes_shards_once_and_the_main_job_trains_on_them(
    ingest: Ingest, job: Job, talks: list[bytes], s3_server: FlakyS3, s3_from_here: None
) -> None:
    source, output = "s3://bucket/films", "s3://other/made"
    for number, talk in enumerate(talks[:2]):
        storage.write_bytes(f"{source}/day 1/talk {number} é'.mp4", talk)
    first = ingest(source, output)
    assert first.code == 0, first.err
    index = json.loads(storage.read_bytes(f"{output}/index.json"))
    assert index["clips"] == 3
    shards = {shard["url"]: shard["version"] for shard in index["shardlist"]}

    before = s3_server.count["answered"]
    again = ingest(source, output)
    assert again.code == 0, again.err
    assert "0 pending" in again.out
    # Listings, the index, the manifest and a probe of whether it can be written: no film.
    assert s3_server.count["answered"] - before < 30

    storage.write_bytes(f"{source}/day 2/talk.mp4", talks[2])
    s3_server.reset_bodies(2)
    s3_server.cut_bodies(2)
    more = ingest(source, output)
    assert more.code == 0, more.err
    index = json.loads(storage.read_bytes(f"{output}/index.json"))
    assert index["clips"] == 6
    assert shards.items() <= {s["url"]: s["version"] for s in index["shardlist"]}.items()

    trained = job(data={"unlabelled": output})
    assert trained.code == 0, trained.err
    clips = trained.result["clips"]
    assert (clips["trained"], clips["rejected"]) == (6, 0)


@pytest.mark.long
def test_a_job_that_was_killed_goes_on_and_makes_the_same_clips(
    ingest: Ingest,
    talks: list[bytes],
    ray_cluster: dict[str, str],
    s3_from_here: None,
    tmp_path: Path,
) -> None:
    source, output = "s3://bucket/talks", "s3://other/killed"
    more = [
        talking_film([Scene(4.0, shade=shade)]) for shade in (110, 130, 150, 170, 190, 210, 230)
    ]
    for number, talk in enumerate([*talks, *more]):
        storage.write_bytes(f"{source}/{number}.mkv", talk)
    undisturbed = ingest(source, tmp_path / "whole")
    assert undisturbed.code == 0, undisturbed.err
    draw = random.Random(0)
    for _ in range(3):
        command = [sys.executable, JOB, "--source", source, "--output", output, *LITTLE]
        before = files_in(output)
        with (tmp_path / "log").open("w") as log:
            job = subprocess.Popen(
                [str(part) for part in command], env=ray_cluster, stdout=log, stderr=log
            )
            wait_until(lambda before=before: files_in(output) > before, 60, "something is written")
            time.sleep(draw.uniform(0, 0.5))
            if not before:
                job.send_signal(signal.SIGSTOP)
                other = ingest(source, output)
                assert (other.code, "another job" in other.err) == (2, True), other.err
            job.kill()
            job.wait()
        assert not storage.exists(f"{output}/index.json")
    left = f"{output}/0123456789abcdef-0000.tar"
    storage.write_bytes(left, b"left of a killed job")
    last = ingest(source, output)
    assert last.code == 0, last.err
    assert clips_in(output) == clips_in(tmp_path / "whole")
    assert len(clips_in(output)) == 13
    assert "in no manifest" in last.err


def files_in(place: str) -> int:
    try:
        return len(storage.list_files(place, ".tar") + storage.list_files(place, ".json"))
    except MissingError:
        return 0


def test_a_job_that_watches_takes_what_comes(
    folder: Path, talks: list[bytes], ray_cluster: dict[str, str], tmp_path: Path
) -> None:
    output, late = tmp_path / "made", folder / "talk 2 é'\".mp4"
    late.unlink()
    command = [sys.executable, JOB, "--source", folder, "--output", output, *LITTLE]
    command += ["--watch", "--poll_s", "1"]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen([str(part) for part in command], env=ray_cluster, stderr=log)
        try:
            wait_until(lambda: (output / "index.json").exists(), 120, "the first films")
            assert len(clips_in(output)) == 3
            late.write_bytes(talks[2])
            wait_until(lambda: len(clips_in(output)) == 6, 60, "the late film")
        finally:
            job.terminate()
            job.wait(60)
    assert len(clips_in(output)) == 6
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_what_cannot_be_used_is_told_and_costs_itself_alone(
    ingest: Ingest, folder: Path, tmp_path: Path
) -> None:
    (folder / "empty.mp4").touch()
    (folder / "page.mkv").write_bytes(b"<html>not found</html>" * 100)
    (folder / "again.mp4").write_bytes((folder / "talk 0 é'\".mp4").read_bytes())
    (folder / "nobody.mp4").write_bytes(talking_film([Scene(5.0, faces=0)]))
    (folder / "quiet.mp4").write_bytes(talking_film([Scene(5.0, speech=False)]))
    (folder / "deaf.mp4").write_bytes(without_sound(talking_film([Scene(3.0)])))
    (folder / "notes.txt").write_text("no video")
    done = ingest(folder, tmp_path / "made")
    assert done.code == 0, done.err
    assert len(clips_in(tmp_path / "made")) == 6
    reasons = rejected_in(tmp_path / "made")
    twins = {"again.mp4", "talk 0 é'\".mp4"}
    assert sum(reasons.get(name) == "duplicate" for name in twins) == 1
    assert {name: why for name, why in reasons.items() if name not in twins} == {
        "empty.mp4": "empty",
        "page.mkv": "unreadable",
        "nobody.mp4": "no_face",
        "quiet.mp4": "no_speech",
        "deaf.mp4": "no_audio",
    }
    other = ingest(folder, tmp_path / "made", "--cut.max_s", "5")
    assert other.code == 2
    assert "`cut.max_s` was 10.0 and is now 5.0" in other.err


def without_sound(video: bytes) -> bytes:
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format="mp4") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


@needs_clips
def test_no_hostile_file_costs_another(ingest: Ingest, talks: list[bytes], tmp_path: Path) -> None:
    place = tmp_path / "films"
    place.mkdir()
    for file in sorted((CLIPS / "hostile").glob("*.mp4")):
        (place / file.name).write_bytes(file.read_bytes())
    (place / "zz.mp4").write_bytes(talks[0])
    done = ingest(place, tmp_path / "made")
    assert done.code == 0, done.err
    assert {key.split()[0] for key in clips_in(tmp_path / "made")} >= {"zz.mp4"}
    manifests = (tmp_path / "made" / "manifest").glob("*.json")
    sources = sum(len(json.loads(file.read_text())["sources"]) for file in manifests)
    assert sources == len(list(place.iterdir()))


@pytest.mark.parametrize(
    ("source", "output", "told"),
    [
        ("films", "films/made", "`output`"),
        ("nowhere", "made", "`source`"),
        ("films", "/proc/made", "`output`"),
    ],
)
def test_places_that_cannot_do_are_refused_before_any_work(
    ingest: Ingest, folder: Path, source: str, output: str, told: str
) -> None:
    done = ingest(folder.parent / source, folder.parent / output)
    assert done.code == 2
    assert told in done.err
    assert "Traceback" not in done.err
