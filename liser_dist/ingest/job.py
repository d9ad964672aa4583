"""Turns raw video into clip shards with a pool of Ray Data actors.

1. recordings that the manifest, the record of what is done, lacks
   are put into groups                                               sources, manifest
2. a worker takes each group; its child process cuts the clips       film_cutter, film_to_clips
3. the worker writes clips that are not duplicates to shards; then
   the driver adds the group to the manifest                         deduplicate, manifest
4. at the end, the driver writes an index of all shards              manifest
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from liser_dist import storage
from liser_dist.cluster.capacity import Capacity
from liser_dist.cluster.cluster_file import capacity_of
from liser_dist.cluster.connect import pool_selector
from liser_dist.cluster.ray_errors import unwrap_ray_error
from liser_dist.config.ingest import IngestSpec
from liser_dist.data.faces import check_detector
from liser_dist.data.shards import write_shard
from liser_dist.errors import CapacityError, SpecError
from liser_dist.ingest.deduplicate import ClipRegistry
from liser_dist.ingest.film_cutter import FilmCutter
from liser_dist.ingest.film_to_clips import (
    CutClip,
    IngestedRecording,
    PieceRejection,
    read_cut_clips,
)
from liser_dist.ingest.manifest import (
    DoneRecording,
    RecordingGroup,
    RejectedPiece,
    WrittenShard,
    commit_group,
    group_recordings,
    name_group,
    pending_recordings,
    read_groups,
    require_same_settings,
    warn_of_leftovers,
    write_index,
)
from liser_dist.ingest.sources.base import Recording
from liser_dist.ingest.sources.kinds import KINDS
from liser_dist.records import Reason

_SETTINGS_VERSION = 1  # increased when the same settings give other clips


def _settings(spec: IngestSpec) -> dict[str, Any]:
    """Return the part of the spec on which clips depend."""
    chosen = spec.model_dump(mode="json", include={"kind", "cut", "face", "normalise"})
    return {"version": _SETTINGS_VERSION, **chosen}


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """A checked ingest job.

    Attributes:
        spec: the resolved spec.
        capacity: what the cluster has.
        recordings: everything that the source lists.
        pending: the recordings that are to be ingested.
        done: the groups that were committed by then, by name.
    """

    spec: IngestSpec
    capacity: Capacity
    recordings: Sequence[Recording]
    pending: Sequence[Recording]
    done: dict[str, RecordingGroup]


def plan_ingest(spec: IngestSpec) -> IngestPlan:
    """Check everything that can be checked before a recording is opened.

    Raises:
        LiserError: the job cannot run; says which field is wrong.
    """
    spec = spec.with_absolute_places()
    capacity = capacity_of(spec.resources.cluster)
    cpus = spec.resources.worker_cpus
    room = capacity.of(spec.resources.pool)
    if not any(node.amounts.get("CPU", 0.0) >= cpus for node in room.nodes):
        raise CapacityError(
            f"`resources.worker_cpus` is {cpus:g}: no node of {room.where} has that many CPUs; "
            "lower the value"
        )
    check_detector(spec.face.detector, "face.detector")
    recordings = KINDS[spec.kind].open_source(spec.source).list_recordings()
    storage.require_writable(spec.output, "output")
    done = read_groups(spec.output)
    require_same_settings(spec.output, done, _settings(spec))
    return IngestPlan(spec, capacity, recordings, pending_recordings(recordings, done), done)


def ingest(job: IngestPlan) -> Iterator[RecordingGroup]:
    """Ingest all that is new: yield each group once it is committed, and write the index last.

    Raises:
        LiserError: the job cannot go on; committed groups are kept.
    """
    spec = job.spec
    with _claim_output(spec) as registry:
        done = read_groups(spec.output, job.done)  # from here on no other job adds groups
        warn_of_leftovers(spec.output, done)
        known = [(name, clip) for name, group in done.items() for clip in group.fingerprints]
        ray.get(registry.learn.remote(known))
        pending = pending_recordings(job.recordings, done)
        groups = list(group_recordings(pending, spec.resources.workers[1]))
        for name, group in _run(spec, groups, registry) if groups else ():
            commit_group(spec.output, name, group)
            done[name] = group
            yield group
        write_index(spec.output, done, _settings(spec))


@contextmanager
def _claim_output(spec: IngestSpec) -> Iterator[Any]:
    """Start the job's registry of clips, whose name keeps other jobs away from the same output."""
    named = {"name": f"ingest into {spec.output}", "namespace": "liser_dist"}
    try:
        actor = ray.remote(ClipRegistry).options(num_cpus=0, **named).remote(spec.deduplicate)
    except ValueError as error:  # Ray's error for a name that is taken
        raise SpecError(
            f"`output` {spec.output}: another job on this cluster is writing to it; wait for it to "
            "end, or use another `output`"
        ) from error
    try:
        yield actor
    finally:
        ray.kill(actor)


def _run(
    spec: IngestSpec, groups: list[list[Recording]], registry: Any
) -> Iterator[tuple[str, RecordingGroup]]:
    """Yield the name and the outcome of each group once its shards are written."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    items = [{"recordings": [asdict(recording) for recording in group]} for group in groups]
    least, most = spec.resources.workers
    done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        IngestWorker,
        fn_constructor_kwargs={"spec": spec, "registry": registry},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=spec.resources.worker_cpus,
        label_selector=pool_selector(spec.resources.pool),
        compute=ActorPoolStrategy(min_size=min(least, len(items)), max_size=most),
    )
    try:
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.to_pylist():
                yield row["name"], RecordingGroup.model_validate_json(row["group"])
    except ray.exceptions.RayError as error:
        raise unwrap_ray_error(error) from error


class IngestWorker:
    """Ray Data actor that ingests one group of recordings at a time and writes its shards."""

    def __init__(self, spec: IngestSpec, registry: Any) -> None:
        self._spec, self._registry = spec, registry
        self._cutter = FilmCutter(spec)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Ingest the group in the table's only row; return its name and outcome."""
        (row,) = rows.to_pylist()
        recordings = [Recording(**recording) for recording in row["recordings"]]
        name = name_group(recordings)
        folder = Path(tempfile.mkdtemp(prefix="liser-ingest-"))
        try:
            group = self._ingest_group(name, recordings, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        # The driver commits the group: a worker may outlive a driver that was killed.
        return pa.table({"name": [name], "group": [group.model_dump_json()]})

    def _ingest_group(
        self, name: str, recordings: Sequence[Recording], folder: Path
    ) -> RecordingGroup:
        ingested = [self._cutter.cut(recording, folder) for recording in recordings]
        clips, duplicates = self._drop_duplicates(name, ingested)
        shards = list(self._write_shards(name, folder, clips))
        rejections = [rejection for outcome in ingested for rejection in outcome.rejections]
        stored = {clip.key for clip in clips}
        return RecordingGroup(
            settings=_settings(self._spec),
            sources=[
                DoneRecording(
                    place=i.recording.place, member=i.recording.member,
                    version=i.recording.version, length_s=i.length_s,
                    clips=sum(clip.key in stored for clip in i.clips),
                )
                for i in ingested
            ],
            shards=shards,
            refused=[RejectedPiece(**asdict(piece)) for piece in [*rejections, *duplicates]],
            fingerprints=[(clip.digest, clip.fingerprint) for clip in clips],
        )  # fmt: skip

    def _drop_duplicates(
        self, name: str, ingested: Sequence[IngestedRecording]
    ) -> tuple[list[CutClip], list[PieceRejection]]:
        """Split the clips into new ones and rejected duplicates."""
        cut = [(outcome.recording, clip) for outcome in ingested for clip in outcome.clips]
        if self._spec.deduplicate is None:
            return [clip for _, clip in cut], []
        fingerprints = [(clip.digest, clip.fingerprint) for _, clip in cut]
        is_new = ray.get(self._registry.claim.remote(name, fingerprints))
        clips = [clip for (_, clip), new in zip(cut, is_new, strict=True) if new]
        duplicates = [
            PieceRejection(
                recording.title, clip.start_s, round(clip.start_s + clip.length_s, 3),
                Reason.DUPLICATE, "",
            )
            for (recording, clip), new in zip(cut, is_new, strict=True) if not new
        ]  # fmt: skip
        return clips, duplicates

    def _write_shards(
        self, name: str, folder: Path, clips: Sequence[CutClip]
    ) -> Iterator[WrittenShard]:
        for number, batch in enumerate(self._split_by_size(folder, clips)):
            url = f"{name}-{number:04d}.tar"
            place = storage.join(self._spec.output, url)
            size_bytes = write_shard(read_cut_clips(folder, batch), place)
            yield WrittenShard(
                url=url,
                nsamples=len(batch),
                bytes=size_bytes,
                length_s=round(sum(clip.length_s for clip in batch), 3),
                version=storage.version_of(place),
            )

    def _split_by_size(self, folder: Path, clips: Sequence[CutClip]) -> Iterator[list[CutClip]]:
        """Yield the clips of one shard after the other, each of about `shard_bytes`."""
        batch: list[CutClip] = []
        size_bytes = 0
        for clip in clips:
            batch.append(clip)
            size_bytes += (folder / f"{clip.key}.mp4").stat().st_size
            if size_bytes >= self._spec.shard_bytes:
                yield batch
                batch, size_bytes = [], 0
        if batch:
            yield batch
