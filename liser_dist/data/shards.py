"""Reads and writes shards of clips.

A shard is a WebDataset tar with `KEY.mp4` and `KEY.json` for each clip. A run's work is a list of
`ShardVisit`s, one for each shard and epoch. `read_samples` reads the shard of one visit and yields
its samples, except those that the run has already trained on or rejected, as its ledger records
(`runs/ledger.py`): these are not decoded again. A damaged shard yields the clips before the damage,
then one rejected sample.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from pyroaring import BitMap

from liser_dist import storage
from liser_dist.data.process import import_without
from liser_dist.errors import ShardError, StorageError
from liser_dist.records import LABELS, Reason, Row, Sample

VIDEO_EXTENSIONS = ("mp4", "mov", "mkv", "webm", "avi", "flv", "ts")
INDEX = "index.json"  # webdataset's format: {"shardlist": [{"url", "nsamples"}, ...]}
_NO_LABELS: Row = dict.fromkeys(LABELS, "")
TAR_BLOCK = 512  # bytes; a file in an archive is a block of header and padded content
_TAR_END = bytes(2 * TAR_BLOCK)


@dataclass(frozen=True, slots=True)
class ShardVisit:
    """One pass over one shard in one epoch."""

    epoch: int
    shard: str
    version: str = ""  # if given, a shard that was replaced since is refused
    finished: BitMap = field(default_factory=BitMap)  # indices of clips to skip
    group: int | None = None  # shards of a group are read in turn; None: alone


def read_samples(visit: ShardVisit, labelled: bool = True) -> Iterator[Sample]:
    """Yield the samples of a shard that are not finished, in the order of the tar.

    Damage ends the shard with one sample rejected as `shard_damaged`, so that every shard has a
    last sample.

    Args:
        visit: the shard, and which of its clips are finished.
        labelled: False ignores emotion and speaker in the metadata.

    Raises:
        StorageError: the shard cannot be read, which is not damage.
        ShardError: the shard was replaced since the run began.
    """
    _require_version(visit)
    for sample in _mark_last(_read_all(visit)):
        if sample.index not in visit.finished:
            yield sample if labelled else replace(sample, **_NO_LABELS)


def _require_version(visit: ShardVisit) -> None:
    if visit.version and storage.version_of(visit.shard) != visit.version:
        raise ShardError(
            f"the shard {visit.shard} was replaced after the run started: restore the original, or "
            "start a new run with another `name`"
        )


def _mark_last(samples: Iterable[Sample]) -> Iterator[Sample]:
    held = None
    for sample in samples:
        if held is not None:
            yield held
        held = sample
    if held is not None:
        yield replace(held, ends_shard=True)


def _read_all(visit: ShardVisit) -> Iterator[Sample]:
    count = 0
    try:
        for index, members in enumerate(read_members(visit.shard)):
            count = index + 1
            yield _sample(members, visit.shard, index, visit.epoch)
        if not count:
            raise DamagedShardError("contains no clip")
    except DamagedShardError as damage:
        yield Sample(
            key=f"{visit.shard.rpartition('/')[2]}#{count}",
            shard=visit.shard,
            index=count,
            epoch=visit.epoch,
            reason=Reason.SHARD_DAMAGED,
            detail=f"the shard {damage.reason}",
        )


def _sample(members: Mapping[str, Any], shard: str, index: int, epoch: int) -> Sample:
    # A tar may name its members in any bytes.
    key = members["__key__"].encode("utf-8", "backslashreplace").decode()
    provenance = {"key": key, "shard": shard, "index": index, "epoch": epoch}
    video = video_of(members)
    if video is None:
        return Sample(
            **provenance, reason=Reason.NO_VIDEO, detail="the shard has no video file for this key"
        )
    try:
        facts = json.loads(members.get("json", b"{}"))
        faces = json.dumps(facts["faces"]) if facts.get("faces") is not None else ""
        labels: Row = {name: str(facts[name]) for name in LABELS if facts.get(name) is not None}
    except (ValueError, AttributeError, RecursionError) as error:
        return Sample(**provenance, reason=Reason.BAD_METADATA, detail=str(error)[:200])
    return Sample(**provenance, video=video, faces=faces, **labels)


def video_of(members: Mapping[str, Any]) -> bytes | None:
    """Return the video among the files of a key; None if there is none."""
    videos = (members[name] for name in VIDEO_EXTENSIONS if name in members)
    return next(videos, None)


class DamagedShardError(Exception):
    """A shard could not be read to its end."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason[:200]


def read_members(shard: str) -> Iterator[Mapping[str, Any]]:
    """Yield the files of each key of a shard, in the order of the tar.

    Raises:
        DamagedShardError: The shard is damaged; raised after the last good key.
        StorageError: The shard cannot be read.
    """
    group_by_keys, tar_file_expander = _tar_iterators()
    damage: list[DamagedShardError] = []

    def files(stream: _TailReader) -> Iterator[dict[str, Any]]:
        """End at damage without raising, so that the group before it is yielded complete."""
        try:
            yield from tar_file_expander([{"url": shard, "stream": stream}], handler=_fail)
        except DamagedShardError as error:
            damage.append(error)
        except StorageError:
            return  # raised below, before webdataset could rewrite it

    with storage.open_read(shard) as stream:
        tail = _TailReader(stream)
        for members in group_by_keys(files(tail), handler=_fail):
            if tail.failure or (damage and video_of(members) is None):
                break  # the incomplete clip before the damage
            yield members
        if not (tail.failure or damage or tail.ends_with(_TAR_END)):
            # tarfile takes a cut between two members for the end of the archive.
            damage.append(DamagedShardError("is truncated"))
        if tail.failure:
            raise StorageError(
                f"reading the shard {shard} failed part-way: {tail.failure}; submit the job "
                "again to resume it"
            )
    for error in damage:
        raise error


@cache
def _tar_iterators() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Import webdataset's iterators without torch, which only its loader needs.

    Imported once: `import_without` must not run in several threads at the same time.
    """
    with import_without("torch"):
        from webdataset.tariterators import group_by_keys, tar_file_expander
    return group_by_keys, tar_file_expander


def _fail(error: Exception) -> bool:
    """Stop at damage and say what it is; webdataset calls this with each exception."""
    if isinstance(error, MemoryError | ImportError | StorageError | DamagedShardError):
        raise error
    truncated = "unexpected end" in str(error)
    raise DamagedShardError("is truncated" if truncated else "is damaged or not a tar file")


class _TailReader(io.RawIOBase):
    """Wraps a stream; remembers its last KiB and the error that ended it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._tail = b""
        self.failure: str | None = None  # why no more could be read

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read from the stream."""
        try:
            data: bytes = self._stream.read(size)
        except (OSError, StorageError) as error:
            self.failure = str(error)
            raise
        self._tail = (self._tail + data[-1024:])[-1024:]
        return data

    def ends_with(self, end: bytes) -> bool:
        """Return True if the stream, read to its end, ends with these bytes."""
        while self.read(2**16):
            pass
        return self._tail == end


def write_shards(
    samples: Iterable[tuple[str, bytes, dict[str, Any]]], place: str, clips_per_shard: int
) -> int:
    """Write samples as shards with an index. The same samples give the same bytes.

    Args:
        samples: (key, mp4 bytes, metadata) each.
        place: folder or S3 prefix.
        clips_per_shard: number of clips in all shards but the last.

    Returns:
        The number of shards.
    """
    shardlist: list[dict[str, Any]] = []
    batch: list[tuple[str, bytes, dict[str, Any]]] = []

    def flush() -> None:
        name = f"{len(shardlist):06d}.tar"
        write_shard(batch, storage.join(place, name))
        shardlist.append({"url": name, "nsamples": len(batch)})
        batch.clear()

    for sample in samples:
        batch.append(sample)
        if len(batch) == clips_per_shard:
            flush()
    if batch:
        flush()
    index = json.dumps({"shardlist": shardlist}, indent=1).encode()
    storage.write_bytes(storage.join(place, INDEX), index)
    return len(shardlist)


def write_shard(samples: Iterable[tuple[str, bytes, dict[str, Any]]], place: str) -> int:
    """Write (key, mp4 bytes, metadata) samples as one tar; return its size in bytes."""
    with import_without("torch"):
        from webdataset.writer import TarWriter

    content = io.BytesIO()
    with TarWriter(content, mtime=0.0, user="", group="") as writer:
        for key, video, facts in samples:
            writer.write({"__key__": key, "mp4": video, "json": facts})
    storage.write_bytes(place, content.getvalue())
    return content.getbuffer().nbytes
