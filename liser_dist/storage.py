"""Lists, reads and writes files and folders on disk or on S3, and writes each file atomically.

A place is a path on disk or an `s3://` URI. Credentials and the endpoint of an S3 server come from
the environment or the instance role, under the names that every S3 tool reads
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`), never from a spec.

Temporary S3 failures (no connection, a time-out, a busy server, a truncated body) are retried for
as long as the argument `patience_s` says; every operation here may safely run twice. Permanent ones
(no such file, access denied) raise at once. Every function that touches files raises StorageError
if it fails.
"""

from __future__ import annotations

import io
import os
import posixpath
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import IO, TYPE_CHECKING, Any, TypeVar

import fsspec
from fsspec import AbstractFileSystem

from liser_dist.config.base import absolute_place
from liser_dist.errors import MissingError, StorageError, one_line
from liser_dist.storage_errors import http_status, is_storage_failure, remedy_for, retry

if TYPE_CHECKING:
    import pyarrow as pa

READ_BLOCK_BYTES = 8 * 2**20
# During a job a bucket may be unavailable for a while; at its start a person waits for the answer.
PATIENCE_S = 1800.0
CHECK_PATIENCE_S = 20.0
_SILENCE_S = 15
_SLOWEST_PUT_BYTES_S = 2**20
_EXISTS, _NOT_SUPPORTED = 412, 501  # HTTP status of a conditional write
_S3_OPTIONS = {
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": _SILENCE_S,
        # One immediate retry, so that a hiccup does not restart a listing of many pages. With more,
        # botocore's retry quota, which is not refilled, would decide when it gives up.
        "retries": {"mode": "standard", "total_max_attempts": 2},
    },
    # An object that is replaced while it is read is detected by its ETag, because not every server
    # supports If-Match. This needs fresh metadata.
    "local_expiry_check": True,
    "use_listings_cache": False,
}

_T = TypeVar("_T")

# Ranged responses of rclone and other servers have no checksum of the part.
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file. `version` changes with its content: an ETag, or modification time and size."""

    place: str
    size_bytes: int
    version: str


def is_remote(place: str) -> bool:
    """Return whether the place is a URI and not a path on disk."""
    return "://" in place


def resolve(place: str) -> str:
    """Return an absolute path, or the URI, as processes in other folders need it."""
    return absolute_place(place)


def join(place: str, *parts: str) -> str:
    """Return the place of a file or folder below a place."""
    return posixpath.join(resolve(place), *parts)


def filesystem(place: str) -> tuple[AbstractFileSystem, str]:
    """Return the fsspec file system of a place, and the path within it."""
    if not is_remote(place):
        return fsspec.filesystem("file"), resolve(place)
    files = fsspec.filesystem("s3", **_S3_OPTIONS)
    # s3fs repeats the client's own retries 5 times, in reads 25 times: half an hour of silence.
    files.retries = 1
    # fsspec's url_to_fs would interpret `::` in a file name.
    return files, resolve(place).removeprefix("s3://")


@contextmanager
def _explained(place: str, doing: str) -> Iterator[None]:
    """Turn the errors of a file system into a StorageError with a remedy."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise MissingError(
            f"cannot {doing} {place}: no such file or folder; check the path"
        ) from error
    except PermissionError as error:
        remedy = (
            f"check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on {gethostname()}, or the role of "
            "that machine"
            if is_remote(place)
            else "check the folder's permissions"
        )
        raise StorageError(f"cannot {doing} {place}: access denied; {remedy}") from error
    except Exception as error:
        if not is_storage_failure(error):
            raise
        remedy = remedy_for(error, is_remote(place))
        raise StorageError(f"cannot {doing} {place}: {one_line(error)}; {remedy}") from error


def _with_retries(place: str, doing: str, patience_s: float, attempt: Callable[[], _T]) -> _T:
    """Return what `attempt` returns, retrying temporary failures on S3."""
    return retry(attempt, f"{doing} {place}", patience_s) if is_remote(place) else attempt()


def list_files(
    place: str, suffix: str = "", patience_s: float = CHECK_PATIENCE_S
) -> list[StoredFile]:
    """Return the files below a folder, or the one file at the place, sorted by name.

    Args:
        place: A folder or file.
        suffix: Return only files whose name ends in this.
        patience_s: How long temporary failures are retried.

    Raises:
        StorageError: The place does not exist or cannot be listed.
    """
    with _explained(place, "list"):
        infos = _with_retries(place, "list", patience_s, partial(_find, place))
    return [
        StoredFile(name, info["size"], _version(info))
        for name, info in sorted(infos.items())
        if name.endswith(suffix)
    ]


def _find(place: str) -> dict[str, dict[str, Any]]:
    files, path = filesystem(place)
    if is_remote(place):
        _require_bucket(files, place, path)
    infos = files.find(path, detail=True)
    if not infos and not files.exists(path):
        raise FileNotFoundError(path)
    if is_remote(place):
        return {files.unstrip_protocol(name): info for name, info in infos.items()}
    # For a symbolic link, the listing has the time of the link, and `info` that of the file.
    return {n: files.info(n) if info["islink"] else info for n, info in infos.items()}


def _require_bucket(files: AbstractFileSystem, place: str, path: str) -> None:
    """Raise for a missing or forbidden bucket, which s3fs lists as an empty one."""
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
    """Return the current version of one file, as in `list_files`."""
    with _explained(place, "read"):
        files, path = filesystem(place)
        info = _with_retries(place, "read", PATIENCE_S, partial(files.info, path))
        if info["type"] != "file":
            raise FileNotFoundError(path)
    return _version(info)


@contextmanager
def open_read(place: str, patience_s: float = PATIENCE_S) -> Iterator[IO[bytes]]:
    """Open a file for reading as a stream.

    On S3, `patience_s` applies to each range of READ_BLOCK_BYTES or more.

    Raises:
        StorageError: The file cannot be opened, or a later read fails.
    """
    with _explained(place, "read"):
        files, path = filesystem(place)
        cache = {"cache_type": "readahead"} if is_remote(place) else {}
        opening = partial(files.open, path, "rb", block_size=READ_BLOCK_BYTES, **cache)
        with _with_retries(place, "read", patience_s, opening) as stream:
            if is_remote(place):
                fetch = partial(_fetch_whole, stream.cache.fetcher)
                stream.cache.fetcher = partial(_fetch_with_retries, place, patience_s, fetch)
            yield stream


def _fetch_with_retries(
    place: str, patience_s: float, fetch: Callable[[int, int], bytes], start: int, end: int
) -> bytes:
    # The error is translated here: a reader of a tar would take any other error for damage.
    with _explained(place, "read"):
        return _with_retries(place, "read", patience_s, partial(fetch, start, end))


def _fetch_whole(fetch: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    """Fetch a range of a file, and raise if it is shorter than requested."""
    from botocore.exceptions import IncompleteReadError  # type: ignore[import-untyped]

    try:
        data = fetch(start, end)
    except IndexError as error:
        # s3fs fails on a time-out: it reads `ex.args[0]` of an OSError without arguments.
        raise TimeoutError(f"the server sent no data for {_SILENCE_S} s") from error
    if len(data) != end - start:
        raise IncompleteReadError(actual_bytes=len(data), expected_bytes=end - start)
    return data


def read_bytes(place: str) -> bytes:
    """Return the content of a file."""
    with open_read(place) as stream:
        return b"".join(iter(partial(stream.read, READ_BLOCK_BYTES), b""))


def exists(place: str, patience_s: float = PATIENCE_S) -> bool:
    """Return whether there is a file or folder at the place."""
    with _explained(place, "look up"):
        files, path = filesystem(place)
        return bool(_with_retries(place, "look up", patience_s, partial(files.exists, path)))


def write_bytes(place: str, content: bytes, patience_s: float = PATIENCE_S) -> None:
    """Write a file atomically: with one put on S3, with a rename on disk."""
    with _explained(place, "write"):
        files, path = filesystem(place)
        if is_remote(place):
            # The client would wait forever for a server that stops reading.
            timeout = 2 * _SILENCE_S + len(content) / _SLOWEST_PUT_BYTES_S
            put = partial(files.pipe_file, path, content, timeout=timeout)
            _with_retries(place, "write", patience_s, put)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        part = f"{path}.{uuid.uuid4().hex}.part"
        try:
            with open(part, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(part).replace(path)
        finally:
            Path(part).unlink(missing_ok=True)


def write_table(place: str, table: pa.Table) -> None:
    """Write a table as a Parquet file, atomically."""
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(table, content)
    write_bytes(place, content.getvalue())


def claim(place: str) -> bool:
    """Create a file unless it exists, and return whether this call created it.

    On an S3 server without conditional writes (`If-None-Match: *`), two calls at the same moment
    may both return True.
    """
    owner = f"{gethostname()} {os.getpid()} {uuid.uuid4().hex}".encode()
    with _explained(place, "write"):
        if is_remote(place):
            return _with_retries(place, "write", PATIENCE_S, partial(_create, place, owner))
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(place, "xb") as stream:
                stream.write(owner)
        except FileExistsError:
            return False
    return True


def _create(place: str, content: bytes) -> bool:
    files, path = filesystem(place)
    put = partial(files.pipe_file, path, content, timeout=2 * _SILENCE_S)
    try:
        put(mode="create")
    except OSError as error:
        if http_status(error) == _EXISTS:  # maybe from an earlier try, whose answer was lost
            return bool(files.cat_file(path) == content)
        if http_status(error) != _NOT_SUPPORTED:
            raise
        if files.exists(path):
            return False
        put()
    return True


def age_s(place: str) -> float:
    """Return the seconds since a file was written; on S3 by the clock of the server."""
    with _explained(place, "look up"):
        files, path = filesystem(place)
        if not is_remote(place):
            return time.time() - Path(place).stat().st_mtime
        bucket, _, key = path.partition("/")
        head = partial(files.call_s3, "head_object", Bucket=bucket, Key=key)
        answer = _with_retries(place, "look up", PATIENCE_S, head)
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return float((now - answer["LastModified"]).total_seconds())


def remove(place: str, patience_s: float = PATIENCE_S) -> None:
    """Remove a file, or a folder with its contents, if it exists."""

    def remove_it() -> None:
        files, path = filesystem(place)
        if files.exists(path):
            files.rm(path, recursive=True)

    with _explained(place, "remove"):
        _with_retries(place, "remove", patience_s, remove_it)


def list_folders(place: str) -> list[str]:
    """Return the names of the folders directly below a place; empty if it does not exist."""

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
        return _with_retries(place, "list", PATIENCE_S, find_folders)


def upload_folder(folder: Path, place: str) -> None:
    """Copy the contents of a folder on disk to a place, under the same names."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        write_bytes(join(place, *file.relative_to(folder).parts), file.read_bytes())


def require_writable(place: str, field: str) -> None:
    """Check that files can be written below a place, by writing and removing one.

    Raises:
        StorageError: Nothing can be written. The message names the field of the spec.
    """
    probe = join(place, f".writable-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"", CHECK_PATIENCE_S)
        remove(probe, CHECK_PATIENCE_S)
    except StorageError as error:
        raise StorageError(f"`{field}`: {error}") from error
