"""Keeps the manifest of an ingest output: which recordings are done, and which shards are complete.

    OUTPUT/GROUP-0000.tar ...        clips of a group of recordings
    OUTPUT/manifest/GROUP.json       written last: these recordings are done, these shards complete
    OUTPUT/index.json                all complete shards, for the job that reads them
    OUTPUT/rejected.parquet          all recordings and pieces that became no clip

A shard that no manifest names was left by a job that was killed; the index leaves it out.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from liser_dist import storage
from liser_dist.config.base import Record, differences
from liser_dist.data.shards import INDEX
from liser_dist.errors import MissingError, SpecError
from liser_dist.ingest.sources.base import Recording

logger = logging.getLogger(__name__)

_MANIFEST = "manifest"
_REJECTED = "rejected.parquet"
# Groups are large enough for large shards, and small enough that a killed job loses little and
# that workers share the work.
_GROUP_BYTES = 2 * 2**30
_GROUP_RECORDINGS = 256
_GROUPS_PER_WORKER = 4
_REJECTED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class DoneRecording(Record):
    """A recording that is not read again; `member` is its path inside a zip file."""

    place: str
    member: str
    version: str
    length_s: float
    clips: int


class RejectedPiece(Record):
    """A span of a recording, or all of it (0 to 0 s), that became no clip."""

    source: str
    start_s: float
    end_s: float
    reason: str
    detail: str


class WrittenShard(Record):
    """A shard as `index.json` lists it; `url` and `nsamples` are webdataset's own names."""

    url: str
    nsamples: int
    bytes: int
    length_s: float
    version: str


class RecordingGroup(Record):
    """`manifest/GROUP.json`: what became of some recordings.

    Attributes:
        settings: the part of the spec on which the clips depend.
        sources: the recordings of the group.
        shards: the shards with their clips.
        refused: what gave no clip.
        fingerprints: digest and audio fingerprint of each clip.
    """

    settings: dict[str, Any]
    sources: list[DoneRecording]
    shards: list[WrittenShard]
    refused: list[RejectedPiece]
    fingerprints: list[tuple[str, str]]

    @property
    def clips(self) -> int:
        """Number of clips in the group's shards."""
        return sum(shard.nsamples for shard in self.shards)


Groups = Mapping[str, RecordingGroup]  # by the group's name


# ---------------------------------------------------------------- groups of recordings


def pending_recordings(recordings: Sequence[Recording], groups: Groups) -> list[Recording]:
    """Return the recordings that are in no committed group, or whose version changed since."""
    done = {(s.place, s.member, s.version) for group in groups.values() for s in group.sources}
    return [r for r in recordings if (r.place, r.member, r.version) not in done]


def group_recordings(recordings: Sequence[Recording], workers: int) -> Iterator[list[Recording]]:
    """Group neighbours of one fold by number and size, a few groups for each worker."""
    group: list[Recording] = []
    size_bytes = 0
    most = min(_GROUP_RECORDINGS, -(-len(recordings) // (_GROUPS_PER_WORKER * workers)))
    for recording in recordings:
        full = len(group) == most or size_bytes + recording.size_bytes > _GROUP_BYTES
        if group and (full or recording.fold != group[0].fold):
            yield group
            group, size_bytes = [], 0
        group.append(recording)
        size_bytes += recording.size_bytes
    if group:
        yield group


def name_group(recordings: Sequence[Recording]) -> str:
    """Return the name of a group's shards and manifest, which follows from its recordings."""
    names = "\n".join(recording.name for recording in recordings)
    digest = hashlib.sha256(names.encode()).hexdigest()[:16]
    return f"fold-{recordings[0].fold}-{digest}" if recordings[0].fold else digest


# ---------------------------------------------------------------- what is committed


def read_groups(output: str, known: Groups = MappingProxyType({})) -> dict[str, RecordingGroup]:
    """Read all committed groups; those in `known` are not read again, as none changes.

    Raises:
        StorageError: the manifest cannot be read.
    """
    try:
        files = storage.list_files(storage.join(output, _MANIFEST), ".json")
    except MissingError:
        return {}
    names = [file.place.rpartition("/")[2].removesuffix(".json") for file in files]
    return {name: known.get(name) or _read_group(output, name) for name in names}


def _read_group(output: str, name: str) -> RecordingGroup:
    place = storage.join(output, _MANIFEST, f"{name}.json")
    return RecordingGroup.model_validate_json(storage.read_bytes(place))


def commit_group(output: str, name: str, group: RecordingGroup) -> None:
    """Write a group's manifest; from then on its recordings are done."""
    place = storage.join(output, _MANIFEST, f"{name}.json")
    storage.write_bytes(place, group.model_dump_json().encode())


def require_same_settings(output: str, groups: Groups, settings: dict[str, Any]) -> None:
    """Check that the clips of an output were all made with the same settings.

    Raises:
        SpecError: a group was made with others; says which differ.
    """
    for group in groups.values():
        changed = [
            f"`{field}` was {saved!r} and is now {value!r}"
            for field, saved, value in differences(group.settings, settings)
        ]
        if changed:
            raise SpecError(
                f"`output` {output} holds clips made with other settings ({'; '.join(changed)}): "
                "use those settings, or another `output`"
            )


def warn_of_leftovers(output: str, groups: Groups) -> None:
    """Log shards of groups that were never committed; no job reads or removes them."""
    complete = {shard.url for group in groups.values() for shard in group.shards}
    try:
        tars = storage.list_files(output, ".tar")
    except MissingError:
        return
    leftovers = [tar.place for tar in tars if tar.place.rpartition("/")[2] not in complete]
    if leftovers:
        count = "1 shard is" if len(leftovers) == 1 else f"{len(leftovers)} shards are"
        logger.warning(
            "%s listed in no manifest, probably left by a killed job (%s%s): no job reads them, "
            "and you may delete them",
            count, leftovers[0], ", ..." if len(leftovers) > 1 else "",
        )  # fmt: skip


def write_index(output: str, groups: Groups, settings: dict[str, Any]) -> None:
    """Write `index.json` and `rejected.parquet` from all committed groups."""
    shards = [shard for _, group in sorted(groups.items()) for shard in group.shards]
    index = {
        "wids_version": 1,
        "complete": True,  # tells readers to ignore all other shards
        "clips": sum(shard.nsamples for shard in shards),
        "hours": round(sum(shard.length_s for shard in shards) / 3600, 4),
        "settings": settings,
        "shardlist": [shard.model_dump() for shard in shards],
    }
    storage.write_bytes(storage.join(output, INDEX), json.dumps(index, indent=1).encode())
    rejected = [piece.model_dump() for _, g in sorted(groups.items()) for piece in g.refused]
    table = pa.Table.from_pylist(rejected, schema=_REJECTED_SCHEMA)
    storage.write_table(storage.join(output, _REJECTED), table)
