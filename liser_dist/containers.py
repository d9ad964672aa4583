"""Media files by PyAV, which no damaged file has crashed: opening them, and what they raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import av
import numpy as np
from numpy.typing import NDArray

from liser_dist.errors import LiserError, SampleError
from liser_dist.records import Reason

DETAIL_CHARACTERS = 200
OUT_OF_MEMORY = ("bad_alloc", "Cannot allocate memory", "Insufficient memory")


def open_container(stream: IO[bytes]) -> Any:
    """A file from a stream that can be sought in."""
    # Titles in other encodings than UTF-8 are no reason to refuse a file.
    return av.open(stream, metadata_errors="replace")


def moving_picture(container: Any) -> Any:
    """The stream that Decord would decode, unless it is the cover of a sound file."""
    stream = container.streams.best("video")
    cover = av.stream.Disposition.attached_pic
    return None if stream is None or stream.disposition & cover else stream


def upright(frame: Any, degrees: int) -> NDArray[np.uint8]:
    """[height, width, 3] RGB of a frame that is to be turned so far before it is shown."""
    picture = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(picture, round(degrees / 90)))


@contextmanager
def failing_as(reason: Reason) -> Iterator[None]:
    """The libraries' exceptions, which are of many types, as one SampleError."""
    try:
        yield
    except (LiserError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise_memory_error(error)
        # Without its cause: some carry the whole file.
        raise SampleError(reason, one_line(error)) from None


def raise_memory_error(error: Exception) -> None:
    """Native code that gets no memory says so in its own words."""
    if any(words in str(error) for words in OUT_OF_MEMORY):
        raise MemoryError(one_line(error)) from None


def one_line(error: object) -> str:
    printable = "".join(c if c.isprintable() else " " for c in str(error)[: 5 * DETAIL_CHARACTERS])
    return " ".join(printable.split())[:DETAIL_CHARACTERS]
