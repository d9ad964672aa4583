"""All that can be wrong with a job is found before any of its stages begins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from liser_dist import cluster, storage, tracking
from liser_dist.access import require_access
from liser_dist.cluster_file import capacity_of
from liser_dist.committed import require_same_student
from liser_dist.errors import CapacityError, SpecError, TeacherError
from liser_dist.faces import check_detector
from liser_dist.shards import Shard, find_shards
from liser_dist.spec import DistillSpec
from liser_dist.teachers import TeacherFacts, describe_teacher

LABELLED_SETS = ("labelled", "validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job that was found to be sound."""

    spec: DistillSpec
    capacity: cluster.Capacity
    shards: Mapping[str, Sequence[Shard]]  # of each set; empty where the corpus is yet to be made
    teachers: Mapping[str, TeacherFacts]
    started: float  # time.time() at which the job began

    @property
    def versions(self) -> dict[str, str]:
        """Of all shards, by place."""
        return {shard.place: shard.version for found in self.shards.values() for shard in found}


def plan(spec: DistillSpec, make_corpus: bool = True, trains: bool = True) -> Plan:
    """Check all that can be checked before a stage begins. Raises LiserError.

    `trains`: whether there will be train workers.
    """
    started = time.time()
    spec = spec.with_absolute_places()
    capacity = require_possible(spec, trains)
    tracking.require_trackers(spec)
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
        require_access(spec, [found[0].place for found in shards.values()])
        teachers = describe_teachers(spec)
        require_something_to_learn(spec, teachers)
    return Plan(spec=spec, capacity=capacity, shards=shards, teachers=teachers, started=started)


def require_possible(spec: DistillSpec, trains: bool = True) -> cluster.Capacity:
    """What the job runs on: it has room there, and can write. Raises LiserError."""
    capacity = capacity_of(spec.resources.cluster)
    cluster.require_fit(spec, capacity, None if trains else 0)
    storage.require_writable(spec.output, "output")
    check_detector(spec.clip.face_detector, "clip.face_detector")
    return capacity


def lack_of(spec: DistillSpec) -> str:
    """Why the job cannot go on with the nodes that are left, or nothing."""
    try:
        cluster.require_fit(spec, cluster.live_nodes())
    except CapacityError as error:
        return str(error)
    return ""


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
        if weights[name] and any(facts.known):
            return
        if spec.loss.uses_embeddings and facts.embedding_dim:
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
