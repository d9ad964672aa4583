"""Finds the LiserError inside the errors in which Ray wraps it, and keeps it out of Ray's logs."""

from __future__ import annotations

import logging
import sys

from liser_dist.errors import LiserError


def unwrap_ray_error(error: BaseException) -> BaseException:
    """Return the LiserError that a task, actor or train worker raised.

    Args:
        error: What Ray raised.

    Returns:
        The LiserError, or `error` itself if there is none in it.
    """
    queue, seen = [error], set[int]()
    while queue:
        current = queue.pop(0)
        if isinstance(current, LiserError):
            # Ray raises a copy whose text carries its traceback, with the original as `cause`.
            return getattr(current, "cause", current)
        if id(current) not in seen:
            seen.add(id(current))
            inner = [getattr(current, "cause", None), current.__cause__]
            inner += [getattr(current, "controller_failure", None)]
            inner += list((getattr(current, "worker_failures", None) or {}).values())
            queue += [other for other in inner if isinstance(other, BaseException)]
    return error


def is_no_user_error(record: logging.LogRecord) -> bool:
    """Return whether a log record is about anything other than a LiserError. A logging filter."""
    error = (record.exc_info or sys.exc_info())[1]
    return error is None or not isinstance(unwrap_ray_error(error), LiserError)
