"""Decoding in a child process with limits on memory and time: a hostile clip costs that clip."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Self

import cv2
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from liser_dist.child import ChildContext, enter_child
from liser_dist.containers import one_line
from liser_dist.decode import decode_clip
from liser_dist.errors import SampleError
from liser_dist.faces import check_detector
from liser_dist.records import Clip, Reason, Sample
from liser_dist.spec import ClipSpec

CLIPS_PER_CHILD = 2000  # Decord's leaks end with the child
CLIPS_AHEAD = 2  # with the child beside the one that it decodes
COPIES = 4  # of the file, that receiving and opening it make
# Of an operator, a machine that is shut down, a kernel short of memory. A child that handles
# SIGTERM exits with the number itself.
FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
START_LIMIT_S = 60.0  # for a child to start, on a machine that is busy


@dataclass(frozen=True, slots=True)
class _Task:
    sample: Sample
    start_share: float
    pool: ProcessPool
    clip: ProcessFuture[Clip]


class _KilledError(Exception):
    """Somebody killed the child while it had a clip."""


class ClipDecoder:
    """Decodes in a child process with limits on memory and time. To be used by one thread.

    A clip that kills the child, or is ended with it at a limit, is lost alone: those that wait
    behind it go to the next child. The child ends with this process, whatever either is doing.

    Attributes:
        children_lost: how many children did not outlive a clip.

    Raises:
        SpecError: `face_detector` cannot be loaded.
    """

    def __init__(self, spec: ClipSpec, clips_per_child: int = CLIPS_PER_CHILD) -> None:
        check_detector(spec.face_detector, "clip.face_detector")
        self.children_lost = 0
        self._spec = spec
        self._clips_per_child = clips_per_child
        self._pool = self._new_pool()
        self._closed = False

    def decode(self, sample: Sample, start_share: float) -> Clip:
        """One clip; rejected with its reason where the sample is unusable."""
        return next(self.decode_all([(sample, start_share)]))

    def decode_all(self, samples: Iterable[tuple[Sample, float]]) -> Iterator[Clip]:
        """Clips in the order of their (sample, start_share), the child always busy."""
        tasks: deque[_Task] = deque()
        for sample, start_share in samples:
            tasks.append(self._schedule(sample, start_share))
            if len(tasks) > CLIPS_AHEAD:
                yield self._finish(tasks.popleft())
        while tasks:
            yield self._finish(tasks.popleft())

    def close(self) -> None:
        """Ends the child. Twice does no harm."""
        if not self._closed:
            self._closed = True
            self._pool.stop()
            self._pool.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=1,
            max_tasks=self._clips_per_child,
            initializer=_enter_child,
            initargs=(self._spec.decode_limit_bytes,),
            context=ChildContext(preload=__name__),
        )

    def _schedule(self, sample: Sample, start_share: float) -> _Task:
        assert not self._closed, "this decoder is closed"
        clip: ProcessFuture[Clip] = ProcessFuture()
        if sample.rejected:
            clip.set_result(_rejected(sample, sample.reason, sample.detail))
        elif COPIES * len(sample.video) > self._spec.decode_limit_bytes:
            # The child would die while it receives it.
            size = f"a file of {len(sample.video):,} bytes"
            clip.set_result(_rejected(sample, Reason.TOO_LARGE, size))
        else:
            clip = self._send(sample, start_share)
        return _Task(sample, start_share, self._pool, clip)

    def _send(self, sample: Sample, start_share: float) -> ProcessFuture[Clip]:
        arguments = (sample, self._spec, start_share)
        limit_s = self._spec.decode_limit_s
        try:
            return self._pool.schedule(_decode_or_reject, args=arguments, timeout=limit_s)
        except RuntimeError:  # pebble's word for a pool that broke
            self._replace(self._pool)
            return self._pool.schedule(_decode_or_reject, args=arguments, timeout=limit_s)

    def _finish(self, task: _Task) -> Clip:
        if task.pool is not self._pool and not task.clip.done():
            task = self._schedule(task.sample, task.start_share)  # it never left the old pool
        try:
            return self._wait(task)
        except BrokenProcessPool:
            # The child died between two clips, so that it was no clip's fault: once more.
            self._replace(task.pool)
        except _KilledError:
            pass  # from outside, an operator or a kernel short of memory: once more
        try:
            return self._wait(self._schedule(task.sample, task.start_share))
        except _KilledError as error:
            return _rejected(task.sample, Reason.CRASHED, error)

    def _wait(self, task: _Task) -> Clip:
        """The clip that the child hands back, or why it did not.

        Raises:
            BrokenProcessPool: the child died while it had no clip.
            _KilledError: it was ended by a signal that no decoder sends itself.
        """
        try:
            return task.clip.result(self._spec.decode_limit_s + START_LIMIT_S)
        except ProcessExpired as error:
            self.children_lost += 1
            if abs(error.exitcode) in FROM_OUTSIDE:
                raise _KilledError(exit_words(error.exitcode)) from error
            return _rejected(task.sample, Reason.CRASHED, exit_words(error.exitcode))
        except TimeoutError:
            self.children_lost += 1
            if not task.clip.done():  # nor did pebble end it: the task was lost on its way
                self._replace(task.pool)
            limit = f"not decoded within {self._spec.decode_limit_s:g} s"
            return _rejected(task.sample, Reason.TIMEOUT, limit)

    def _replace(self, broken: ProcessPool) -> None:
        """A new pool for a broken one, once for all the tasks that were in it."""
        if broken is self._pool:
            self._pool = self._new_pool()
            broken.stop()
            broken.join()


def exit_words(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


# ---------------------------------------------------------------- in the child


def _enter_child(limit_bytes: int) -> None:
    cv2.setNumThreads(1)
    enter_child(limit_bytes)


def _decode_or_reject(sample: Sample, spec: ClipSpec, start_share: float) -> Clip:
    try:
        return decode_clip(sample, spec, start_share)
    except SampleError as error:
        return _rejected(sample, error.reason, error.detail)
    except MemoryError as error:
        return _rejected(sample, Reason.TOO_LARGE, error)


def _rejected(sample: Sample, reason: str, detail: object) -> Clip:
    why = {"reason": str(reason), "detail": one_line(detail)}
    return Clip(**{**sample.provenance(), **why}, **sample.labels())
