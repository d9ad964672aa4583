"""Scores a student or a teacher on labelled shards, decoded by the same stages as in training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from liser_dist import storage
from liser_dist.cluster.capacity import Capacity
from liser_dist.cluster.connect import start_ray
from liser_dist.config.evaluate import EvaluateSpec
from liser_dist.config.stream import ClipSpec, StreamSpec
from liser_dist.config.teachers import StudentTeacher, TeacherIdentity, TeacherSpec
from liser_dist.console import output
from liser_dist.data.shard_list import Shard, find_shards
from liser_dist.data.splits import find_folds
from liser_dist.errors import CheckpointError, SpecError, TeacherError
from liser_dist.evaluation.assess import Assessment, assess
from liser_dist.pipeline.coordinator import start_coordinator
from liser_dist.pipeline.labelled import count_left_out, read_labelled
from liser_dist.pipeline.plan import check_resources
from liser_dist.runs.checkpoint_files import read_checkpoint_spec, read_digests
from liser_dist.runs.folder import RESULT, start_short_run
from liser_dist.runs.predictions import probabilities_of
from liser_dist.students.scoring import teacher_logits
from liser_dist.teachers.model_teacher import TeacherFacts
from liser_dist.teachers.teachers import describe_teacher, identify_teacher, naming_field

_SET = "labelled"  # the only set, named after its field under `data`


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """An evaluation that passed all checks."""

    spec: EvaluateSpec
    stream: StreamSpec  # with the model as its only teacher
    model: str  # the model's name among the stream's teachers: "speech" or "face"
    identity: TeacherIdentity  # the model's weights
    facts: TeacherFacts
    capacity: Capacity
    shards: Sequence[Shard]
    started: float  # time.time() at which the job began


def plan_evaluation(spec: EvaluateSpec) -> EvaluationPlan:
    """Check all that can be checked before a stage starts. Writes nothing.

    Raises:
        LiserError: The model or the shards cannot be used, or the job does not fit the cluster.
    """
    started = time.time()
    spec = spec.with_absolute_places()
    clip = spec.clip or _clip_of(spec.model)
    with naming_field("model"):
        identity = identify_teacher(spec.model)
        facts = describe_teacher(spec.model, spec.emotions, clip, identity)
    if not any(facts.known):
        raise SpecError(
            f"`model` (`kind: {spec.model.kind}`) predicts no emotions: set it to a model that is "
            "a classifier"
        )
    model = "speech" if facts.modality in ("audio", "any") else "face"
    stream = StreamSpec(
        clip=clip,
        emotions=spec.emotions,
        resources=spec.resources,
        teachers={model: spec.model},
        identities={model: identity},
        teacher_fields={model: "model"},
        teacher_batch_size=spec.batch_size,
    )
    return EvaluationPlan(
        spec=spec,
        stream=stream,
        model=model,
        identity=identity,
        facts=facts,
        capacity=check_resources(spec.resources, 0, clip),
        shards=find_shards(spec.data.labelled, "data.labelled"),
        started=started,
    )


def _clip_of(model: TeacherSpec) -> ClipSpec:
    """Return how a student's clips were decoded; for other models, the defaults.

    Raises:
        TeacherError: The student is no checkpoint.
    """
    if not isinstance(model, StudentTeacher):
        return ClipSpec()
    try:
        return read_checkpoint_spec(model.model, read_digests(model.model)).clip
    except CheckpointError as error:
        raise TeacherError(
            f"`model`: {model.model!r} cannot be loaded as a trained student ({error}): give a "
            "checkpoint of a run, such as runs/NAME/001/checkpoints/step-00001000-a001"
        ) from error


def run_evaluation(plan: EvaluationPlan) -> tuple[Assessment, str]:
    """Carry out an evaluation.

    Returns:
        The assessment, and the path of its file.

    Raises:
        LiserError: The evaluation ended for a reason that the user can fix.
    """
    spec = plan.spec
    start_ray(plan.capacity)
    run = start_short_run(spec, spec.output, spec.name)
    output.print("reading the labelled clips")
    labelled, rejected = read_labelled(
        plan.stream, {_SET: plan.shards}, start_coordinator(), sets_with_targets=(_SET,)
    )
    clips = [clip for clip in labelled[_SET] if clip.targets_from(plan.model).logits.size]
    if not clips:
        missing = "audio" if plan.model == "speech" else "a face"
        raise SpecError(
            f"`data.labelled`: the model needs clips with {missing}, but no clip in "
            f"{spec.data.labelled} has {missing}: set `data.labelled` to shards with such clips"
        )
    speakers = (clip.speaker for clip in clips)
    fold_of = find_folds(spec.folds, speakers, "folds") if spec.folds else {}
    probabilities = probabilities_of(teacher_logits(clips, plan.model, plan.facts.known))
    left_out = count_left_out(rejected[_SET])
    scores = assess(clips, probabilities, spec.emotions, fold_of, spec.resamples)
    assessment = Assessment(
        name=spec.name,
        model=getattr(spec.model, "model", spec.model.kind),
        identity=plan.identity,
        rejected=len(rejected[_SET]) - sum(left_out.values()),
        left_out=left_out,
        not_answered=len(labelled[_SET]) - len(clips),
        seconds=time.time() - plan.started,
        **scores.model_dump(),
    )
    path = storage.join(run, RESULT)
    storage.write_bytes(path, assessment.model_dump_json(indent=1).encode())
    return assessment, path
