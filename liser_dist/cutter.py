"""Films are cut in a child process with limits on memory and time: a hostile film costs itself."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from liser_dist import storage
from liser_dist.child import ReadingContext, enter_child
from liser_dist.containers import one_line
from liser_dist.errors import MissingError, SampleError, StorageError
from liser_dist.film_clips import Outcome, Refused, Source, ingest_source
from liser_dist.guard import FROM_OUTSIDE, START_LIMIT_S, exit_words
from liser_dist.ingest_spec import IngestSpec
from liser_dist.records import Reason

ATTEMPTS = 2  # where somebody else ended the child


class _LostError(Exception):
    """The pool took a task and gave it to nobody."""


class FilmCutter:
    """Cuts films one after the other. To be closed."""

    def __init__(self, spec: IngestSpec) -> None:
        self._spec = spec
        self._pool = self._new_pool()

    def cut(self, source: Source, folder: Path) -> Outcome:
        """The clips of a film lie in the folder; of one that cannot be used there is but a reason.

        Raises StorageError where it cannot be reached, which is not its fault.
        """
        why = ""
        for _ in range(ATTEMPTS):
            try:
                return self._wait(self._schedule(source, folder))
            except _LostError:
                why = "its child process never began"
                self._replace()
            except ProcessExpired as error:
                why = exit_words(error.exitcode)
                if abs(error.exitcode) not in FROM_OUTSIDE:
                    break
            except TimeoutError:
                limit = f"not cut within {self._spec.limits.seconds:g} s"
                return refused(source, Reason.TIMEOUT, limit)
            except BrokenProcessPool as error:
                why = one_line(error)
                self._replace()
        return refused(source, Reason.CRASHED, why)

    def _wait(self, work: ProcessFuture[Outcome]) -> Outcome:
        """Raises what pebble does, TimeoutError when it took too long, or _LostError."""
        try:
            return work.result(START_LIMIT_S)
        except TimeoutError:
            if work.done():
                raise
            if not work.running():
                raise _LostError from None
        return work.result(self._spec.limits.seconds + START_LIMIT_S)

    def _schedule(self, source: Source, folder: Path) -> ProcessFuture[Outcome]:
        work = {"args": (source, self._spec, folder), "timeout": self._spec.limits.seconds}
        try:
            return self._pool.schedule(_cut_or_refuse, **work)
        except RuntimeError:  # pebble's word for a pool that broke
            self._replace()
            return self._pool.schedule(_cut_or_refuse, **work)

    def _replace(self) -> None:
        self.close()
        self._pool = self._new_pool()

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=1,
            initializer=_enter,
            initargs=(self._spec.limits.memory_bytes,),
            context=ReadingContext(preload=__name__),
        )


def refused(source: Source, reason: str, detail: object) -> Outcome:
    """A source that gave nothing."""
    why = Refused(source.title, 0.0, 0.0, str(reason), one_line(detail))
    return Outcome(source, [], [why], 0.0)


def _enter(limit_bytes: int) -> None:
    cv2.setNumThreads(1)
    enter_child(limit_bytes)


def _cut_or_refuse(source: Source, spec: IngestSpec, folder: Path) -> Outcome:
    try:
        return ingest_source(source, spec, folder)
    except SampleError as error:
        return refused(source, error.reason, error.detail)
    except MemoryError as error:
        return refused(source, Reason.TOO_LARGE, error)
    except StorageError:
        if _is_as_it_was(source):
            raise
        return refused(source, Reason.CHANGED, "it was replaced or removed while it was read")
    except Exception as error:  # a codec that is not there, a zip that is damaged: its own fault
        return refused(source, Reason.UNREADABLE, f"{type(error).__name__}: {error}")


def _is_as_it_was(source: Source) -> bool:
    try:
        return storage.version_of(source.place) == source.version
    except MissingError:
        return False
