"""One Ray and one S3 server for the whole session; small real shards."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from liser_dist.checkpoints import load_checkpoint
from liser_dist.local_cluster import free_port
from liser_dist.shards import write_shards
from tests.films import small_film

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
# Before anything imports Ray, for it looks once: `ray start` asks for a token, and so do we.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
BIN = Path(sys.executable).parent
# A job that fits two cores and needs no model.
SMALL: dict[str, Any] = {
    "name": "small",
    "clip": {"faces": 2, "face_px": 32, "window_s": 1.0},
    "teachers": {"speech": {"kind": "mock"}, "face": {"kind": "mock"}, "batch_size": 8},
    "student": {"kind": "cnn", "width": 8},
    "train": {"epochs": 2, "batch_size": 8, "labelled_batch_size": 4},
    "resources": {
        "decoders": [1, 1], "decoder_cpus": 0.5, "teacher_cpus": 0.25,
        "readers": 1, "reader_cpus": 0.25, "worker_cpus": 0.5,
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
    """Real clips and nets, where this checkout has them beside it."""
    if not SHARED.is_dir():
        pytest.skip(f"no real clips: {SHARED} is not there")
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
def ray_cluster(
    s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """`ray start --head` from the repository's root; the environment that reaches it."""
    scratch = tmp_path_factory.mktemp("ray")
    # Ports of its own, the agent's too: another Ray on this machine has taken the usual ones.
    port, dashboard, agent = free_port(), free_port(), free_port()
    # The nodes know the S3 server's key, as by a role.
    environment = (
        os.environ
        | s3
        | {
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(BIN.parent),
        }
    )
    command = [
        BIN / "ray", "start", "--head", "--block", "--num-cpus=4", "--num-gpus=1", f"--port={port}",
        "--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats",
        f"--temp-dir={scratch}",
    ]  # fmt: skip
    without = {k: v for k, v in environment.items() if k != "RAY_ADDRESS"}
    with (scratch / "ray.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=without, cwd=ROOT)
        try:
            wait_until(lambda: _is_up(environment), 60)
            yield environment
        finally:
            head.kill()  # what it started ends with it; asked politely it takes half a minute
            head.wait()


def _is_up(environment: dict[str, str]) -> bool:
    listed = subprocess.run(
        [BIN / "ray", "job", "list"], env=environment, capture_output=True, check=False
    )
    return listed.returncode == 0


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.5)


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


Job = Callable[..., Finished]


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


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server with a bucket; the environment that reaches it."""
    root = tmp_path_factory.mktemp("s3")
    (root / "bucket").mkdir()
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [BIN / "rclone", "serve", "s3", "--addr", address,
               "--auth-key", "a-key,a-secret", root]  # fmt: skip
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(lambda: "Starting" in (root / "server.log").read_text(), 30)
            yield environment
        finally:
            server.terminate()
            server.wait(timeout=30)
