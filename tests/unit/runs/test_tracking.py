"""A run's numbers reach MLflow and Weights & Biases, checked with the libraries themselves."""

import logging
import re
import shutil
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from mlflow import MlflowClient

from liser_dist.config.distill import DistillSpec
from liser_dist.errors import SpecError
from liser_dist.runs.folder import Run
from liser_dist.runs.progress import Progress
from liser_dist.runs.tracking import Trackers, require_trackers, tracked

RUN = Run("/runs/web-av/001", "a1", {}, False, None)
KEY = "0123456789" * 4


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where MLflow keeps its runs; the small library has a folder alone."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", KEY)
    return f"file:{tmp_path / 'mlflow'}"


@pytest.fixture
def wandb_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Weights & Biases keeps what it would send."""
    wandb.teardown()  # it looks at the environment once
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "API_KEY": KEY}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    return tmp_path / "wandb"


def spec_of(**track: str) -> DistillSpec:
    return DistillSpec.model_validate(
        {
            "name": "web-av",
            "data": {"unlabelled": "clips"},
            "teachers": {"speech": {"kind": "mock"}},
            "track": track,
        }
    )


def start(spec: DistillSpec, run: Run = RUN) -> AbstractContextManager[Trackers]:
    return tracked(spec.track, spec.model_dump(mode="json"), run)


def kept_by(folder: Path) -> bytes:
    """All that Weights & Biases would send, once its service has written it."""
    wandb.teardown()
    (file,) = folder.glob("offline-run-*/*.wandb")
    return file.read_bytes()


def test_mlflow_has_the_spec_the_curves_and_the_scores_and_a_run_goes_on_as_one(
    mlflow: str,
) -> None:
    client = MlflowClient(tracking_uri=mlflow)
    spec = spec_of(mlflow=mlflow)

    def begin_and_fail(trackers: Trackers) -> None:
        with trackers.following(lambda: Progress(steps=4, loss=1.5)):
            pass
        raise KeyError

    with pytest.raises(KeyError), start(spec) as trackers:
        begin_and_fail(trackers)
    (experiment,) = client.search_experiments(filter_string="name = 'liser_dist'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    with (
        start(spec) as trackers,
        trackers.following(lambda: Progress(steps=8, loss=0.5, scores={"distilled": 0.6})),
    ):
        trackers.log({"test/student_uar": 0.625}, 8)
    with start(spec, replace(RUN, place="/runs/web-av/002", mark="a2")):
        pass
    two = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in two} == {"web-av/001", "web-av/002"}
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["teachers.speech.kind"] == "mock"
    assert run.data.metrics["test/student_uar"] == 0.625
    assert run.data.metrics["validation/distilled_uar"] == 0.6
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in curve] == [(4, 1.5), (8, 0.5)]


def test_weights_and_biases_has_them_too(wandb_folder: Path) -> None:
    with (
        start(spec_of(wandb="emotions")) as trackers,
        trackers.following(lambda: Progress(steps=4, loss=1.5)),
    ):
        pass
    sent = kept_by(wandb_folder)
    assert re.search(rb"train/loss.{1,4}1\.5", sent)
    assert b"train/left_s" not in sent  # not known
    assert b"web-av/001" in sent


def test_no_key_is_told(wandb_folder: Path, mlflow: str, tmp_path: Path) -> None:
    with start(spec_of(wandb="emotions", mlflow=mlflow)) as trackers:
        trackers.log({"train/loss": 1.0}, 1)
    assert b"train/loss" in kept_by(wandb_folder)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_what_is_lost_on_the_way_costs_the_run_nothing(
    mlflow: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), start(spec_of(mlflow=mlflow)) as trackers:
        shutil.rmtree(mlflow.removeprefix("file:"))
        trackers.log({"train/loss": 1.0}, 1)
        trackers.log({"train/loss": 1.0}, 2)
    (warning,) = caplog.messages
    assert warning.startswith("logging to mlflow failed: ")
    assert warning.endswith("; the run continues without this tracker")


def test_a_server_that_is_not_there_ends_the_job_before_it_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    spec = spec_of(mlflow="http://127.0.0.1:9")
    with pytest.raises(SpecError, match=r"`track.mlflow` http://127.0.0.1:9 cannot be used"):
        require_trackers(spec.track)


def test_no_key_for_weights_and_biases_ends_it_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wandb.teardown()
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(SpecError, match=r"`track.wandb` emotions cannot be used: "):
        require_trackers(spec_of(wandb="emotions").track)


def test_a_coordinator_that_is_gone_does_not_end_the_run(mlflow: str) -> None:
    def gone() -> Progress:
        raise RuntimeError("the actor is dead")

    with start(spec_of(mlflow=mlflow)) as trackers, trackers.following(gone):
        pass


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SpecError, match=r"`track.wandb` needs the package wandb"):
        require_trackers(spec_of(wandb="emotions").track)
