"""A Ray cluster of its own on this machine, with nodes that can be lost: for fault tests.

Every process that comes of it carries a mark in its environment, so that what is left when
something was killed can be found, whoever its parent is by then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import psutil

from liser_dist.fields import POOL

HOST = "127.0.0.1"
START_LIMIT_S = 90.0
SHARED_MEMORY = Path("/dev/shm")
MARK = "LISER_DIST_CLUSTER"
# That a node is gone: Ray would take half a minute to notice.
_NOTICES_SOON = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
_BIN = Path(sys.executable).parent
# Ray's own, which live as long as a cluster or wait for work.
_OF_RAY = (
    "ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor",
    "ray::ActorLocationTracker", "ray::_StatsActor", "ray::TrainStateActor", "ray-dashboard",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as server:
        server.bind((HOST, 0))
        port: int = server.getsockname()[1]
        return port


def wait_until(holds: Callable[[], bool], limit_s: float, what: str) -> None:
    """Raises TimeoutError."""
    end = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(0.1)


class LocalCluster:
    """`ray start --head`, and more nodes, until the context ends.

    Attributes:
        environment: with it a command reaches the cluster, and what it starts is marked.
        folder: what Ray writes, its logs among it.
    """

    def __init__(
        self,
        cpus: int,
        gpus: int = 0,
        environment: Mapping[str, str] | None = None,
        pool: str | None = None,
    ) -> None:
        """`cpus`, `gpus`: logical ones of the head; `pool`: its label."""
        self._mark = uuid.uuid4().hex
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
            MARK: self._mark,
            # The workers', too: another Ray on this machine is not theirs.
            "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{self._dashboard}",
            **_NOTICES_SOON,
        }
        self.environment.pop("RAY_ADDRESS", None)
        self._start(
            cpus, gpus, pool, "--head", f"--port={self._port}",
            f"--dashboard-port={self._dashboard}", f"--temp-dir={self.folder}",
            "--disable-usage-stats",
        )  # fmt: skip
        wait_until(self._answers, START_LIMIT_S, "a Ray head")
        self.environment["RAY_ADDRESS"] = f"{HOST}:{self._port}"

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
        """One node more, once the cluster knows it; returns its number."""
        self._start(cpus, gpus, pool, f"--address={HOST}:{self._port}")
        number = len(self._nodes) - 1
        log = self._log_of(number)
        wait_until(lambda: b"Ray runtime started" in log.read_bytes(), START_LIMIT_S, "a Ray node")
        return number

    def lose_node(self, number: int) -> None:
        """All of a node's processes at once, as when its machine is gone."""
        self._kill(self._nodes[number])

    def give_notice(self, number: int, seconds: int) -> None:
        """Tell the cluster that a node will be gone, as a cloud does of a spot machine."""
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
        command = [
            str(_BIN / "ray"), "start", "--block", f"--num-cpus={cpus}", f"--num-gpus={gpus}",
            f"--node-ip-address={HOST}", f"--dashboard-agent-listen-port={free_port()}",
            *([f"--labels={POOL}={pool}"] if pool else []), *arguments,
        ]  # fmt: skip
        node = {**self.environment, f"{MARK}_NODE": str(len(self._nodes))}
        with self._log_of(len(self._nodes)).open("wb") as log:
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
        """All that carry the cluster's mark."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def workers(self, title: str, node: int | None = None) -> list[psutil.Process]:
        """Ray's workers that bear `title` in their names; of one node, or of all."""
        return [
            process
            for process in self.processes()
            if title in _title(process) and node in (None, _node_of(process))
        ]

    def left_behind(self) -> list[str]:
        """Processes and shared memory that are a job's, and not Ray's own."""
        files = set(SHARED_MEMORY.iterdir()) - self._shared_memory
        shared_memory = [str(file) for file in files if not file.name.startswith("plasma")]
        titles = [_title(process) for process in self.processes()]
        ours = [title for title in titles if _is_a_jobs(title)]
        return sorted(ours) + sorted(shared_memory)


def _node_of(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        return int(process.environ().get(f"{MARK}_NODE", -1))
    return None


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _is_a_jobs(title: str) -> bool:
    if title.startswith("ray::"):
        return not title.startswith(_OF_RAY)
    return "jobs/distill.py" in title or "'liser_dist." in title
