"""Runs code that may crash, hang or eat memory in a supervised child process.

`Sandbox` keeps one child, which a fork server starts with the needed modules already loaded. The
child has a memory limit and a time limit for each call, and dies with its parent; what native
libraries print is suppressed. If the child dies it is replaced, and the caller learns why: the call
crashed it, the call took too long, or a signal from outside killed it.
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
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, context, reduction
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from liser_dist.data.process import reuse_freed_memory
from liser_dist.errors import one_line

_T = TypeVar("_T")

# Signals that an operator, a shutdown or a kernel short of memory sends, and that no decoder
# sends itself. A child that handles SIGTERM exits with the signal's number.
_SIGNALS_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
CHILD_START_S = 60.0  # time that a child may need to start on a busy machine

_RAY_TOKEN = ("RAY_AUTH_TOKEN",)
_S3_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_NICE = 5  # on shared cores the consumers of a child's results run first


# ---------------------------------------------------------------- outcomes of a call


@dataclass(frozen=True, slots=True)
class Done(Generic[_T]):
    """The call returned."""

    value: _T


@dataclass(frozen=True, slots=True)
class Crashed:
    """The call killed the child; `reason` names the signal or the exit status."""

    reason: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The call was stopped at its time limit, or (`started` is False) never reached the child."""

    started: bool


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The child was lost, but not because of this call, which may be repeated.

    `started` is False when the child died before it had the call.
    """

    reason: str
    started: bool


CallOutcome = Done[_T] | Crashed | TimedOut | Interrupted


# ---------------------------------------------------------------- the sandbox


class _NeverStartedError(Exception):
    """The pool took a call and handed it to no child."""


@dataclass(frozen=True, slots=True)
class SandboxCall(Generic[_T]):
    """A call that was submitted to a sandbox."""

    function: Callable[..., _T]
    args: tuple[Any, ...]
    limit_s: float
    pool: ProcessPool
    future: ProcessFuture[_T]


class Sandbox:
    """Runs functions, one at a time, in one child process with limits on memory and time.

    A lost child is replaced; calls that wait behind the one that lost it run in the next child.
    The child is killed by the kernel when this process dies. Use from one thread, and close it.

    Args:
        memory_bytes: memory that the child may allocate on top of what its modules take.
        preload: module that the fork server imports once, so that each child starts quickly.
        prepare: function that runs first in each child.
        calls_per_child: number of calls after which the child is replaced; 0 means never.
        reads_storage: True if the child opens S3 URIs itself and so needs the S3 credentials.
        start_limit_s: time that a call may wait for its turn, the start of a child included.
    """

    def __init__(
        self,
        *,
        memory_bytes: int,
        preload: str,
        prepare: Callable[[], None],
        calls_per_child: int = 0,
        reads_storage: bool = False,
        start_limit_s: float = CHILD_START_S,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._preload = preload
        self._prepare = prepare
        self._calls_per_child = calls_per_child
        self._context = StorageChildContext if reads_storage else ChildContext
        self._start_limit_s = start_limit_s
        self._pool = self._new_pool()
        self.closed = False

    def call(self, function: Callable[..., _T], *args: Any, limit_s: float) -> CallOutcome[_T]:
        """Run a function in the child and wait for its outcome; see `submit` and `wait`."""
        return self.wait(self.submit(function, *args, limit_s=limit_s))

    def submit(self, function: Callable[..., _T], *args: Any, limit_s: float) -> SandboxCall[_T]:
        """Queue a call behind those that were submitted before; `limit_s` counts from its start."""
        assert not self.closed, "the sandbox is closed"
        try:
            future = self._pool.schedule(function, args=args, timeout=limit_s)
        except RuntimeError:  # raised by pebble when the pool is broken
            self._replace(self._pool)
            future = self._pool.schedule(function, args=args, timeout=limit_s)
        return SandboxCall(function, args, limit_s, self._pool, future)

    def wait(self, call: SandboxCall[_T]) -> CallOutcome[_T]:
        """Wait for the outcome of a submitted call, and replace the child if it was lost.

        Raises:
            Exception: whatever the function itself raised.
        """
        if call.pool is not self._pool and not call.future.done():
            # The pool was replaced before it handed the call to a child.
            call = self.submit(call.function, *call.args, limit_s=call.limit_s)
        try:
            return Done(self._result(call))
        except ProcessExpired as error:
            reason = _exit_reason(error.exitcode)
            if abs(error.exitcode) in _SIGNALS_FROM_OUTSIDE:
                return Interrupted(reason, started=True)
            return Crashed(reason)
        except _NeverStartedError:
            self._replace(call.pool)
            return TimedOut(started=False)
        except TimeoutError:
            if not call.future.done():  # pebble did not end the call at its limit
                self._replace(call.pool)
            return TimedOut(started=True)
        except BrokenProcessPool as error:
            self._replace(call.pool)
            return Interrupted(one_line(error), started=False)

    def _result(self, call: SandboxCall[_T]) -> _T:
        """Return the function's value; raise its exception, pebble's, or _NeverStartedError."""
        try:
            return call.future.result(self._start_limit_s)
        except TimeoutError:
            if not (call.future.running() or call.future.done()):
                raise _NeverStartedError from None
        return call.future.result(call.limit_s + CHILD_START_S)

    def close(self) -> None:
        """End the child. Closing twice does no harm."""
        if not self.closed:
            self.closed = True
            self._pool.stop()
            self._pool.join()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=1,
            max_tasks=self._calls_per_child,
            initializer=_start_child,
            initargs=(self._prepare, self._memory_bytes),
            context=self._context(self._preload),
        )

    def _replace(self, broken: ProcessPool) -> None:
        """Replace a broken pool, once for all the calls that were in it."""
        if broken is self._pool:
            self._pool = self._new_pool()
            broken.stop()
            broken.join()


def _exit_reason(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


# ---------------------------------------------------------------- how the child is started


class ChildProcess(context.ForkServerProcess):
    """A process that neither loads its parent's main module nor inherits its secrets.

    In a Ray actor the main module is Ray's worker program, and loading it would cost each child 1 s
    for importing Ray. Secrets are withheld because the cluster's token lets its owner run code
    there, and a video may come from anybody. This is not full isolation: the child can read the
    files and processes that its user can read.
    """

    withheld: ClassVar[tuple[str, ...]] = (*_RAY_TOKEN, *_S3_CREDENTIALS)  # environment variables

    _lock = threading.Lock()

    def start(self) -> None:
        """Start the child with the main module and the withheld variables hidden from it."""
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


class StorageChildProcess(ChildProcess):
    """A child that opens S3 URIs itself, and so keeps the S3 credentials."""

    withheld = _RAY_TOKEN


class _ProcessLock:
    """Lock between processes that the kernel releases; replaces multiprocessing's RLock in pebble.

    The kernel releases it when its holder is killed and frees the file when no process has it open.
    A named semaphore would stay locked, and stay in /dev/shm for ever.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("child-lock")
        self._depth = 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        while self._depth == 0:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not block or time.monotonic() > deadline:
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
    """Starts children from a fork server that has already imported the module `preload`."""

    Process = ChildProcess

    def __init__(self, preload: str) -> None:
        super().__init__()
        self.set_forkserver_preload([preload])

    def RLock(self) -> Any:  # noqa: N802 (multiprocessing's name)
        """Return the lock with which pebble guards its pipes."""
        return _ProcessLock()


class StorageChildContext(ChildContext):
    """Starts children that open S3 URIs themselves."""

    Process = StorageChildProcess


# ---------------------------------------------------------------- in the child


def _start_child(prepare: Callable[[], None], memory_bytes: int) -> None:
    prepare()
    enter_child(memory_bytes)


def enter_child(limit_bytes: int) -> None:
    """Apply a child's limits and make it end with its parent.

    Args:
        limit_bytes: memory that the child may allocate on top of what it has; malloc fails beyond.
    """
    _end_with_parent()
    os.nice(_NICE)
    # Not RLIMIT_AS: the libraries reserve gigabytes of address space that they never touch.
    limit_bytes += _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reuse_freed_memory()
    _silence_native_code()


def _end_with_parent() -> None:
    """Have this process killed when its parent or the fork server dies, even during a call.

    The kernel watches the fork server, which forked this process. The fork server itself lives as
    long as its children, so a thread watches the process that asked for this one; the libraries
    release the interpreter lock while they decode, so the thread gets to run.
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
    """Return what RLIMIT_DATA counts of this process; the libraries alone take some 200 MB."""
    data_pages = Path("/proc/self/statm").read_text().split()[5]
    return int(data_pages) * resource.getpagesize()


def _silence_native_code() -> None:
    """Keep standard error for Python alone: FFmpeg's messages can hold half the file."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
