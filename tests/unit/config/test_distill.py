"""A spec validates itself; its errors name the field, the value and the remedy."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from liser_dist.command_line import read_command
from liser_dist.config.distill import DistillSpec
from liser_dist.config.study import METHODS, StudySpec
from liser_dist.config.train_teacher import TrainTeacherSpec
from liser_dist.errors import SpecError

ROOT = Path(__file__).parents[3]
SPEC: dict[str, Any] = {
    "name": "a-job",
    "data": {"unlabelled": "shards"},
    "teachers": {"speech": {"kind": "mock"}},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    return tmp_path / "spec.yaml"


def read(file: Path, *arguments: str) -> DistillSpec:
    return read_command([str(file), *arguments], Path("none"), "about", DistillSpec).spec


def test_any_field_is_given_on_the_command_line_by_its_dotted_name(file: Path) -> None:
    spec = read(
        file, "--seed", "5", "--data.unlabelled", "s3://other/clips", "--train.epochs", "9",
        "--student.kind", "reslstm", "--student.width", "20", "--deterministic", "true",
    )  # fmt: skip
    assert (spec.seed, spec.data.unlabelled, spec.train.epochs) == (5, "s3://other/clips", 9)
    assert (spec.student.kind, spec.student.width, spec.deterministic) == ("reslstm", 20, True)
    assert spec.teachers.speech is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nome": "x"}, ["nome", "no such field"]),
        ({"train": {"epoch": 3}}, ["train.epoch", "no such field"]),
        ({"train": {"epochs": "many"}}, ["train.epochs", "integer", "many"]),
        ({"train": {"epochs": 0}}, ["train.epochs", "greater", "0"]),
        ({"student": {"kind": "gpt"}}, ["student", "gpt", "cnn"]),
        ({"teachers": {}}, ["teachers", "speech", "face"]),
        ({"data": {}}, ["data.unlabelled", "required"]),
        ({"data": {"unlabelled": "ftp://host/clips"}}, ["data.unlabelled", "ftp://", "s3://"]),
        ({"synthetic": {}, "data": "s3://bucket"}, ["data", "s3://bucket"]),
        ({"synthetic": {}, "seed": [1]}, ["seed", "integer"]),
        ({"synthetic": {"nope": 5}}, ["synthetic.nope", "no such field"]),
        ({"emotions": ["sad", "sad"]}, ["emotions", "twice"]),
        ({"resources": {"decoders": [4, 2]}}, ["decoders", "[4, 2]"]),
        ({"train": {"learning_rates": [0.1, 0.2]}}, ["learning_rates", "data.validation"]),
        ({"train": {"workers": 9, "batch_size": 8}}, ["train.batch_size", "8", "9"]),
        ({"loss": {"speech_kl": 0}}, ["learn nothing", "loss.speech_kl"]),
        ({"compare": ["labels_only"]}, ["compare", "data.labelled"]),
        (
            {
                "teachers": {
                    "speech": {"kind": "huggingface", "model": "m", "labels": {"joy": "joyful"}}
                }
            },
            ["teachers.speech.labels", "joy", "joyful", "happy"],
        ),
        ({"teachers": {"face": {"kind": "onnx", "model": "m"}}}, ["teachers.face.input"]),
    ],
)
def test_a_mistake_is_told_by_field_value_and_remedy(
    tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(SPEC | change))
    with pytest.raises(SpecError) as error:
        read(file)
    for word in words:
        assert word.lower() in str(error.value).lower()


@pytest.mark.parametrize("content", ["{", "- a\n- b\n", "", "\x00\xff"])
def test_a_file_that_is_no_spec_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "spec.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(SpecError, match=r"spec\.yaml"):
        read(tmp_path / "spec.yaml")


def test_a_mistake_on_the_command_line_exits_with_2_and_no_traceback(file: Path) -> None:
    for arguments in (["--train.epochs", "none"], ["--trian.epochs", "3"], ["--train.epochs"]):
        done = subprocess.run(
            [sys.executable, ROOT / "jobs" / "distill.py", file, *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert ".epochs" in done.stderr
        assert "Traceback" not in done.stderr


def test_reading_a_spec_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, liser_dist.command_line\n"
        "from liser_dist.config import distill, evaluate, export, ingest, study, train_teacher\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_embedded_spec_fills_in_shards_and_teachers() -> None:
    default = ROOT / "jobs" / "specs" / "demo.yaml"
    one = read_command(["--seed", "1"], default, "about", DistillSpec).spec
    two = read_command(
        ["--seed", "2", "--data.unlabelled", "mine"], default, "about", DistillSpec
    ).spec
    assert two.data.unlabelled == "mine"
    assert one.data.labelled != two.data.labelled  # another corpus for another seed
    assert one.teachers.speech is not None
    assert one.teachers.face is not None


def test_a_field_of_a_default_part_needs_no_kind() -> None:
    default = ROOT / "jobs" / "specs" / "demo.yaml"
    spec = read_command(["--student.width", "16"], default, "about", DistillSpec).spec
    assert (spec.student.kind, spec.student.width) == ("cnn", 16)
    spec = read_command(
        ["--teachers.speech.model", "/my/teacher"], default, "about", DistillSpec
    ).spec
    assert spec.teachers.speech is not None
    assert spec.teachers.speech.model == "/my/teacher"


def test_places_are_told_so_that_every_process_finds_them(tmp_path: Path) -> None:
    spec = DistillSpec.model_validate(SPEC | {"output": "~/runs"}).with_absolute_places()
    assert spec.data.unlabelled == str(Path("shards").absolute())
    assert spec.output == str(Path("~/runs").expanduser())
    remote = SPEC | {"data": {"unlabelled": "s3://bucket/clips"}}
    assert DistillSpec.model_validate(remote).with_absolute_places().data.unlabelled[:5] == "s3://"


def test_the_hash_tells_jobs_apart_wherever_they_write() -> None:
    job = DistillSpec.model_validate(SPEC)
    assert job.spec_hash == job.model_copy(update={"output": "elsewhere"}).spec_hash
    assert job.spec_hash != job.model_copy(update={"seed": 1}).spec_hash


def test_the_readmes_own_spec_is_sound() -> None:
    (block,) = [
        part for part in (ROOT / "README.md").read_text().split("```yaml\n")[1:] if "name:" in part
    ]
    spec = DistillSpec.model_validate(yaml.safe_load(block.split("```")[0]))
    assert spec.teachers.speech is not None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"output": "s3://AKIAKEY:hunter2@bucket/runs"}, "output"),
        ({"output": "s3://AKIAKEY:hunt/hunter2@bucket/runs"}, "output"),
        ({"output": "s3://hunter2@[b/x"}, "output"),
        ({"track": {"mlflow": "https://me:p#hunter2@tracking"}}, "track.mlflow"),
        ({"track": {"mlflow": "me:hunter2@tracking:5000"}}, "track.mlflow"),
        ({"track": {"mlflow": "https://tracking/?token=hunter2"}}, "track.mlflow"),
        ({"track": "https://me:hunter2@tracking"}, "track"),
        ({"track": {"mlflow": "https://me:hunter2@tracking:5000"}}, "track.mlflow"),
        ({"aws_secret_access_key": "hunter2"}, "aws_secret_access_key"),
    ],
)
def test_a_key_in_a_spec_is_refused_and_not_shown(
    file: Path, change: dict[str, Any], field: str
) -> None:
    file.write_text(yaml.safe_dump(SPEC | change))
    with pytest.raises(SpecError, match=rf"  {field}: ") as told:
        read(file)
    assert "hunter2" not in str(told.value)


def test_a_place_may_have_an_at_and_brackets_in_its_name(file: Path) -> None:
    place = "s3://bucket/me@home/[1]"
    assert read(file, "--output", place).output == place


@pytest.mark.parametrize(("given", "workers"), [("2", 2), ("[1, 3]", (1, 3)), ("1,3", (1, 3))])
def test_workers_are_a_number_or_bounds_on_the_command_line_too(
    file: Path, given: str, workers: object
) -> None:
    assert read(file, "--train.workers", given).train.workers == workers


def test_wrong_workers_are_told_in_a_line(file: Path) -> None:
    with pytest.raises(SpecError) as told:
        read(file, "--train.workers", "none")
    (line,) = str(told.value).splitlines()[1:]
    assert line.startswith("  train.workers: ")
    assert line.endswith("(given: 'none')")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.workers", "4,2"], "minimum, maximum"),
        (["--train.workers", "1,9", "--train.batch_size", "8"], "at least one clip"),
        (["--train.workers", "1,2", "--resources.worker_gpus", "0.5"], "`resources.worker_gpus`"),
        (["--train.workers", "2", "--resources.worker_gpus", "1.5"], "give a whole number"),
        (["--train.workers", "1,2", "--deterministic", "true"], "fixed number"),
        (["--train.workers", "3", "--deterministic", "true"], "divides"),
        (
            ["--train.workers", "1,2", "--train.checkpoint_every_s", "90"],
            "`train.checkpoint_every_s` 90 exceeds `train.resize_every_s` 60",
        ),
    ],
)
def test_workers_must_agree_with_what_else_is_asked(
    file: Path, arguments: list[str], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        read(file, *arguments)


def test_workers_of_a_fixed_number_may_save_as_rarely_as_they_like(file: Path) -> None:
    slow = read(file, "--train.workers", "2", "--train.checkpoint_every_s", "90")
    assert slow.train.checkpoint_every_s == 90


def test_a_single_train_worker_may_take_a_part_of_a_gpu(file: Path) -> None:
    assert read(file, "--resources.worker_gpus", "0.25").resources.worker_gpus == 0.25
    assert read(file, "--train.workers", "2", "--resources.worker_gpus", "1").train.workers == 2


def test_workers_that_train_a_teacher_share_no_gpu() -> None:
    content = {"backbone": "b", "data": {"labelled": "l"}, "resources": {"worker_gpus": 0.5}}
    assert TrainTeacherSpec.model_validate(content).workers == 1
    with pytest.raises(ValidationError, match=r"`resources.worker_gpus` is 0.5.*`workers` to 1"):
        TrainTeacherSpec.model_validate({**content, "workers": 2})


STUDY = ROOT / "jobs" / "specs" / "study-synthetic.yaml"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--teachers.face.kind", "mock"], ["teachers.face", "kind: backbone"]),
        (["--targets.store", "off"], ["targets.store", "off"]),
        (["--loss.embedding", "0"], ["loss.embedding", "both_embeddings"]),
        (["--study.folds", "ravdess"], ["either `data.test` or `study.folds` but not both"]),
        (["--study.seeds", "[1, 1]"], ["study", "seeds", "twice"]),
        (
            ["--train.learning_rates", "[0.1, 0.2]", "--data.validation", "x"],
            ["train.learning_rates", "give exactly one"],
        ),
        (["--study.methods", '["both", "neither"]'], ["study.methods", "neither"]),
        (["--train.labelled_batch_size", "0"], ["train.labelled_batch_size", "above 0"]),
        (["--compare", '["labels_only"]'], ["does not support", "`compare`", "study.methods"]),
    ],
)
def test_a_study_that_cannot_be_is_refused(given: list[str], words: list[str]) -> None:
    with pytest.raises(SpecError) as refused:
        read_command([str(STUDY), *given], STUDY, "about", StudySpec)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("name", ["study-synthetic", "study-ravdess", "study-cremad"])
def test_a_ready_study_is_sound(name: str) -> None:
    file = ROOT / "jobs" / "specs" / f"{name}.yaml"
    spec = read_command([str(file)], file, "about", StudySpec).spec
    assert spec.study.methods == METHODS
