"""Damage good clips in seeded ways, and see that a job loses the damaged ones and no other.

1. copies of good clips, each damaged in one way, are mixed among the good ones as shards
2. the job runs on the good clips alone, and on the mixture, with a student that counts clips
3. each clip's weight and `rejected.parquet` say what became of it
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

from liser_dist.checkpoints import load_checkpoint
from liser_dist.counting import COUNTS
from liser_dist.faults import BUCKET, HEAD_CPUS, BrokenRun
from liser_dist.local_cluster import LocalCluster, wait_until
from liser_dist.results import DistillResult, Record
from liser_dist.shards import ShardVisit, find_shards, read_samples, write_shards
from liser_dist.spec import DistillSpec

Member = tuple[str, bytes, dict[str, Any]]  # key, mp4, metadata
Kind = Callable[[bytes, random.Random], bytes]

GOOD, DAMAGED = "good", "damaged"
CLIPS_PER_SHARD = 37  # a shard ends in the middle of a batch
HEADER_BYTES = 400
START_LIMIT_S, CLIP_LIMIT_S = 240.0, 1.0


class DamageRow(Record):
    """What became of good clips and of as many damaged ones among them, in one epoch."""

    good: int
    good_trained_once: int
    damaged: int
    damaged_trained: int  # once; decoded in full
    damaged_rejected: int
    lost: int  # neither trained nor rejected
    twice: int  # trained more than once, or trained and rejected
    reasons: dict[str, int]  # of the rejected, good ones too if there were any
    good_clips_per_s: float
    good_clips_per_s_without_damage: float
    left_behind: list[str]  # processes and shared memory, 10 s after a job's end


# ---------------------------------------------------------------- kinds of damage


def damage(video: bytes, seed: int) -> bytes:
    """A good mp4 file, damaged in one way; the same seed gives the same bytes."""
    draw = random.Random(seed)
    kind = draw.choice(KINDS)
    damaged = video
    while damaged == video:  # zeros over zeros, say
        damaged = kind(video, draw)
    return damaged


def flip_bits(video: bytes, draw: random.Random) -> bytes:
    """One bit, some or a thousand, anywhere."""
    damaged = bytearray(video)
    for bit in draw.sample(range(8 * len(video)), 2 ** draw.randint(0, 10)):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def cut_off(video: bytes, draw: random.Random) -> bytes:
    """The end is missing; all of it, at worst."""
    return video[: draw.randrange(len(video))]


def blank_out(video: bytes, draw: random.Random) -> bytes:
    """A hole of zeros, up to a quarter of the file."""
    start = draw.randrange(len(video))
    return _overwrite(video, start, bytes(draw.randint(1, len(video) // 4)))


def break_header(video: bytes, draw: random.Random) -> bytes:
    """Nonsense in the file's first bytes, or in its `moov`, wherever that lies."""
    moov = video.find(b"moov")
    start, size = draw.choice([(0, HEADER_BYTES), (moov, _number_at(video, moov - 4))])
    nonsense = draw.randbytes(2 ** draw.randint(0, 6))
    return _overwrite(video, start + draw.randrange(size), nonsense)


def break_box_size(video: bytes, draw: random.Random) -> bytes:
    """A box that says it is longer or shorter than it is."""
    box = draw.choice(_boxes(video, b"ftyp|moov|mdat|trak|mdia|minf|stbl|stsd|st[tscz][scoz]"))
    return _overwrite(video, box, _odd_number(draw))


def break_table(video: bytes, draw: random.Random) -> bytes:
    """A number that cannot be, in a header or a table of samples."""
    box = draw.choice(_boxes(video, b"tkhd|mdhd|elst|stsd|stts|ctts|stss|stsc|stsz|stco"))
    body = range(8, max(12, _number_at(video, box)), 4)
    return _overwrite(video, box + draw.choice(body), _odd_number(draw))


KINDS: Sequence[Kind] = (
    flip_bits, cut_off, blank_out, break_header, break_box_size, break_table,
)  # fmt: skip


def _boxes(video: bytes, names: bytes) -> list[int]:
    """Where boxes begin: four bytes of size, then the name."""
    return [found.start() - 4 for found in re.finditer(names, video) if found.start() >= 4]


def _number_at(video: bytes, place: int) -> int:
    return int.from_bytes(video[place : place + 4], "big")


def _odd_number(draw: random.Random) -> bytes:
    return draw.choice([0, 1, 2**31 - 1, 2**32 - 1, draw.getrandbits(32)]).to_bytes(4, "big")


def _overwrite(video: bytes, start: int, content: bytes) -> bytes:
    """As long as before."""
    return (video[:start] + content + video[start + len(content) :])[: len(video)]


# ---------------------------------------------------------------- the mixture


def mix_damaged(
    shards: str, place: str, clips: int, seed: int, damaged: bool = True
) -> Sequence[str]:
    """Write good clips, and among them in seeded order as many damaged copies, as shards.

    The clips of `shards` come again under other keys where there are fewer. Returns the keys
    (`good-000123`, `damaged-000123`) in the order of the shards: a clip's place in it is the number
    of its weight. Raises StorageError or ShardError when there is no clip under `shards`.
    """
    sources = [member for shard in find_shards(shards, "shards") for member in _read(shard.place)]
    chosen = [(kind, n) for kind in (GOOD, DAMAGED)[: 1 + damaged] for n in range(clips)]
    random.Random(seed).shuffle(chosen)

    def members() -> Iterator[Member]:
        for kind, number in chosen:
            video, facts = sources[number % len(sources)]
            if kind == DAMAGED:
                video = damage(video, seed * clips + number)
            yield f"{kind}-{number:06d}", video, facts

    write_shards(members(), place, CLIPS_PER_SHARD)
    return [f"{kind}-{number:06d}" for kind, number in chosen]


def _read(shard: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for sample in read_samples(ShardVisit(0, shard), labelled=False):
        if not sample.rejected:
            yield sample.video, {"faces": json.loads(sample.faces)} if sample.faces else {}


# ---------------------------------------------------------------- a run on it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job did with its clips."""

    trained: Mapping[str, int]  # by key: how often
    rejected: Mapping[str, str]  # by key: why
    training_s: float
    left_behind: Sequence[str]

    def once(self, kind: str) -> int:
        """Clips of a kind that were trained once and not rejected."""
        return sum(
            times == 1 and key not in self.rejected
            for key, times in self.trained.items()
            if key.startswith(kind)
        )

    def per_s(self, clips: int) -> float:
        return clips / self.training_s if self.training_s else 0.0


def break_clips(spec: DistillSpec, folder: Path, clips: int, seed: int = 0) -> DamageRow:
    """Run the job on good clips alone, then on them and as many damaged ones.

    Raises RuntimeError or TimeoutError when one of the jobs does not reach its end.
    """
    with LocalCluster(HEAD_CPUS) as cluster:
        alone = _run(spec, folder / "good", cluster, clips, seed, damaged=False)
        mixed = _run(spec, folder / "mixed", cluster, clips, seed, damaged=True)
    trained, rejected = mixed.trained, mixed.rejected
    return DamageRow(
        good=clips,
        good_trained_once=mixed.once(GOOD),
        damaged=clips,
        damaged_trained=mixed.once(DAMAGED),
        damaged_rejected=sum(key.startswith(DAMAGED) and not trained[key] for key in rejected),
        lost=sum(not times and key not in rejected for key, times in trained.items()),
        twice=sum(times + (key in rejected) > 1 for key, times in trained.items()),
        reasons=dict(Counter(rejected.values()).most_common()),
        good_clips_per_s=mixed.per_s(clips),
        good_clips_per_s_without_damage=alone.per_s(clips),
        left_behind=[*alone.left_behind, *mixed.left_behind],
    )


def _run(
    spec: DistillSpec, folder: Path, cluster: LocalCluster, clips: int, seed: int, damaged: bool
) -> Outcome:
    shards = folder / "clips"
    shards.mkdir(parents=True)
    keys = mix_damaged(spec.data.unlabelled, str(shards), clips, seed, damaged)
    run = BrokenRun(_tolerant(spec, folder, shards), folder, cluster)
    run.start()
    limit_s = START_LIMIT_S + CLIP_LIMIT_S * len(keys)
    wait_until(lambda: run.ended, limit_s, f"the end of a job on {len(keys)} clips")
    run.wait()
    return _outcome(run, keys)


def _tolerant(spec: DistillSpec, folder: Path, shards: Path) -> DistillSpec:
    """The job, counting, for one epoch of these shards, whatever it rejects of them."""
    content = spec.model_dump()
    content["data"] |= {"unlabelled": str(shards)}
    content["student"] = {"kind": "counting"}
    content["train"] |= {"epochs": 1}
    content["budget"] |= {"max_rejected_share": 0.9, "max_rejected_in_a_row": 2**31}
    return DistillSpec.model_validate(content | {"output": str(folder / BUCKET / "runs")})


def _outcome(run: BrokenRun, keys: Sequence[str]) -> Outcome:
    (file,) = run.runs.glob("*/result.json")
    result = DistillResult.model_validate_json(file.read_text())
    counts = load_checkpoint(result.checkpoint).students[COUNTS].int().tolist()
    rejected = pq.read_table(file.parent / "rejected.parquet").to_pylist()
    return Outcome(
        trained=dict(zip(keys, counts, strict=True)),
        rejected={line["key"]: line["reason"] for line in rejected},
        training_s=result.seconds.training,
        left_behind=run.left_behind(),
    )
