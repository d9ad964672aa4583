"""Storage on a misbehaving S3 server gives complete bytes, or an error in bounded time."""

import io
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from liser_dist import storage, storage_errors
from liser_dist.benchmarks.testbed.flaky_s3 import FlakyS3
from liser_dist.errors import StorageError

pytestmark = pytest.mark.slow  # an S3 server that is slow, busy or down

CONTENT = random.Random(0).randbytes(30 * 2**20)
PLACE = "s3://bucket/content.bin"
READ_BYTES = 2**16
HOLDER = """
import sys, time
from pathlib import Path
from liser_dist.benchmarks.testbed.flaky_s3 import FlakyS3
with FlakyS3(Path(sys.argv[1])):
    print("serving", flush=True)
    time.sleep(600)
"""
Misbehave = Callable[[FlakyS3], None]
BODIES: dict[str, Misbehave] = {
    "reset": lambda server: server.reset_bodies(3),
    "cut": lambda server: server.cut_bodies(3),
    "shortened": lambda server: server.shorten_bodies(3),
    "stalled": lambda server: server.stall_bodies(1, seconds=60),
}
OUTAGES: dict[str, Misbehave] = {
    "refused": lambda server: server.refuse(503, seconds=3),
    "restarted": lambda server: server.restart(down_s=2),
}


@pytest.fixture
def server(s3_server: FlakyS3, tmp_path: Path) -> FlakyS3:
    (tmp_path / "bucket" / "content.bin").write_bytes(CONTENT)
    return s3_server


def read_on(stream: io.BufferedIOBase) -> Iterator[bytes]:
    return iter(lambda: stream.read(READ_BYTES), b"")


@pytest.mark.parametrize("fault", [*BODIES, *OUTAGES])
def test_who_reads_does_not_notice(server: FlakyS3, fault: str) -> None:
    with storage.open_read(PLACE) as stream:
        parts = [stream.read(READ_BYTES)]
        (BODIES | OUTAGES)[fault](server)
        parts += read_on(stream)
    assert {len(part) for part in parts} == {READ_BYTES}
    assert b"".join(parts) == CONTENT
    assert server.count[fault] >= 1


@pytest.mark.parametrize("fault", OUTAGES)
def test_what_is_written_arrives_whole(server: FlakyS3, tmp_path: Path, fault: str) -> None:
    OUTAGES[fault](server)
    storage.write_bytes("s3://bucket/written.bin", CONTENT)
    assert (tmp_path / "bucket" / "written.bin").read_bytes() == CONTENT
    assert server.count[fault] >= 1


def test_a_put_that_a_restart_breaks_is_made_again(server: FlakyS3, tmp_path: Path) -> None:
    content = CONTENT * 3

    def restart_in_the_middle() -> None:
        end = time.monotonic() + 10
        while not list((tmp_path / "bucket").glob(".rclone_temp_put*")) and time.monotonic() < end:
            time.sleep(0.001)
        server.restart(down_s=1)

    middle = threading.Thread(target=restart_in_the_middle)
    middle.start()
    storage.write_bytes("s3://bucket/written.bin", content)
    middle.join()
    assert (tmp_path / "bucket" / "written.bin").read_bytes() == content
    assert server.count["restarted"] == 1


def test_one_call_claims_a_file(server: FlakyS3) -> None:
    assert storage.claim("s3://bucket/jobs/001")
    assert not storage.claim("s3://bucket/jobs/001")
    assert storage.age_s("s3://bucket/jobs/001") < 600


def test_a_claim_whose_answer_is_lost_is_still_a_claim(server: FlakyS3) -> None:
    server.lose_answers(1)
    assert storage.claim("s3://bucket/jobs/001")
    assert server.count["lost"] == 1
    assert not storage.claim("s3://bucket/jobs/001")


def test_a_server_without_conditional_writes_is_asked_before(server: FlakyS3) -> None:
    server.conditional_writes = False
    assert storage.claim("s3://bucket/jobs/001")
    assert not storage.claim("s3://bucket/jobs/001")


@pytest.mark.parametrize("fault", OUTAGES)
def test_listings_and_questions_wait_for_the_server(server: FlakyS3, fault: str) -> None:
    OUTAGES[fault](server)
    (found,) = storage.list_files("s3://bucket")
    assert (found.place, found.size_bytes) == (PLACE, len(CONTENT))
    OUTAGES[fault](server)
    assert storage.version_of(PLACE) == found.version
    assert storage.list_folders("s3://bucket") == []
    assert server.count[fault] >= 2


def test_who_retries_says_so(server: FlakyS3, caplog: pytest.LogCaptureFixture) -> None:
    server.refuse(503, seconds=3)
    storage.write_bytes("s3://bucket/written.bin", b"content")
    assert server.count["refused"] > 2
    (warning,) = retry_warnings(caplog)
    assert "cannot write s3://bucket/written.bin" in warning
    assert warning.endswith("retrying for 30 min")


def retry_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == storage_errors.__name__]


def test_patience_ends_with_a_remedy(server: FlakyS3) -> None:
    with storage.open_read(PLACE, patience_s=1) as stream:
        stream.read(READ_BYTES)
        server.cut_bodies(1000)
        # An error of ours from the stream itself: a reader of tars takes another for damage.
        with pytest.raises(StorageError, match=f"cannot read {PLACE}: .*; check the network"):
            list(read_on(stream))
    server.refuse(503, seconds=60)
    with pytest.raises(StorageError, match=r"cannot write .*Service Unavailable; check"):
        storage.write_bytes(PLACE, b"", patience_s=1)
    server.restart(down_s=60)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        storage.list_files("s3://bucket", patience_s=1)


def test_an_empty_body_is_not_the_end_of_a_file(server: FlakyS3, tmp_path: Path) -> None:
    (tmp_path / "bucket" / "byte.bin").write_bytes(b"1")
    server.shorten_bodies(1)  # half of a byte
    assert storage.read_bytes("s3://bucket/byte.bin") == b"1"
    assert server.count["shortened"] == 1


@pytest.mark.parametrize(
    ("status", "words"), [(403, "access denied"), (404, "no such file|no bucket")]
)
def test_what_does_not_get_better_is_told_at_once(
    server: FlakyS3, caplog: pytest.LogCaptureFixture, status: int, words: str
) -> None:
    server.refuse(status, seconds=60)
    for act in (storage.read_bytes, storage.version_of, storage.list_files):
        with pytest.raises(StorageError, match=words):
            act(PLACE)
    with pytest.raises(StorageError, match=words):
        storage.write_bytes(PLACE, b"")
    assert not retry_warnings(caplog)


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed(server: FlakyS3) -> None:
    with storage.open_read(PLACE) as stream:
        stream.read(READ_BYTES)
        storage.write_bytes(PLACE, CONTENT[::-1])
        with pytest.raises(StorageError, match="no longer exists"):
            list(read_on(stream))
    assert storage.read_bytes(PLACE) == CONTENT[::-1]


def test_a_version_on_s3_is_asked_anew(server: FlakyS3) -> None:
    (before,) = storage.list_files(PLACE)
    assert storage.version_of(PLACE) == before.version
    storage.write_bytes(PLACE, b"other")
    (after,) = storage.list_files(PLACE)
    assert storage.version_of(PLACE) == after.version != before.version


def test_nothing_is_left_of_a_server(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    children = set(psutil.Process().children(recursive=True))
    with FlakyS3(tmp_path) as server:
        (rclone,) = set(psutil.Process().children(recursive=True)) - children
        server.restart(down_s=60)
    assert not rclone.is_running()
    assert set(threading.enumerate()) <= threads


def test_a_server_ends_with_a_killed_parent(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, env=environment
    )
    assert holder.stdout is not None
    with holder.stdout as said:
        assert said.readline() == b"serving\n"
    (rclone,) = psutil.Process(holder.pid).children()
    holder.kill()
    holder.wait()
    end = time.monotonic() + 10
    while rclone.is_running() and rclone.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)
