"""Exports a checkpoint's student to a folder that can be used without this package.

    model.onnx  model.int8.onnx       waveform in, probabilities and embedding out
    model.safetensors  config.json    the torch weights, and the student's settings
    predict.py  requirements.txt      any audio or video file -> emotions over time
    README.md                         a model card
    export.json                       differences from torch, sizes, speed, scores; written last

1. `plan_export`   resolves checkpoint, student and clips, and reports user errors
2. `run_export`    writes the models, measures them, and uploads the folder
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from liser_dist import storage
from liser_dist.config.distill import DistillSpec
from liser_dist.config.export import ExportSpec
from liser_dist.config.teachers import TeacherSpec
from liser_dist.data.shard_list import Shard, find_shards
from liser_dist.errors import CheckpointError, SpecError
from liser_dist.export import predict
from liser_dist.export.clips import (
    TIMED_CLIPS,
    fill_windows,
    join_segments,
    min_audio_s,
    read_calibration_clips,
    read_scored_clips,
)
from liser_dist.export.measure import compare_outputs, measure_footprints, score_exports
from liser_dist.export.model_card import write_card
from liser_dist.export.onnx import join_models, quantise, write_front, write_net
from liser_dist.export.predict import ExportedStudent
from liser_dist.export.result import Export
from liser_dist.records import Clip, to_floats
from liser_dist.runs.checkpoint_files import (
    list_checkpoints,
    load_ledger,
    read_checkpoint_spec,
    read_digests,
)
from liser_dist.runs.folder import RESULT
from liser_dist.runs.results import DistillResult, read_record
from liser_dist.students.models import Student
from liser_dist.students.pretrained import load_student
from liser_dist.students.variants import teachers_of

logger = logging.getLogger(__name__)

CONFIG_FORMAT = 1  # version of config.json
MAX_INT8_LOSS = 0.01  # of UAR; more is logged as a warning
_PREDICT_REQUIREMENTS = ("onnxruntime", "numpy", "av")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """A checked export job.

    Attributes:
        spec: What the user asked for.
        checkpoint: Path of the checkpoint.
        run_spec: Spec of the run that wrote the checkpoint.
        student: The student, with the checkpoint's weights.
        shards: Shards to calibrate on, under "clips", and to score on, under "labelled" if given.
        passes: Unlabelled clips trained or rejected up to the checkpoint, counted once per epoch.
        sets: Number of clips in each of the run's sets of shards, as far as it is known.
        result: Result of the run; None if the checkpoint is not the one that the result names.
    """

    spec: ExportSpec
    checkpoint: str
    run_spec: DistillSpec
    student: Student
    shards: dict[str, list[Shard]]
    passes: int
    sets: dict[str, int]
    result: DistillResult | None

    @property
    def teachers(self) -> dict[str, TeacherSpec]:
        """The teachers that the student learned from, by modality."""
        names = teachers_of(self.spec.student)
        return {
            name: teacher
            for name, teacher in self.run_spec.teachers.by_name.items()
            if name in names
        }


def plan_export(spec: ExportSpec) -> ExportPlan:
    """Load the checkpoint and find the shards.

    Raises:
        SpecError: The student needs faces, or the output folder is not empty.
        CheckpointError: The checkpoint or the student in it does not exist.
        StorageError: The output cannot be written.
    """
    checkpoint = _resolve_checkpoint(spec.checkpoint)
    student, _ = load_student(checkpoint, spec.student)
    if student.seen_px:
        raise SpecError(
            f"`checkpoint`: the student of {checkpoint} takes face input, and only audio students "
            "can be exported: give a checkpoint of a student with `input: audio`"
        )
    if storage.exists(spec.output) and storage.list_files(spec.output):
        raise SpecError(f"`output`: {spec.output} is not empty: give a folder that does not exist")
    storage.require_writable(spec.output, "output")
    run_spec = read_checkpoint_spec(checkpoint, read_digests(checkpoint))
    places = {
        "clips": spec.data.clips or run_spec.data.unlabelled,
        "labelled": (spec.data.labelled or run_spec.data.test) if spec.score else None,
    }
    return ExportPlan(
        spec=spec,
        checkpoint=checkpoint,
        run_spec=run_spec,
        student=student,
        shards={
            name: find_shards(place, f"data.{name}") for name, place in places.items() if place
        },
        passes=load_ledger(checkpoint).passes,
        sets=_count_set_clips(checkpoint),
        result=_read_result(checkpoint),
    )


def _resolve_checkpoint(place: str) -> str:
    """Return the path of a checkpoint, or of the newest one of a run.

    Raises:
        CheckpointError: There is none.
    """
    if storage.exists(place, storage.CHECK_PATIENCE_S):
        if "step-" in place.rstrip("/").rpartition("/")[2]:
            return storage.resolve(place)
        if checkpoints := list_checkpoints(place):
            return checkpoints[-1]
    raise CheckpointError(
        f"`checkpoint`: {place} has no checkpoint: give a run's folder (runs/NAME/001), or one "
        "of its checkpoints"
    )


def _count_set_clips(checkpoint: str) -> dict[str, int]:
    place = storage.join(checkpoint.rpartition("/checkpoints/")[0] or checkpoint, "shards.json")
    sets = json.loads(storage.read_bytes(place)) if storage.exists(place) else {}
    return {name: sum(shard["clips"] for shard in shards) for name, shards in sets.items()}


def _read_result(checkpoint: str) -> DistillResult | None:
    run, _, name = checkpoint.rpartition("/checkpoints/")
    place = storage.join(run, RESULT)
    if not run or not storage.exists(place):
        return None
    result = read_record(place, DistillResult)
    return result if result.checkpoint.endswith(f"/{name}") else None


def run_export(plan: ExportPlan) -> tuple[Export, str]:
    """Write the exported folder.

    Returns:
        The measurements, and the path of `export.json`.

    Raises:
        SpecError: No clip can be decoded.
        StorageError: The output cannot be written.
    """
    run_spec = plan.run_spec
    shards, count = plan.shards["clips"], plan.spec.clips
    clips = list(islice(read_calibration_clips(shards, count, run_spec.seed, run_spec.clip), count))
    if not clips:
        raise SpecError(
            "`data.clips`: no clip could be decoded to at least "
            f"{min_audio_s(run_spec.clip):g} s of audio: give other shards"
        )
    with tempfile.TemporaryDirectory(prefix="liser-export-") as name:
        folder = Path(name)
        front_bytes = write_models(plan, clips, folder)
        export = measure_export(plan, clips, folder, front_bytes)
        card = write_card(export, run_spec, plan.teachers, plan.result, plan.sets)
        (folder / "README.md").write_text(card)
        storage.upload_folder(folder, plan.spec.output)
    place = storage.join(plan.spec.output, "export.json")
    storage.write_bytes(place, export.model_dump_json(indent=1).encode())
    return export, place


def write_models(plan: ExportPlan, clips: Sequence[Clip], folder: Path) -> int:
    """Write all files except the model card and `export.json`.

    Returns:
        Size of the front end in bytes, which is part of both models.
    """
    logger.info("writing the student as ONNX, float32 and int8, with %d clips to try", len(clips))
    student, run_spec = plan.student, plan.run_spec
    front, net = write_front(student), write_net(student)
    method = run_spec.student.quantisation
    assert method is not None, "load_student refuses students that predict nothing"
    quantised = quantise(net, method, (_log_mel(student, clip) for clip in clips))
    onnx.save(join_models(front, net), folder / "model.onnx")
    onnx.save(join_models(front, quantised), folder / "model.int8.onnx")
    save_file(student.state_dict(), folder / "model.safetensors")
    config = {
        "format": CONFIG_FORMAT,
        "name": run_spec.name,
        "emotions": run_spec.emotions,
        "sample_rate_hz": run_spec.clip.sample_rate_hz,
        "window_s": run_spec.clip.window_s,
        "least_s": min_audio_s(run_spec.clip),
        "student": run_spec.student.model_dump(mode="json"),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "predict.py").write_text(Path(predict.__file__).read_text())
    (folder / "requirements.txt").write_text("\n".join([*_requirements(), ""]))
    return front.ByteSize()


def _log_mel(student: Student, clip: Clip) -> NDArray[np.float32]:
    """Return the log-mel [1, frames, mels] of a clip."""
    with torch.inference_mode():
        mel: NDArray[np.float32] = student.features(
            torch.from_numpy(to_floats(clip.waveform))[None]
        ).numpy()
    return mel


def _requirements() -> list[str]:
    """Return the requirements of predict.py, with the versions that this package requires."""
    lines: Mapping[str, str] = {
        re.split(r"[^\w-]", line)[0]: line for line in requires("liser_dist") or ()
    }
    return [lines[name] for name in _PREDICT_REQUIREMENTS]


def measure_export(
    plan: ExportPlan, clips: Sequence[Clip], folder: Path, front_bytes: int
) -> Export:
    """Compare, score and time the models in a folder that `write_models` wrote."""
    run_spec = plan.run_spec
    models = ExportedStudent(folder), ExportedStudent(folder, int8=True)
    scoring = ", and scoring both on labelled clips" * ("labelled" in plan.shards)
    logger.info("comparing model.onnx and model.int8.onnx with torch%s", scoring)
    segments = list(join_segments(clips, plan.spec.clips, run_spec.clip.sample_rate_hz))
    parity, int8_parity = compare_outputs(plan.student, models, segments)
    scored = read_scored_clips(plan.shards.get("labelled", ()), run_spec.emotions, run_spec.clip)
    scores, int8_scores = score_exports(models, scored, run_spec.emotions, plan.spec.resamples)
    if scores and int8_scores and scores.uar - int8_scores.uar > MAX_INT8_LOSS:
        loss = 100 * (scores.uar - int8_scores.uar)
        logger.warning(
            "the UAR of model.int8.onnx is %.1f points below that of model.onnx: raise `clips` to "
            "calibrate it on more of them, or use model.onnx",
            loss,
        )
    logger.info("measuring size, speed and memory")
    footprints = measure_footprints(
        folder,
        plan.teachers if plan.spec.teachers else {},
        run_spec.emotions,
        run_spec.clip,
        fill_windows(clips[:TIMED_CLIPS], run_spec.clip),
    )
    return Export(
        name=run_spec.name,
        checkpoint="/".join(plan.checkpoint.split("/")[-4:]),
        student=plan.spec.student,
        finished=plan.result is not None,
        passes=plan.passes,
        params=plan.student.params,
        parity_max_abs=parity,
        int8_max_abs=int8_parity,
        compared=len(segments),
        clips=len(clips),
        onnx_bytes=(folder / "model.onnx").stat().st_size,
        int8_bytes=(folder / "model.int8.onnx").stat().st_size,
        front_bytes=front_bytes,
        uar=scores and scores.uar,
        int8_uar=int8_scores and int8_scores.uar,
        real_time_factor=footprints["model.onnx"].real_time_factor,
        p99_ms=footprints["model.onnx"].p99_ms,
        scores=scores,
        footprints=footprints,
    )
