"""Watch the memory of a job's processes: it must not grow with the number of clips.

1. a job with a counting student and teachers that take no time runs on a cluster of its own
2. when it has seen so many clips, and again when it has seen some times as many, each of its
   processes is asked how much memory it would give back if it ended
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from liser_dist.faults import BUCKET, HEAD_CPUS, BrokenRun
from liser_dist.local_cluster import LocalCluster, wait_until
from liser_dist.results import Record
from liser_dist.shards import find_shards
from liser_dist.spec import DistillSpec

MARKS = (1000, 5000)
SAMPLES, SAMPLES_S = 5, 2.0
READ_AHEAD = 1.25  # of the second mark: the first stages must still be at work there
START_LIMIT_S, CLIP_LIMIT_S = 240.0, 0.5
# Ray's titles of a job's actors and tasks. Readers are tasks: any idle worker may be the next.
TITLES: Mapping[str, str] = {
    "train worker": "ray::RayTrainWorker",
    "decoder": "ray::MapWorker(MapBatches(Decode))",
    "teacher": "ray::MapWorker(MapBatches(Teach))",
    "train controller": "ray::TrainController",
    "dataset manager": "ray::DatasetManager",
    "split coordinator": "ray::SplitCoordinator",
    "desk": "ray::Desk",
}


class MemoryRow(Record):
    """Unique set size of one process, or of those that took its place, at both marks."""

    kind: str
    bytes_before: int
    bytes_after: int
    growth: float  # share
