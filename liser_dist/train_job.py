"""What train workers are given, what they leave, and what is left for them to be taught."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from liser_dist import storage
from liser_dist.committed import load_ledger, newest
from liser_dist.ledger import Ledger
from liser_dist.pipeline import finish_keeping
from liser_dist.schedule import NOTHING, to_teach
from liser_dist.shards import ShardVisit
from liser_dist.spec import DistillSpec
from liser_dist.stages import Keeping
from liser_dist.targets import Part

STREAM = "clips"
SUMMARY = "training.json"


@dataclass(frozen=True, slots=True)
class Summary:
    """What the first worker leaves in the run's folder when the stream has ended."""

    checkpoint: str
    complete: bool  # every clip of every epoch was seen
    passes: int  # clips seen, counted once an epoch
    first_step_at: float | None  # time.time(), of the workers that ended it
    training_s: float
    data_wait_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What every train worker is given."""

    spec: DistillSpec
    run: str  # the run's place
    known: tuple[tuple[bool, ...], tuple[bool, ...]]  # emotions of the speech, the face teacher
    embeddings: dict[str, int]  # width of each teacher's embedding that the loss needs
    visits: Sequence[ShardVisit]  # the work: every shard in every epoch
    first_clips: Mapping[tuple[int, str], int]  # numbers, by epoch and shard: see Batcher
    clips: int  # as far as it is known
    desk: Any
    keeping: Keeping | None = None  # the target store, and who writes to it
    broken: Collection[Part] = ()  # of the store: what they held is taught again
    taught_before: bool = False  # the store has all that is left: there is no stream

    @property
    def total_passes(self) -> int:
        return self.clips * self.spec.train.epochs

    def share(self, rank: int, workers: int) -> int:
        """A worker's clips of each step."""
        clips = self.spec.train.batch_size
        return clips // workers + (rank < clips % workers)


def last_summary(run: str) -> Summary | None:
    """What the workers left that last came to the end of a run's stream, if any did."""
    place = storage.join(run, SUMMARY)
    return Summary(**json.loads(storage.read_bytes(place))) if storage.exists(place) else None


def left_to_teach(job: TrainJob) -> list[ShardVisit]:
    """By the newest checkpoint's ledger, and by what the store has now."""
    found = newest(job.run, load_ledger)
    ledger = found[1] if found else Ledger()
    if job.keeping is None:
        return to_teach(job.visits, ledger, None, NOTHING, job.spec.deterministic)
    store = finish_keeping(job.keeping)
    stored = store.find().without(job.broken)
    return to_teach(job.visits, ledger, store, stored, job.spec.deterministic)
