"""Trains a teacher on labelled shards with Ray Train; clips are decoded as in any other job.

The run's folder then has `teacher/`, a model that transformers loads and that a job uses with
`kind: huggingface`; `answers.parquet`, its predictions for the validation and test clips; and
`result.json`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
from ray.data import Dataset
from ray.train import FailureConfig, LoggingConfig, RunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from rich.table import Table

from liser_dist import storage
from liser_dist.cluster.capacity import Capacity
from liser_dist.cluster.connect import start_ray
from liser_dist.cluster.ray_errors import unwrap_ray_error
from liser_dist.config.base import Record
from liser_dist.config.stream import StreamSpec
from liser_dist.config.teachers import TeacherIdentity
from liser_dist.config.train_teacher import TeacherDataSpec, TrainTeacherSpec
from liser_dist.console import output
from liser_dist.data.shard_list import Shard, find_shards
from liser_dist.data.shards import ShardVisit
from liser_dist.errors import LiserError
from liser_dist.pipeline.coordinator import raise_failure, start_coordinator
from liser_dist.pipeline.dataset import decode_samples, execution_options, set_context
from liser_dist.pipeline.plan import LABELLED_SETS, check_resources, require_distinct_shards
from liser_dist.records import Clip
from liser_dist.runs.folder import RESULT, start_short_run
from liser_dist.runs.predictions import PREDICTIONS_FILE, with_emotions
from liser_dist.teachers.backbone import backbone_shape
from liser_dist.teachers.identity import identify_model
from liser_dist.teachers.model_files import TRAINED, read_model_folder
from liser_dist.teachers.teachers import naming_field
from liser_dist.training.stream import JoinInWorkers, UnevenSplit
from liser_dist.training.trainer import worker_scaling

if TYPE_CHECKING:
    from liser_dist.training.teacher_loop import Predicted, TeacherLoop, Trained

_CLIPS = "clips"  # the name under which Ray Train hands the dataset to its workers
_TRAINED = "trained.json"


class SetScores(Record):
    """Scores on a set of clips on which the teacher was not trained. Shares, 0 to 1."""

    clips: int
    speakers: int
    uar: float
    war: float
    macro_f1: float
    calibration_error: float  # expected, 0 to 1


class TeacherResult(Record):
    """The content of `result.json`."""

    name: str
    backbone: str
    backbone_identity: TeacherIdentity | None = None
    labelled_clips: int
    labelled_speakers: int
    left_out: dict[str, int]  # number of clips, by reason
    tuned_epochs: int  # epochs of tuning up to the best weights
    layer_shares: list[float]  # the head's weight of each layer; 1 if there is one layer
    temperature: float
    fitted_temperature: float  # not used where it would raise the calibration error
    calibration_error_before: float  # of the validation set
    validation: SetScores
    test: SetScores | None
    warnings: list[str]  # why the scores say less than they seem to
    teacher: str  # a folder for `teachers.speech` or `teachers.face`
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherPlan:
    """The training of a teacher that passed all checks."""

    spec: TrainTeacherSpec
    stream: StreamSpec  # without teachers: it decodes the clips
    identity: TeacherIdentity  # the backbone's weights
    capacity: Capacity
    shards: Mapping[str, Sequence[Shard]]  # of each set
    started: float  # time.time() at which the job began


@dataclass(frozen=True, slots=True)
class TeacherJob:
    """Inputs of every train worker."""

    spec: TrainTeacherSpec
    stream: StreamSpec
    identity: TeacherIdentity  # the backbone's weights
    set_of: Mapping[str, str]  # the name of each shard's set
    versions: Mapping[str, str]  # of each shard
    run: str  # path of the run
    coordinator: Any  # actor


def plan_teacher(spec: TrainTeacherSpec) -> TeacherPlan:
    """Check all that can be checked before a stage starts. Writes nothing.

    Raises:
        LiserError: The backbone or the shards cannot be used, or the job does not fit the cluster.
    """
    started = time.time()
    spec = spec.with_absolute_places()
    with naming_field("backbone"):
        identity = identify_model("backbone", spec.backbone)
        modality = read_model_folder(spec.backbone, identity.commit).modality
        backbone_shape(spec.backbone, identity.commit)  # raises if no head can be fitted on it
    # An audio model needs no faces. They would cost time to find, and memory.
    clip = spec.clip.model_copy(update={"faces": 1}) if modality == "audio" else spec.clip
    capacity = check_resources(spec.resources, spec.workers, spec.clip)
    shards = {name: find_shards(path, f"data.{name}") for name, path in _paths_of(spec.data)}
    require_distinct_shards(shards)
    stream = StreamSpec(clip=clip, emotions=spec.emotions, resources=spec.resources, teachers={})
    return TeacherPlan(
        spec=spec,
        stream=stream,
        identity=identity,
        capacity=capacity,
        shards=shards,
        started=started,
    )


def _paths_of(data: TeacherDataSpec) -> list[tuple[str, str]]:
    """Return the name and the path of each set that is given."""
    paths = [("labelled", data.labelled), ("validation", data.validation), ("test", data.test)]
    return [(name, path) for name, path in paths if path is not None]


def run_teacher_training(plan: TeacherPlan) -> tuple[TeacherResult, str]:
    """Train a teacher, save it and write its scores.

    Returns:
        The result, and the path of its file.

    Raises:
        LiserError: The training ended for a reason that the user can fix.
    """
    spec = plan.spec
    start_ray(plan.capacity)
    run = start_short_run(spec, spec.output, spec.name)
    set_of = {shard.place: name for name, of_set in plan.shards.items() for shard in of_set}
    versions = {shard.place: shard.version for of_set in plan.shards.values() for shard in of_set}
    coordinator = start_coordinator()
    job = TeacherJob(spec, plan.stream, plan.identity, set_of, versions, run, coordinator)
    output.print(f"training a teacher on {spec.backbone}")
    with tempfile.TemporaryDirectory(prefix="liser-train-") as scratch:
        try:
            _trainer(job, scratch).fit()
        except ray.train.TrainingFailedError as error:
            raise_failure(job.coordinator)
            raise unwrap_ray_error(error) from error
    raise_failure(job.coordinator)
    trained = json.loads(storage.read_bytes(storage.join(run, _TRAINED)))
    result = TeacherResult(
        name=spec.name,
        backbone=spec.backbone,
        backbone_identity=plan.identity,
        teacher=storage.join(run, TRAINED),
        seconds=time.time() - plan.started,
        **trained,
    )
    path = storage.join(run, RESULT)
    storage.write_bytes(path, result.model_dump_json(indent=1).encode())
    return result, path


def _trainer(job: TeacherJob, scratch: str) -> DataParallelTrainer:
    return DataParallelTrainer(
        _work,
        train_loop_config={"job": job},
        backend_config=JoinInWorkers(),
        scaling_config=worker_scaling(job.spec.resources, job.spec.workers),
        run_config=RunConfig(
            name=job.spec.name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=0),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
        datasets={_CLIPS: partial(_decoded_clips, job)},
        dataset_config=UnevenSplit(execution_options(job.stream), None),
    )


def _decoded_clips(job: TeacherJob) -> Dataset:
    """Build the dataset of rows of Clip, of all sets."""
    set_context(job.stream)
    visits = [ShardVisit(0, path, version) for path, version in job.versions.items()]
    return decode_samples(job.stream, visits, job.coordinator, labelled=True)


def _work(config: dict[str, Any]) -> None:
    """Run in each worker of Ray Train."""
    job: TeacherJob = config["job"]
    if not job.spec.resources.worker_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves GPUs of other processes visible
    import torch

    from liser_dist.students.collectives import failing_together
    from liser_dist.training.process_group import joined
    from liser_dist.training.teacher_loop import TeacherLoop

    torch.set_num_threads(max(1, int(job.spec.resources.worker_cpus)))
    with joined():
        try:
            with failing_together():
                clips = _read_clips(job)
            loop = TeacherLoop(job.spec, clips, job.identity)
            trained = loop.run()
            if loop.rank == 0:
                _save(job, loop, trained)
        except LiserError as error:
            # All workers get this error. If it were raised here, Ray would print all of them.
            ray.get(job.coordinator.fail.remote(error))


def _read_clips(job: TeacherJob) -> dict[str, list[Clip]]:
    """Return this worker's clips by set, all in memory: they are few and are used repeatedly."""
    clips: dict[str, list[Clip]] = {name: [] for name in LABELLED_SETS}
    px = job.stream.clip.face_px
    stream = ray.train.get_dataset_shard(_CLIPS)
    try:
        for batch in stream.iter_batches(batch_size=16, batch_format="pyarrow"):
            for row in batch.to_pylist():
                clips[job.set_of[row["shard"]]].append(Clip.from_row(row, px))
    except ray.exceptions.RayError as error:
        raise unwrap_ray_error(error) from error
    # Sorted by key: with one worker, nothing depends on the order in which clips were decoded.
    return {name: sorted(of_set, key=lambda clip: clip.key) for name, of_set in clips.items()}


def _save(job: TeacherJob, loop: TeacherLoop, trained: Trained) -> None:
    """Write, from the first worker, the teacher's folder, its predictions and its scores."""
    from liser_dist.teachers.backbone import save_teacher

    with tempfile.TemporaryDirectory() as folder:
        revision = job.identity.commit
        save_teacher(loop.backbone.module, job.spec.backbone, Path(folder), revision)
        storage.upload_folder(Path(folder), storage.join(job.run, TRAINED))
    predictions = {"validation": trained.validation, "test": trained.test}
    rows = [
        {"set": name, "key": key, "emotion": job.spec.emotions[label], "shares": share.tolist()}
        for name, of_set in predictions.items()
        if of_set is not None
        for key, label, share in zip(
            of_set.keys, of_set.labels, of_set.probabilities(), strict=True
        )
    ]
    table = with_emotions(pa.Table.from_pylist(rows), job.spec.emotions)
    storage.write_table(storage.join(job.run, PREDICTIONS_FILE), table)
    facts = {
        "labelled_clips": trained.clips["labelled"],
        "labelled_speakers": trained.speakers["labelled"],
        "left_out": trained.left_out,
        "tuned_epochs": trained.epochs,
        "layer_shares": [float(np.round(share, 4)) for share in trained.mix],
        "temperature": trained.calibration.temperature,
        "fitted_temperature": trained.calibration.fitted,
        "calibration_error_before": trained.calibration.error_before,
        "warnings": list(trained.warnings),
        **{name: of_set and _scores(name, of_set, trained) for name, of_set in predictions.items()},
    }
    storage.write_bytes(storage.join(job.run, _TRAINED), json.dumps(facts).encode())


def _scores(name: str, predictions: Predicted, trained: Trained) -> dict[str, Any]:
    scores = predictions.scores()
    return {
        "clips": trained.clips[name], "speakers": trained.speakers[name], "uar": scores.uar,
        "war": scores.war, "macro_f1": scores.macro_f1,
        "calibration_error": predictions.calibration_error(),
    }  # fmt: skip


_SHARES: Mapping[str, Callable[[SetScores], float]] = {
    "UAR": lambda scores: scores.uar,
    "WAR": lambda scores: scores.war,
    "macro F1": lambda scores: scores.macro_f1,
    "expected calibration error, calibrated on validation": lambda s: s.calibration_error,
}


def teacher_table(result: TeacherResult) -> Table:
    """Return the result as a table for the terminal."""
    table = Table(
        "", "validation", "test",
        title=f"{result.name}: {result.backbone} on {result.labelled_clips} clips of "
        f"{result.labelled_speakers} speakers",
    )  # fmt: skip
    sets = (result.validation, result.test)
    for name, share_of in _SHARES.items():
        shares = ("-" if scores is None else f"{100 * share_of(scores):.1f} %" for scores in sets)
        table.add_row(name, *shares)
    table.add_row("before calibration", f"{100 * result.calibration_error_before:.1f} %", "")
    table.add_row("temperature", f"{result.temperature:.2f}", "")
    table.add_row("clips", *(str(scores.clips) if scores else "-" for scores in sets))
    table.add_row("speakers", *(str(scores.speakers) if scores else "-" for scores in sets))
    for reason, count in result.left_out.items():
        table.add_row(f"clips left out: {reason}", str(count), "")
    if result.tuned_epochs:
        table.add_row("epochs of tuning", str(result.tuned_epochs), "")
    return table
