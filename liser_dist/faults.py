"""Break a running job and count its clips afterwards, by the weights and not by what it says.

1. a job with a counting student runs on a cluster of its own, as a user would start it
2. at random moments something of it is killed, cut off or filled up
3. the weights of the last checkpoint say how often each clip was trained
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml

from liser_dist.checkpoints import load_checkpoint
from liser_dist.committed import COMMITTED, step_of
from liser_dist.counting import COUNTS
from liser_dist.flaky_s3 import FlakyS3
from liser_dist.local_cluster import LocalCluster, wait_until
from liser_dist.results import Record
from liser_dist.shards import find_shards
from liser_dist.spec import DistillSpec

JOB = Path(__file__).parents[1] / "jobs" / "distill.py"
RECOVERY_LIMIT_S = 240.0
LEFT_AFTER_S = 10.0
NOTICE_S = 10
HEAD_CPUS = 3
BUCKET = "bucket"


class FaultRow(Record):
    """What became of the clips of a run in which one fault was injected."""

    fault: str
    injected_at: int  # clips trained by then, counted once an epoch
    recovered_s: float  # until the next checkpoint with more clips in it
    total: int  # clips of the run
    trained_once: int  # in each epoch
    lost: int
    twice: int
    rejected: int
    left_behind: list[str]  # processes and shared memory, 10 s after the job's end


@dataclass
class BrokenRun:
    """A job that is running, and what it runs on."""

    spec: DistillSpec
    folder: Path
    cluster: LocalCluster
    s3: FlakyS3 | None = None
    job: subprocess.Popen[bytes] | None = None
    nodes: list[int] = field(default_factory=list)  # beside the head
    draw: random.Random = field(default_factory=random.Random)  # whom it hits, and when
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "job.log"

    def start(self, **change: Any) -> None:
        """Submit the job, or submit it again; `change` is of `train`."""
        content = self.spec.model_dump(mode="json")
        content["train"] |= change
        file = self.folder / "spec.yaml"
        file.write_text(yaml.safe_dump(content))
        with self.log.open("ab") as log:
            self.job = subprocess.Popen(
                [sys.executable, str(JOB), str(file)],
                env=self.cluster.environment, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def runs(self) -> Path:
        """The job's runs, on disk also when they are on S3."""
        return self.folder / BUCKET / "runs" / self.spec.name

    @property
    def step(self) -> int:
        """Of the newest checkpoint."""
        return max((step_of(str(place.parent)) for place in self._committed()), default=0)

    def _committed(self) -> Iterator[Path]:
        return self.runs.glob(f"*/checkpoints/step-*/{COMMITTED}")

    @property
    def ended(self) -> bool:
        assert self.job is not None
        return self.job.poll() is not None

    def wait_for_step(self, step: int) -> None:
        """Until a checkpoint has it, or the job has ended."""
        wait_until(lambda: self.step >= step or self.ended, RECOVERY_LIMIT_S, f"step {step}")

    def wait(self) -> None:
        """Raises RuntimeError, with the end of the job's log, when it failed."""
        assert self.job is not None
        if self.job.wait(RECOVERY_LIMIT_S):
            raise RuntimeError(f"the job failed:\n{self.log.read_text()[-3000:]}")

    def left_behind(self) -> list[str]:
        """What of the job is still there 10 s after its end."""
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.cluster.left_behind(), LEFT_AFTER_S, "an end")
        return self.cluster.left_behind()

    def kill(self, found: Callable[[], Sequence[psutil.Process]]) -> None:
        """SIGKILL to one of the processes that are found, once there is one."""
        wait_until(lambda: bool(found()) or self.ended, RECOVERY_LIMIT_S, "a process to kill")
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            self.draw.choice(found()).send_signal(signal.SIGKILL)

    def decoder_children(self) -> list[psutil.Process]:
        """The decoders' children that decode: children of their fork servers."""
        return [
            child
            for decoder in self.cluster.workers("MapBatches(Decode)")
            for server in _children(decoder)
            for child in _children(server)
        ]

    def resubmit(self, **change: Any) -> None:
        assert self.job is not None
        self.job.kill()
        self.job.wait()
        self.start(**change)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        found: list[psutil.Process] = process.children()
        return found
    return []


# ---------------------------------------------------------------- what is injected


def kill_worker(run: BrokenRun) -> None:
    run.kill(lambda: run.cluster.workers("RayTrainWorker"))


def kill_decoder(run: BrokenRun) -> None:
    run.kill(lambda: run.cluster.workers("MapBatches(Decode)"))


def kill_decoder_child(run: BrokenRun) -> None:
    run.kill(run.decoder_children)


def kill_teacher(run: BrokenRun) -> None:
    run.kill(lambda: run.cluster.workers("MapBatches(Teach)"))


def kill_driver(run: BrokenRun) -> None:
    run.resubmit()


def kill_driver_and_take_one_worker(run: BrokenRun) -> None:
    run.resubmit(workers=1)


def kill_driver_and_take_two_workers(run: BrokenRun) -> None:
    run.resubmit(workers=2)


def add_node(run: BrokenRun) -> None:
    """Room for a worker more, which an elastic job takes."""
    run.nodes.append(run.cluster.add_node(cpus=1))
    _wait_for_worker_on(run, run.nodes[-1])


def lose_node(run: BrokenRun) -> None:
    """One that works for the job, which may have to be added before."""
    if not run.nodes:
        add_node(run)
    run.cluster.lose_node(run.nodes.pop())


def lose_node_after_notice(run: BrokenRun) -> None:
    """A node more, told to go while it works for the job, and gone when its time has come."""
    add_node(run)
    run.cluster.give_notice(run.nodes[-1], NOTICE_S)
    time.sleep(NOTICE_S)
    run.cluster.lose_node(run.nodes.pop())


def _wait_for_worker_on(run: BrokenRun, node: int) -> None:
    def there() -> bool:
        return bool(run.cluster.workers("RayTrainWorker", node))

    wait_until(lambda: there() or run.ended, RECOVERY_LIMIT_S, "a worker on the new node")
    run.wait_for_step(run.step + 1)


def restart_s3(run: BrokenRun) -> None:
    assert run.s3 is not None
    run.s3.restart(down_s=3.0)


def refuse_s3(run: BrokenRun) -> None:
    assert run.s3 is not None
    run.s3.refuse(status=503, seconds=20.0)


def fill_disk(run: BrokenRun) -> None:
    """Leave no byte free where the run is written, over some checkpoints; then give them back."""
    ballast = run.runs / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(2**12))
            file.flush()
    time.sleep(3.0)
    ballast.unlink()


@dataclass(frozen=True, slots=True)
class Fault:
    """What is injected, and what the job needs for it to mean anything."""

    inject: Callable[[BrokenRun], None]
    train: Mapping[str, Any] = field(default_factory=dict)
    # Of the speech teacher: a job that lasts long enough, or decoders that stay at work to its end.
    seconds_per_clip: float | None = None
    on_s3: bool = False
    small_disk: bool = False


_ELASTIC = {"workers": [1, 5], "resize_every_s": 2.0, "epochs": 3}
FAULTS: Mapping[str, Fault] = {
    "train worker killed": Fault(kill_worker),
    "decode actor killed": Fault(kill_decoder, {"epochs": 6}, seconds_per_clip=0.005),
    "decoding child killed": Fault(kill_decoder_child, {"epochs": 6}, seconds_per_clip=0.005),
    "teacher actor killed": Fault(kill_teacher),
    "elastic resize": Fault(add_node, _ELASTIC, seconds_per_clip=0.1),
    "node lost": Fault(lose_node, _ELASTIC, seconds_per_clip=0.1),
    "node lost after notice": Fault(
        lose_node_after_notice, {**_ELASTIC, "max_failures": 0}, seconds_per_clip=0.12
    ),
    "driver killed, resubmitted": Fault(kill_driver),
    "driver killed, 1 worker instead of 2": Fault(kill_driver_and_take_one_worker),
    "driver killed, 2 workers instead of 1": Fault(
        kill_driver_and_take_two_workers, {"workers": 1}
    ),
    "S3 server restarted": Fault(restart_s3, on_s3=True),
    "S3 answers 503 for 20 s": Fault(refuse_s3, on_s3=True),
    "disk full at checkpoint": Fault(
        fill_disk, {"epochs": 3}, seconds_per_clip=0.1, small_disk=True
    ),
}


# ---------------------------------------------------------------- a run with faults


def inject_faults(
    spec: DistillSpec, names: Sequence[str], folder: Path, seed: int = 0
) -> list[FaultRow]:
    """Run the job once, and inject each named fault in turn at a random moment.

    Raises RuntimeError when the job does not reach its end.
    """
    faults = [FAULTS[name] for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(_prepared(spec, faults, folder))
        clips = sum(shard.clips for shard in find_shards(spec.data.unlabelled, "data.unlabelled"))
        run.draw.seed(seed)
        moments = _moments(run.spec, clips, len(names), run.draw)
        run.start()
        injected = [_inject(run, name, moment) for name, moment in zip(names, moments, strict=True)]
        run.wait()
        left = run.left_behind()
        account = account_for(run)
    return [
        FaultRow(fault=name, injected_at=at, recovered_s=took, left_behind=left, **account)
        for name, at, took in injected
    ]


@contextlib.contextmanager
def _prepared(spec: DistillSpec, faults: Sequence[Fault], folder: Path) -> Iterator[BrokenRun]:
    """The cluster, the server and the disk that the faults need, with the spec that names them."""
    train = {name: value for fault in faults for name, value in fault.train.items()}
    bucket = folder / BUCKET
    bucket.mkdir(exist_ok=True)
    output = str(bucket / "runs")
    with contextlib.ExitStack() as stack:
        s3 = None
        if any(fault.small_disk for fault in faults):
            stack.enter_context(_small_disk(bucket))
        if any(fault.on_s3 for fault in faults):
            s3 = stack.enter_context(FlakyS3(folder))
            output = f"s3://{BUCKET}/runs"
        content = spec.model_dump()
        content |= {"output": output, "train": {**content["train"], **train}}
        if slow := [fault.seconds_per_clip for fault in faults if fault.seconds_per_clip]:
            content["teachers"]["speech"] |= {"seconds_per_clip": max(slow)}
        if s3 is not None:
            content["data"] |= {"unlabelled": _copy_to_bucket(spec.data.unlabelled, bucket)}
        environment = s3.environment if s3 else None
        cluster = stack.enter_context(LocalCluster(HEAD_CPUS, environment=environment))
        yield BrokenRun(DistillSpec.model_validate(content), folder, cluster, s3)


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[None]:
    """Raises CalledProcessError where this user may mount nothing."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _copy_to_bucket(shards: str, bucket: Path) -> str:
    target = bucket / "clips"
    target.mkdir(exist_ok=True)
    for file in Path(shards).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return f"s3://{BUCKET}/clips"


def _moments(spec: DistillSpec, clips: int, count: int, draw: random.Random) -> list[int]:
    """Steps, rising, in the first half of the run: there must be something left to do."""
    steps = clips * spec.train.epochs // spec.train.batch_size
    return sorted(draw.randint(1, steps // 2) for _ in range(count))


def _inject(run: BrokenRun, name: str, moment: int) -> tuple[str, int, float]:
    """Fault, clips trained by then, seconds until more of them were kept."""
    run.wait_for_step(moment)
    time.sleep(run.draw.uniform(0, 0.3))
    at, started = run.step, time.monotonic()
    FAULTS[name].inject(run)
    if run.ended:
        raise RuntimeError(f"the job ended before {name!r} could harm it: {run.log}")
    run.wait_for_step(run.step + 1)
    return name, at * run.spec.train.batch_size, time.monotonic() - started


def account_for(run: BrokenRun) -> dict[str, int]:
    """How often each clip is in the weights of each epoch, beside how often it should be: once."""
    (result,) = run.runs.glob("*/result.json")
    newest = max(run._committed(), key=lambda place: place.parent.name).parent
    counts = load_checkpoint(str(newest)).students[COUNTS].view(run.spec.train.epochs, -1)
    missing = (counts == 0).any(dim=0)
    rejected = pq.read_table(result.parent / "rejected.parquet", columns=["shard", "index"])
    distinct = rejected.group_by(["shard", "index"]).aggregate([]).num_rows
    return {
        "total": counts.shape[1],
        "trained_once": int((counts == 1).all(dim=0).sum()),
        "lost": int(missing.sum()) - distinct,
        "twice": int((counts > 1).any(dim=0).sum()),
        "rejected": distinct,
    }
