"""A job resumes its unfinished run, or is refused if spec or shards differ."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from liser_dist import storage
from liser_dist.benchmarks.testbed.flaky_s3 import FlakyS3
from liser_dist.config.distill import DistillSpec
from liser_dist.data.shard_list import Shard
from liser_dist.errors import CheckpointError
from liser_dist.runs.folder import Run, open_run, start_short_run

SHARDS = {
    "unlabelled": [Shard("/clips/000000.tar", 10, "v1", 3), Shard("/clips/1.tar", 9, "v2", 2)]
}


def spec_of(output: Path | str, **change: object) -> DistillSpec:
    fields = {
        "name": "a", "output": str(output), "data": {"unlabelled": "clips"},
        "teachers": {"speech": {"kind": "mock"}},
    }  # fmt: skip
    return DistillSpec.model_validate(fields | change)


def end(run: Run) -> None:
    """Release the lock, as the end of the process does."""
    assert run.lock is not None
    run.lock.close()


def test_an_unfinished_run_is_resumed_and_a_finished_one_is_not(tmp_path: Path) -> None:
    first = open_run(spec_of(tmp_path), SHARDS)
    end(first)
    again = open_run(spec_of(tmp_path), SHARDS)
    assert (again.place, again.resumed) == (first.place, True)
    Path(first.place, "result.json").write_text("{}")
    end(again)
    other = open_run(spec_of(tmp_path), SHARDS)
    assert (Path(other.place).name, other.resumed) == ("002", False)


def test_workers_resources_and_budgets_may_change(tmp_path: Path) -> None:
    end(open_run(spec_of(tmp_path), SHARDS))
    change = {"train": {"workers": 3}, "resources": {"decoders": [2, 9]},
              "budget": {"max_rejected_share": 0.9}}  # fmt: skip
    assert open_run(spec_of(tmp_path, **change), SHARDS).resumed


def test_a_run_of_another_spec_is_refused_with_the_fields_named(tmp_path: Path) -> None:
    end(open_run(spec_of(tmp_path), SHARDS))
    change = {"seed": 4, "train": {"workers": 2, "epochs": 9}}
    with pytest.raises(CheckpointError) as error:
        open_run(spec_of(tmp_path, **change), SHARDS)
    assert "`seed` was 0 and is now 4; `train.epochs` was 3 and is now 9" in str(error.value)
    assert "workers" not in str(error.value)


def saved_by_an_earlier_version(run: Run, **removed: dict[str, object]) -> None:
    file = Path(run.place, "spec.json")
    content = json.loads(file.read_text())
    del content["track"]  # which came later
    for section, fields in removed.items():
        content[section] |= fields
    file.write_text(json.dumps(content))


def test_a_run_that_was_started_with_a_removed_field_is_resumed(tmp_path: Path) -> None:
    run = open_run(spec_of(tmp_path), SHARDS)
    saved_by_an_earlier_version(run, resources={"reader_cpus": 0.5})
    end(run)
    assert open_run(spec_of(tmp_path), SHARDS).resumed


def test_a_run_that_was_started_with_a_removed_value_is_refused(tmp_path: Path) -> None:
    run = open_run(spec_of(tmp_path), SHARDS)
    saved_by_an_earlier_version(run, loss={"fusion": "product"})
    end(run)
    with pytest.raises(CheckpointError) as refused:
        open_run(spec_of(tmp_path), SHARDS)
    error = str(refused.value)
    assert "was started with `loss.fusion: product`, which this version does not support" in error
    assert "\n" not in error


@pytest.mark.parametrize(("version", "what"), [("v9", "was replaced"), (None, "no longer there")])
def test_a_replaced_or_missing_shard_is_refused_by_name(
    tmp_path: Path, version: str | None, what: str
) -> None:
    end(open_run(spec_of(tmp_path), SHARDS))
    one, two = SHARDS["unlabelled"]
    found = [one] if version is None else [one, replace(two, version=version)]
    with pytest.raises(CheckpointError, match=f"the shard /clips/1.tar .*{what}"):
        open_run(spec_of(tmp_path), {"unlabelled": found})


def test_shards_that_came_later_are_left_to_a_later_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    end(open_run(spec_of(tmp_path), SHARDS))
    more = {"unlabelled": [*SHARDS["unlabelled"], Shard("/clips/2.tar", 9, "v3", 2)]}
    assert open_run(spec_of(tmp_path), more).shards == SHARDS
    assert "1 shard was added after the run started" in caplog.text


def test_a_run_belongs_to_one_job_until_its_process_ends(tmp_path: Path) -> None:
    run = open_run(spec_of(tmp_path), SHARDS)
    code = (
        "import sys\nfrom liser_dist.runs.folder import open_run\n"
        "from liser_dist.config.distill import DistillSpec\n"
        "open_run(DistillSpec.model_validate_json(sys.argv[1]), {})"
    )
    command = [sys.executable, "-c", code, spec_of(tmp_path).model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert "another job is writing to the run" in done.stderr
    end(run)
    assert open_run(spec_of(tmp_path), SHARDS).place == run.place


def test_a_file_with_the_number_of_a_run_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "001").write_text("no folder")
    assert Path(open_run(spec_of(tmp_path), SHARDS).place).name == "002"


# ---------------------------------------------------------------- two jobs at the same time


TRIES = 20


class Bucket:
    """A bucket on an S3 server."""

    def __init__(self, server: FlakyS3, folder: Path) -> None:
        self.server, self.folder = server, folder

    def let_pass(self) -> None:
        """Let the time pass in which a run counts as just started."""
        for job in self.folder.glob("*/*/jobs/*"):
            os.utime(job, (1, 1))
        self.server.restart(down_s=0)  # it caches times


@pytest.fixture
def s3(s3_server: FlakyS3, tmp_path: Path) -> Bucket:
    return Bucket(s3_server, tmp_path / "bucket")


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def open_at_once(specs: list[DistillSpec]) -> list[Run | CheckpointError]:
    """Open a run from several jobs at the same moment."""
    barrier = threading.Barrier(len(specs))

    def open_one(spec: DistillSpec) -> Run | CheckpointError:
        barrier.wait()
        try:
            return open_run(spec, SHARDS)
        except CheckpointError as error:
            return error

    with ThreadPoolExecutor(len(specs)) as jobs:
        return list(jobs.map(open_one, specs))


@pytest.mark.parametrize("where", ["disk", pytest.param("s3", marks=pytest.mark.slow)])
def test_of_two_jobs_that_start_at_once_one_is_refused(
    tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    root = request.getfixturevalue("s3").folder if where == "s3" else tmp_path
    output = "s3://bucket" if where == "s3" else tmp_path
    for number in range(TRIES):
        jobs = [spec_of(output, name=f"n{number}", seed=seed) for seed in (1, 2)]
        opened = open_at_once(jobs)
        (winner,) = (n for n, run in enumerate(opened) if isinstance(run, Run))
        run, error = opened[winner], opened[1 - winner]
        assert isinstance(run, Run)
        assert isinstance(error, CheckpointError)
        assert "another job" in str(error)
        assert "give another `name`" in str(error)
        assert not run.resumed
        written = contents(root / f"n{number}")
        assert set(written) == {
            f"001/{name}" for name in ("jobs/001", "mark", "shards.json", "spec.json")
        }
        assert json.loads(written["001/spec.json"])["seed"] == jobs[winner].seed
        assert written["001/mark"].decode() == run.mark


@pytest.mark.slow
def test_of_two_jobs_that_resume_at_once_on_s3_one_is_refused(s3: Bucket) -> None:
    specs = [spec_of("s3://bucket", name=f"n{number}") for number in range(TRIES)]
    for spec in specs:
        open_run(spec, SHARDS)
    s3.let_pass()
    for spec in specs:
        opened = open_at_once([spec, spec])
        assert sorted(type(run).__name__ for run in opened) == ["CheckpointError", "Run"]
        jobs = {path.name for path in (s3.folder / spec.name / "001" / "jobs").iterdir()}
        assert jobs == {"001", "002"}


@pytest.mark.slow
def test_on_s3_a_run_that_has_just_started_is_refused_and_later_resumed(s3: Bucket) -> None:
    spec = spec_of("s3://bucket")
    run = open_run(spec, SHARDS)
    before = contents(s3.folder)
    with pytest.raises(CheckpointError, match="another job has just started the run"):
        open_run(spec, SHARDS)
    assert contents(s3.folder) == before
    s3.let_pass()
    assert open_run(spec, SHARDS).place == run.place
    storage.write_bytes(f"{run.place}/result.json", b"{}")
    assert Path(open_run(spec, SHARDS).place).name == "002"


def test_a_run_whose_job_has_written_nothing_yet_is_not_passed_over(tmp_path: Path) -> None:
    run = tmp_path / "a" / "001"
    (run / "jobs").mkdir(parents=True)
    (run / "jobs" / "001").write_text("claimed a moment ago")
    with pytest.raises(CheckpointError, match="another job has just started the run"):
        open_run(spec_of(tmp_path), SHARDS)
    os.utime(run / "jobs" / "001", (1, 1))  # the job has ended without writing anything
    assert Path(open_run(spec_of(tmp_path), SHARDS).place).name == "002"


def test_a_short_run_of_the_same_name_is_in_nobodys_way(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    for number in (1, 2):
        place = Path(start_short_run(spec, str(tmp_path), "a"))
        assert place.name == f"00{number}"
        (place / "result.json").write_text("{}")
    assert Path(open_run(spec, SHARDS).place).name == "003"
