"""Starts a Ray cluster on this machine whose nodes can be killed, for fault tests and benchmarks.

`ClusterJob` is a job on such a cluster, with methods to disrupt it, such as killing its processes.

Every process of the cluster has a marker variable in its environment, so that processes that
survive a kill can be found even when their parent is gone.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from liser_dist.benchmarks.job_runs import BenchmarkJob
from liser_dist.config.distill import DistillSpec
from liser_dist.config.resources import POOL
from liser_dist.runs.checkpoint_files import COMMITTED, Position, position_of

if TYPE_CHECKING:
    from liser_dist.benchmarks.testbed.flaky_s3 import FlakyS3
    from liser_dist.benchmarks.testbed.network import NodeNetwork

JOB_START_LIMIT_S = 240.0  # until the first clips are trained
RECOVERY_LIMIT_S = 240.0
LEFT_BEHIND_AFTER_S = 10.0
HEAD_CPUS = 3
BUCKET = "bucket"
HOST = "127.0.0.1"
NODE_START_LIMIT_S = 90.0
SHARED_MEMORY = Path("/dev/shm")
_MARK = "LISER_DIST_CLUSTER"  # environment variable with the id of the cluster
# By default Ray takes half a minute to notice that a node is gone.
_FAST_HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
_BIN = Path(sys.executable).parent
# Ray's own processes, which live as long as the cluster or wait for work.
_RAY_PROCESSES = (
    "ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor",
    "ray::ActorLocationTracker", "ray::_StatsActor", "ray::TrainStateActor", "ray-dashboard",
)  # fmt: skip


def free_port() -> int:
    """Return a TCP port of this machine that is free at the moment."""
    with socket.socket() as server:
        server.bind((HOST, 0))
        port: int = server.getsockname()[1]
        return port


def wait_until(holds: Callable[[], bool], limit_s: float, event: str) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not within the limit; the message names the event.
    """
    end = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"gave up after waiting {limit_s:g} s for {event}")
        time.sleep(0.1)


class LocalCluster:
    """A Ray head, started with `ray start --head`, and further nodes, until the context ends.

    Attributes:
        environment: a command that runs in it uses the cluster, and its processes are marked.
        folder: where Ray writes its files and logs.
    """

    def __init__(
        self,
        cpus: int,
        gpus: int = 0,
        environment: Mapping[str, str] | None = None,
        pool: str | None = None,
        network: NodeNetwork | None = None,
    ) -> None:
        """Start the head.

        Args:
            cpus: logical CPUs of the head.
            gpus: logical GPUs of the head.
            environment: variables that all nodes get beside those of this process.
            pool: label of the head.
            network: gives each further node a network of its own; None: all use loopback.

        Raises:
            TimeoutError: the head does not answer in time.
        """
        self._mark = uuid.uuid4().hex
        self._network = network
        self._host = network.cluster_host if network else HOST
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._port, self._dashboard = free_port(), free_port()
        self._shared_memory = set(SHARED_MEMORY.iterdir())
        self.environment = {
            **os.environ,
            **(environment or {}),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or uuid.uuid4().hex * 2,
            "PATH": f"{_BIN}:{os.environ['PATH']}",
            _MARK: self._mark,
            # Workers use it, too: without it they could find another Ray on this machine.
            "RAY_API_SERVER_ADDRESS": f"http://{self._host}:{self._dashboard}",
            **_FAST_HEALTH_CHECKS,
        }
        self.environment.pop("RAY_ADDRESS", None)
        self._start(
            cpus, gpus, pool, "--head", f"--port={self._port}", f"--dashboard-host={self._host}",
            f"--dashboard-port={self._dashboard}", f"--temp-dir={self.folder}",
            "--disable-usage-stats",
        )  # fmt: skip
        wait_until(self._answers, NODE_START_LIMIT_S, "the Ray head")
        self.environment["RAY_ADDRESS"] = f"{self._host}:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self._nodes):
            self._kill(node)
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._folder.cleanup()

    def add_node(self, cpus: int, gpus: int = 0, pool: str | None = None) -> int:
        """Start a node, wait until the cluster knows it, and return its number."""
        self._start(cpus, gpus, pool, f"--address={self._host}:{self._port}")
        number = len(self._nodes) - 1
        log = self._log_of(number)
        wait_until(
            lambda: b"Ray runtime started" in log.read_bytes(), NODE_START_LIMIT_S, "a Ray node"
        )
        return number

    def lose_node(self, number: int) -> None:
        """Kill all processes of a node at once, as if its machine were gone."""
        self._kill(self._nodes[number])

    def give_notice(self, number: int, seconds: int) -> None:
        """Announce that a node will be gone, as a cloud does before it takes a spot machine."""
        raylet = next(
            p for p in self.processes() if _node_of(p) == number and "/raylet" in _title(p)
        )
        node_id = next(word for word in raylet.cmdline() if word.startswith("--node_id="))
        subprocess.run(
            [
                str(_BIN / "ray"), "drain-node", f"--node-id={node_id.partition('=')[2]}",
                f"--address={self.environment['RAY_ADDRESS']}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
                f"--deadline-remaining-seconds={seconds}",
            ],
            env=self.environment, check=True, capture_output=True,
        )  # fmt: skip

    def _start(self, cpus: int, gpus: int, pool: str | None, *arguments: str) -> None:
        number, host = len(self._nodes), self._host
        if self._network is not None and number:
            host = self._network.add_node(number)
        command = [
            str(_BIN / "ray"), "start", "--block", f"--num-cpus={cpus}", f"--num-gpus={gpus}",
            f"--node-ip-address={host}", f"--dashboard-agent-listen-port={free_port()}",
            *([f"--labels={POOL}={pool}"] if pool else []), *arguments,
        ]  # fmt: skip
        if self._network is not None and number:
            command = self._network.command(number, command)
        node = {**self.environment, f"{_MARK}_NODE": str(number)}
        with self._log_of(number).open("wb") as log:
            self._nodes.append(subprocess.Popen(command, env=node, stdout=log, stderr=log))

    def _log_of(self, number: int) -> Path:
        return self.folder / f"node-{number}.log"

    def _answers(self) -> bool:
        listed = subprocess.run(
            [str(_BIN / "ray"), "job", "list"],
            env=self.environment,
            capture_output=True,
            check=False,
        )
        return listed.returncode == 0

    def _kill(self, node: subprocess.Popen[bytes]) -> None:
        number = self._nodes.index(node)
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if _node_of(process) == number:
                    process.send_signal(signal.SIGKILL)
        node.kill()
        node.wait()

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the cluster and of the commands that ran in its environment."""
        marked = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark:
                    marked.append(process)
        return marked

    def workers(self, title: str, node: int | None = None) -> list[psutil.Process]:
        """Return the Ray workers whose process title contains `title`, of one node or of all."""
        return [
            process
            for process in self.processes()
            if title in _title(process) and node in (None, _node_of(process))
        ]

    def left_behind(self) -> list[str]:
        """Return the processes and shared memory of jobs that still exist, without Ray's own."""
        files = set(SHARED_MEMORY.iterdir()) - self._shared_memory
        shared_memory = [str(file) for file in files if not file.name.startswith("plasma")]
        titles = [_title(process) for process in self.processes()]
        return sorted(filter(_belongs_to_job, titles)) + sorted(shared_memory)


def _node_of(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        return int(process.environ().get(f"{_MARK}_NODE", -1))
    return None


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _belongs_to_job(title: str) -> bool:
    if title.startswith("ray::"):
        return not title.startswith(_RAY_PROCESSES)
    return "jobs/distill.py" in title or "'liser_dist." in title


# ---------------------------------------------------------------- a job on a local cluster


@dataclass
class ClusterJob:
    """A job that runs on a local cluster, and the means to disturb it."""

    job: BenchmarkJob
    folder: Path
    cluster: LocalCluster
    s3: FlakyS3 | None = None
    network: NodeNetwork | None = None
    driver: subprocess.Popen[bytes] | None = None
    nodes: list[int] = field(default_factory=list)  # added beside the head
    rng: random.Random = field(default_factory=random.Random)  # chooses victims and moments
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "job.log"

    @property
    def spec(self) -> DistillSpec:
        """The spec of the job."""
        return self.job.spec

    def start(self, **train: Any) -> None:
        """Submit the job, or submit it again; `train` changes fields of `spec.train`."""
        job = self.job.variant(train=train)
        self.driver = job.start(self.folder, self.log, self.cluster.environment)

    def resubmit(self, **train: Any) -> None:
        """Kill the driver and submit the job again, with changes to `spec.train`."""
        self.kill_driver()
        self.start(**train)

    def kill_driver(self) -> None:
        """Kill the driver and wait for its end."""
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()

    @property
    def runs(self) -> Path:
        """The folder of the job's runs, on disk also where they are written to S3."""
        return self.folder / BUCKET / "runs" / self.spec.name

    @property
    def step(self) -> int:
        """The step of the newest checkpoint; 0 before the first."""
        return max((position.step for position, _ in self._checkpoints()), default=0)

    @property
    def newest_checkpoint(self) -> Path:
        """The folder of the newest complete checkpoint."""
        return max(self._checkpoints())[1]

    def _checkpoints(self) -> Iterator[tuple[Position, Path]]:
        for marker in self.runs.glob(f"*/checkpoints/*/{COMMITTED}"):
            if position := position_of(str(marker.parent)):
                yield position, marker.parent

    @property
    def ended(self) -> bool:
        """True if the driver has ended."""
        assert self.driver is not None
        return self.driver.poll() is not None

    def wait_for_step(self, step: int) -> None:
        """Wait until a checkpoint has reached this step, or the job has ended.

        Raises:
            TimeoutError: for some minutes it has neither written a checkpoint nor ended.
        """
        while self.step < step and not self.ended:
            self._wait_for_checkpoint()

    def wait(self) -> None:
        """Wait for the end of the job.

        Raises:
            RuntimeError: the job failed; the message holds the end of its log.
            TimeoutError: for some minutes it has neither written a checkpoint nor ended.
        """
        while not self.ended:
            self._wait_for_checkpoint()
        assert self.driver is not None
        if self.driver.returncode:
            raise RuntimeError(f"the job failed:\n{self.log.read_text()[-3000:]}")

    def _wait_for_checkpoint(self) -> None:
        now = self.step
        event = f"a checkpoint after step {now}"
        wait_until(lambda: self.step > now or self.ended, RECOVERY_LIMIT_S, event)

    def wait_for_user_error(self, words: str) -> None:
        """Wait until the job ends with exit code 2 and one line that holds these words.

        Raises:
            RuntimeError: It ends otherwise; the message holds the end of its log.
        """
        wait_until(lambda: self.ended, RECOVERY_LIMIT_S, "the end of the job")
        assert self.driver is not None
        code, log = self.driver.returncode, self.log.read_text()
        last = log.strip().rpartition("\n")[2]
        if code != 2 or words not in last or "Traceback" in log:
            raise RuntimeError(
                f"the job did not end with a one-line error about {words}:\n{log[-3000:]}"
            )

    def left_behind(self) -> list[str]:
        """Return the processes and shared memory that still exist 10 s after the job's end."""
        with contextlib.suppress(TimeoutError):
            wait_until(
                lambda: not self.cluster.left_behind(), LEFT_BEHIND_AFTER_S, "the job's clean-up"
            )
        return self.cluster.left_behind()

    def kill_one(self, find: Callable[[], Sequence[psutil.Process]]) -> None:
        """Send SIGKILL to one of the processes that `find` returns, once there is one."""

        def is_killed() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):
                if found := find():
                    self.rng.choice(found).send_signal(signal.SIGKILL)
                    return True
            return False

        wait_until(lambda: is_killed() or self.ended, RECOVERY_LIMIT_S, "a process to kill")

    def decoder_children(self) -> list[psutil.Process]:
        """Return the decoders' child processes that decode, children of their fork servers."""
        return [
            child
            for decoder in self.cluster.workers("MapBatches(Decode)")
            for server in _children(decoder)
            for child in _children(server)
        ]


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        children: list[psutil.Process] = process.children()
        return children
    return []
