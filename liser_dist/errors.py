"""The errors a caller can meet.

LiserError                 something the user can mend; jobs print it and exit with 2
├── SpecError              a field of the job's spec is wrong
├── StorageError           a place cannot be listed, read or written
│   └── MissingError       nothing is there
├── ShardError             a shard cannot be read from here on
├── TeacherError           a teacher cannot be loaded or does not fit the job
├── CheckpointError        a checkpoint cannot be used by this job
├── CapacityError          the job does not fit on the cluster
├── RejectionError         more clips were rejected than the spec allows
└── SampleError            one clip is unusable; caught by the stage and counted
"""

from __future__ import annotations

from liser_dist.records import Reason


class LiserError(Exception):
    """Something the user can mend: names the field, the value and the remedy."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self._message = message

    def __str__(self) -> str:
        """As it was raised: on its way Ray Data writes advice of its own into `args`."""
        return self._message


class SpecError(LiserError):
    """A field of the job's spec is wrong."""


class StorageError(LiserError):
    """A place cannot be listed, read or written."""


class MissingError(StorageError):
    """Nothing is there."""


class ShardError(LiserError):
    """A shard cannot be read from here on."""


class TeacherError(LiserError):
    """A teacher cannot be loaded, or does not fit the job."""


class CheckpointError(LiserError):
    """A checkpoint cannot be used by this job."""


class CapacityError(LiserError):
    """The job does not fit on the cluster."""


class RejectionError(LiserError):
    """More clips were rejected than the spec allows."""


class SampleError(LiserError):
    """One clip is unusable. A stage catches it and the clip becomes a rejected row."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[SampleError], tuple[Reason, str]]:
        """Cross a process boundary with both parts (Exception's own way keeps only the text)."""
        return type(self), (self.reason, self.detail)


def in_a_line(error: BaseException | None) -> str:
    """What another library's error says, shortened; its kind where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__
