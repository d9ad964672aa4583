"""Saves memory and time in this process: blocks unneeded imports, makes glibc keep freed memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def import_without(package: str) -> Iterator[None]:
    """Make imports inside the block find `package` not installed, unless it is loaded already.

    Saves the time and memory of optional dependencies that a library loads and we do not use. Not
    for several threads at the same time.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def reuse_freed_memory() -> None:
    """Make glibc keep freed memory for reuse instead of returning it to the kernel.

    Otherwise a sixth of a decoder's time goes into the kernel handing out pages. Calling it twice
    does no harm.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
    libc.mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


def reuse_freed_memory_for_arrow() -> None:
    """Make glibc keep freed memory, and Arrow allocate from glibc."""
    import pyarrow

    reuse_freed_memory()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
