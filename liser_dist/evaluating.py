"""A student or a teacher on labelled shards: through the same stages as any job's clips."""

from __future__ import annotations

import time

from liser_dist import cluster, pipeline, storage
from liser_dist.assessment import Assessment, assess
from liser_dist.committed import read_digests, read_spec
from liser_dist.errors import CheckpointError, SpecError, TeacherError
from liser_dist.evaluate_spec import EvaluateSpec
from liser_dist.evaluation import logits_of
from liser_dist.label_draws import find_folds
from liser_dist.labelled import read_labelled
from liser_dist.planning import Plan, require_possible
from liser_dist.runs import RESULT, new_run
from liser_dist.shards import find_shards
from liser_dist.spec import ClipSpec, DistillSpec
from liser_dist.teacher_spec import AnyTeacher, StudentTeacher
from liser_dist.teachers import describe_teacher


def plan(spec: EvaluateSpec) -> Plan:
    """A job whose only clips are the labelled ones, and their teacher the model.

    Raises LiserError.
    """
    started = time.time()
    clip = spec.clip or _clip_of(spec.model)
    try:
        facts = describe_teacher(spec.model, spec.emotions, clip)
    except TeacherError as error:
        raise TeacherError(f"`model`: {error}") from error
    if not any(facts.known):
        raise SpecError(f"`model`: a {spec.model.kind} names no emotion: give a classifier")
    slot = "speech" if facts.modality in ("audio", "any") else "face"
    job = _to_job(spec, slot, clip)
    return Plan(
        spec=job,
        capacity=require_possible(job, trains=False),
        shards={"test": find_shards(spec.data.labelled, "data.labelled")},
        teachers={slot: facts},
        started=started,
    )


def _clip_of(model: AnyTeacher) -> ClipSpec:
    """How a student was shown its clips; else the default. Raises LiserError."""
    if not isinstance(model, StudentTeacher):
        return ClipSpec()
    try:
        return read_spec(model.model, read_digests(model.model)).clip
    except CheckpointError as error:
        raise TeacherError(f"`model`: {model.model!r} is no student: {error}") from error


def _to_job(spec: EvaluateSpec, slot: str, clip: ClipSpec) -> DistillSpec:
    place = spec.data.labelled
    job = DistillSpec.model_validate(
        {
            "name": spec.name,
            "emotions": spec.emotions,
            "data": {"unlabelled": place, "test": place},
            "clip": clip.model_dump(),
            "teachers": {slot: spec.model.model_dump(), "batch_size": spec.batch_size},
            "resources": spec.resources.model_dump(),
            "output": spec.output,
        }
    )
    return job.with_absolute_places()


def run(job: Plan, spec: EvaluateSpec) -> tuple[Assessment, str]:
    """Returns the assessment, and the place where it was written. Raises LiserError."""
    cluster.start_ray(job.capacity)
    run_place = new_run(spec, job.spec.output, spec.name)
    labelled, rejected = read_labelled(job, pipeline.open_desk(), None)
    ((slot, facts),) = job.teachers.items()
    clips = [clip for clip in labelled["test"] if getattr(clip, f"{slot}_logits").size]
    if not clips:
        raise SpecError(f"`data.labelled`: no clip of {spec.data.labelled} shows the model a face")
    speakers = (clip.speaker for clip in clips)
    fold_of = find_folds(spec.folds, speakers, "folds") if spec.folds else {}
    logits = logits_of(clips, slot, facts.known)
    scores = assess(clips, logits, spec.emotions, fold_of, spec.resamples)
    found = Assessment(
        name=spec.name,
        model=getattr(spec.model, "model", spec.model.kind),
        rejected=len(rejected["test"]),
        not_answered=len(labelled["test"]) - len(clips),
        seconds=time.time() - job.started,
        **scores.model_dump(),
    )
    place = storage.join(run_place, RESULT)
    storage.write_bytes(place, found.model_dump_json(indent=1).encode())
    return found, place
