"""Decodes clips in a child process, so that a clip that crashes or hangs it affects no other.

The pipeline's decoders hand each `Sample` to a `ClipDecoder`, whose child runs `decode.decode_clip`
with limits on memory and time and is replaced when a clip kills it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Self

import cv2

from liser_dist.config.stream import ClipSpec
from liser_dist.data.child_process import (
    CHILD_START_S,
    CallOutcome,
    Crashed,
    Done,
    Interrupted,
    Sandbox,
    SandboxCall,
    TimedOut,
)
from liser_dist.data.decode import decode_clip
from liser_dist.data.faces import check_detector
from liser_dist.data.media import DETAIL_CHARACTERS
from liser_dist.errors import SampleError, one_line
from liser_dist.records import Clip, Reason, Sample

CLIPS_PER_CHILD = 2000  # bounds Decord's leaks, which end with the child
_CLIPS_AHEAD = 2  # queued at the child beside the clip that it decodes
_FILE_COPIES = 4  # copies of the file that the child makes to receive and open it


@dataclass(frozen=True, slots=True)
class _Task:
    sample: Sample
    start_share: float
    call: SandboxCall[Clip] | Clip  # a clip that was rejected before decoding needs no call


class ClipDecoder:
    """Decodes clips in a child process with limits on memory and time. Use from one thread.

    A clip that kills the child, or exceeds a limit, is rejected alone: the clips queued behind it
    go to the next child. The child ends with this process.

    Attributes:
        children_lost: number of children that did not survive a clip.

    Raises:
        SpecError: `face_detector` cannot be loaded.
    """

    def __init__(self, spec: ClipSpec, clips_per_child: int = CLIPS_PER_CHILD) -> None:
        check_detector(spec.face_detector, "clip.face_detector")
        self.children_lost = 0
        self._spec = spec
        self._sandbox = Sandbox(
            memory_bytes=spec.decode_limit_bytes,
            preload=__name__,
            prepare=_use_one_thread,
            calls_per_child=clips_per_child,
            # A clip that is decoded again waits behind those that were queued meanwhile.
            start_limit_s=CHILD_START_S + spec.decode_limit_s,
        )

    def decode(self, sample: Sample, start_share: float) -> Clip:
        """Decode one clip; an unusable sample gives a rejected clip with its reason."""
        return next(self.decode_all([(sample, start_share)]))

    def decode_all(self, samples: Iterable[tuple[Sample, float]]) -> Iterator[Clip]:
        """Decode (sample, start_share) pairs in order, keeping the child always busy.

        Raises:
            BrokenProcessPool: a clip could not be handed to a child, twice in a row.
        """
        tasks: deque[_Task] = deque()
        for sample, start_share in samples:
            tasks.append(self._submit(sample, start_share))
            if len(tasks) > _CLIPS_AHEAD:
                yield self._finish(tasks.popleft())
        while tasks:
            yield self._finish(tasks.popleft())

    def close(self) -> None:
        """End the child. Closing twice does no harm."""
        self._sandbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, sample: Sample, start_share: float) -> _Task:
        if sample.rejected:
            return _Task(sample, start_share, _rejected(sample, sample.reason, sample.detail))
        if _FILE_COPIES * len(sample.video) > self._spec.decode_limit_bytes:
            # The child would die while it receives the file.
            size = f"the file has {len(sample.video):,} bytes; `clip.decode_limit_bytes` is too low"
            return _Task(sample, start_share, _rejected(sample, Reason.TOO_LARGE, size))
        return _Task(sample, start_share, self._call(sample, start_share))

    def _call(self, sample: Sample, start_share: float) -> SandboxCall[Clip]:
        limit_s = self._spec.decode_limit_s
        return self._sandbox.submit(
            _decode_or_reject, sample, self._spec, start_share, limit_s=limit_s
        )

    def _finish(self, task: _Task) -> Clip:
        if isinstance(task.call, Clip):
            return task.call
        outcome = self._wait(task.call)
        if isinstance(outcome, Interrupted):  # not the clip's fault: decode it once more
            outcome = self._wait(self._call(task.sample, task.start_share))
        match outcome:
            case Done(clip):
                return clip
            case TimedOut():
                limit = f"not decoded within {self._spec.decode_limit_s:g} s"
                return _rejected(task.sample, Reason.TIMEOUT, limit)
            case Interrupted(reason, started=False):
                raise BrokenProcessPool(reason)
            case Crashed(reason) | Interrupted(reason):
                return _rejected(task.sample, Reason.CRASHED, reason)

    def _wait(self, call: SandboxCall[Clip]) -> CallOutcome[Clip]:
        outcome = self._sandbox.wait(call)
        match outcome:
            case Crashed() | TimedOut() | Interrupted(started=True):
                self.children_lost += 1
        return outcome


# ---------------------------------------------------------------- in the child


def _use_one_thread() -> None:
    cv2.setNumThreads(1)


def _decode_or_reject(sample: Sample, spec: ClipSpec, start_share: float) -> Clip:
    try:
        return decode_clip(sample, spec, start_share)
    except SampleError as error:
        return _rejected(sample, error.reason, error.detail)
    except MemoryError as error:
        return _rejected(sample, Reason.TOO_LARGE, error)


def _rejected(sample: Sample, reason: str, detail: object) -> Clip:
    rejection = {"reason": str(reason), "detail": one_line(detail, DETAIL_CHARACTERS)}
    return Clip(**{**sample.provenance(), **rejection}, **sample.labels())
