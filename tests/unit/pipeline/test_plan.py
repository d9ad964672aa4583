"""Planning finds the mistakes in a job before it starts, and a check writes nothing."""

from pathlib import Path
from typing import Any

import pytest

from liser_dist.cluster.capacity import Capacity, Node
from liser_dist.config.distill import DistillSpec
from liser_dist.data.shard_list import Shard
from liser_dist.errors import CapacityError, CheckpointError, SpecError, TeacherError
from liser_dist.pipeline.plan import (
    DistillPlan,
    FittingJob,
    check_cluster,
    check_data,
    describe_teachers,
    for_run,
    identify_teachers,
    require_distinct_shards,
    require_something_to_learn,
)
from liser_dist.pipeline.store import target_settings
from liser_dist.runs.folder import open_run
from liser_dist.training.distill import run_distill, to_train_job
from tests.nets import face_net


def spec(tmp_path: Path, **change: Any) -> DistillSpec:
    content = {
        "name": "a-job",
        "data": {"unlabelled": str(tmp_path / "clips")},
        "teachers": {"speech": {"kind": "mock"}},
        "output": str(tmp_path / "runs"),
    }
    return DistillSpec.model_validate(content | change)


def shard(path: str) -> Shard:
    return Shard(place=path, size_bytes=1, version="v", clips=1)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")


@pytest.mark.usefixtures("alone")
def test_a_job_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="missing"):
        check_cluster(spec(tmp_path, resources={"worker_cpus": 10_000}))
    job = check_cluster(spec(tmp_path, resources={"worker_cpus": 10_000}), trains=False)
    assert job.worker_bounds == (0, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_check_does_not_generate_the_corpus(tmp_path: Path) -> None:
    synthetic = spec(tmp_path, synthetic={"place": str(tmp_path / "corpus")})
    job = FittingJob(
        spec=synthetic,
        capacity=Capacity("here", (Node({"CPU": 4.0}),)),
        worker_bounds=(1, 1),
        started=0.0,
    )
    assert job.lacks_corpus
    assert check_data(job) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_plan_knows_the_shards_of_each_set(tmp_path: Path) -> None:
    plan = DistillPlan(
        spec=spec(tmp_path),
        capacity=Capacity("here", ()),
        worker_bounds=(1, 1),
        shards={"unlabelled": [shard("/u/0.tar")], "test": [shard("/t/0.tar")]},
        identities={},
        teachers={},
        started=0.0,
    )
    assert list(plan.labelled_shards) == ["test"]
    assert plan.versions == {"/u/0.tar": "v", "/t/0.tar": "v"}


def test_a_shard_belongs_to_one_set() -> None:
    require_distinct_shards({"labelled": [shard("/a.tar")], "test": [shard("/b.tar")]})
    with pytest.raises(SpecError, match=r"`data.labelled` and in `data.test`"):
        require_distinct_shards({"labelled": [shard("/a.tar")], "test": [shard("/a.tar")]})


def test_teachers_that_give_embeddings_alone_need_a_loss_that_uses_them(tmp_path: Path) -> None:
    facts = describe_teachers(spec(tmp_path).stream)["speech"]
    bare = type(facts)((False,) * 6, 4, (), "audio")
    job = spec(tmp_path)
    require_something_to_learn(job, {"speech": facts})
    with pytest.raises(SpecError, match=r"`loss.embedding` is 0"):
        require_something_to_learn(job, {"speech": bare})
    require_something_to_learn(spec(tmp_path, loss={"embedding": 1}), {"speech": bare})


def test_a_teacher_that_is_not_there_is_named_by_its_field(tmp_path: Path) -> None:
    missing = {"kind": "student", "model": str(tmp_path / "nowhere")}
    with pytest.raises(TeacherError, match=r"`teachers.face`"):
        describe_teachers(spec(tmp_path, teachers={"face": missing}).stream)


# ---------------------------------------------------------------- the teachers' weights

CLASSES = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")


def face_spec(tmp_path: Path) -> DistillSpec:
    face = {
        "kind": "onnx", "model": str(tmp_path / "face.onnx"), "names": CLASSES, "logits": "logits",
        "input": {"kind": "image", "size_px": 64}, "labels": {name: name for name in CLASSES[:6]},
    }  # fmt: skip
    return spec(tmp_path, teachers={"face": face})


def planned(job: DistillSpec) -> DistillPlan:
    identities = identify_teachers(job.stream)
    return DistillPlan(
        spec=job,
        capacity=Capacity("this machine", ()),
        worker_bounds=(1, 1),
        shards={"unlabelled": [shard("/u/0.tar")]},
        identities=identities,
        teachers=describe_teachers(job.stream),
        started=0.0,
    )


def test_the_weights_that_were_planned_reach_all_that_load_or_store(tmp_path: Path) -> None:
    face_net(tmp_path / "face.onnx")
    plan = planned(face_spec(tmp_path))
    (tmp_path / "face.onnx").write_bytes(b"another")
    assert plan.identities["face"].digest
    assert to_train_job(plan, "run", None, None).stream.identities == plan.identities
    settings = target_settings(plan.stream)["teachers"]["face"]
    assert settings["weights"] == plan.identities["face"].digest


def test_a_job_beside_another_of_its_run_on_the_cluster_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(_: str) -> None:
        raise CheckpointError("another job of this cluster writes there")

    monkeypatch.setattr("liser_dist.training.distill.start_ray", lambda _: None)
    monkeypatch.setattr("liser_dist.training.distill.start_coordinator", taken)
    job = spec(tmp_path)
    with pytest.raises(CheckpointError, match="another job"):
        run_distill(planned(job))
    assert not Path(job.output).exists()


def test_a_run_is_not_resumed_with_a_teacher_that_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_late = "the run went on to its stages"
    module = "liser_dist.training.distill"
    monkeypatch.setattr(f"{module}.start_ray", lambda _: None)
    monkeypatch.setattr(f"{module}.start_coordinator", lambda _: None)
    monkeypatch.setattr(f"{module}.open_store_writers", lambda *_: pytest.fail(too_late))
    job = face_spec(tmp_path)
    face_net(tmp_path / "face.onnx")
    plan = planned(job)
    run = open_run(job, plan.shards)
    assert for_run(plan, run) == plan
    assert run.lock is not None
    run.lock.close()  # as the end of the process does
    face_net(tmp_path / "face.onnx", seed=1)
    with pytest.raises(CheckpointError, match=r"`teachers.face`.*face.onnx.*put the files back"):
        run_distill(planned(job))
