"""Labelled shards -> a teacher: Ray Train's workers over the clips, decoded as any job's are.

What they leave under the run: `teacher/`, a folder that a job takes as `kind: huggingface` and that
transformers reads; `answers.parquet`, what it says of the validation and test clips; `result.json`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
from ray.data import Dataset
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from rich.table import Table

from liser_dist import cluster, pipeline, screen, storage
from liser_dist.errors import LiserError, TeacherError
from liser_dist.huggingface_backbone import backbone_shape
from liser_dist.model_folder import read_model_folder
from liser_dist.planning import Plan, require_distinct_shards, require_possible
from liser_dist.records import Clip
from liser_dist.results import Record
from liser_dist.runs import RESULT, new_run
from liser_dist.shards import ShardVisit, find_shards
from liser_dist.spec import DistillSpec
from liser_dist.streaming import UnevenSplit, WorkersJoinThemselves
from liser_dist.train_teacher_spec import TrainTeacherSpec

if TYPE_CHECKING:
    from liser_dist.teacher_loop import Answered, TeacherLoop, Trained

CLIPS = "clips"
TEACHER = "teacher"
TRAINED = "trained.json"


class SetScores(Record):
    """Of a set of clips that the teacher has not learned from."""

    clips: int
    speakers: int
    uar: float
    war: float
    macro_f1: float
    calibration_error: float  # expected, 0 to 1


class TeacherResult(Record):
    """`result.json`."""

    name: str
    backbone: str
    labelled_clips: int
    labelled_speakers: int
    left_out: dict[str, int]  # clips, by why
    tuned_epochs: int  # after so many the best weights were there
    layer_shares: list[float]  # how much the head makes of each layer; 1 where it sees one
    temperature: float
    calibration_error_before: float  # of the validation set
    validation: SetScores
    test: SetScores | None
    teacher: str  # a folder for `teachers.speech` or `teachers.face`
    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """What each worker is given."""

    spec: TrainTeacherSpec
    job: DistillSpec
    set_of: Mapping[str, str]  # by shard
    run: str
    desk: Any


def plan(spec: TrainTeacherSpec) -> Plan:
    """Check all that can be checked before Ray is asked for anything. Raises LiserError."""
    started = time.time()
    try:
        modality = read_model_folder(spec.backbone).modality
        backbone_shape(spec.backbone)  # a head can be fitted on it
    except TeacherError as error:
        raise TeacherError(f"`backbone`: {error}") from error
    job = _to_job(spec, "speech" if modality == "audio" else "face")
    capacity = require_possible(job)
    places = {name: getattr(job.data, name) for name in ("labelled", "validation", "test")}
    shards = {name: find_shards(p, f"data.{name}") for name, p in places.items() if p is not None}
    require_distinct_shards(shards)
    return Plan(spec=job, capacity=capacity, shards=shards, teachers={}, started=started)


def _to_job(spec: TrainTeacherSpec, slot: str) -> DistillSpec:
    """The job whose stages decode the clips."""
    sets = {name: getattr(spec.data, name) for name in ("labelled", "validation", "test")}
    job = DistillSpec.model_validate(
        {
            "name": spec.name,
            "seed": spec.seed,
            "emotions": spec.emotions,
            "data": {"unlabelled": spec.data.labelled, **sets},
            # A net that only hears needs no faces: they would be looked for, and kept in memory.
            "clip": spec.clip.model_dump() | ({"faces": 1} if slot == "speech" else {}),
            "teachers": {slot: {"kind": "backbone", "model": spec.backbone}},
            "train": {"workers": spec.workers, "batch_size": max(spec.batch_size, spec.workers)},
            "resources": spec.resources.model_dump(),
            "output": spec.output,
        }
    )
    return job.with_absolute_places()


def run(job: Plan, spec: TrainTeacherSpec) -> tuple[TeacherResult, str]:
    """Returns the result, and the place where it was written. Raises LiserError."""
    cluster.start_ray(job.capacity)
    place = new_run(spec, job.spec.output, spec.name)
    set_of = {shard.place: name for name, found in job.shards.items() for shard in found}
    teacher = job.spec.teachers.speech or job.spec.teachers.face
    spec = spec.model_copy(update={"backbone": getattr(teacher, "model", spec.backbone)})
    work = Work(spec, job.spec, set_of, place, desk=pipeline.open_desk())
    screen.console.print(f"training a teacher on {spec.backbone}")
    with tempfile.TemporaryDirectory(prefix="liser-train-") as scratch:
        try:
            _trainer(work, scratch).fit()
        except ray.train.TrainingFailedError as error:
            raise pipeline.ours_in(error) from error
    if failure := ray.get(work.desk.failure.remote()):
        raise failure
    trained = json.loads(storage.read_bytes(storage.join(place, TRAINED)))
    result = TeacherResult(
        name=spec.name,
        backbone=spec.backbone,
        teacher=storage.join(place, TEACHER),
        seconds=time.time() - job.started,
        **trained,
    )
    storage.write_bytes(storage.join(place, RESULT), result.model_dump_json(indent=1).encode())
    return result, storage.join(place, RESULT)


def _trainer(work: Work, scratch: str) -> DataParallelTrainer:
    resources = work.job.resources
    per_worker = {"CPU": resources.worker_cpus}
    if resources.worker_gpus:
        per_worker["GPU"] = resources.worker_gpus
    return DataParallelTrainer(
        _work,
        train_loop_config={"work": work},
        backend_config=WorkersJoinThemselves(),
        scaling_config=ScalingConfig(
            num_workers=work.spec.workers,
            use_gpu=resources.worker_gpus > 0,
            resources_per_worker=per_worker,
            label_selector=cluster.place(resources.pools.students) or None,
        ),
        run_config=RunConfig(
            name=work.spec.name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=0),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
        datasets={CLIPS: partial(_decoded, work)},
        dataset_config=UnevenSplit(pipeline.execution_options(work.job), None),
    )


def _decoded(work: Work) -> Dataset:
    """Rows of Clip, of all sets."""
    pipeline.set_context(work.job)
    visits = [ShardVisit(0, place) for place in work.set_of]
    return pipeline.decode_samples(work.job, visits, work.desk, labelled=True)


def _work(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in each worker."""
    if not config["work"].job.resources.worker_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray would leave them in sight
    import torch

    from liser_dist.teacher_loop import TeacherLoop
    from liser_dist.worker import joined

    work: Work = config["work"]
    torch.set_num_threads(max(1, int(work.job.resources.worker_cpus)))
    with joined():
        clips = _read(work)
        try:
            loop = TeacherLoop(work.spec, clips)
        except LiserError as error:  # the same in all workers; raised here, Ray would print it all
            ray.get(work.desk.fail.remote(error))
            return
        trained = loop.run()
        if loop.rank == 0:
            _leave(work, loop, trained)


def _read(work: Work) -> dict[str, list[Clip]]:
    """This worker's clips, by set: all in memory, for they are few and are looked at again."""
    clips: dict[str, list[Clip]] = {name: [] for name in ("labelled", "validation", "test")}
    px = work.job.clip.face_px
    stream = ray.train.get_dataset_shard(CLIPS)
    try:
        for batch in stream.iter_batches(batch_size=16, batch_format="pyarrow"):
            for row in batch.to_pylist():
                clips[work.set_of[row["shard"]]].append(Clip.from_row(row, px))
    except ray.exceptions.RayError as error:
        raise pipeline.ours_in(error) from error
    # By key: of one worker alone nothing depends on the order in which they were decoded.
    return {name: sorted(of_set, key=lambda clip: clip.key) for name, of_set in clips.items()}


def _leave(work: Work, loop: TeacherLoop, trained: Trained) -> None:
    """The first worker's: the teacher's folder, what it said, its scores."""
    from liser_dist.huggingface_backbone import save_teacher

    with tempfile.TemporaryDirectory() as folder:
        save_teacher(loop.backbone.module, work.spec.backbone, Path(folder))
        storage.upload_folder(Path(folder), storage.join(work.run, TEACHER))
    answered = {"validation": trained.validation, "test": trained.test}
    rows = [
        {"set": name, "key": key, "emotion": work.spec.emotions[label], "shares": share.tolist()}
        for name, said in answered.items()
        if said is not None
        for key, label, share in zip(said.keys, said.labels, said.shares(), strict=True)
    ]
    storage.write_table(storage.join(work.run, "answers.parquet"), pa.Table.from_pylist(rows))
    facts = {
        "labelled_clips": trained.clips["labelled"],
        "labelled_speakers": trained.speakers["labelled"],
        "left_out": trained.left_out,
        "tuned_epochs": trained.epochs,
        "layer_shares": [float(np.round(share, 4)) for share in trained.mix],
        "temperature": trained.temperature,
        "calibration_error_before": trained.before.calibration_error(),
        **{name: said and _scores(name, said, trained) for name, said in answered.items()},
    }
    storage.write_bytes(storage.join(work.run, TRAINED), json.dumps(facts).encode())


def _scores(name: str, said: Answered, trained: Trained) -> dict[str, Any]:
    scores = said.scores()
    return {
        "clips": trained.clips[name], "speakers": trained.speakers[name], "uar": scores.uar,
        "war": scores.war, "macro_f1": scores.macro_f1,
        "calibration_error": said.calibration_error(),
    }  # fmt: skip


def table_of(result: TeacherResult) -> Table:
    """What came of it, for a person."""
    table = Table(
        "", "validation", "test",
        title=f"{result.name}: {result.backbone} on {result.labelled_clips} clips of "
        f"{result.labelled_speakers} speakers",
    )  # fmt: skip
    sets = (result.validation, result.test)
    for name, key in {
        "UAR": "uar", "WAR": "war", "macro F1": "macro_f1",
        "expected calibration error, calibrated on validation": "calibration_error",
    }.items():  # fmt: skip
        shares = (f"{100 * getattr(one, key):.1f} %" if one else "-" for one in sets)
        table.add_row(name, *shares)
    table.add_row("before calibration", f"{100 * result.calibration_error_before:.1f} %", "")
    table.add_row("temperature", f"{result.temperature:.2f}", "")
    table.add_row("clips", *(str(one.clips) if one else "-" for one in sets))
    table.add_row("speakers", *(str(one.speakers) if one else "-" for one in sets))
    for why, count in result.left_out.items():
        table.add_row(f"clips left out: {why}", str(count), "")
    if result.tuned_epochs:
        table.add_row("epochs of tuning", str(result.tuned_epochs), "")
    return table
