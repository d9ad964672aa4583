"""Each stage runs on nodes with its pool label, and nodes may join and leave."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient

from liser_dist.benchmarks.testbed.local_cluster import LocalCluster, wait_until
from liser_dist.data.shards import write_shards
from liser_dist.runs.checkpoints import load_checkpoint
from tests.integration.conftest import COUNTING, ROOT, SMALL, merged

STAGES = {
    "decoders": "MapBatches(Decode)",
    "teachers": "MapBatches(Teach)",
    "students": "RayTrainWorker",
}
CLIPS = 6 * 29


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head that takes no work; no other node yet."""
    with LocalCluster(0, pool="head") as cluster:
        yield cluster


@pytest.fixture
def spec(films: list[bytes], tmp_path: Path) -> dict[str, Any]:
    """A job that wants a GPU for its teachers and one for its worker, and decodes for some time."""
    shards = tmp_path / "clips"
    samples = ((f"clip-{n:03d}", films[n % 29], {"faces": []}) for n in range(CLIPS))
    write_shards(samples, str(shards), clips_per_shard=25)
    return merged(
        SMALL,
        {
            "data": {"unlabelled": str(shards)},
            "teachers": {"speech": {"kind": "mock", "seconds_per_clip": 0.05}},
            "student": COUNTING,
            "train": {"epochs": 2, "labelled_batch_size": 0, "checkpoint_every": 1},
            "resources": {
                # More than there is room for.
                "decoders": [1, 4], "teacher_gpus": 1, "worker_gpus": 1,
            },
            "output": str(tmp_path / "runs"),
        },
    )  # fmt: skip


@pytest.mark.long
def test_each_stage_on_its_nodes_while_some_come_and_go(
    cluster: LocalCluster, spec: dict[str, Any], tmp_path: Path
) -> None:
    nodes = {
        cluster.add_node(1, pool="decoders"): "decoders",
        cluster.add_node(1, gpus=1, pool="teachers"): "teachers",
        cluster.add_node(1, gpus=1, pool="students"): "students",
    }
    first = next(iter(nodes))
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))

    def at_work(node: int) -> bool:
        """The stage of the node's pool works there, and no stage where it does not belong."""
        for pool, stage in STAGES.items():
            elsewhere = [n for n in (0, *nodes) if nodes.get(n) != pool]
            assert not any(cluster.workers(stage, n) for n in elsewhere), stage
        return bool(cluster.workers(STAGES[nodes[node]], node)) or job.poll() is not None

    with (tmp_path / "job.log").open("w") as log:
        command = [sys.executable, ROOT / "jobs" / "distill.py", file]
        job = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)
    try:
        for node, pool in dict(nodes).items():
            wait_until(partial(at_work, node), 90, f"{pool} on node {node}")
        later = cluster.add_node(1, pool="decoders")
        nodes[later] = "decoders"
        assert job.poll() is None
        cluster.lose_node(first)
        wait_until(partial(at_work, later), 90, "a decoder on the new node")
        assert cluster.workers(STAGES["decoders"], later)
        assert job.wait(180) == 0, (tmp_path / "job.log").read_text()[-3000:]
    finally:
        job.kill()
        job.wait()
    result = json.loads((tmp_path / "runs" / "small" / "001" / "result.json").read_text())
    assert result["clips"]["trained"] == CLIPS
    counts = load_checkpoint(result["checkpoint"]).students["counts"]
    assert set(counts.tolist()) == {1.0}  # each in each epoch


@pytest.mark.usefixtures("s3_from_here")
def test_nodes_without_the_keys_that_the_driver_has_are_named(
    cluster: LocalCluster, s3: dict[str, str], spec: dict[str, Any], tmp_path: Path
) -> None:
    for pool in ("decoders", "teachers", "students"):
        cluster.add_node(cpus=2, gpus=1, pool=pool)
    write_shards([("clip", b"", {})], "s3://bucket/unseen", clips_per_shard=1)
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(merged(spec, {"data": {"unlabelled": "s3://bucket/unseen"}})))
    refused = subprocess.run(
        [sys.executable, ROOT / "jobs" / "distill.py", file],
        env=cluster.environment | s3, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    refusal = r"the node \S+ of the cluster cannot look up s3://bucket/unseen/000000\.tar"
    assert re.search(refusal, line)
    assert "AWS_SECRET_ACCESS_KEY on " in line


def test_another_version_of_ray_on_the_cluster_is_named(
    cluster: LocalCluster, spec: dict[str, Any], tmp_path: Path
) -> None:
    gcs = GcsClient(address=cluster.environment["RAY_ADDRESS"])
    metadata = CLUSTER_METADATA_KEY, KV_NAMESPACE_CLUSTER
    known = json.loads(gcs.internal_kv_get(*metadata))
    other = json.dumps(known | {"ray_version": "2.31.0"}).encode()
    gcs.internal_kv_put(metadata[0], other, True, metadata[1])
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    refused = subprocess.run(
        [sys.executable, ROOT / "jobs" / "distill.py", file],
        env=cluster.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "The cluster was started with: Ray: 2.31.0" in refused.stderr
    assert "install the same Ray and Python on this machine and on the cluster" in refused.stderr
    assert "Traceback" not in refused.stderr
