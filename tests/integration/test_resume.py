"""A job whose driver was killed resumes when it is submitted again, or explains why it cannot."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liser_dist.data.shards import write_shards
from liser_dist.runs.checkpoint_files import list_checkpoints
from liser_dist.runs.checkpoints import load_checkpoint
from tests.films import small_film
from tests.integration.conftest import COUNTING, SLOW, Job, Kill, same

pytestmark = pytest.mark.usefixtures("ray_cluster")


def keeping(**train: Any) -> dict[str, Any]:
    return {"teachers": SLOW, "train": {"checkpoint_every": 1, "keep": 100, "epochs": 3, **train}}


@pytest.mark.long
def test_the_weights_are_those_of_a_job_that_nobody_killed(killed: Kill, job: Job) -> None:
    change = keeping(workers=2, average=0.9) | {"deterministic": True}
    place = killed(**change)
    again = job(**change)
    assert again.code == 0, again.err
    assert "resuming from step" in again.err
    assert again.place == place
    undisturbed = job(**change, name="undisturbed")
    assert undisturbed.code == 0, undisturbed.err
    assert same(again.weights, undisturbed.weights)
    one, two = (load_checkpoint(done.result["checkpoint"]) for done in (again, undisturbed))
    assert same(one.best["distilled"], two.best["distilled"])
    assert one.state["opinions"] == two.state["opinions"]
    assert np.sum(two.state["opinions"]["counts"]) == 3 * 29  # mock teachers hear and see all


def test_what_does_not_belong_to_a_run_is_refused_and_what_broke_is_passed_over(
    killed: Kill, job: Job, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    samples = ((f"clip-{n:02d}", small_film(n), {"faces": []}) for n in range(20))
    write_shards(samples, str(shards), clips_per_shard=6)
    change = keeping(workers=1, epochs=6)
    change |= {"data": {"unlabelled": str(shards)}, "student": COUNTING}
    place = killed(**change)

    other = job(**change, seed=5, loss={"temperature": 3.0})
    assert other.code == 2
    assert "`seed` was 0 and is now 5" in other.err
    assert "`loss.temperature` was 2.0 and is now 3.0" in other.err
    assert "Traceback" not in other.err

    shard, aside = shards / "000002.tar", tmp_path / "aside.tar"
    shard.rename(aside)
    shutil.copy(shards / "000001.tar", shard)
    replaced = job(**change)
    assert replaced.code == 2
    assert f"the shard {shard} was replaced" in replaced.err
    aside.rename(shard)  # with its time

    newest = Path(list_checkpoints(str(place))[-1]) / "students.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    change["train"]["workers"] = 2
    again = job(**change)
    assert again.code == 0, again.err
    assert again.place == place
    again_clips = again.result["clips"]
    assert "students.safetensors does not match its digest" in again.err
    assert set(again.weights["counts"].tolist()) == {1.0}

    (place / "result.json").unlink()  # as when the driver is killed while it scores
    last = job(**change)
    assert last.code == 0, last.err
    assert (last.place, last.result["clips"]) == (place, again_clips)
