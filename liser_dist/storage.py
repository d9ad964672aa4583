"""Places: folders and files on disk or `s3://`, listed, read, and written whole.

Credentials and the endpoint of an S3 server come from the environment or the instance role, under
the names that every S3 tool reads (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`), never from a spec.
"""

from __future__ import annotations

import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec import AbstractFileSystem

from liser_dist.errors import StorageError

READ_BLOCK_BYTES = 8 * 2**20

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
    return place.rstrip("/") if is_remote(place) else str(Path(place).expanduser().absolute())


def join(place: str, *parts: str) -> str:
    return posixpath.join(resolve(place), *parts)


def filesystem(place: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a place, and its path there."""
    return fsspec.core.url_to_fs(resolve(place))


@contextmanager
def _explained(place: str, doing: str) -> Iterator[None]:
    """Turn what a file system raises into an error with a remedy."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"cannot {doing} {place}: it is not there; check the place") from error
    except PermissionError as error:
        remedy = (
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the instance's role"
            if is_remote(place)
            else "check the folder's permissions"
        )
        raise StorageError(f"cannot {doing} {place}: access denied; {remedy}") from error
    except Exception as error:
        if not _is_storage_failure(error):
            raise
        raise StorageError(f"cannot {doing} {place}: {_short(error)}; {_remedy(error)}") from error


def _is_storage_failure(error: Exception) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or module in {"botocore", "aiobotocore", "aiohttp"}


def _remedy(error: Exception) -> str:
    if "credential" in str(error).lower():
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the instance a role"
    if "connect" in str(error).lower():
        return "check AWS_ENDPOINT_URL and the network"
    return "check the place, its bucket and the disk"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def list_files(place: str, suffix: str = "") -> list[StoredFile]:
    """The files under a folder, or the one file that the place is, sorted by name.

    Raises StorageError when the place is missing or may not be listed.
    """
    with _explained(place, "list"):
        files, path = filesystem(place)
        if is_remote(place):
            files.invalidate_cache()
            _require_bucket(files, place, path)
        found = files.find(path, detail=True)
        if not found and not files.exists(path):
            raise FileNotFoundError(path)
    return [
        StoredFile(files.unstrip_protocol(name) if is_remote(place) else name, info["size"],
                   _version(info))
        for name, info in sorted(found.items())
        if name.endswith(suffix)
    ]  # fmt: skip


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
        if is_remote(place):
            files.invalidate_cache(path)
        return _version(files.info(path))


@contextmanager
def open_read(place: str) -> Iterator[IO[bytes]]:
    """A file's bytes as a stream. Raises StorageError."""
    with _explained(place, "read"):
        files, path = filesystem(place)
        options = {"cache_type": "readahead"} if is_remote(place) else {}
        with files.open(path, "rb", block_size=READ_BLOCK_BYTES, **options) as stream:
            yield stream


def read_bytes(place: str) -> bytes:
    with open_read(place) as stream:
        return stream.read()


def exists(place: str) -> bool:
    with _explained(place, "look for"):
        files, path = filesystem(place)
        return bool(files.exists(path))


def write_bytes(place: str, content: bytes) -> None:
    """Write a file whole or not at all: a put on S3, a rename on disk. Raises StorageError."""
    with _explained(place, "write"):
        files, path = filesystem(place)
        if is_remote(place):
            files.pipe_file(path, content)
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


def claim(place: str) -> bool:
    """Make a folder that was not there; False when it was. On S3, where no folders are, True."""
    with _explained(place, "write"):
        if not is_remote(place):
            try:
                Path(place).mkdir(parents=True)
            except FileExistsError:
                return False
    return True


def remove(place: str) -> None:
    """Remove a file or a folder with all that is in it; nothing where there is nothing."""
    with _explained(place, "remove"):
        files, path = filesystem(place)
        if files.exists(path):
            files.rm(path, recursive=True)


def list_folders(place: str) -> list[str]:
    """Names of the folders directly under a place; none where it is not there."""
    with _explained(place, "list"):
        files, path = filesystem(place)
        if is_remote(place):
            files.invalidate_cache()
        if not files.isdir(path):
            return []
        return sorted(
            posixpath.basename(entry["name"].rstrip("/"))
            for entry in files.ls(path, detail=True)
            if entry["type"] == "directory"
        )


def upload_folder(folder: Path, place: str) -> None:
    """Copy what is in a folder on disk to a place, under the same names."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        write_bytes(join(place, *file.relative_to(folder).parts), file.read_bytes())


def require_writable(place: str, field: str) -> None:
    """Raise StorageError, naming the spec's field, when nothing can be written at the place."""
    probe = join(place, f".writable-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        remove(probe)
    except StorageError as error:
        raise StorageError(f"`{field}`: {error}") from error
