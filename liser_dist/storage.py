"""Places: folders and files on disk or `s3://`, listed, read, and written whole.

Credentials and the endpoint of an S3 server come from the environment or the instance role, under
the names that every S3 tool reads (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`), never from a spec.

What may pass on S3 (no connection, a time-out, a server that is busy, a body cut short) is tried
again until somebody's patience ends: all that is done here may be done twice. What cannot pass (no
such file, access denied) is told at once.
"""

from __future__ import annotations

import io
import logging
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import IO, TYPE_CHECKING, Any, TypeVar

import fsspec
from fsspec import AbstractFileSystem
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from liser_dist.errors import MissingError, StorageError, in_a_line
from liser_dist.fields import absolute_place

if TYPE_CHECKING:
    import pyarrow as pa

READ_BLOCK_BYTES = 8 * 2**20
# In the middle of a job a server may be restarted; at its start somebody waits for the answer.
PATIENCE_S = 120.0
CHECK_PATIENCE_S = 20.0
_LONGEST_WAIT_S = 5.0
_SILENCE_S = 15
_SLOWEST_PUT_BYTES_S = 2**20
_S3_OPTIONS = {
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": _SILENCE_S,
        # Once again at once, so that a hiccup does not cost a listing of many pages. More, and it
        # were a matter of luck when it gives up; its budget of retries is used up for good, too.
        "retries": {"mode": "standard", "total_max_attempts": 2},
    },
    # An object that is replaced while it is read is noticed by its ETag: not every server knows
    # If-Match. What is known of it must be fresh for this.
    "local_expiry_check": True,
    "use_listings_cache": False,
}
_BUSY = {429, 500, 502, 503, 504}
_DAMAGED_ON_ITS_WAY = {"BadDigest", "IncompleteBody"}

logger = logging.getLogger(__name__)
T = TypeVar("T")

# rclone's and other servers' ranged answers carry no checksum of the part.
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file at a place. `version` changes when its content does: an ETag, or time and size."""

    place: str
    size_bytes: int
    version: str


def is_remote(place: str) -> bool:
    return "://" in place


def resolve(place: str) -> str:
    """The place as every process can name it: absolute when it is on disk."""
    return absolute_place(place)


def join(place: str, *parts: str) -> str:
    return posixpath.join(resolve(place), *parts)


def filesystem(place: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a place, and its path there."""
    if not is_remote(place):
        return fsspec.filesystem("file"), resolve(place)
    files = fsspec.filesystem("s3", **_S3_OPTIONS)
    # s3fs tries 5 times, in reads 25 times, what the client tries: half an hour of silence.
    files.retries = 1
    # Not by fsspec's url_to_fs, to which `::` in a name is more than a name.
    return files, resolve(place).removeprefix("s3://")


@contextmanager
def _explained(place: str, doing: str) -> Iterator[None]:
    """Turn what a file system raises into an error with a remedy."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise MissingError(f"cannot {doing} {place}: it is not there; check the place") from error
    except PermissionError as error:
        remedy = (
            f"check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on {gethostname()}, or its role"
            if is_remote(place)
            else "check the folder's permissions"
        )
        raise StorageError(f"cannot {doing} {place}: access denied; {remedy}") from error
    except Exception as error:
        if not _is_storage_failure(error):
            raise
        remedy = _remedy(place, error)
        raise StorageError(f"cannot {doing} {place}: {in_a_line(error)}; {remedy}") from error


def _patiently(place: str, doing: str, patience_s: float, attempt: Callable[[], T]) -> T:
    """What an attempt returns; tried again on S3 for as long as that can help and patience lasts.

    The last attempt begins within `patience_s` and _LONGEST_WAIT_S.
    """

    def say_once(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            why = in_a_line(state.outcome.exception())
            logger.warning("cannot %s %s yet: %s; trying again", doing, place, why)

    if not is_remote(place):
        return attempt()
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S),
        stop=stop_after_delay(patience_s),
        before_sleep=say_once,
        reraise=True,
    )
    return retrying(attempt)


def _may_pass(error: BaseException) -> bool:
    """Whether it can help to try again: the network's fault, or a server that is busy or starts."""
    import aiohttp
    from botocore import exceptions as boto  # type: ignore[import-untyped]
    from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

    if isinstance(
        error,
        TimeoutError | ConnectionError | aiohttp.ClientError | boto.ConnectionError
        | boto.HTTPClientError | boto.IncompleteReadError | ResponseParserError,
    ):  # fmt: skip
        return True
    answer = getattr(error.__cause__, "response", None)
    if not answer:
        return False
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in _BUSY or answer.get("Error", {}).get("Code") in _DAMAGED_ON_ITS_WAY


def _is_storage_failure(error: Exception) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or module in {"botocore", "aiobotocore", "aiohttp"}


def _remedy(place: str, error: Exception) -> str:
    if "credential" in str(error).lower():
        return (
            f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on {gethostname()}, or give it a role"
        )
    if "connect" in str(error).lower():
        return "check AWS_ENDPOINT_URL and the network"
    if is_remote(place) and _may_pass(error):
        return "check the network and the server"
    return "check the place, its bucket and the disk"


def list_files(
    place: str, suffix: str = "", patience_s: float = CHECK_PATIENCE_S
) -> list[StoredFile]:
    """The files under a folder, or the one file that the place is, sorted by name.

    Raises StorageError when the place is missing or may not be listed.
    """
    with _explained(place, "list"):
        found = _patiently(place, "list", patience_s, partial(_find, place))
    return [
        StoredFile(name, info["size"], _version(info))
        for name, info in sorted(found.items())
        if name.endswith(suffix)
    ]


def _find(place: str) -> dict[str, dict[str, Any]]:
    files, path = filesystem(place)
    if is_remote(place):
        _require_bucket(files, place, path)
    found = files.find(path, detail=True)
    if not found and not files.exists(path):
        raise FileNotFoundError(path)
    if is_remote(place):
        return {files.unstrip_protocol(name): info for name, info in found.items()}
    # Of a link, a listing gives the link's own time, and a look at the file that of the file.
    return {n: files.info(n) if info["islink"] else info for n, info in found.items()}


def _require_bucket(files: AbstractFileSystem, place: str, path: str) -> None:
    """s3fs lists a bucket that is not there, or that refuses us, as an empty one."""
    bucket = path.partition("/")[0]
    try:
        files.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except FileNotFoundError as error:
        raise StorageError(
            f"cannot list {place}: there is no bucket {bucket!r}; check its name and "
            "AWS_ENDPOINT_URL"
        ) from error


def _version(info: dict[str, Any]) -> str:
    return str(info.get("ETag") or f"{info.get('mtime', 0)}-{info['size']}").strip('"')


def version_of(place: str) -> str:
    """The version of one file as `list_files` says it, asked anew. Raises StorageError."""
    with _explained(place, "read"):
        files, path = filesystem(place)
        info = _patiently(place, "read", PATIENCE_S, partial(files.info, path))
        if info["type"] != "file":
            raise FileNotFoundError(path)
    return _version(info)


@contextmanager
def open_read(place: str, patience_s: float = PATIENCE_S) -> Iterator[IO[bytes]]:
    """A file's bytes as a stream. Raises StorageError.

    On S3 patience is anew for each range of READ_BLOCK_BYTES or more.
    """
    with _explained(place, "read"):
        files, path = filesystem(place)
        options = {"cache_type": "readahead"} if is_remote(place) else {}
        opening = partial(files.open, path, "rb", block_size=READ_BLOCK_BYTES, **options)
        with _patiently(place, "read", patience_s, opening) as stream:
            if is_remote(place):
                fetch = partial(_fetch_whole, stream.cache.fetcher)
                stream.cache.fetcher = partial(_fetch_patiently, place, patience_s, fetch)
            yield stream


def _fetch_patiently(
    place: str, patience_s: float, fetch: Callable[[int, int], bytes], start: int, end: int
) -> bytes:
    # Explained here: who reads a tar from the stream would take another error for damage.
    with _explained(place, "read"):
        return _patiently(place, "read", patience_s, partial(fetch, start, end))


def _fetch_whole(fetch: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    """A range of a file; one that ends too soon must not be taken for the file's end."""
    from botocore.exceptions import IncompleteReadError  # type: ignore[import-untyped]

    try:
        data = fetch(start, end)
    except IndexError as error:
        # s3fs stumbles over a time-out: `ex.args[0]` of an OSError without arguments.
        raise TimeoutError(f"nothing came for {_SILENCE_S} s") from error
    if len(data) != end - start:
        raise IncompleteReadError(actual_bytes=len(data), expected_bytes=end - start)
    return data


def read_bytes(place: str) -> bytes:
    with open_read(place) as stream:
        return b"".join(iter(partial(stream.read, READ_BLOCK_BYTES), b""))


def exists(place: str, patience_s: float = PATIENCE_S) -> bool:
    with _explained(place, "look for"):
        files, path = filesystem(place)
        return bool(_patiently(place, "look for", patience_s, partial(files.exists, path)))


def write_bytes(place: str, content: bytes, patience_s: float = PATIENCE_S) -> None:
    """Write a file whole or not at all: a put on S3, a rename on disk. Raises StorageError."""
    with _explained(place, "write"):
        files, path = filesystem(place)
        if is_remote(place):
            # The client waits for ever for a server that takes no more bytes.
            timeout = 2 * _SILENCE_S + len(content) / _SLOWEST_PUT_BYTES_S
            put = partial(files.pipe_file, path, content, timeout=timeout)
            _patiently(place, "write", patience_s, put)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        half = f"{path}.{uuid.uuid4().hex}.part"
        try:
            with open(half, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(half).replace(path)
        finally:
            Path(half).unlink(missing_ok=True)


def write_table(place: str, table: pa.Table) -> None:
    """As Parquet, whole. Raises StorageError."""
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(table, content)
    write_bytes(place, content.getvalue())


def claim(place: str) -> bool:
    """Make a folder that was not there; False when it was. On S3, where no folders are, True."""
    with _explained(place, "write"):
        if not is_remote(place):
            try:
                Path(place).mkdir(parents=True)
            except FileExistsError:
                return False
    return True


def remove(place: str, patience_s: float = PATIENCE_S) -> None:
    """Remove a file or a folder with all that is in it; nothing where there is nothing."""

    def remove_it() -> None:
        files, path = filesystem(place)
        if files.exists(path):
            files.rm(path, recursive=True)

    with _explained(place, "remove"):
        _patiently(place, "remove", patience_s, remove_it)


def list_folders(place: str) -> list[str]:
    """Names of the folders directly under a place; none where it is not there."""

    def find_folders() -> list[str]:
        files, path = filesystem(place)
        if not files.isdir(path):
            return []
        return sorted(
            posixpath.basename(entry["name"].rstrip("/"))
            for entry in files.ls(path, detail=True)
            if entry["type"] == "directory"
        )

    with _explained(place, "list"):
        return _patiently(place, "list", PATIENCE_S, find_folders)


def upload_folder(folder: Path, place: str) -> None:
    """Copy what is in a folder on disk to a place, under the same names."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        write_bytes(join(place, *file.relative_to(folder).parts), file.read_bytes())


def require_writable(place: str, field: str) -> None:
    """Raise StorageError, naming the spec's field, when nothing can be written at the place."""
    probe = join(place, f".writable-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"", CHECK_PATIENCE_S)
        remove(probe, CHECK_PATIENCE_S)
    except StorageError as error:
        raise StorageError(f"`{field}`: {error}") from error
