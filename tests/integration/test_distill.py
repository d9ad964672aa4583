"""jobs/distill.py on a real Ray accounts for every clip, and equal jobs give equal weights."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from liser_dist.benchmarks.damage import damage
from liser_dist.benchmarks.testbed.local_cluster import LocalCluster
from liser_dist.config.base import EMOTIONS
from liser_dist.data.shards import write_shards
from liser_dist.records import Reason
from liser_dist.runs.predictions import Predictions
from liser_dist.students.scoring import score
from tests.integration.conftest import BIN, ROOT, Finished, Job, same

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_workers_with_uneven_tails_end_with_a_result_that_accounts_for_every_clip(
    job: Job, labelled: dict[str, str], clips: Path
) -> None:
    done = job(
        data={"unlabelled": str(clips), **labelled},
        compare=["labels_only"],
        train={"workers": 2, "epochs": 3, "learning_rates": [0.001, 0.003], "validate_every": 2},
        # The GPU is a logical one: its scheduling is real, the teachers fall back to the CPU.
        resources={"teacher_gpus": 1},
    )
    assert done.code == 0, done.err
    result = done.result
    assert {"clips", "steps", "seconds", "clips_per_s", "data_wait_share", "student",
            "label_only", "speech_teacher", "checkpoint", "spec_hash"} <= set(result)  # fmt: skip
    assert result["clips"] == {
        "total": 29, "trained": 29, "rejected": 0, "passes": 87, "taught": 87,
        "unsure": 0, "compared": 87, "differing": 0,  # two mock teachers are of one mind
        "labelled": 18, "labelled_by_set": {"labelled": 6, "validation": 6, "test": 6},
        "labelled_rejected": 0, "labelled_left_out": {},
    }  # fmt: skip
    assert result["steps"] >= 87 / 16
    marks = done.ledger.to_json()["trained"]
    assert len({(mark["epoch"], mark["shard"]) for mark in marks}) == 9
    for scores in (result["student"], result["label_only"], result["speech_teacher"]):
        assert 0 <= scores["uar"] <= 1
    answers = Predictions.read(str(done.place), ())
    assert answers is not None
    assert set(answers.probabilities) == {
        "distilled",
        "labels_only",
        "speech_teacher",
        "face_teacher",
    }
    assert (len(answers.clips), answers.emotions) == (6, list(EMOTIONS))
    emotions = [list(EMOTIONS).index(clip.emotion) for clip in answers.clips]
    uar = score(np.array(emotions), answers.probabilities["distilled"].argmax(axis=1)).uar
    assert uar == pytest.approx(result["student"]["uar"])
    assert result["student"]["params"] == result["label_only"]["params"] > 1000
    assert result["seconds"]["to_first_step"] < result["seconds"]["total"]
    assert list(done.place.glob("tensorboard/events*"))
    assert pq.read_table(done.place / "rejected.parquet").num_rows == 0
    assert max(map(len, (done.out + done.err).splitlines())) < 2000


def contents(folder: Path) -> dict[Path, bytes]:
    """Of each file under a folder, in which others come and go."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(OSError):
            found[path] = path.read_bytes()
    return found


def submitted(environment: dict[str, str], *entrypoint: str) -> Finished:
    done = subprocess.run(
        [BIN / "ray", "job", "submit", *entrypoint],
        env=environment, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.endswith("result.json")]
    done.stdout = "\n".join([done.stdout, *lines[-1:]])
    return Finished(done)


@pytest.mark.long
def test_weights_hang_on_neither_how_a_job_is_submitted_nor_on_what_is_said_of_a_clip(
    write_spec,
    local_cluster: LocalCluster,
    films: list[bytes],
    labelled: dict[str, str],
    tmp_path: Path,
) -> None:
    place = str(tmp_path / "said")
    data = {"unlabelled": place, "labelled": labelled["labelled"]}
    change = {"deterministic": True, "data": data, "seed": 3}
    ray_cluster = local_cluster.environment

    def say(**facts: Any) -> None:
        samples = (
            (f"clip-{n:02d}", film, facts | {"faces": []}) for n, film in enumerate(films[:12])
        )
        write_shards(samples, place, clips_per_shard=6)

    spec = str(write_spec(**change))
    refused = submitted(ray_cluster | {"RAY_AUTH_MODE": "disabled"}, "jobs/distill.py", spec)
    assert refused.code != 0
    assert "token" in (refused.out + refused.err).lower()
    say(emotion="sad", speaker="a", source="x", score=1)
    first = submitted(
        ray_cluster, "--working-dir", ".", "--", sys.executable, "jobs/distill.py", spec
    )
    assert first.code == 0, first.out + first.err
    say(emotion="happy", speaker="b", duration_s=99, label=[1, 2])
    other = submitted(ray_cluster, "jobs/distill.py", spec)
    assert other.code == 0, other.out + other.err
    assert first.place != other.place
    assert same(first.weights, other.weights)
    keys = [ray_cluster[name].encode() for name in ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY")]
    left = {**contents(tmp_path), **contents(local_cluster.folder)}
    assert any("job-driver-" in path.name for path in left)
    assert [path for path, content in left.items() if any(key in content for key in keys)] == []


def test_damaged_clips_and_shards_cost_themselves_alone_also_where_no_target_can_be_kept(
    job: Job, films: list[bytes], tmp_path: Path
) -> None:
    good = [(f"clip-{n:02d}", film, {"faces": []}) for n, film in enumerate(films[:15])]
    broken = [(f"bad-{n:02d}", damage(films[0], n), {"faces": []}) for n in range(20)]
    # In one shard good and damaged ones in turn; then two more, the first of them cut off.
    mixed = [sample for pair in zip(good[:5] * 4, broken, strict=True) for sample in pair]
    mixed = [(f"{n:02d}-{key}", film, facts) for n, (key, film, facts) in enumerate(mixed)]
    place = tmp_path / "shards"
    write_shards(iter(mixed), str(place / "a"), clips_per_shard=40)
    write_shards(iter(good[5:]), str(place / "b"), clips_per_shard=5)
    cut = place / "b" / "000000.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "closed").write_text("no folder")
    done = job(
        data={"unlabelled": str(place)}, targets={"store": str(tmp_path / "closed" / "store")}
    )
    assert done.code == 0, done.err
    assert done.err.count("the target store is not writable") == 1
    rows = pq.read_table(done.place / "rejected.parquet").to_pylist()
    (row,) = [one for one in rows if one["reason"] == "shard_damaged"]
    assert row["shard"] == str(cut)
    bad = [one for one in rows if one is not row]
    assert bad
    assert all("-bad-" in one["key"] and one["reason"] in set(Reason) for one in bad)
    clips = done.result["clips"]
    assert clips["total"] == 40 + row["index"] + 1 + 5
    assert clips["trained"] == clips["total"] - len(rows)
    assert row["index"] < 5


def test_data_that_is_broken_as_a_whole_fails_the_job(job: Job, tmp_path: Path) -> None:
    samples = ((f"clip-{n}", b"no video", {}) for n in range(20))
    write_shards(samples, str(tmp_path / "bad"), clips_per_shard=20)
    done = job(
        data={"unlabelled": str(tmp_path / "bad")},
        budget={"max_rejected_share": 0.2},  # looked at in the end, however few the clips
    )
    assert done.code == 2
    assert "unreadable" in done.err
    assert "budget.max_rejected_share" in done.err


def test_a_check_prints_the_resolved_spec_and_starts_nothing(job: Job, tmp_path: Path) -> None:
    done = job("--check", "--train.epochs", "7")
    assert done.code == 0, done.err
    assert "epochs: 7" in done.out
    assert "so the job fits" in done.out
    assert not list((tmp_path / "runs").glob("*/*/result.json"))


@pytest.mark.parametrize("check", [["--check"], []])
def test_a_job_that_cannot_fit_says_what_is_missing(job: Job, check: list[str]) -> None:
    done = job(*check, train={"workers": 3}, resources={"worker_cpus": 2})
    assert done.code == 2
    assert "CPUs are missing" in done.err
    assert "Traceback" not in done.err
