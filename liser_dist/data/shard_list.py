"""Finds the shards under a path, and how many clips each of them holds.

The number of clips is that of the index beside a shard. Without an index, a shard on disk is
counted, and the number for one on S3 is estimated: reading all of them would take too long.
"""

from __future__ import annotations

import itertools
import json
import logging
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from liser_dist import storage
from liser_dist.data.shards import (
    INDEX,
    TAR_BLOCK,
    VIDEO_EXTENSIONS,
    DamagedShardError,
    read_members,
    video_of,
)
from liser_dist.errors import ShardError, StorageError

logger = logging.getLogger(__name__)

_VIDEO_ENDINGS = tuple(f".{extension}" for extension in VIDEO_EXTENSIONS)
_SAMPLED_SHARDS, _SAMPLED_CLIPS = 16, 8  # read for an estimate


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar of clips.

    Attributes:
        place: Its path.
        size_bytes: Its size.
        version: Changes when it is replaced.
        clips: Its number of clips, from the index beside it, or else counted or estimated.
        estimated: The number is an estimate from the sizes of the shard and of some clips.
    """

    place: str
    size_bytes: int
    version: str
    clips: int
    estimated: bool = False


def find_shards(place: str, field: str) -> list[Shard]:
    """Return the shards under a path or URI, sorted by name.

    If there is an index that says it is complete, only the shards that it lists.

    Args:
        place: folder or S3 prefix.
        field: the spec's field that names it, for error messages.

    Raises:
        StorageError: there is no shard, or a listed one is missing.
        ShardError: the first shard is not a tar, is cut off or holds no clip, so that the path is
            probably wrong.
    """
    try:
        files = storage.list_files(place)
    except StorageError as error:
        raise StorageError(f"`{field}`: {error}") from error
    tars = [file for file in files if file.place.endswith(".tar")]
    if (listed := _read_complete_index(place, files)) is not None:
        tars = _require_all(listed, tars, field)
    if not tars:
        raise StorageError(
            f"`{field}`: no shard (*.tar) at {place} (other files there: {len(files)}); give the "
            "folder or prefix that holds WebDataset shards"
        )
    shards = [Shard(tar.place, tar.size_bytes, tar.version, 0) for tar in tars]
    first_clips = _require_readable(shards[0], field)
    counts = {**_read_index_counts(files), shards[0].place: first_clips}
    return _with_estimates([_with_count(shard, counts.get(shard.place)) for shard in shards])


def _read_complete_index(place: str, files: Iterable[storage.StoredFile]) -> set[str] | None:
    """Return the shards that an ingest job has finished; None without such an index.

    A killed ingest job leaves other shards beside them.
    """
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
    present = [tar for tar in tars if tar.place in names]
    if missing := sorted(names - {tar.place for tar in present}):
        count = "1 shard" if len(missing) == 1 else f"{len(missing)} shards"
        raise StorageError(
            f"`{field}`: {count} listed in {INDEX} cannot be found, such as {missing[0]}; restore "
            f"the missing files, or remove them from {INDEX}"
        )
    return present


def _require_readable(tar: Shard, field: str) -> int:
    """Return the number of clips in the shard."""
    remedy = "give a folder whose shards are complete WebDataset tars with mp4 members"
    try:
        clips = sum(video_of(members) is not None for members in read_members(tar.place))
    except DamagedShardError as damage:
        raise ShardError(
            f"`{field}`: the first shard {tar.place} {damage.reason}; {remedy}"
        ) from damage
    if not clips:
        raise ShardError(f"`{field}`: the first shard {tar.place} contains no clip; {remedy}")
    return clips


def _read_index_counts(files: Iterable[storage.StoredFile]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for file in files:
        folder, _, name = file.place.rpartition("/")
        if name != INDEX:
            continue
        try:
            for entry in json.loads(storage.read_bytes(file.place))["shardlist"]:
                counts[f"{folder}/{entry['url']}"] = int(entry["nsamples"])
        except (ValueError, KeyError, TypeError):
            logger.warning(
                "%s is not a valid shard index; counting clips in the shards instead", file.place
            )
    return counts


def _with_count(tar: Shard, counted: int | None) -> Shard:
    """Return a shard with its number of clips, or marked as one that has to be estimated."""
    if counted:
        return replace(tar, clips=counted)
    if storage.is_remote(tar.place):
        return replace(tar, estimated=True)
    return replace(tar, clips=_count_clips(tar))


def _with_estimates(shards: Sequence[Shard]) -> list[Shard]:
    """Estimate the clips of shards from the sizes of their first clips.

    Of many shards, only some are sampled; the others get as many clips per byte as these have.
    """
    unknown = [shard for shard in shards if shard.estimated]
    if not unknown:
        return list(shards)
    sample = unknown[:: -(-len(unknown) // _SAMPLED_SHARDS)]
    with ThreadPoolExecutor(_SAMPLED_SHARDS) as pool:
        means = pool.map(_mean_clip_bytes, [shard.place for shard in sample])
    sampled = {
        shard.place: replace(shard, clips=max(1, round(shard.size_bytes / clip_bytes)))
        for shard, clip_bytes in zip(sample, means, strict=True)
        if clip_bytes
    }
    # If each of the sample is damaged, there are those that were counted: at least the first shard.
    known = list(sampled.values()) or [shard for shard in shards if not shard.estimated]
    per_byte = sum(shard.clips for shard in known) / sum(shard.size_bytes for shard in known)

    def with_estimate(shard: Shard) -> Shard:
        if not shard.estimated:
            return shard
        estimate = replace(shard, clips=max(1, round(shard.size_bytes * per_byte)))
        return sampled.get(shard.place, estimate)

    return [with_estimate(shard) for shard in shards]


def _mean_clip_bytes(shard: str) -> float | None:
    """Return the mean size of a shard's first clips in the tar; None if it holds none."""
    size_bytes, clips = 0, 0
    try:
        for members in itertools.islice(read_members(shard), _SAMPLED_CLIPS):
            files = [file for file in members.values() if isinstance(file, bytes)]
            size_bytes += sum(TAR_BLOCK * (1 + -(-len(file) // TAR_BLOCK)) for file in files)
            clips += video_of(members) is not None
    except DamagedShardError:
        pass  # found again, and reported, when the shard is read
    return size_bytes / clips if clips else None


def _count_clips(tar: Shard) -> int:
    """Count the clips of a shard on disk by its tar headers."""
    try:
        with tarfile.open(tar.place, "r:") as archive:
            return sum(name.endswith(_VIDEO_ENDINGS) for name in archive.getnames())
    except (tarfile.TarError, OSError):
        return 1  # the rejected sample that reports the damage
