"""Fills the target store without training a student (`--teach-only`, and before a study)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from liser_dist.cluster.connect import start_ray
from liser_dist.console import output, show_clip_count
from liser_dist.data.shard_order import shard_order
from liser_dist.data.shards import ShardVisit
from liser_dist.errors import SpecError, StorageError
from liser_dist.pipeline.coordinator import start_coordinator
from liser_dist.pipeline.dataset import build_examples, count_rows
from liser_dist.pipeline.labelled import read_labelled
from liser_dist.pipeline.plan import DistillPlan
from liser_dist.pipeline.schedule import visits_to_stream
from liser_dist.pipeline.stages import RowOptions
from liser_dist.pipeline.store import TargetStore
from liser_dist.pipeline.store_writer import open_store_writers
from liser_dist.records import Example
from liser_dist.runs.ledger import Ledger


def fill_store(
    plan: DistillPlan, sets_with_targets: Collection[str] = ("test",)
) -> tuple[TargetStore, dict[str, list[Example]]]:
    """Compute all targets that the store lacks.

    Args:
        plan: The job.
        sets_with_targets: The labelled sets for whose clips the teachers compute targets.

    Returns:
        The store, and the clips of the labelled sets.

    Raises:
        SpecError: The job has no target store.
        StorageError: The store is read-only, or failed.
        LiserError: A stage raised it.
    """
    stream = plan.stream
    if not stream.has_store:
        raise SpecError("`--teach-only` writes to `targets.store`, which is off: set it to a path")
    start_ray(plan.capacity)
    writers = open_store_writers(stream, plan.versions)
    assert writers is not None
    if not writers.store.writable:
        raise StorageError(
            f"`targets.store` {stream.store} is not writable (see the warning above): change its "
            "permissions, or give another path"
        )
    coordinator = start_coordinator()
    if plan.labelled_shards:
        output.print("reading the labelled clips")
    labelled, _ = read_labelled(
        stream, plan.labelled_shards, coordinator, writers, sets_with_targets
    )
    epochs = min(stream.windows, stream.epochs)
    visits = shard_order(plan.shards["unlabelled"], epochs, stream.seed)
    stored = writers.store.list_parts()
    lacking = [v for v in visits if not stored.is_filled(v.shard, writers.store.view(v.epoch))]
    left = visits_to_stream(lacking, Ledger(), writers.store, stored, deterministic=False)
    clips = sum(shard.clips for shard in plan.shards["unlabelled"])
    windows = f" x {epochs} windows" if epochs > 1 else ""
    output.print(
        f"computing targets of {clips} clips{windows}, except those already in the target store"
    )
    if left:
        options = RowOptions(writers=writers, keys_only=True)
        examples = build_examples(stream, left, coordinator, options)
        with show_clip_count(clips * epochs) as count:
            for rows in count_rows(examples):
                count(rows)
    store = writers.finish()
    require_complete(store, visits)
    return store, labelled


def require_complete(store: TargetStore, visits: Sequence[ShardVisit]) -> None:
    """Check that the store has all clips of these visits, but for those that runs try again.

    Raises:
        StorageError: Some are missing.
    """
    stored = store.list_parts()
    missing = [v.shard for v in visits if not stored.is_filled(v.shard, store.view(v.epoch))]
    if missing:
        shards = "1 shard" if len(missing) == 1 else f"{len(missing)} shards"
        raise StorageError(
            f"the target store lacks targets for clips in {shards} (the first is {missing[0]}): "
            "see the warnings above, then run the same command again, which computes only these"
        )
