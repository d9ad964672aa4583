"""Shards <-> samples, and the seeded order in which a run visits them.

A shard is a WebDataset tar: `KEY.mp4` and `KEY.json` beside each other. A run's work is a list of
`ShardVisit`s, one a shard and epoch; `read_samples` opens one and yields its samples, passing over
those that the ledger has finished before anything is decoded. A shard that is damaged yields what
lies before the damage and then one rejected sample.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pyroaring import BitMap

from liser_dist import storage
from liser_dist.errors import ShardError, StorageError
from liser_dist.hiding import without
from liser_dist.records import LABELS, Reason, Row, Sample

logger = logging.getLogger(__name__)

VIDEO_EXTENSIONS = ("mp4", "mov", "mkv", "webm", "avi", "flv", "ts")
_VIDEO_ENDINGS = tuple(f".{extension}" for extension in VIDEO_EXTENSIONS)
INDEX = "index.json"  # webdataset's own form: {"shardlist": [{"url", "nsamples"}, ...]}
_NO_LABELS: Row = dict.fromkeys(LABELS, "")
_TAR_END = bytes(1024)  # an archive ends with two blocks of zeros


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar of clips. `clips` is counted by the index beside it, else estimated from its size."""

    place: str
    size_bytes: int
    version: str
    clips: int


@dataclass(frozen=True, slots=True)
class ShardVisit:
    """One pass over one shard in one epoch."""

    epoch: int
    shard: str
    version: str = ""  # when given, a shard that is another by now is refused
    finished: BitMap = field(default_factory=BitMap)  # indices that need not be seen again


def find_shards(place: str, field: str) -> list[Shard]:
    """The shards under a place, by name; where an index is complete, those that it names.

    Raises StorageError or ShardError, naming the spec's field, when there is none, or when the
    first is no tar, is cut off or holds no clip: then the place is wrong rather than one shard.
    """
    try:
        files = storage.list_files(place)
    except StorageError as error:
        raise StorageError(f"`{field}`: {error}") from error
    tars = [file for file in files if file.place.endswith(".tar")]
    if (whole := _complete_index(place, files)) is not None:
        tars = _require_all(whole, tars, field)
    if not tars:
        raise StorageError(
            f"`{field}`: no shard (*.tar) at {place}, where {len(files)} other files are; give the "
            "folder or prefix that holds WebDataset shards"
        )
    shards = [Shard(tar.place, tar.size_bytes, tar.version, 0) for tar in tars]
    first_clips = _require_good(shards[0], field)
    counts = _counts_by_index(files)
    per_byte = first_clips / tars[0].size_bytes
    return [
        replace(shard, clips=counts.get(shard.place) or _count(shard, per_byte)) for shard in shards
    ]


def _complete_index(place: str, files: Iterable[storage.StoredFile]) -> set[str] | None:
    """The shards that an ingest job has finished: others, as of one that was killed, lie beside."""
    index = storage.join(place, INDEX)
    if all(file.place != index for file in files):
        return None
    try:
        content = json.loads(storage.read_bytes(index))
        if not content["complete"]:
            return None
        return {storage.join(place, entry["url"]) for entry in content["shardlist"]}
    except (ValueError, KeyError, TypeError):
        return None


def _require_all(
    names: set[str], tars: Iterable[storage.StoredFile], field: str
) -> list[storage.StoredFile]:
    found = [tar for tar in tars if tar.place in names]
    if missing := sorted(names - {tar.place for tar in found}):
        raise StorageError(
            f"`{field}`: {len(missing)} shards of {INDEX} are not there, as {missing[0]}; copy "
            "them, or make the index anew"
        )
    return found


def _require_good(tar: Shard, field: str) -> int:
    remedy = "give a folder whose shards are whole WebDataset tars with mp4 members"
    try:
        clips = sum(_video_of(members) is not None for members in _read_members(tar.place))
    except _DamagedError as damage:
        raise ShardError(
            f"`{field}`: the first shard {tar.place} {damage.what}; {remedy}"
        ) from damage
    if not clips:
        raise ShardError(f"`{field}`: the first shard {tar.place} holds no clip; {remedy}")
    return clips


def _counts_by_index(files: Iterable[storage.StoredFile]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for file in files:
        folder, _, name = file.place.rpartition("/")
        if name != INDEX:
            continue
        try:
            for entry in json.loads(storage.read_bytes(file.place))["shardlist"]:
                counts[f"{folder}/{entry['url']}"] = int(entry["nsamples"])
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is not an index of shards; clips are counted without", file.place)
    return counts


def _count(tar: Shard, clips_per_byte: float) -> int:
    """Clips of a shard that no index counts: by its tar headers on disk, by its size on S3."""
    if storage.is_remote(tar.place):
        return max(1, round(tar.size_bytes * clips_per_byte))
    try:
        with tarfile.open(tar.place, "r:") as archive:
            return sum(name.endswith(_VIDEO_ENDINGS) for name in archive.getnames())
    except (tarfile.TarError, OSError):
        return 1  # one row says that it is damaged


def shard_order(shards: Iterable[Shard], epochs: int, seed: int) -> list[ShardVisit]:
    """The run's work: each epoch visits every shard, in an order that follows from both numbers."""
    known = sorted(shards, key=lambda shard: shard.place)
    visits = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(known))
        visits += [ShardVisit(epoch, known[n].place, known[n].version) for n in order]
    return visits


def read_samples(visit: ShardVisit, labelled: bool = True) -> Iterator[Sample]:
    """The samples of a shard, but for the finished ones, in the order of the tar.

    What an unlabelled shard may say of emotion and speaker is not read. Damage ends the shard with
    one sample rejected as `shard_damaged`, so that every shard has a last sample.

    Raises:
        StorageError: the shard cannot be reached, which is no damage.
        ShardError: it is another than the one that the run began with.
    """
    _require_version(visit)
    for sample in _with_the_last_marked(_all_samples(visit)):
        if sample.index not in visit.finished:
            yield sample if labelled else replace(sample, **_NO_LABELS)


def _require_version(visit: ShardVisit) -> None:
    if visit.version and storage.version_of(visit.shard) != visit.version:
        raise ShardError(
            f"the shard {visit.shard} was replaced while the run used it; put the old one back, or "
            "begin a run of another `name`"
        )


def _with_the_last_marked(samples: Iterable[Sample]) -> Iterator[Sample]:
    held = None
    for sample in samples:
        if held is not None:
            yield held
        held = sample
    if held is not None:
        yield replace(held, ends_shard=True)


def _all_samples(visit: ShardVisit) -> Iterator[Sample]:
    count = 0
    try:
        for index, members in enumerate(_read_members(visit.shard)):
            count = index + 1
            yield _sample(members, visit.shard, index, visit.epoch)
        if not count:
            raise _DamagedError("holds no clip")
    except _DamagedError as damage:
        yield Sample(
            key=f"{visit.shard.rpartition('/')[2]}#{count}",
            shard=visit.shard,
            index=count,
            epoch=visit.epoch,
            reason=Reason.SHARD_DAMAGED,
            detail=damage.what,
        )


def _sample(members: Mapping[str, Any], shard: str, index: int, epoch: int) -> Sample:
    # A tar may name its members in any bytes.
    key = members["__key__"].encode("utf-8", "backslashreplace").decode()
    provenance = {"key": key, "shard": shard, "index": index, "epoch": epoch}
    video = _video_of(members)
    if video is None:
        return Sample(**provenance, reason=Reason.NO_VIDEO, detail="no video file of this key")
    try:
        facts = json.loads(members.get("json", b"{}"))
        faces = json.dumps(facts["faces"]) if facts.get("faces") is not None else ""
        labels: Row = {name: str(facts[name]) for name in LABELS if facts.get(name) is not None}
    except (ValueError, AttributeError, RecursionError) as error:
        return Sample(**provenance, reason=Reason.BAD_METADATA, detail=str(error)[:200])
    return Sample(**provenance, video=video, faces=faces, **labels)


def _video_of(members: Mapping[str, Any]) -> bytes | None:
    found = (members[name] for name in VIDEO_EXTENSIONS if name in members)
    return next(found, None)


class _DamagedError(Exception):
    """A shard could not be read to its end."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what[:200]


def _read_members(shard: str) -> Iterator[Mapping[str, Any]]:
    """Groups of files of one key. Raises _DamagedError, and StorageError where access fails."""
    group_by_keys, tar_file_expander = _tar_iterators()
    damage: list[_DamagedError] = []

    def files(stream: _TailReader) -> Iterator[dict[str, Any]]:
        """Ends at damage without raising, so that the group before it is given out whole."""
        try:
            yield from tar_file_expander([{"url": shard, "stream": stream}], handler=_fail)
        except _DamagedError as error:
            damage.append(error)
        except StorageError:
            return  # told below as it was, not as webdataset rewrites it

    with storage.open_read(shard) as stream:
        tail = _TailReader(stream)
        for members in group_by_keys(files(tail), handler=_fail):
            if tail.failure or (damage and _video_of(members) is None):
                break  # what was left of a clip
            yield members
        if not (tail.failure or damage or tail.ends_with(_TAR_END)):
            # tarfile takes a cut between two members for the end of the archive.
            damage.append(_DamagedError("is cut off"))
        if tail.failure:
            raise StorageError(f"the shard {shard} cannot be read on: {tail.failure}")
    for error in damage:
        raise error


def _tar_iterators() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """webdataset's, without torch: its loader wants that, which a reader's process needs not."""
    with without("torch"):
        from webdataset.tariterators import group_by_keys, tar_file_expander
    return group_by_keys, tar_file_expander


def _fail(error: Exception) -> bool:
    """webdataset's failure policy: stop at damage, and say what it is."""
    if isinstance(error, MemoryError | ImportError | StorageError | _DamagedError):
        raise error
    raise _DamagedError("is cut off" if "unexpected end" in str(error) else "is no tar, or damaged")


class _TailReader(io.RawIOBase):
    """Passes a stream on, remembers its last KiB, and what ended it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._tail = b""
        self.failure: str | None = None  # why no more could be read

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except (OSError, StorageError) as error:
            self.failure = str(error)
            raise
        self._tail = (self._tail + data[-1024:])[-1024:]
        return data

    def ends_with(self, end: bytes) -> bool:
        while self.read(2**16):  # what lies behind the archive's end mark
            pass
        return self._tail == end


def write_shards(
    samples: Iterable[tuple[str, bytes, dict[str, Any]]], place: str, clips_per_shard: int
) -> int:
    """Write (key, mp4 bytes, metadata) samples as shards with an index; returns how many.

    The same samples give the same bytes.
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
    """Write (key, mp4 bytes, metadata) samples as one tar; returns its size in bytes."""
    with without("torch"):
        from webdataset.writer import TarWriter

    content = io.BytesIO()
    with TarWriter(content, mtime=0.0, user="", group="") as writer:
        for key, video, facts in samples:
            writer.write({"__key__": key, "mp4": video, "json": facts})
    storage.write_bytes(place, content.getvalue())
    return content.getbuffer().nbytes
