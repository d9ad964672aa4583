"""Which run a job goes on with, and which it leaves alone."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from liser_dist.errors import CheckpointError
from liser_dist.runs import Run, open_run
from liser_dist.shards import Shard
from liser_dist.spec import DistillSpec

SHARDS = {
    "unlabelled": [Shard("/clips/000000.tar", 10, "v1", 3), Shard("/clips/1.tar", 9, "v2", 2)]
}


def spec_of(output: Path, **change: object) -> DistillSpec:
    fields = {
        "name": "a", "output": str(output), "data": {"unlabelled": "clips"},
        "teachers": {"speech": {"kind": "mock"}},
    }  # fmt: skip
    return DistillSpec.model_validate(fields | change)


def end(run: Run) -> None:
    """As when the process ends."""
    assert run.lock is not None
    run.lock.close()


def test_an_unfinished_run_is_gone_on_with_and_a_finished_one_is_not(tmp_path: Path) -> None:
    first = open_run(spec_of(tmp_path), SHARDS)
    end(first)
    again = open_run(spec_of(tmp_path), SHARDS)
    assert (again.place, again.goes_on) == (first.place, True)
    Path(first.place, "result.json").write_text("{}")
    end(again)
    other = open_run(spec_of(tmp_path), SHARDS)
    assert (Path(other.place).name, other.goes_on) == ("002", False)


def test_workers_resources_and_budgets_may_change(tmp_path: Path) -> None:
    end(open_run(spec_of(tmp_path), SHARDS))
    change = {"train": {"workers": 3}, "resources": {"decoders": [2, 9]},
              "budget": {"max_rejected_share": 0.9}}  # fmt: skip
    assert open_run(spec_of(tmp_path, **change), SHARDS).goes_on


def test_a_run_of_another_spec_is_refused_with_the_fields_named(tmp_path: Path) -> None:
    end(open_run(spec_of(tmp_path), SHARDS))
    change = {"seed": 4, "train": {"workers": 2, "epochs": 9}}
    with pytest.raises(CheckpointError) as told:
        open_run(spec_of(tmp_path, **change), SHARDS)
    assert "`seed` is 0 there and 4 here; `train.epochs` is 3 there and 9 here" in str(told.value)
    assert "workers" not in str(told.value)


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
    assert "1 shards came after the run began" in caplog.text


def test_a_run_belongs_to_one_job_until_its_process_ends(tmp_path: Path) -> None:
    run = open_run(spec_of(tmp_path), SHARDS)
    code = (
        "import sys\nfrom liser_dist.runs import open_run\n"
        "from liser_dist.spec import DistillSpec\n"
        "open_run(DistillSpec.model_validate_json(sys.argv[1]), {})"
    )
    command = [sys.executable, "-c", code, spec_of(tmp_path).model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert "another job is at work on the run" in done.stderr
    end(run)
    assert open_run(spec_of(tmp_path), SHARDS).place == run.place


def test_a_file_in_the_way_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "001").write_text("no folder")
    assert Path(open_run(spec_of(tmp_path), SHARDS).place).name == "002"
