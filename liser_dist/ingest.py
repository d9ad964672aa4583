"""Raw video -> clip shards, as Ray Data actors.

1. sources that no manifest names, in groups           sources.py
2. each group: its films, cut by a guarded child       cutter.py, film_clips.py
3. clips that nobody else has, into shards; then, by the driver, the manifest of the group
4. the index of all
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

from liser_dist import cluster, storage
from liser_dist.cluster_file import capacity_of
from liser_dist.cutter import FilmCutter
from liser_dist.errors import CapacityError, SpecError
from liser_dist.faces import check_detector
from liser_dist.film_clips import Made, Outcome, Refused, Source, read_clips
from liser_dist.ingest_spec import IngestSpec
from liser_dist.pipeline import ours_in
from liser_dist.records import Reason
from liser_dist.register import Register
from liser_dist.shards import write_shard
from liser_dist.sources import (
    DoneSource,
    Group,
    RefusedPiece,
    WrittenShard,
    commit_group,
    find_sources,
    find_takes,
    grouped,
    left_to_do,
    name_of_group,
    read_groups,
    require_same_settings,
    tell_leftovers,
    write_index,
)

VERSION = 1  # goes up when the same settings come to mean other clips


def settings_of(spec: IngestSpec) -> dict[str, Any]:
    """What the clips of a source follow from."""
    chosen = spec.model_dump(mode="json", include={"kind", "cut", "face", "normalise"})
    return {"version": VERSION, **chosen}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is there and what is new, and a job that was found to be sound."""

    spec: IngestSpec
    capacity: cluster.Capacity
    sources: Sequence[Source]
    left: Sequence[Source]
    done: dict[str, Group]  # what was committed by then, by the group's name


def plan(spec: IngestSpec) -> Plan:
    """Check all that can be checked before a film is opened. Raises LiserError."""
    spec = spec.with_absolute_places()
    capacity = capacity_of(spec.resources.cluster)
    cpus = spec.resources.worker_cpus
    room = capacity.of(spec.resources.pool)
    if not any(node.amounts.get("CPU", 0.0) >= cpus for node in room.nodes):
        raise CapacityError(
            f"`resources.worker_cpus` {cpus:g}: no node of {room.where} has so many; lower it"
        )
    check_detector(spec.face.detector, "face.detector")
    sources = (
        find_sources(spec.source) if spec.kind == "video" else find_takes(spec.source, spec.kind)
    )
    storage.require_writable(spec.output, "output")
    done = read_groups(spec.output)
    require_same_settings(spec.output, done, settings_of(spec))
    return Plan(spec, capacity, sources, left_to_do(sources, done), done)


def ingest(job: Plan) -> Iterator[Group]:
    """Work on all that is new; yields each group when it is committed, and writes the index last.

    Raises LiserError.
    """
    spec = job.spec
    with _register(spec) as register:
        done = read_groups(spec.output, job.done)  # nobody else adds to them from now on
        tell_leftovers(spec.output, done)
        known = [(name, print_) for name, group in done.items() for print_ in group.fingerprints]
        ray.get(register.learn.remote(known))
        groups = list(grouped(left_to_do(job.sources, done), spec.resources.workers[1]))
        for name, group in _run(spec, groups, register) if groups else ():
            commit_group(spec.output, name, group)
            done[name] = group
            yield group
        write_index(spec.output, done, settings_of(spec))


@contextmanager
def _register(spec: IngestSpec) -> Iterator[Any]:
    """The register of this job, which ends with it; no other job may work on the same output."""
    named = {"name": f"ingest into {spec.output}", "namespace": "liser_dist"}
    try:
        actor = ray.remote(Register).options(num_cpus=0, **named).remote(spec.deduplicate)
    except ValueError as error:  # Ray's word for a name that is taken
        raise SpecError(
            f"`output` {spec.output}: another job on this cluster writes there; wait for it, or "
            "give another place"
        ) from error
    try:
        yield actor
    finally:
        ray.kill(actor)


def _run(
    spec: IngestSpec, groups: list[list[Source]], register: Any
) -> Iterator[tuple[str, Group]]:
    """The groups whose shards are written, by name."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    items = [{"sources": [asdict(source) for source in group]} for group in groups]
    least, most = spec.resources.workers
    done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        IngestWorker,
        fn_constructor_kwargs={"spec": spec, "register": register},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=spec.resources.worker_cpus,
        label_selector=cluster.place(spec.resources.pool),
        compute=ActorPoolStrategy(min_size=min(least, len(items)), max_size=most),
    )
    try:
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.to_pylist():
                yield row["name"], Group.model_validate_json(row["group"])
    except ray.exceptions.RayError as error:
        raise ours_in(error) from error


class IngestWorker:
    """Works on one group at a time: its clips, its shards, and what is to be said of it."""

    def __init__(self, spec: IngestSpec, register: Any) -> None:
        self._spec, self._register = spec, register
        self._cutter = FilmCutter(spec)

    def __call__(self, rows: pa.Table) -> pa.Table:
        (row,) = rows.to_pylist()
        sources = [Source(**source) for source in row["sources"]]
        name = name_of_group(sources)
        folder = Path(tempfile.mkdtemp(prefix="liser-ingest-"))
        try:
            group = self._work(name, sources, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        # The driver commits it: a worker may outlive a driver that is killed, and its successor.
        return pa.table({"name": [name], "group": [group.model_dump_json()]})

    def _work(self, name: str, sources: Sequence[Source], folder: Path) -> Group:
        outcomes = [self._cutter.cut(source, folder) for source in sources]
        clips, again = self._once(name, outcomes)
        shards = list(self._write(name, folder, clips))
        pieces = [piece for outcome in outcomes for piece in outcome.refused]
        kept = {clip.key for clip in clips}
        return Group(
            settings=settings_of(self._spec),
            sources=[
                DoneSource(
                    place=o.source.place, member=o.source.member, version=o.source.version,
                    length_s=o.length_s, clips=sum(clip.key in kept for clip in o.clips),
                )
                for o in outcomes
            ],
            shards=shards,
            refused=[RefusedPiece(**asdict(piece)) for piece in [*pieces, *again]],
            fingerprints=[(clip.digest, clip.likeness) for clip in clips],
        )  # fmt: skip

    def _once(self, name: str, outcomes: Sequence[Outcome]) -> tuple[list[Made], list[Refused]]:
        """The clips that land, and those that are there already."""
        found = [(outcome.source, clip) for outcome in outcomes for clip in outcome.clips]
        if self._spec.deduplicate is None:
            return [clip for _, clip in found], []
        prints = [(clip.digest, clip.likeness) for _, clip in found]
        new = ray.get(self._register.claim.remote(name, prints))
        clips = [clip for (_, clip), is_new in zip(found, new, strict=True) if is_new]
        again = [
            Refused(
                source.title, clip.start_s, round(clip.start_s + clip.length_s, 3),
                Reason.DUPLICATE, "",
            )
            for (source, clip), is_new in zip(found, new, strict=True) if not is_new
        ]  # fmt: skip
        return clips, again

    def _write(self, name: str, folder: Path, clips: Sequence[Made]) -> Iterator[WrittenShard]:
        for number, batch in enumerate(self._filled(folder, clips)):
            url = f"{name}-{number:04d}.tar"
            place = storage.join(self._spec.output, url)
            size_bytes = write_shard(read_clips(folder, batch), place)
            yield WrittenShard(
                url=url,
                nsamples=len(batch),
                bytes=size_bytes,
                length_s=round(sum(clip.length_s for clip in batch), 3),
                version=storage.version_of(place),
            )

    def _filled(self, folder: Path, clips: Sequence[Made]) -> Iterator[list[Made]]:
        """Shards of about so many bytes."""
        batch: list[Made] = []
        size_bytes = 0
        for clip in clips:
            batch.append(clip)
            size_bytes += (folder / f"{clip.key}.mp4").stat().st_size
            if size_bytes >= self._spec.shard_bytes:
                yield batch
                batch, size_bytes = [], 0
        if batch:
            yield batch
