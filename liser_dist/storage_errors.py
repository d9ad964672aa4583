"""Classifies the errors of disks, networks and S3 servers."""

from __future__ import annotations

from socket import gethostname
from typing import Any

_BUSY = {429, 500, 502, 503, 504}
# A body that was damaged in transit, or two conditional writes of one object at the same moment.
_PASSING = {"BadDigest", "IncompleteBody", "ConditionalRequestConflict"}


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
            f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on {gethostname()}, or give it a role"
        )
    if "connect" in str(error).lower():
        return "check AWS_ENDPOINT_URL and the network"
    if remote and may_pass(error):
        return "check the network and the server"
    return "check the path, its bucket and the disk"
