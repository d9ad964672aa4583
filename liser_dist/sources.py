"""What there is to ingest, and what has been: the manifest of an output.

    OUTPUT/GROUP-0000.tar ...        clips of a group of sources
    OUTPUT/manifest/GROUP.json       written last: these sources are done, these shards are whole
    OUTPUT/index.json                all shards that are whole, for the job that reads them
    OUTPUT/rejected.parquet          all sources and pieces that gave no clip

A shard that no manifest names is what was left of a job that was killed: the index leaves it out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from liser_dist import storage
from liser_dist.errors import MissingError, SpecError, StorageError
from liser_dist.fields import differences
from liser_dist.film_clips import Source
from liser_dist.labelled_corpora import ENDINGS, CorpusName, Take, missing_of, read_take
from liser_dist.results import Record
from liser_dist.shards import INDEX, VIDEO_EXTENSIONS

logger = logging.getLogger(__name__)

MANIFEST = "manifest"
REJECTED = "rejected.parquet"
# Of a group: large, so that shards are; small, so that a kill costs little and workers share them.
GROUP_BYTES = 2 * 2**30
GROUP_SOURCES = 256
GROUPS_A_WORKER = 4
MISSING_SHOWN = 20
_REJECTED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class DoneSource(Record):
    """A source that need not be seen again."""

    place: str
    member: str  # of a zip file
    version: str
    length_s: float
    clips: int


class RefusedPiece(Record):
    """Seconds of a source, or all of it (0 to 0), that gave no clip."""

    source: str
    start_s: float
    end_s: float
    reason: str
    detail: str


class WrittenShard(Record):
    """A tar as `index.json` tells it; `url` and `nsamples` are webdataset's own names."""

    url: str
    nsamples: int
    bytes: int
    length_s: float
    version: str


class Group(Record):
    """`manifest/GROUP.json`: what became of some sources."""

    settings: dict[str, Any]  # what its clips follow from
    sources: list[DoneSource]
    shards: list[WrittenShard]
    refused: list[RefusedPiece]
    fingerprints: list[tuple[str, str]]  # digest and likeness, of the clips


def find_sources(place: str, endings: Sequence[str] = VIDEO_EXTENSIONS) -> list[Source]:
    """The files under a place that are named like media, by name.

    Raises StorageError where the place is missing or may not be listed.
    """
    try:
        files = storage.list_files(place)
    except StorageError as error:
        raise StorageError(f"`source`: {error}") from error
    named = [f for f in files if f.place.rpartition(".")[2].lower() in endings]
    if len(named) < len(files):
        logger.info("%d files of other endings are passed over", len(files) - len(named))
    strange = [f for f in named if not _is_utf8(f.place)]
    if strange:
        logger.warning("%d files whose names are no UTF-8 are passed over", len(strange))
        named = [f for f in named if _is_utf8(f.place)]
    root = storage.resolve(place)
    return [
        Source(f.place, f.size_bytes, f.version, _name_of(f.place.removeprefix(root), f.version))
        for f in named
    ]


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def find_takes(place: str, corpus: CorpusName) -> list[Source]:
    """Of each utterance of a labelled corpus the best recording, also of those in zip files; and
    the files that are named like none, of which the worker says so. What is missing is told."""
    best: dict[str, tuple[Take, Source]] = {}
    strange = []
    for source in _unzipped(find_sources(place, (*ENDINGS, "zip"))):
        take = read_take(corpus, source.member or source.place)
        if take is None:
            strange.append(source)
        elif take.utterance not in best or take.rank < best[take.utterance][0].rank:
            best[take.utterance] = take, source
    takes = [take for take, _ in best.values()]
    if missing := missing_of(corpus, takes):
        some = ", ".join(missing[:MISSING_SHOWN])
        logger.warning("%d utterances of %s are missing: %s ...", len(missing), corpus, some)
    in_folds = sorted(best.values(), key=lambda one: (one[0].fold, one[1].place, one[1].member))
    return [replace(source, fold=take.fold) for take, source in in_folds] + strange


def _unzipped(sources: Sequence[Source]) -> Iterator[Source]:
    for source in sources:
        members = _members_of(source) if source.place.lower().endswith(".zip") else []
        for member in members:
            name = _name_of(f"{source.name}/{member.filename}", source.version)
            yield replace(source, size_bytes=member.file_size, name=name, member=member.filename)
        if not members:
            yield source


def _members_of(archive: Source) -> list[zipfile.ZipInfo]:
    """The recordings in a zip file; none of one that is damaged, which is refused then."""
    try:
        with storage.open_read(archive.place) as stream, zipfile.ZipFile(stream) as opened:
            members = opened.infolist()
    except zipfile.BadZipFile as error:
        logger.warning("%s is no whole zip file: %s", archive.place, error)
        return []
    return [m for m in members if m.filename.rpartition(".")[2].lower() in ENDINGS]


def _name_of(path: str, version: str) -> str:
    """What its clips are called: any path gives a name that any tool can read."""
    return hashlib.sha256(f"{path}\n{version}".encode()).hexdigest()[:16]


def read_groups(output: str, known: Mapping[str, Group] = MappingProxyType({})) -> dict[str, Group]:
    """All that was committed, by the group's name; what is known is not read again, for none
    changes. Raises StorageError."""
    try:
        files = storage.list_files(storage.join(output, MANIFEST), ".json")
    except MissingError:
        return {}
    names = [file.place.rpartition("/")[2].removesuffix(".json") for file in files]
    return {name: known.get(name) or _read_group(output, name) for name in names}


def _read_group(output: str, name: str) -> Group:
    place = storage.join(output, MANIFEST, f"{name}.json")
    return Group.model_validate_json(storage.read_bytes(place))


def commit_group(output: str, name: str, group: Group) -> None:
    """The last write of a group: from now on its sources are done."""
    place = storage.join(output, MANIFEST, f"{name}.json")
    storage.write_bytes(place, group.model_dump_json().encode())


def left_to_do(sources: Sequence[Source], groups: dict[str, Group]) -> list[Source]:
    done = {(s.place, s.member, s.version) for group in groups.values() for s in group.sources}
    return [one for one in sources if (one.place, one.member, one.version) not in done]


def grouped(sources: Sequence[Source], workers: int) -> Iterator[list[Source]]:
    """Neighbours of a fold together, until they are many or large; some groups for each worker."""
    group: list[Source] = []
    size_bytes = 0
    many = min(GROUP_SOURCES, -(-len(sources) // (GROUPS_A_WORKER * workers)))
    for source in sources:
        full = len(group) == many or size_bytes + source.size_bytes > GROUP_BYTES
        if group and (full or source.fold != group[0].fold):
            yield group
            group, size_bytes = [], 0
        group.append(source)
        size_bytes += source.size_bytes
    if group:
        yield group


def name_of_group(sources: Sequence[Source]) -> str:
    digest = hashlib.sha256("\n".join(s.name for s in sources).encode()).hexdigest()[:16]
    return f"fold-{sources[0].fold}-{digest}" if sources[0].fold else digest


def require_same_settings(output: str, groups: dict[str, Group], settings: dict[str, Any]) -> None:
    """All clips of an output are made alike. Raises SpecError with what differs."""
    for group in groups.values():
        found = [text for _, text in differences(group.settings, settings)]
        if found:
            raise SpecError(
                f"`output` {output} has clips that were made otherwise: {'; '.join(found)}; give "
                "these settings, or another place"
            )


def tell_leftovers(output: str, groups: dict[str, Group]) -> None:
    """Shards of groups that were never committed: nothing reads them, and nobody removes them."""
    whole = {shard.url for group in groups.values() for shard in group.shards}
    try:
        tars = storage.list_files(output, ".tar")
    except MissingError:
        return
    left = [tar.place for tar in tars if tar.place.rpartition("/")[2] not in whole]
    if left:
        logger.warning(
            "%d shards are in no manifest, as of a job that was killed, and not in %s: %s%s",
            len(left), INDEX, left[0], " ..." if len(left) > 1 else "",
        )  # fmt: skip


def write_index(output: str, groups: dict[str, Group], settings: dict[str, Any]) -> None:
    """`index.json` and `rejected.parquet`, from all that was committed."""
    shards = [shard for _, group in sorted(groups.items()) for shard in group.shards]
    index = {
        "wids_version": 1,
        "complete": True,  # no other shard lies here
        "clips": sum(shard.nsamples for shard in shards),
        "hours": round(sum(shard.length_s for shard in shards) / 3600, 4),
        "settings": settings,
        "shardlist": [shard.model_dump() for shard in shards],
    }
    storage.write_bytes(storage.join(output, INDEX), json.dumps(index, indent=1).encode())
    refused = [piece.model_dump() for _, g in sorted(groups.items()) for piece in g.refused]
    table = pa.Table.from_pylist(refused, schema=_REJECTED_SCHEMA)
    storage.write_table(storage.join(output, REJECTED), table)
