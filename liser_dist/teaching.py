"""Filling the target store, with no student."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from liser_dist import cluster, pipeline, screen
from liser_dist.errors import SpecError, StorageError
from liser_dist.labelled import read_labelled
from liser_dist.ledger import Ledger
from liser_dist.planning import Plan
from liser_dist.records import Example
from liser_dist.schedule import to_teach
from liser_dist.shards import ShardVisit, shard_order
from liser_dist.targets import TargetStore


def teach(
    job: Plan, taught_sets: Collection[str] = ("test",)
) -> tuple[TargetStore, dict[str, list[Example]]]:
    """Fill the target store with what is not yet in it, and train nothing.

    Returns the store, and the labelled sets; `taught_sets`: see `read_labelled`.
    """
    if job.spec.targets.store is None:
        raise SpecError("`--teach-only` fills `targets.store`, which is off: give a place for it")
    cluster.start_ray(job.capacity)
    desk, keeping = pipeline.open_desk(), pipeline.open_keeping(job.spec, job.versions)
    assert keeping is not None
    if not keeping.store.writable:
        raise StorageError(f"`targets.store`: {job.spec.targets.store} takes nothing: see above")
    labelled, _ = read_labelled(job, desk, keeping, taught_sets)
    epochs = min(job.spec.targets.windows, job.spec.train.epochs)
    visits = shard_order(job.shards["unlabelled"], epochs, job.spec.seed)
    left = to_teach(visits, Ledger(), keeping.store, keeping.store.find(), deterministic=False)
    clips = sum(shard.clips for shard in job.shards["unlabelled"]) * epochs
    screen.console.print(f"teaching {clips} clips, but for those that are there")
    if left:
        taught = pipeline.build_examples(job.spec, left, desk, keeping=keeping, kept_alone=True)
        with screen.counted(clips) as count:
            for rows in pipeline.read_kept(taught):
                count(rows)
    store = pipeline.finish_keeping(keeping)
    require_taught(store, visits)
    return store, labelled


def require_taught(store: TargetStore, visits: Sequence[ShardVisit]) -> None:
    """Raise StorageError when something is missing."""
    stored = store.find()
    missing = [v.shard for v in visits if not stored.whole(v.shard, store.view(v.epoch))]
    if missing:
        raise StorageError(
            f"of {len(missing)} shards not all could be kept, {missing[0]} the first: see above, "
            "and give the same command again"
        )
