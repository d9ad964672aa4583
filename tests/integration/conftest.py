"""One Ray and one S3 server for the whole session; small real shards."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
import torch
import yaml

from liser_dist.benchmarks.testbed.flaky_s3 import FlakyS3
from liser_dist.benchmarks.testbed.local_cluster import LocalCluster, wait_until
from liser_dist.data.shards import write_shards
from liser_dist.runs.checkpoint_files import list_checkpoints
from liser_dist.runs.checkpoints import load_checkpoint
from tests.films import small_film
from tests.real import SHARED

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Before anything imports Ray, for it looks once: `ray start` asks for a token, and so do we.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
SLOW = {"speech": {"kind": "mock", "seconds_per_clip": 0.05}, "face": {"kind": "mock"}}
COUNTING = {"kind": "counting"}
# A job that fits two cores and needs no model.
SMALL: dict[str, Any] = {
    "name": "small",
    "clip": {"faces": 2, "face_px": 32, "window_s": 1.0},
    "teachers": {"speech": {"kind": "mock"}, "face": {"kind": "mock"}, "batch_size": 8},
    "student": {"kind": "cnn", "width": 8},
    "train": {"epochs": 2, "batch_size": 8, "labelled_batch_size": 4},
    "resources": {
        "decoders": [1, 1], "decoder_cpus": 0.5, "teacher_cpus": 0.25,
        "readers": 1, "worker_cpus": 0.5,
    },
}  # fmt: skip


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A spec with some fields changed, deep ones too."""
    both = {name: base[name] for name in base if name not in change}
    for name, value in change.items():
        old = base.get(name)
        deep = isinstance(value, dict) and isinstance(old, dict)
        same_kind = deep and value.get("kind") in (None, old.get("kind"))
        both[name] = merged(old, value) if same_kind else value
    return both


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real clips and nets; see tests/real.py."""
    if not SHARED.is_dir():
        pytest.skip(f"real clips and models cannot be distributed; none at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def films() -> list[bytes]:
    return [small_film(seed) for seed in range(29)]


@pytest.fixture(scope="session")
def clips(films: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 unlabelled clips in three shards: tails everywhere."""
    place = tmp_path_factory.mktemp("clips")
    samples = ((f"clip-{n:02d}", film, {"faces": []}) for n, film in enumerate(films))
    write_shards(samples, str(place), clips_per_shard=11)
    return place


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Labelled, validation and test shards, six clips each."""
    places = {}
    for number, name in enumerate(("labelled", "validation", "test")):
        places[name] = str(tmp_path_factory.mktemp(name))
        emotions = ("sad", "happy", "angry") * 2
        samples = (
            (f"{name}-{n}", small_film(100 * number + n), {"emotion": emotion, "speaker": name})
            for n, emotion in enumerate(emotions)
        )
        write_shards(samples, places[name], clips_per_shard=6)
    return places


@pytest.fixture(scope="session")
def local_cluster(s3: dict[str, str]) -> Iterator[LocalCluster]:
    """A Ray with one logical GPU, in the folder that pytest runs in."""
    # The nodes know the S3 server's key, as by a role.
    with LocalCluster(4, gpus=1, environment={**s3, "VIRTUAL_ENV": sys.prefix}) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ray_cluster(local_cluster: LocalCluster) -> dict[str, str]:
    """The environment that reaches it."""
    return local_cluster.environment


class Finished:
    """A job that ended, and what it left."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def place(self) -> Path:
        """The folder of the run: where the last line of output points."""
        return Path(self.out.strip().splitlines()[-1]).parent

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.place / "result.json").read_text())

    @property
    def weights(self) -> dict[str, Any]:
        return load_checkpoint(self.result["checkpoint"]).students

    @property
    def ledger(self) -> Any:
        return load_checkpoint(self.result["checkpoint"]).ledger


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


Job = Callable[..., Finished]
Kill = Callable[..., Path]


@pytest.fixture
def write_spec(tmp_path: Path, clips: Path) -> Callable[..., Path]:
    def write(**change: Any) -> Path:
        spec = SMALL | {"data": {"unlabelled": str(clips)}, "output": str(tmp_path / "runs")}
        file = tmp_path / "spec.yaml"
        file.write_text(yaml.safe_dump(merged(spec, change)))
        return file

    return write


@pytest.fixture
def job(ray_cluster: dict[str, str], write_spec: Callable[..., Path]) -> Job:
    """Run jobs/distill.py on the session's Ray, as a user would."""

    def run(*arguments: str, **change: Any) -> Finished:
        command = [sys.executable, ROOT / "jobs" / "distill.py", write_spec(**change), *arguments]
        return Finished(
            subprocess.run(
                command, env=ray_cluster, capture_output=True, text=True, timeout=240, check=False
            )
        )

    return run


@pytest.fixture
def killed(ray_cluster: dict[str, str], write_spec: Callable[..., Path], tmp_path: Path) -> Kill:
    """Submits a job and kills its driver when some steps were kept; the place of its run."""

    def run(**change: Any) -> Path:
        spec = write_spec(**change)
        place = tmp_path / "runs" / "small" / "001"
        command = [sys.executable, ROOT / "jobs" / "distill.py", spec]
        with (tmp_path / "killed.log").open("w") as log:
            driver = subprocess.Popen(command, env=ray_cluster, stdout=log, stderr=log)
            try:
                wait_until(lambda: len(list_checkpoints(str(place))) > 2, 120, "checkpoints")
            finally:
                driver.kill()
                driver.wait()
        assert not (place / "result.json").exists(), (tmp_path / "killed.log").read_text()
        return place

    return run


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlakyS3]:
    """A real S3 server with two buckets."""
    root = tmp_path_factory.mktemp("s3")
    (root / "bucket").mkdir()
    (root / "other").mkdir()
    with FlakyS3(root) as server:
        yield server


@pytest.fixture(scope="session")
def s3(s3_server: FlakyS3) -> dict[str, str]:
    """The environment that reaches it."""
    return s3_server.environment


@pytest.fixture
def s3_from_here(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """This process reaches it, too."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
