"""User mistakes end a job before it starts, with a message that names field, value and remedy."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from liser_dist.benchmarks.testbed.local_cluster import wait_until
from liser_dist.command_line import read_spec_file
from liser_dist.config.distill import DistillSpec
from liser_dist.console import print_plan
from liser_dist.errors import CheckpointError, LiserError
from liser_dist.pipeline.coordinator import start_coordinator
from liser_dist.pipeline.plan import DistillPlan, check_cluster, plan_distill, probe_outputs
from liser_dist.runs.checkpoint_files import write_checkpoint
from liser_dist.runs.checkpoints import Checkpoint, pack_checkpoint
from liser_dist.runs.ledger import Ledger
from liser_dist.students.models import Student
from liser_dist.students.variants import DISTILLED
from tests.integration.conftest import ROOT


@pytest.fixture(scope="module", autouse=True)
def connected(ray_cluster: dict[str, str]) -> Iterator[None]:
    """This process on the session's Ray, as a job's driver is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray_cluster["RAY_ADDRESS"])
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def audio_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a tiny audio classifier."""
    folder = tmp_path_factory.mktemp("model")
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_mel_bins=32, max_length=64,
        id2label={0: "neu", 1: "hap"}, label2id={"neu": 0, "hap": 1},
    )  # fmt: skip
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(folder)
    return folder


def plan_spec(file: Path) -> DistillPlan:
    job = check_cluster(read_spec_file(file, DistillSpec))
    probe_outputs(job.spec.output, job.spec.track)
    return plan_distill(job)


@pytest.fixture
def refused(write_spec: Callable[..., Path]) -> Callable[..., str]:
    def plan(**change: Any) -> str:
        with pytest.raises(LiserError) as error:
            plan_spec(write_spec(**change))
        return str(error.value)

    return plan


def test_no_shard_at_the_place(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(data={"unlabelled": str(tmp_path / "nowhere")})
    assert "`data.unlabelled`" in message
    assert str(tmp_path / "nowhere") in message


def test_an_output_place_that_cannot_be_written(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "a-file").write_text("")
    message = refused(output=str(tmp_path / "a-file" / "runs"))
    assert "`output`" in message
    assert "a-file" in message


def test_a_teacher_folder_without_weights_or_with_pickled_ones(
    refused: Callable[..., str], audio_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((audio_model / name).read_bytes())
    teacher = {"kind": "huggingface", "model": str(folder), "labels": {"neu": "neutral"}}
    message = refused(teachers={"speech": teacher})
    assert "`teachers.speech`" in message
    assert "weights" in message
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "safetensors" in refused(teachers={"speech": teacher})


def test_teachers_that_share_no_emotion_with_the_job(
    refused: Callable[..., str], audio_model: Path
) -> None:
    teacher = {"kind": "huggingface", "model": str(audio_model)}
    message = refused(teachers={"speech": teacher})
    assert "neu" in message
    assert "labels" in message


def test_a_speech_model_in_the_face_teachers_place(
    refused: Callable[..., str], audio_model: Path
) -> None:
    teacher = {"kind": "huggingface", "model": str(audio_model), "labels": {"neu": "neutral"}}
    assert "`teachers.face`" in refused(teachers={"face": teacher})


@pytest.mark.long
def test_a_teacher_that_is_replaced_while_the_job_starts(
    ray_cluster: dict[str, str], write_spec: Callable[..., Path], audio_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(audio_model, folder)
    labels = {"neu": "neutral", "hap": "happy"}
    teacher = {"kind": "huggingface", "model": str(folder), "labels": labels}
    spec = write_spec(teachers={"speech": teacher}, train={"workers": 2})
    command = [sys.executable, ROOT / "jobs" / "distill.py", spec]
    with subprocess.Popen(
        command, env=ray_cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        identified = tmp_path / "runs" / "small" / "001" / "teachers.json"
        wait_until(lambda: identified.exists() or job.poll() is not None, 120, "the run's folder")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
        printed = job.communicate(timeout=240)[0]
    assert job.returncode == 2, printed
    assert "`teachers.speech`" in printed.strip().splitlines()[-1]
    assert "Traceback" not in printed
    assert "workers restart" not in printed


def test_a_checkpoint_of_another_student(
    refused: Callable[..., str], write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    other = read_spec_file(write_spec(student={"kind": "cnn", "width": 16}), DistillSpec)
    place = str(tmp_path / "step-1")
    weights = Student(other.student, 6, 16000).state_dict()
    write_checkpoint(
        place,
        pack_checkpoint(
            Checkpoint(
                spec=other,
                students=weights,
                best={DISTILLED: weights},
                optimizer={},
                state={},
                ledger=Ledger(),
            )
        ),
    )
    message = refused(start_from=place)
    assert "`start_from`" in message
    assert "16" in message
    assert "8" in message
    assert "no checkpoint" in refused(start_from=str(tmp_path / "nowhere"))


def test_a_half_written_checkpoint_is_none(
    refused: Callable[..., str], write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    spec: DistillSpec = read_spec_file(write_spec(), DistillSpec)
    (tmp_path / "spec.json").write_text(json.dumps(spec.model_dump(mode="json")))
    assert "no complete checkpoint" in refused(start_from=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, ["access denied", "AWS_SECRET_ACCESS_KEY"]),
        ({}, ["no bucket", "nowhere"]),
    ],
)
def test_s3_with_wrong_credentials_or_no_bucket(
    refused: Callable[..., str],
    s3: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    words: list[str],
) -> None:
    import s3fs

    for name, value in (s3 | change).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    message = refused(data={"unlabelled": "s3://nowhere/clips"})
    s3fs.S3FileSystem.clear_instance_cache()
    for word in ["`data.unlabelled`", *words]:
        assert word in message


def test_a_run_belongs_to_one_job_of_a_cluster_wherever_it_writes() -> None:
    # On disk a lock says so before.
    run = "s3://bucket/runs/a-job/001"
    first = start_coordinator(run)
    with pytest.raises(CheckpointError, match=f"another job is using the run {run}, or ended"):
        start_coordinator(run)
    ray.kill(first)
    ray.kill(start_coordinator(run))


def test_the_plan_for_a_cluster_that_does_not_run_yet(
    write_spec: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[2]
    resources = {"cluster": str(root / "cluster.yaml"), "costs": str(root / "infra/costs.yaml")}
    plan = plan_spec(write_spec(resources=resources))
    print_plan(plan.spec, plan.spec.resources, plan.worker_bounds, plan.capacity, plan.shards)
    said = capsys.readouterr().out
    assert "(slowest)" in said
    assert "USD per hour" in said
