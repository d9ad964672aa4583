"""Checkpoint -> a folder that runs alone: the student as ONNX, and what there is to know of it.

    model.onnx  model.int8.onnx       waveform in, probabilities and embedding out
    model.safetensors  config.json    the weights as torch has them, and what the student is
    predict.py  requirements.txt      any audio or video file -> emotions over time
    README.md                         a model card
    export.json                       parity, sizes, speed, scores; written last

1. `plan`   which checkpoint, student and clips; what the user can mend is told here
2. `run`    writes the models, compares, scores and measures them, and writes the folder
"""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import requires
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from liser_dist import footprint, onnx_writer, predict, storage
from liser_dist.assessment import Scored, assess
from liser_dist.batches import TEACHERS
from liser_dist.checkpoints import load_student
from liser_dist.committed import list_checkpoints, load_ledger, read_digests, read_spec
from liser_dist.errors import CheckpointError, SpecError, in_a_line
from liser_dist.export_result import Export
from liser_dist.export_spec import ExportSpec
from liser_dist.footprint import Footprint
from liser_dist.guard import ClipDecoder
from liser_dist.learning import HEARD
from liser_dist.model_card import write_card
from liser_dist.onnx_writer import LEAST_S
from liser_dist.predict import ExportedStudent
from liser_dist.records import Clip, Example, Sample, to_floats
from liser_dist.results import DistillResult, read_record
from liser_dist.runs import RESULT
from liser_dist.shards import Shard, ShardVisit, find_shards, read_samples, shard_order
from liser_dist.spec import ClipSpec, DistillSpec
from liser_dist.students import Student

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
FORMAT = 1
SHORTEST_S, LONGEST_S = 0.5, 30.0  # of the sound that ONNX and torch are compared on
LEAST_OF_A_SHARD = 8  # clips
MEASURED = 20  # clips that the speed is measured on
MOST_LOST = 0.01  # of UAR in 8 bits, without a word
_NEEDED = ("onnxruntime", "numpy", "av")  # by predict.py


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    spec: ExportSpec
    checkpoint: str
    job: DistillSpec  # of the run that it is of
    student: Student
    shards: dict[str, list[Shard]]  # "clips", and "labelled" where there are any
    passes: int  # clips in the weights, counted once an epoch
    sets: dict[str, int]  # clips of the run's sets of shards, as far as that is known
    result: DistillResult | None  # of the run, where the checkpoint is its last


def plan(spec: ExportSpec) -> ExportPlan:
    """Raises LiserError."""
    place = _checkpoint_at(spec.checkpoint)
    student, _ = load_student(place, spec.student)
    if student.seen_px:
        raise SpecError(
            f"`checkpoint`: the student of {place} sees faces, and what is exported hears alone: "
            "give one of `student.input: audio`"
        )
    if storage.exists(spec.output) and storage.list_files(spec.output):
        raise SpecError(f"`output`: {spec.output} is not empty: give a folder that is not there")
    storage.require_writable(spec.output, "output")
    job = read_spec(place, read_digests(place))
    places = {
        "clips": spec.data.clips or job.data.unlabelled,
        "labelled": (spec.data.labelled or job.data.test) if spec.score else None,
    }
    return ExportPlan(
        spec=spec,
        checkpoint=place,
        job=job,
        student=student,
        shards={name: find_shards(at, f"data.{name}") for name, at in places.items() if at},
        passes=load_ledger(place).passes,
        sets=_sets_of(place),
        result=_result_of(place),
    )


def _checkpoint_at(place: str) -> str:
    """A checkpoint, or the newest of a run. Raises CheckpointError."""
    if "step-" in place.rstrip("/").rpartition("/")[2]:
        return storage.resolve(place)
    if places := list_checkpoints(place):
        return places[-1]
    raise CheckpointError(
        f"`checkpoint`: {place} has no checkpoint: give a run's folder (runs/NAME/001), or one "
        "of its checkpoints"
    )


def _sets_of(checkpoint: str) -> dict[str, int]:
    place = storage.join(checkpoint.rpartition("/checkpoints/")[0] or checkpoint, "shards.json")
    found = json.loads(storage.read_bytes(place)) if storage.exists(place) else {}
    return {name: sum(one["clips"] for one in shards) for name, shards in found.items()}


def _result_of(checkpoint: str) -> DistillResult | None:
    run, _, name = checkpoint.rpartition("/checkpoints/")
    place = storage.join(run, RESULT)
    if not run or not storage.exists(place):
        return None
    result = read_record(place, DistillResult)
    return result if result.checkpoint.endswith(f"/{name}") else None


def run(asked: ExportPlan) -> tuple[Export, str]:
    """Returns what was found, and the place where it was written. Raises LiserError."""
    clips = list(islice(read_clips(asked), asked.spec.clips))
    if not clips:
        raise SpecError("`data.clips`: not one of the clips can be heard: give other shards")
    with tempfile.TemporaryDirectory(prefix="liser-export-") as name:
        folder = Path(name)
        front_bytes = write_models(asked, clips, folder)
        found = look_at(asked, clips, folder, front_bytes)
        (folder / "README.md").write_text(write_card(found, asked.job, asked.result, asked.sets))
        storage.upload_folder(folder, asked.spec.output)
    place = storage.join(asked.spec.output, "export.json")
    storage.write_bytes(place, found.model_dump_json(indent=1).encode())
    return found, place


def look_at(asked: ExportPlan, clips: Sequence[Clip], folder: Path, front_bytes: int) -> Export:
    """What the models in the folder are worth."""
    nets = ExportedStudent(folder), ExportedStudent(folder, int8=True)
    logger.info("comparing ONNX with torch%s", ", and scoring both" * ("labelled" in asked.shards))
    stretches = list(stretches_of(clips, asked.spec.clips, asked.job.clip.sample_rate_hz))
    parity, int8_parity = compare(asked.student, nets, stretches)
    scores, int8_scores = score(asked, nets)
    if scores and int8_scores and scores.uar - int8_scores.uar > MOST_LOST:
        lost = 100 * (scores.uar - int8_scores.uar)
        logger.warning("in 8 bits %.1f points of UAR are lost: more clips to calibrate by?", lost)
    logger.info("measuring how fast each is")
    footprints = measure(asked, folder, clips)
    return Export(
        name=asked.job.name,
        checkpoint="/".join(asked.checkpoint.split("/")[-4:]),
        student=asked.spec.student,
        finished=asked.result is not None,
        passes=asked.passes,
        params=asked.student.params,
        parity_max_abs=parity,
        int8_max_abs=int8_parity,
        compared=len(stretches),
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


# ---------------------------------------------------------------- clips


def read_clips(asked: ExportPlan) -> Iterator[Clip]:
    """To calibrate and compare by: some of each shard, the first shards being drawn."""
    shards = asked.shards["clips"]
    of_each = max(LEAST_OF_A_SHARD, math.ceil(asked.spec.clips / len(shards)))
    samples = (
        sample
        for visit in shard_order(shards, 1, asked.job.seed)
        for sample in islice(read_samples(visit, labelled=False), of_each)
    )
    for number, clip in enumerate(decoded(samples, asked.job.clip)):
        # Of a few the faces are needed, to see how fast a face teacher is.
        yield clip if number < MEASURED else replace(clip, faces=clip.faces[:0])


def read_labelled(asked: ExportPlan) -> Iterator[Clip]:
    """To score on: all whose emotion is one of the job's. Of their faces one is enough."""
    samples = (
        sample
        for shard in asked.shards.get("labelled", ())
        for sample in read_samples(ShardVisit(0, shard.place))
        if sample.emotion in asked.job.emotions
    )
    return decoded(samples, asked.job.clip.model_copy(update={"faces": 1}))


def decoded(samples: Iterable[Sample], spec: ClipSpec) -> Iterator[Clip]:
    """The middle window of each, as of a run's labelled clips; bad ones are left out."""
    with ClipDecoder(spec) as decoder:
        for clip in decoder.decode_all((sample, 0.5) for sample in samples):
            if not clip.rejected and len(clip.waveform) >= least_s(spec) * spec.sample_rate_hz:
                yield clip


def least_s(spec: ClipSpec) -> float:
    """Of sound, for an answer."""
    return max(LEAST_S, min(spec.min_duration_s, spec.window_s))


def stretches_of(clips: Sequence[Clip], count: int, rate_hz: int) -> Iterator[Floats]:
    """Sound of `SHORTEST_S` to `LONGEST_S`, each from another clip on, and into the next ones."""
    lengths = np.geomspace(SHORTEST_S, LONGEST_S, count) * rate_hz
    for first, length in enumerate(np.round(lengths).astype(int)):
        parts: list[Floats] = []
        while sum(map(len, parts)) < length:
            parts.append(to_floats(clips[(first + len(parts)) % len(clips)].waveform))
        yield np.concatenate(parts)[:length]


# ---------------------------------------------------------------- files


def write_models(asked: ExportPlan, clips: Sequence[Clip], folder: Path) -> int:
    """All files but the card and `export.json`; returns the bytes of the front end alone."""
    logger.info("writing the student as ONNX, calibrated on %d clips", len(clips))
    student, job = asked.student, asked.job
    front, net = onnx_writer.write_front(student), onnx_writer.write_net(student)
    assert job.student.kind != "counting"
    small = onnx_writer.quantise(net, job.student, (_mel(student, clip) for clip in clips))
    onnx.save(onnx_writer.join(front, net), folder / "model.onnx")
    onnx.save(onnx_writer.join(front, small), folder / "model.int8.onnx")
    save_file(student.state_dict(), folder / "model.safetensors")
    config = {
        "format": FORMAT,
        "name": job.name,
        "emotions": job.emotions,
        "sample_rate_hz": job.clip.sample_rate_hz,
        "window_s": job.clip.window_s,
        "least_s": least_s(job.clip),
        "student": job.student.model_dump(mode="json"),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "predict.py").write_text(Path(predict.__file__).read_text())
    (folder / "requirements.txt").write_text("\n".join([*_requirements(), ""]))
    return front.ByteSize()


def _mel(student: Student, clip: Clip) -> Floats:
    with torch.inference_mode():
        mel: Floats = student.features(torch.from_numpy(to_floats(clip.waveform))[None]).numpy()
    return mel


def _requirements() -> list[str]:
    """As this package asks for them."""
    known = {re.split(r"[^\w-]", line)[0]: line for line in requires("liser_dist") or ()}
    return [known[name] for name in _NEEDED]


# ---------------------------------------------------------------- what it is worth


def compare(
    student: Student, exported: Sequence[ExportedStudent], stretches: Sequence[Floats]
) -> list[float]:
    """The largest difference in a probability between torch and each ONNX file."""
    worst = [0.0] * len(exported)
    for sound in stretches:
        waveform = torch.from_numpy(sound)[None]
        with torch.inference_mode():
            frames = student.features.frames(torch.tensor([len(sound)]))
            logits = student.encode(student.features(waveform), frames).logits
        expected = torch.softmax(logits, dim=1).numpy()
        for number, net in enumerate(exported):
            found, _ = net.infer(sound[None])
            worst[number] = max(worst[number], float(np.abs(found - expected).max()))
    return worst


def score(asked: ExportPlan, nets: Sequence[ExportedStudent]) -> list[Scored | None]:
    """Of each, on the labelled clips; None without any."""
    examples: list[Example] = []
    shares: list[list[Floats]] = [[] for _ in nets]
    for clip in read_labelled(asked):
        examples.append(Example(**clip.provenance(), **clip.labels()))
        for net, found in zip(nets, shares, strict=True):
            found.append(net.infer(to_floats(clip.waveform)[None])[0])
    if not examples:
        return [None] * len(nets)
    logits = [np.log(np.concatenate(found).clip(1e-12)) for found in shares]
    emotions, resamples = asked.job.emotions, asked.spec.resamples
    found_of = (assess(examples, one, emotions, {}, resamples) for one in logits)
    # What leaves the house names nobody who spoke.
    nobody: dict[str, Any] = {"by_speaker": {}, "by_intensity": {}, "by_fold": {}}
    return [one.model_copy(update=nobody) for one in found_of]


def measure(asked: ExportPlan, folder: Path, clips: Sequence[Clip]) -> dict[str, Footprint]:
    """Of both models, and of the teachers, as far as those can still be had."""
    job, windows = asked.job, whole_windows(clips[:MEASURED], asked.job.clip)
    hop_s = min(predict.HOP_S, job.clip.window_s)
    found = {
        "model.onnx": footprint.of_student(folder, False, windows, hop_s),
        "model.int8.onnx": footprint.of_student(folder, True, windows, hop_s),
    }
    for name in HEARD.get(asked.spec.student, TEACHERS) if asked.spec.teachers else ():
        teacher = getattr(job.teachers, name)
        shown = [clip for clip in windows if clip.has_face.any()] if name == "face" else windows
        if teacher is None or teacher.kind == "mock" or not shown:
            continue
        try:
            said = footprint.of_teacher(teacher, job.emotions, job.clip, shown, hop_s)
            found[f"{name} teacher"] = said
        except Exception as error:  # of any library that a teacher needs: the export is whole
            logger.warning("the %s teacher was not measured: %s", name, in_a_line(error))
    return found


def whole_windows(clips: Sequence[Clip], spec: ClipSpec) -> list[Clip]:
    """Each with as much sound as a window has: where it is short, that of the next ones."""
    length = round(spec.window_s * spec.sample_rate_hz)
    sound = np.concatenate([clip.waveform for clip in clips])
    starts = np.cumsum([0, *(len(clip.waveform) for clip in clips)])
    return [
        replace(clip, waveform=np.take(sound, np.arange(start, start + length), mode="wrap"))
        for clip, start in zip(clips, starts, strict=False)
    ]
