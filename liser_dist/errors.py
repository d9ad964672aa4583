"""Defines the errors that this package raises.

LiserError                 a mistake the user can fix; jobs print it and exit with 2
├── SpecError              a field of the job's spec is wrong
├── StorageError           a path cannot be listed, read or written
│   └── MissingError       there is no such file or folder
├── ShardError             a shard is damaged, incomplete, or was replaced during the run
├── TeacherError           a teacher cannot be loaded or does not fit the job
├── CheckpointError        a checkpoint cannot be used by this job
├── CapacityError          the job does not fit on the cluster
├── RejectionError         more clips were rejected than the spec allows
├── TrainingError          gradients or weights are not finite
└── SampleError            one clip is unusable; the stage counts the clip as rejected
"""

from __future__ import annotations

from liser_dist.records import Reason


class LiserError(Exception):
    """A mistake the user can fix. The message names the field, the value and the remedy."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self._message = message

    def __str__(self) -> str:
        """Return the message as it was raised; Ray Data appends advice of its own to `args`."""
        return self._message


class SpecError(LiserError):
    """A field of the job's spec is wrong."""


class StorageError(LiserError):
    """A path cannot be listed, read or written."""


class MissingError(StorageError):
    """There is no such file or folder."""


class ShardError(LiserError):
    """A shard is damaged, incomplete, or was replaced during the run."""


class TeacherError(LiserError):
    """A teacher cannot be loaded, or does not fit the job."""


class CheckpointError(LiserError):
    """A checkpoint cannot be used by this job."""


class CapacityError(LiserError):
    """The job does not fit on the cluster."""


class RejectionError(LiserError):
    """More clips were rejected than the spec allows."""


class TrainingError(LiserError):
    """Gradients or weights are not finite, so that training cannot continue."""


class SampleError(LiserError):
    """One clip is unusable. The stage catches the error, and the clip becomes a rejected row."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[SampleError], tuple[Reason, str]]:
        """Keep both parts when pickled; Exception's own method keeps only the text."""
        return type(self), (self.reason, self.detail)


def one_line(error: object, characters: int = 300) -> str:
    """Return an error's text in one line of printable characters, cut to a length.

    Args:
        error: an exception or a text. An exception without a text gives the name of its class.
        characters: maximum length of the line.
    """
    text = str(error)[: 5 * characters]  # some errors carry the contents of a file
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split())[:characters]
    return line or (type(error).__name__ if isinstance(error, BaseException) else "")
