"""One run, from its spec to its result: the order of the steps, and nothing else.

1. `plan`   everything that can be wrong is found before Ray starts anything
2. `run`    labelled clips through the pipeline, then training, then scores and files
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

from liser_dist import cluster, pipeline, screen, storage, training
from liser_dist.checkpoints import (
    Checkpoint,
    is_whole,
    load_checkpoint,
    load_student,
    require_same_student,
)
from liser_dist.errors import ShardError, SpecError, TeacherError
from liser_dist.evaluation import LabelledSet, score_student, score_teacher
from liser_dist.faces import check_detector
from liser_dist.learning import DISTILLED
from liser_dist.ledger import Rejection
from liser_dist.records import Example
from liser_dist.rejections import write_rejected
from liser_dist.results import (
    ClipCounts,
    DistillResult,
    Seconds,
    StudentScores,
    TeacherScores,
    write_result,
)
from liser_dist.runs import Run, open_run
from liser_dist.shards import Shard, ShardVisit, find_shards, shard_order
from liser_dist.spec import DistillSpec
from liser_dist.teachers import TeacherFacts, describe_teacher
from liser_dist.train_loop import Summary, TrainJob, make_batcher

logger = logging.getLogger(__name__)

LABELLED_SETS = ("labelled", "validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job that was found to be sound."""

    spec: DistillSpec
    capacity: cluster.Capacity
    shards: Mapping[str, Sequence[Shard]]  # of each set; empty where the corpus is yet to be made
    teachers: Mapping[str, TeacherFacts]
    started: float  # time.time() at which the job began


def plan(spec: DistillSpec, make_corpus: bool = True) -> Plan:
    """Check all that can be checked before Ray is asked for anything. Raises LiserError."""
    started = time.time()
    spec = spec.with_absolute_places()
    capacity = cluster.find_cluster()
    cluster.require_fit(spec, capacity)
    storage.require_writable(spec.output, "output")
    check_detector(spec.clip)
    if spec.synthetic is not None and make_corpus:
        from liser_dist.corpora import prepare_synthetic  # draws and encodes: heavy to import

        prepare_synthetic(spec.synthetic)
    require_same_student(spec)
    shards: dict[str, Sequence[Shard]] = {}
    teachers: Mapping[str, TeacherFacts] = {}
    if spec.synthetic is None or spec.synthetic.root.exists():
        for name in ("unlabelled", *LABELLED_SETS):
            if (place := getattr(spec.data, name)) is not None:
                shards[name] = find_shards(place, f"data.{name}")
        require_distinct_shards(shards)
        teachers = describe_teachers(spec)
        require_something_to_learn(spec, teachers)
    return Plan(spec=spec, capacity=capacity, shards=shards, teachers=teachers, started=started)


def require_distinct_shards(shards: Mapping[str, Sequence[Shard]]) -> None:
    """Raise SpecError when one shard is in two sets."""
    set_of: dict[str, str] = {}
    for name, found in shards.items():
        for shard in found:
            if (other := set_of.setdefault(shard.place, name)) != name:
                raise SpecError(
                    f"the shard {shard.place} is in `data.{other}` and in `data.{name}`: give "
                    "each set a folder of its own"
                )


def require_something_to_learn(spec: DistillSpec, teachers: Mapping[str, TeacherFacts]) -> None:
    """Raise SpecError when no term of the loss has anything to speak of."""
    weights = {"speech": spec.loss.speech_kl, "face": spec.loss.face_kl}
    if spec.loss.label_ce and spec.data.labelled is not None:
        return
    for name, facts in teachers.items():
        if (weights[name] and any(facts.known)) or (spec.loss.embedding and facts.embedding_dim):
            return
    raise SpecError(
        "the student would learn nothing: the teachers give embeddings alone and "
        f"`loss.embedding` is {spec.loss.embedding:g}; give it a weight above 0, or a teacher "
        "that is a classifier"
    )


def describe_teachers(spec: DistillSpec) -> dict[str, TeacherFacts]:
    """What the job's teachers know. Raises TeacherError, naming the field."""
    found: dict[str, TeacherFacts] = {}
    for name, wanted in (("speech", ("audio", "any")), ("face", ("image", "video", "any"))):
        teacher = getattr(spec.teachers, name)
        if teacher is None:
            continue
        try:
            found[name] = describe_teacher(teacher, spec.emotions, spec.clip)
        except TeacherError as error:
            raise TeacherError(f"`teachers.{name}`: {error}") from error
        if found[name].modality not in wanted:
            raise TeacherError(
                f"`teachers.{name}`: {teacher.model!r} is a model for {found[name].modality}; give "
                f"one for {wanted[0]}"
            )
    return found


def run(job: Plan) -> tuple[DistillResult, str]:
    """Carry a plan out; returns the result and the place where it was written."""
    begun = open_run(job.spec, job.shards)
    job = replace(job, shards=begun.shards)
    if job.spec.synthetic is not None:
        screen.print_synthetic(job.spec.synthetic)
    if begun.goes_on:
        screen.console.print(f"going on with the run {begun.place}")
    cluster.start_ray(job.capacity)
    desk = pipeline.open_desk()
    labelled, rejected = read_labelled(job, desk)
    summary = train(job, begun, desk, labelled)
    checkpoint = load_checkpoint(summary.checkpoint)
    result = summarise(job, summary, checkpoint, labelled, rejected)
    write_rejected(begun.place, checkpoint.ledger.ever_trained, rejected)
    return result, write_result(begun.place, result)


def read_labelled(
    job: Plan, desk: Any
) -> tuple[dict[str, list[Example]], dict[str, list[Rejection]]]:
    """The labelled sets, decoded and taught by the same stages as the stream; what was rejected."""
    names = [name for name in LABELLED_SETS if name in job.shards]
    if not names:
        return {}, {}
    screen.console.print("reading the labelled clips")
    set_of = {shard.place: name for name in names for shard in job.shards[name]}
    visits = [ShardVisit(0, place) for place in set_of]
    clips: dict[str, list[Example]] = {name: [] for name in names}
    rejected: dict[str, list[Rejection]] = {name: [] for name in names}
    # Teachers are scored on the test set; what they say of the others nobody asks.
    taught = {shard.place for shard in job.shards.get("test", ())}
    examples = pipeline.read_all(
        pipeline.build_examples(job.spec, visits, desk, labelled=True, taught=taught)
    )
    for example in examples:
        name, known = set_of[example.shard], example.emotion in job.spec.emotions
        if example.rejected or not known:
            reason = example.reason or "bad_metadata"
            detail = example.detail or f"emotion {example.emotion!r} is none of the job's"
            why = Rejection(example.key, example.shard, example.index, reason, detail)
            rejected[name].append(why)
        else:
            clips[name].append(example)
    require_labels(job.spec, clips)
    require_disjoint_speakers(clips)
    return clips, rejected


def require_labels(spec: DistillSpec, clips: Mapping[str, Sequence[Example]]) -> None:
    """Raise SpecError when a labelled set has no clip to learn from or be scored on."""
    for name, examples in clips.items():
        if not examples:
            raise SpecError(
                f"`data.{name}` {getattr(spec.data, name)} has no clip with an `emotion` of the "
                f"job's {list(spec.emotions)} in its JSON: mend the labels, or leave the set out"
            )


def require_disjoint_speakers(clips: Mapping[str, Sequence[Example]]) -> None:
    """Raise SpecError when somebody speaks in two labelled sets: scores would flatter."""
    set_of: dict[str, str] = {}
    for name, examples in clips.items():
        for speaker in {example.speaker for example in examples if example.speaker}:
            if (other := set_of.setdefault(speaker, name)) != name:
                raise SpecError(
                    f"speaker {speaker!r} is in `data.{other}` and in `data.{name}`: give sets "
                    "that share no speaker"
                )


def train(job: Plan, begun: Run, desk: Any, labelled: Mapping[str, list[Example]]) -> Summary:
    """Train the students until every clip of every epoch was seen.

    Raises ShardError when a further pass over what is missing finds none of it.
    """
    last = training.last_summary(begun.place)
    if last is not None and last.complete and is_whole(last.checkpoint):
        return last  # the driver was killed after it
    train_job = to_train_job(job, begun.place, desk)
    screen.console.print(f"distilling {train_job.clips} clips")
    passes = -1
    with screen.watched(lambda: pipeline.read_progress(desk), lambda: cluster.lack_of(job.spec)):
        while True:
            summary = training.train_students(train_job, labelled)
            if summary.complete:
                return summary
            if summary.passes == passes:
                raise ShardError(
                    f"some clips of {job.spec.data.unlabelled} were read and never came back; "
                    f"{summary.passes} did; submit the job again to go on"
                )
            passes = summary.passes
            logger.warning("clips were lost on their way; they are read once more")


def to_train_job(job: Plan, run_place: str, desk: Any) -> TrainJob:
    spec, shards = job.spec, job.shards["unlabelled"]
    embeddings = {
        name: facts.embedding_dim
        for name, facts in job.teachers.items()
        if spec.loss.embedding and facts.embedding_dim
    }
    unknown = (False,) * len(spec.emotions)
    known = [job.teachers[n].known if n in job.teachers else unknown for n in ("speech", "face")]
    *firsts, clips = accumulate((shard.clips for shard in shards), initial=0)
    places = [shard.place for shard in shards]
    return TrainJob(
        spec=spec,
        run=run_place,
        known=(known[0], known[1]),
        embeddings=embeddings,
        visits=shard_order(shards, spec.train.epochs, spec.seed),
        first_clips={
            (epoch, place): epoch * clips + first
            for epoch in range(spec.train.epochs if counts(spec) else 0)
            for place, first in zip(places, firsts, strict=True)
        },
        clips=clips,
        desk=desk,
    )


def counts(spec: DistillSpec) -> bool:
    """Whether the student is the one that counts clips."""
    return spec.student.kind == "counting"


def summarise(
    job: Plan,
    summary: Summary,
    checkpoint: Checkpoint,
    labelled: Mapping[str, list[Example]],
    rejected: Mapping[str, Sequence[Rejection]],
) -> DistillResult:
    """The result of a run, with the test set scored once."""
    spec, ledger = job.spec, checkpoint.ledger
    test = labelled.get("test", [])
    students = {
        kind: score_kept(summary.checkpoint, kind, checkpoint, test) for kind in checkpoint.best
    }
    teachers = {name: score_heard(job, name, test) for name in job.teachers}
    now = time.time()
    return DistillResult(
        name=spec.name,
        seed=spec.seed,
        clips=ClipCounts(
            total=ledger.total,
            trained=ledger.trained,
            rejected=ledger.rejected,
            passes=ledger.passes,
            labelled=sum(len(clips) for clips in labelled.values()),
            labelled_rejected=sum(len(rejected[name]) for name in labelled),
        ),
        steps=checkpoint.state["steps"],
        seconds=Seconds(
            to_first_step=(summary.first_step_at or now) - job.started,
            training=summary.training_s,
            total=now - job.started,
        ),
        clips_per_s=ledger.passes / summary.training_s if summary.training_s else 0.0,
        data_wait_share=summary.data_wait_share,
        student=students.pop(DISTILLED),
        label_only=students.pop("labels_only", None),
        comparisons=students,
        speech_teacher=teachers.get("speech"),
        face_teacher=teachers.get("face"),
        checkpoint=summary.checkpoint,
        spec_hash=spec.spec_hash,
    )


def score_kept(
    place: str, kind: str, checkpoint: Checkpoint, test: Sequence[Example]
) -> StudentScores:
    rate = checkpoint.state["learning_rates"][kind]
    if counts(checkpoint.spec):
        weights = sum(tensor.numel() for tensor in checkpoint.students.values())
        return StudentScores(params=weights, learning_rate=rate)
    student, _ = load_student(place, kind)
    if not test:
        return StudentScores(params=student.params, learning_rate=rate)
    scores = score_student(student, LabelledSet.of(test, make_batcher(checkpoint.spec, {})))
    return StudentScores(
        params=student.params,
        learning_rate=rate,
        uar=scores.uar,
        war=scores.war,
        macro_f1=scores.macro_f1,
    )


def score_heard(job: Plan, name: str, test: Sequence[Example]) -> TeacherScores | None:
    scores = score_teacher(test, name, job.spec.emotions, job.teachers[name].known)
    return TeacherScores(**asdict(scores)) if scores is not None else None
