"""Checks a distillation before any stage starts, and finds its shards and teachers.

1. `check_cluster`   the spec fits the cluster               reads only
2. `probe_outputs`   output and trackers can be written to   writes a probe file, logs in
3. `prepare_corpus`  a synthetic corpus is generated         writes the corpus
4. `plan_distill`    shards and teachers fit the spec        reads only

With `--check`, `check_data`, which only reads, replaces steps 3 and 4.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from liser_dist import storage
from liser_dist.cluster.capacity import Capacity, require_fit
from liser_dist.cluster.cluster_file import capacity_of
from liser_dist.cluster.connect import current_capacity
from liser_dist.cluster.node_access import require_access
from liser_dist.config.base import Bounds
from liser_dist.config.distill import DataSpec, DistillSpec, TrackSpec
from liser_dist.config.resources import ResourcesSpec
from liser_dist.config.stream import ClipSpec, StreamSpec
from liser_dist.config.synthetic import SyntheticSpec
from liser_dist.config.teachers import TeacherIdentity
from liser_dist.data.faces import check_detector
from liser_dist.data.shard_list import Shard, find_shards
from liser_dist.errors import CapacityError, SpecError, TeacherError
from liser_dist.runs import tracking
from liser_dist.runs.checkpoint_files import require_same_student
from liser_dist.runs.folder import Run, teachers_at_start
from liser_dist.teachers.model_teacher import TeacherFacts
from liser_dist.teachers.teachers import describe_teacher, identify_teacher, naming_field

LABELLED_SETS = ("labelled", "validation", "test")
NO_WORKERS: Bounds = (0, 0)  # of a job that trains nothing
# What a teacher in each place may take as input; the first is what messages ask for.
_MODALITIES = {"speech": ("audio", "any"), "face": ("image", "video", "any")}


@dataclass(frozen=True, slots=True, kw_only=True)
class FittingJob:
    """A distillation that fits its cluster; its shards and teachers are not checked yet."""

    spec: DistillSpec
    capacity: Capacity
    worker_bounds: Bounds  # fewest and most train workers
    started: float  # time.time() at which the job began

    @property
    def lacks_corpus(self) -> bool:
        """Whether the job uses a synthetic corpus that was not generated yet."""
        return self.spec.synthetic is not None and not self.spec.synthetic.root.exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillPlan:
    """A distillation that passed all checks, with its shards and what its teachers give."""

    spec: DistillSpec
    capacity: Capacity
    worker_bounds: Bounds
    shards: Mapping[str, Sequence[Shard]]  # of each set that the spec names
    identities: Mapping[str, TeacherIdentity]  # which weights each teacher has
    teachers: Mapping[str, TeacherFacts]
    started: float  # time.time() at which the job began

    @property
    def stream(self) -> StreamSpec:
        """What the pipeline needs to know of the job, with the weights that its teachers have."""
        return replace(self.spec.stream, identities=self.identities)

    @property
    def labelled_shards(self) -> dict[str, Sequence[Shard]]:
        """The shards of the labelled sets that the spec names."""
        return {name: self.shards[name] for name in LABELLED_SETS if name in self.shards}

    @property
    def versions(self) -> dict[str, str]:
        """The versions of all shards, by path."""
        return {shard.place: shard.version for of_set in self.shards.values() for shard in of_set}


# ---------------------------------------------------------------- the four steps


def check_cluster(spec: DistillSpec, *, trains: bool = True) -> FittingJob:
    """Check that a job fits the cluster. Connects to a running one; writes nothing.

    Args:
        spec: The job, with paths as the user gave them.
        trains: Whether the job has train workers.

    Raises:
        CapacityError: The job does not fit, or the cluster does not respond.
        SpecError: `clip.face_detector` cannot be used.
        CheckpointError: `start_from` is no checkpoint of the same student.
    """
    started = time.time()
    spec = spec.with_absolute_places()
    bounds = spec.train.worker_bounds if trains else NO_WORKERS
    capacity = check_resources(spec.resources, bounds[0], spec.clip)
    require_same_student(spec)
    return FittingJob(spec=spec, capacity=capacity, worker_bounds=bounds, started=started)


def probe_outputs(output: str, track: TrackSpec | None = None) -> None:
    """Check that the job may write: put a probe file under `output` and log in to its trackers.

    Args:
        output: Where the job puts its runs.
        track: The trackers to which it logs; None: it logs to none.

    Raises:
        LiserError: `output` is not writable, or a tracker refuses.
    """
    storage.require_writable(output, "output")
    if track is not None:
        tracking.require_trackers(track)


def prepare_corpus(synthetic: SyntheticSpec | None) -> None:
    """Generate the synthetic corpus, with its teachers, if the job uses one that does not exist."""
    if synthetic is not None:
        from liser_dist.synthetic.corpus import prepare_synthetic  # heavy

        prepare_synthetic(synthetic)


def check_data(job: FittingJob) -> Mapping[str, Sequence[Shard]]:
    """Check shards and teachers for `--check`, as far as they exist. Writes nothing.

    Returns:
        The shards of each set; none if the synthetic corpus was not generated yet.

    Raises:
        LiserError: As `plan_distill`.
    """
    return {} if job.lacks_corpus else plan_distill(job).shards


def plan_distill(job: FittingJob) -> DistillPlan:
    """Find the shards, read what the teachers are, and check both. Writes nothing.

    On a cluster, tasks on its nodes check that each of them reaches the job's paths on S3.

    Raises:
        LiserError: Shards or teachers do not exist, cannot be reached or do not fit the spec.
    """
    spec = job.spec
    paths = _paths_of(spec.data)
    shards = {name: find_shards(path, f"data.{name}") for name, path in paths.items()}
    require_distinct_shards(shards)
    _require_access(spec.stream, storage.join(spec.output, spec.name), shards)
    identities = identify_teachers(spec.stream)
    teachers = describe_teachers(replace(spec.stream, identities=identities))
    require_something_to_learn(spec, teachers)
    return DistillPlan(
        spec=spec,
        capacity=job.capacity,
        worker_bounds=job.worker_bounds,
        shards=shards,
        identities=identities,
        teachers=teachers,
        started=job.started,
    )


def for_run(plan: DistillPlan, run: Run) -> DistillPlan:
    """Return the plan with the shards and the teachers with which its run started.

    Raises:
        CheckpointError: A teacher was replaced since.
        TeacherError: The hub no longer provides the commit with which the run started.
    """
    identities = teachers_at_start(run.place, plan.identities)
    facts = plan.teachers
    if identities != plan.identities:
        facts = describe_teachers(replace(plan.spec.stream, identities=identities))
    return replace(plan, shards=run.shards, identities=identities, teachers=facts)


# ---------------------------------------------------------------- single checks


def check_resources(resources: ResourcesSpec, workers: int, clip: ClipSpec) -> Capacity:
    """Return what the cluster has, or can have, if the job fits and can decode clips.

    Args:
        resources: What the stages of the job take.
        workers: The fewest train workers.
        clip: How clips are decoded.

    Raises:
        CapacityError: The job does not fit, or the cluster does not respond.
        SpecError: `clip.face_detector` cannot be used.
    """
    capacity = capacity_of(resources.cluster)
    require_fit(resources, workers, capacity)
    check_detector(clip.face_detector, "clip.face_detector")
    return capacity


def missing_capacity(resources: ResourcesSpec, workers: int) -> str:
    """Return why a running job cannot continue with the nodes that are left; empty if it can."""
    try:
        require_fit(resources, workers, current_capacity())
    except CapacityError as error:
        return str(error)
    return ""


def require_distinct_shards(shards: Mapping[str, Sequence[Shard]]) -> None:
    """Check that no shard is in two sets.

    Raises:
        SpecError: One is.
    """
    set_of: dict[str, str] = {}
    for name, of_set in shards.items():
        for shard in of_set:
            if (other := set_of.setdefault(shard.place, name)) != name:
                raise SpecError(
                    f"the shard {shard.place} is in `data.{other}` and in `data.{name}`: give "
                    "each set its own folder"
                )


def require_something_to_learn(spec: DistillSpec, teachers: Mapping[str, TeacherFacts]) -> None:
    """Check that at least one term of the loss gets targets or labels.

    Raises:
        SpecError: None does.
    """
    sources = {name for name, facts in teachers.items() if any(facts.known)}
    if spec.data.labelled is not None:
        sources.add("labels")
    if any(facts.embedding_dim for facts in teachers.values()):
        sources.add("embeddings")
    if spec.loss.learns_from(sources):
        return
    raise SpecError(
        "the student would learn nothing: the teachers give only embeddings, and `loss.embedding` "
        f"is {spec.loss.embedding:g}; set that weight above 0, or use a teacher that is a "
        "classifier"
    )


def identify_teachers(stream: StreamSpec) -> dict[str, TeacherIdentity]:
    """Return which weights each teacher of a stream has now; reads all of their files.

    Raises:
        LiserError: A teacher cannot be read.
    """
    identities: dict[str, TeacherIdentity] = {}
    for name, teacher in stream.teachers.items():
        with naming_field(stream.teacher_field(name)):
            identities[name] = identify_teacher(teacher)
    return identities


def describe_teachers(stream: StreamSpec) -> dict[str, TeacherFacts]:
    """Return what each teacher of a stream gives.

    Raises:
        TeacherError: A teacher cannot be read, or takes the wrong kind of input.
    """
    facts_of: dict[str, TeacherFacts] = {}
    for name, teacher in stream.teachers.items():
        identity = stream.identities.get(name)
        with naming_field(stream.teacher_field(name)):
            facts = describe_teacher(teacher, stream.emotions, stream.clip, identity)
        if facts.modality not in _MODALITIES[name]:
            model = getattr(teacher, "model", teacher.kind)
            raise TeacherError(
                f"`teachers.{name}`: the input of {model!r} is {facts.modality}: give a model "
                f"whose input is {' or '.join(_MODALITIES[name])}"
            )
        facts_of[name] = facts
    return facts_of


def _paths_of(data: DataSpec) -> dict[str, str]:
    """Return the path of each set that is given."""
    paths = {
        "unlabelled": data.unlabelled,
        "labelled": data.labelled,
        "validation": data.validation,
        "test": data.test,
    }
    return {name: path for name, path in paths.items() if path is not None}


def _require_access(stream: StreamSpec, runs: str, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Check from each node that it reaches the runs, a shard of each set and the target store."""
    paths = [runs, *(of_set[0].place for of_set in shards.values())]
    if stream.store is not None:
        paths.append(storage.join(stream.store, "any"))
    require_access(paths, stream.resources.pools)
