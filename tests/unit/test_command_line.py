"""Command lines that are wrong: exit status 2, and one line that says what to do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from liser_dist.command_line import explained_to_the_user, read_command
from liser_dist.config.base import Spec
from liser_dist.config.distill import DistillSpec
from liser_dist.config.evaluate import EvaluateSpec
from liser_dist.config.ingest import IngestSpec
from liser_dist.errors import SpecError

ROOT = Path(__file__).parents[2]
SPEC: dict[str, Any] = {
    "name": "a-job",
    "data": {"unlabelled": "shards"},
    "teachers": {"speech": {"kind": "mock"}},
}


def refusal(tmp_path: Path, content: dict[str, Any], *arguments: str, kind: type[Spec]) -> str:
    """The lines of a refused command line, without the one that names the file."""
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(SpecError) as refused:
        read_command([str(file), *arguments], file, "about", kind)
    return str(refused.value).removeprefix(f"{file}: 1 mistake in the spec\n")


REMOVED = [
    ("resources", "reader_cpus", 0.5, "reading shards reserves no CPU"),
    ("loss", "fusion", "product", "use `mean` or `separate`"),
    ("loss", "fusion", "confidence", "use `mean` or `separate`"),
    ("loss", "balance", "resample", "use `distribution_alignment`"),
]


@pytest.mark.parametrize(("section", "field", "value", "remedy"), REMOVED)
def test_a_removed_field_or_value_is_refused_with_what_replaces_it(
    tmp_path: Path, section: str, field: str, value: object, remedy: str
) -> None:
    in_file = refusal(tmp_path, SPEC | {section: {field: value}}, kind=DistillSpec)
    option = (f"--{section}.{field}", str(value))
    as_option = refusal(tmp_path, SPEC, *option, kind=DistillSpec)
    for line in (in_file, as_option):
        assert f"{section}.{field}: this " in line
        assert remedy in line
        assert "\n" not in line


@pytest.mark.parametrize("option", ["--resources.reader_cpus=1", "--loss.fusion=product"])
def test_a_job_given_a_removed_option_exits_with_2(option: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "distill.py", option],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{option[2:].split('=')[0]}: this " in done.stderr
    assert "was removed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_field_that_another_job_lost_is_simply_unknown(tmp_path: Path) -> None:
    content = {"source": "a", "output": "b", "resources": {"reader_cpus": 1}}
    line = refusal(tmp_path, content, kind=IngestSpec)
    assert "resources.reader_cpus: there is no such field" in line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"student": {"kind": "gpt"}},
            "student.kind: there is no such kind; give one of cnn, reslstm, counting "
            "(given: 'gpt')",
        ),
        (
            {"teachers": {"speech": {"kind": "onx", "model": "m"}}},
            "teachers.speech.kind: there is no such kind; give one of huggingface, backbone, onnx, "
            "student, mock (given: 'onx')",
        ),
        (
            {"teachers": {"face": {"model": "m"}}},
            "teachers.face: its `kind` is required: set it in the spec, or pass "
            "--teachers.face.kind",
        ),
        (
            {"teachers": {"face": {"kind": "onnx", "model": "m", "input": {"kind": "pixels"}}}},
            "teachers.face.input.kind: there is no such kind; give one of image, waveform, "
            "mel_power (given: 'pixels')",
        ),
        (
            {"teachers": {"face": {"kind": "onnx", "model": "m", "input": {"kind": "image"},
                                   "logits": "l", "names": ["a"]}}},
            "teachers.face.input.size_px: it is required: set it in the spec, or pass "
            "--teachers.face.input.size_px",
        ),
        (
            {"student": {"kind": "cnn", "cnn": 3}},
            "student.cnn: there is no such field; remove it or correct its name",
        ),
        (
            {"teachers": {"speech": {"kind": "huggingface", "model": "m", "labels": {"a": 3}}}},
            "teachers.speech.labels.a: Input should be a valid string (given: 3)",
        ),
        (
            {"loss": {"fusion": "sum"}},
            "loss.fusion: it must be one of separate, mean (given: 'sum')",
        ),
        (
            {"train": {"workers": "many"}},
            "train.workers: Input should be a valid integer, unable to parse string as an integer "
            "(given: 'many')",
        ),
        (
            {"train": {"workers": [1, 0]}},
            "train.workers.1: Input should be greater than or equal to 1 (given: 0)",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_named_as_in_the_file_and_in_our_words(
    tmp_path: Path, change: dict[str, Any], line: str
) -> None:
    assert refusal(tmp_path, SPEC | change, kind=DistillSpec) == f"  {line}"


def test_a_model_to_evaluate_is_named_without_its_kind(tmp_path: Path) -> None:
    content = {"model": {"kind": "student"}, "data": {"labelled": "clips"}}
    line = refusal(tmp_path, content, kind=EvaluateSpec)
    assert line == "  model.model: it is required: set it in the spec, or pass --model.model"


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    lines = refusal(tmp_path, SPEC | {"seed": -1, "nome": "x"}, kind=DistillSpec).splitlines()
    assert lines[0].endswith(": 2 mistakes in the spec")
    assert len(lines) == 3


class FakeRay:
    """Prints a log line when it is shut down, as Ray does with lines that it has held back."""

    @staticmethod
    def shutdown() -> None:
        sys.stderr.write("a log line of a worker\n")


def test_the_message_is_the_last_line_of_a_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay)
    with pytest.raises(SystemExit, match="2"), explained_to_the_user():
        raise SpecError("`seed` is wrong")
    assert capsys.readouterr().err == "a log line of a worker\nerror: `seed` is wrong\n"
