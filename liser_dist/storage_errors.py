"""Classifies the errors of disks, networks and S3 servers, and retries after temporary ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from socket import gethostname
from typing import Any, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from liser_dist.errors import one_line

_LONGEST_WAIT_S = 5.0
_BUSY = {429, 500, 502, 503, 504}
# A body that was damaged in transit, or two conditional writes of one object at the same moment.
_PASSING = {"BadDigest", "IncompleteBody", "ConditionalRequestConflict"}

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


def retry(attempt: Callable[[], _T], doing: str, patience_s: float, remind_s: float = 60.0) -> _T:
    """Return what `attempt` returns, retrying failures that may pass.

    A warning tells of the first failure, and from then on every `remind_s` of the last one.

    Args:
        attempt: What is tried.
        doing: What it does, for the warnings: "read s3://bucket/file".
        patience_s: The last attempt starts at most so long, and the wait between two attempts
            (5 s), after the first.
        remind_s: Seconds between two warnings, at least.

    Raises:
        Exception: That of the last attempt.
    """
    reminders = 0

    def warn(state: RetryCallState) -> None:
        nonlocal reminders
        waited_s = state.seconds_since_start or 0.0
        if state.outcome is None or waited_s < reminders * remind_s:
            return
        reminders = int(waited_s // remind_s) + 1
        cause = one_line(state.outcome.exception())
        logger.warning("cannot %s: %s; retrying for %s", doing, cause, _span(patience_s - waited_s))

    retrying = Retrying(
        retry=retry_if_exception(may_pass),
        wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S),
        stop=stop_after_delay(patience_s),
        before_sleep=warn,
        reraise=True,
    )
    return retrying(attempt)


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{max(seconds, 0):.0f} s"


def may_pass(error: BaseException) -> bool:
    """Return whether a retry can help: a network failure, or a server that is busy or starting."""
    import aiohttp
    from botocore import exceptions as boto  # type: ignore[import-untyped]
    from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

    if isinstance(
        error,
        TimeoutError | ConnectionError | aiohttp.ClientError | boto.ConnectionError
        | boto.HTTPClientError | boto.IncompleteReadError | ResponseParserError,
    ):  # fmt: skip
        return True
    return http_status(error) in _BUSY or _response(error).get("Error", {}).get("Code") in _PASSING


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status with which an S3 server answered; None if there was no answer."""
    status: int | None = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _response(error: BaseException) -> dict[str, Any]:
    """Return the server's response, which s3fs keeps in the cause of its own error."""
    return getattr(error.__cause__, "response", None) or {}


def is_storage_failure(error: Exception) -> bool:
    """Return whether an error is one of a disk, of the network or of an S3 client."""
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or module in {"botocore", "aiobotocore", "aiohttp"}


def remedy_for(error: Exception, remote: bool) -> str:
    """Return what the user can do about a storage failure.

    Args:
        error: The failure.
        remote: It is one of S3, not of a disk.
    """
    if "credential" in str(error).lower():
        return (
            f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on {gethostname()}, or give that "
            "machine a role with access"
        )
    if "connect" in str(error).lower():
        return "check AWS_ENDPOINT_URL and the network"
    if remote and may_pass(error):
        return "check the network and the S3 server"
    if remote:
        return "check the path and its bucket"
    return "check the path and whether the disk is full or damaged"
