"""Cuts recordings in a child process, so that one that crashes or hangs it affects no other.

Each ingest worker has one `FilmCutter`, whose child runs `film_to_clips.ingest_recording` with
limits on memory and time and is replaced when a recording kills it.
"""

from __future__ import annotations

from pathlib import Path

import cv2

from liser_dist.config.ingest import IngestSpec
from liser_dist.data.child_process import Crashed, Done, Interrupted, Sandbox, TimedOut
from liser_dist.data.media import DETAIL_CHARACTERS
from liser_dist.errors import SampleError, StorageError, one_line
from liser_dist.ingest.film_to_clips import IngestedRecording, PieceRejection, ingest_recording
from liser_dist.ingest.sources.base import Recording
from liser_dist.ingest.sources.kinds import KINDS
from liser_dist.records import Reason

_ATTEMPTS = 2  # for a recording whose child was lost for an unrelated reason


class FilmCutter:
    """Cuts recordings one after the other in a child process. Close it after use."""

    def __init__(self, spec: IngestSpec) -> None:
        self._spec = spec
        self._sandbox = Sandbox(
            memory_bytes=spec.limits.memory_bytes,
            preload=__name__,
            prepare=_use_one_thread,
            reads_storage=True,
        )

    def cut(self, recording: Recording, folder: Path) -> IngestedRecording:
        """Write the clips of a recording to a folder; reject it if it is unusable.

        Raises:
            StorageError: the recording cannot be reached, which is not its fault.
        """
        limit_s = self._spec.limits.seconds
        lost_by = ""
        for _ in range(_ATTEMPTS):
            outcome = self._sandbox.call(
                _cut_or_reject, recording, self._spec, folder, limit_s=limit_s
            )
            match outcome:
                case Done(ingested):
                    return ingested
                case Crashed(reason):
                    return _rejected(recording, Reason.CRASHED, reason)
                case TimedOut(started=True):
                    detail = f"processing took longer than limits.seconds {limit_s:g}"
                    return _rejected(recording, Reason.TIMEOUT, detail)
                case TimedOut():
                    lost_by = "the process that cuts recordings did not start; the file may be good"
                case Interrupted(reason):
                    lost_by = reason
        return _rejected(recording, Reason.CRASHED, lost_by)

    def close(self) -> None:
        """End the child. Closing twice does no harm."""
        self._sandbox.close()


def _rejected(recording: Recording, reason: str, detail: object) -> IngestedRecording:
    """Reject a recording as a whole."""
    text = one_line(detail, DETAIL_CHARACTERS)
    rejection = PieceRejection(recording.title, 0.0, 0.0, str(reason), text)
    return IngestedRecording(recording, [], [rejection], 0.0)


# ---------------------------------------------------------------- in the child


def _use_one_thread() -> None:
    cv2.setNumThreads(1)


def _cut_or_reject(recording: Recording, spec: IngestSpec, folder: Path) -> IngestedRecording:
    try:
        return ingest_recording(recording, spec, folder)
    except SampleError as error:
        return _rejected(recording, error.reason, error.detail)
    except MemoryError as error:
        return _rejected(recording, Reason.TOO_LARGE, error)
    except StorageError:
        if KINDS[spec.kind].open_source(spec.source).is_unchanged(recording):
            raise
        changed = "the recording was replaced or removed while it was read"
        return _rejected(recording, Reason.CHANGED, changed)
    except (
        Exception
    ) as error:  # such as a missing codec or a damaged zip file: reject the recording
        return _rejected(recording, Reason.UNREADABLE, f"{type(error).__name__}: {error}")
