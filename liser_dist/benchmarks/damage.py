"""Damages good clips at random (seeded), and checks that a job rejects only the damaged ones.

1. Copies of good clips, each damaged in one way, are mixed among the good ones and written as
   shards.
2. A job with a counting student (`students/counting.py`: one weight per clip and epoch, which
   counts how often the clip was trained on) runs on the good clips alone, then on the mixture.
3. The counts and `rejected.parquet` show what became of each clip.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from liser_dist.benchmarks.job_runs import BenchmarkJob
from liser_dist.benchmarks.testbed.local_cluster import (
    BUCKET,
    HEAD_CPUS,
    JOB_START_LIMIT_S,
    ClusterJob,
    LocalCluster,
    wait_until,
)
from liser_dist.config.base import Record
from liser_dist.data.shard_list import find_shards
from liser_dist.data.shards import ShardVisit, read_samples, write_shards
from liser_dist.runs.checkpoints import load_checkpoint
from liser_dist.runs.results import DistillResult
from liser_dist.students.counting import COUNTS

_Member = tuple[str, bytes, dict[str, Any]]  # key, mp4, metadata
_Damage = Callable[[bytes, random.Random], bytes]

GOOD, DAMAGED = "good", "damaged"
CLIPS_PER_SHARD = 37  # a shard ends in the middle of a batch
HEADER_BYTES = 400
_CLIP_LIMIT_S = 1.0


class DamageRow(Record):
    """What became of good clips, and of as many damaged ones among them, in one epoch."""

    good: int
    good_trained_once: int
    damaged: int
    damaged_trained: int  # once; decoded in full
    damaged_rejected: int
    lost: int  # neither trained nor rejected
    twice: int  # trained more than once, or trained and rejected
    reasons: dict[str, int]  # of the rejected clips; good ones count too, if any was rejected
    good_clips_per_s: float
    good_clips_per_s_without_damage: float
    left_behind: list[str]  # processes and shared memory, 10 s after a job's end


# ---------------------------------------------------------------- kinds of damage


def damage(video: bytes, seed: int) -> bytes:
    """Return a good mp4 file with damage of one kind; the same seed gives the same bytes."""
    rng = random.Random(seed)
    kind = rng.choice(DAMAGE_KINDS)
    damaged = video
    while damaged == video:  # a kind may change nothing: zeros may overwrite zeros
        damaged = kind(video, rng)
    return damaged


def flip_bits(video: bytes, rng: random.Random) -> bytes:
    """Flip 1 to 1,024 bits anywhere in the file."""
    damaged = bytearray(video)
    for bit in rng.sample(range(8 * len(video)), 2 ** rng.randint(0, 10)):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def cut_off(video: bytes, rng: random.Random) -> bytes:
    """Cut off the end of the file; at worst, nothing is left."""
    return video[: rng.randrange(len(video))]


def blank_out(video: bytes, rng: random.Random) -> bytes:
    """Overwrite up to a quarter of the file with zeros."""
    start = rng.randrange(len(video))
    return _overwrite(video, start, bytes(rng.randint(1, len(video) // 4)))


def break_header(video: bytes, rng: random.Random) -> bytes:
    """Overwrite bytes at the start of the file, or in its `moov` box, with random ones."""
    moov = video.find(b"moov")
    start, size = rng.choice([(0, HEADER_BYTES), (moov, _number_at(video, moov - 4))])
    noise = rng.randbytes(2 ** rng.randint(0, 6))
    return _overwrite(video, start + rng.randrange(size), noise)


def break_box_size(video: bytes, rng: random.Random) -> bytes:
    """Write a wrong size into the header of a box."""
    box = rng.choice(_boxes(video, b"ftyp|moov|mdat|trak|mdia|minf|stbl|stsd|st[tscz][scoz]"))
    return _overwrite(video, box, _implausible_number(rng))


def break_table(video: bytes, rng: random.Random) -> bytes:
    """Write an implausible number into a header or a sample table."""
    box = rng.choice(_boxes(video, b"tkhd|mdhd|elst|stsd|stts|ctts|stss|stsc|stsz|stco"))
    body = range(8, max(12, _number_at(video, box)), 4)
    return _overwrite(video, box + rng.choice(body), _implausible_number(rng))


DAMAGE_KINDS: Sequence[_Damage] = (
    flip_bits, cut_off, blank_out, break_header, break_box_size, break_table,
)  # fmt: skip


def _boxes(video: bytes, names: bytes) -> list[int]:
    """Return the offsets of the boxes: four bytes of size come before the name."""
    return [match.start() - 4 for match in re.finditer(names, video) if match.start() >= 4]


def _number_at(video: bytes, offset: int) -> int:
    return int.from_bytes(video[offset : offset + 4], "big")


def _implausible_number(rng: random.Random) -> bytes:
    return rng.choice([0, 1, 2**31 - 1, 2**32 - 1, rng.getrandbits(32)]).to_bytes(4, "big")


def _overwrite(video: bytes, start: int, content: bytes) -> bytes:
    """Overwrite a part of a file, whose length does not change."""
    return (video[:start] + content + video[start + len(content) :])[: len(video)]


# ---------------------------------------------------------------- the mixture


def mix_damaged(
    shards: str, output: str, clips: int, seed: int, damaged: bool = True
) -> Sequence[str]:
    """Write good clips as shards, with as many damaged copies among them in seeded order.

    Args:
        shards: the good clips; they are repeated under other keys where there are fewer.
        output: where the new shards are written.
        clips: number of good clips.
        seed: of the order and of the damage.
        damaged: False to write the good clips alone.

    Returns:
        The keys (`good-000123`, `damaged-000123`) in the order of the shards. The position of a
        clip in it is the number of its weight.

    Raises:
        StorageError: `shards` cannot be read.
        ShardError: `shards` holds no clip.
    """
    sources = [member for shard in find_shards(shards, "shards") for member in _read(shard.place)]
    chosen = [(kind, n) for kind in (GOOD, DAMAGED)[: 1 + damaged] for n in range(clips)]
    random.Random(seed).shuffle(chosen)

    def members() -> Iterator[_Member]:
        for kind, number in chosen:
            video, metadata = sources[number % len(sources)]
            if kind == DAMAGED:
                video = damage(video, seed * clips + number)
            yield f"{kind}-{number:06d}", video, metadata

    write_shards(members(), output, CLIPS_PER_SHARD)
    return [f"{kind}-{number:06d}" for kind, number in chosen]


def _read(shard: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for sample in read_samples(ShardVisit(0, shard), labelled=False):
        if not sample.rejected:
            yield sample.video, {"faces": json.loads(sample.faces)} if sample.faces else {}


# ---------------------------------------------------------------- runs on the clips


@dataclass(frozen=True, slots=True)
class ClipOutcomes:
    """What became of each clip of a job."""

    trained: Mapping[str, int]  # how often, by key
    rejected: Mapping[str, str]  # rejection reason, by key
    training_s: float
    left_behind: Sequence[str]

    def count_once(self, kind: str) -> int:
        """Return how many clips of a kind were trained exactly once and not rejected."""
        return sum(
            times == 1 and key not in self.rejected
            for key, times in self.trained.items()
            if key.startswith(kind)
        )

    def per_s(self, clips: int) -> float:
        """Return the training speed in clips per second, for this number of clips."""
        return clips / self.training_s if self.training_s else 0.0


def break_clips(job: BenchmarkJob, folder: Path, clips: int, seed: int = 0) -> DamageRow:
    """Run a job on good clips alone, then on them and as many damaged ones.

    Args:
        job: its unlabelled shards hold the good clips.
        folder: a new folder, for the shards and both runs.
        clips: number of good clips.
        seed: of the order and of the damage.

    Raises:
        RuntimeError: one of the jobs failed.
        TimeoutError: one of the jobs did not end in time.
    """
    with LocalCluster(HEAD_CPUS) as cluster:
        alone = _run(job, folder / "good", cluster, clips, seed, damaged=False)
        mixed = _run(job, folder / "mixed", cluster, clips, seed, damaged=True)
    trained, rejected = mixed.trained, mixed.rejected
    return DamageRow(
        good=clips,
        good_trained_once=mixed.count_once(GOOD),
        damaged=clips,
        damaged_trained=mixed.count_once(DAMAGED),
        damaged_rejected=sum(key.startswith(DAMAGED) and not trained[key] for key in rejected),
        lost=sum(not times and key not in rejected for key, times in trained.items()),
        twice=sum(times + (key in rejected) > 1 for key, times in trained.items()),
        reasons=dict(Counter(rejected.values()).most_common()),
        good_clips_per_s=mixed.per_s(clips),
        good_clips_per_s_without_damage=alone.per_s(clips),
        left_behind=[*alone.left_behind, *mixed.left_behind],
    )


def _run(
    job: BenchmarkJob, folder: Path, cluster: LocalCluster, clips: int, seed: int, damaged: bool
) -> ClipOutcomes:
    shards = folder / "clips"
    shards.mkdir(parents=True)
    keys = mix_damaged(job.spec.data.unlabelled, str(shards), clips, seed, damaged)
    # One epoch, whatever number of clips it rejects.
    tolerant = job.counting(
        data={"unlabelled": str(shards)},
        train={"epochs": 1},
        budget={"max_rejected_share": 0.9, "max_rejected_in_a_row": 2**31},
        output=str(folder / BUCKET / "runs"),
    )
    run = ClusterJob(tolerant, folder, cluster)
    run.start()
    limit_s = JOB_START_LIMIT_S + _CLIP_LIMIT_S * len(keys)
    wait_until(lambda: run.ended, limit_s, f"the end of a job on {len(keys)} clips")
    run.wait()
    return _read_outcomes(run, keys)


def _read_outcomes(run: ClusterJob, keys: Sequence[str]) -> ClipOutcomes:
    (file,) = run.runs.glob("*/result.json")
    result = DistillResult.model_validate_json(file.read_text())
    counts = load_checkpoint(result.checkpoint).students[COUNTS].int().tolist()
    rejected = pq.read_table(file.parent / "rejected.parquet").to_pylist()
    return ClipOutcomes(
        trained=dict(zip(keys, counts, strict=True)),
        rejected={row["key"]: row["reason"] for row in rejected},
        training_s=result.seconds.training,
        left_behind=run.left_behind(),
    )
