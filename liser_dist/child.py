"""A child process for code that may crash, hang or eat memory.

Started by a fork server that has loaded a module once, held to a memory limit, ended with its
parent, and silent but for Python. For `pebble.ProcessPool`: `context=ChildContext(...)`,
`initializer=enter_child`.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from multiprocessing import connection, context, reduction
from pathlib import Path
from typing import Any, ClassVar

from liser_dist.allocation import keep_freed_memory

TOKEN = ("RAY_AUTH_TOKEN",)
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
NICE = 5  # what the child makes can wait for whoever uses it, on the same cores


class ChildProcess(context.ForkServerProcess):
    """A process that does not load its parent's main module, nor inherits its secrets.

    In a Ray actor the module is Ray's worker program: each child would import ray, 1 s, to no end.
    Whoever has a cluster's token may run what he likes there, and a film may be anybody's. It is no
    sandbox: what the same user may read of files and other processes, the child may read, too.
    """

    withheld: ClassVar[tuple[str, ...]] = (*TOKEN, *S3_KEYS)  # environment variables

    _lock = threading.Lock()

    def start(self) -> None:
        names = vars(sys.modules["__main__"])
        with self._lock:
            hidden: dict[str, Any] = {
                name: names.pop(name) for name in ("__file__", "__spec__") if name in names
            }
            secrets = {name: os.environ.pop(name) for name in self.withheld if name in os.environ}
            names["__spec__"] = None
            try:
                super().start()
            finally:
                names.update(hidden)
                os.environ.update(secrets)


class ReadingChildProcess(ChildProcess):
    """Opens places on S3 itself."""

    withheld = TOKEN


class _ProcessLock:
    """Excludes other processes; what multiprocessing's RLock is to pebble, but the kernel's own.

    The kernel lets go of it when its holder is killed, and of the file when nobody is left, where
    a named semaphore would stay locked, and lie in /dev/shm for ever.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("decoder-lock")
        self._depth = 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        give_up = time.monotonic() + (math.inf if timeout is None else timeout)
        while self._depth == 0:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not block or time.monotonic() > give_up:
                    return False
                time.sleep(0.001)
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._file)

    def __setstate__(self, file: Any) -> None:
        self._file, self._depth = file.detach(), 0

    def __del__(self) -> None:
        os.close(self._file)


class ChildContext(context.ForkServerContext):
    """Children are forked from a process that has a module loaded: the next is soon there."""

    Process = ChildProcess

    def __init__(self, preload: str) -> None:
        super().__init__()
        self.set_forkserver_preload([preload])

    def RLock(self) -> Any:  # noqa: N802 (multiprocessing's name)
        return _ProcessLock()


class ReadingContext(ChildContext):
    """Of children that open places on S3 themselves."""

    Process = ReadingChildProcess


def enter_child(limit_bytes: int) -> None:
    """What every child does first: its limits, and that it ends with its parent.

    Args:
        limit_bytes: how much memory it may allocate beside what it has; malloc fails beyond.
    """
    _end_with_parent()
    os.nice(NICE)
    # Not RLIMIT_AS: the libraries reserve gigabytes of address space that they never touch.
    limit_bytes += _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep_freed_memory()
    _silence_native_code()


def _end_with_parent() -> None:
    """Be killed when the parent or the fork server is gone, also in the middle of a clip.

    The kernel sees to the fork server, which forked this process. The fork server itself lives as
    long as its children do, so a thread watches the process that asked for this one; the libraries
    let it run while they decode.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child process only"

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process: the libraries alone are some 200 MB."""
    data_pages = Path("/proc/self/statm").read_text().split()[5]
    return int(data_pages) * resource.getpagesize()


def _silence_native_code() -> None:
    """Standard error goes to Python alone: FFmpeg's complaints can hold half the file."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
