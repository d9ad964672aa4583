"""The forecast of a job on the cluster of a file: its stages, the slowest one, the price."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from liser_dist.cluster.capacity import Capacity, Node, require_fit
from liser_dist.cluster.cluster_file import read_cluster
from liser_dist.cluster.forecast import Forecast, forecast_cells, forecast_job, read_costs
from liser_dist.command_line import read_command
from liser_dist.config.distill import DistillSpec
from liser_dist.config.study import StudySpec
from liser_dist.errors import CapacityError

ROOT = Path(__file__).parents[3]
OURS = str(ROOT / "cluster.yaml")
COSTS = str(ROOT / "infra" / "costs.yaml")


def job(**resources: Any) -> DistillSpec:
    return DistillSpec.model_validate(
        {
            "name": "a-job",
            "data": {"unlabelled": "shards"},
            "teachers": {"speech": {"kind": "mock"}},
            "resources": {"teacher_gpus": 1, "worker_gpus": 1, **resources},
        }
    )


def forecast(spec: DistillSpec, capacity: Capacity, costs: str = COSTS) -> Forecast:
    return forecast_job(spec.resources, spec.train.worker_bounds, capacity, read_costs(costs))


def changed(tmp_path: Path, file: str, change: Any) -> str:
    content = yaml.safe_load(Path(file).read_text())
    change(content)
    copy = tmp_path / Path(file).name
    copy.write_text(yaml.safe_dump(content))
    return str(copy)


def test_ray_takes_our_cluster() -> None:
    validate_config(prepare_config(yaml.safe_load(Path(OURS).read_text())))


def test_the_head_alone_may_start_nodes_and_nodes_see_the_buckets_alone() -> None:
    types = yaml.safe_load(Path(OURS).read_text())["available_node_types"]
    profiles = {name: kind["node_config"]["IamInstanceProfile"] for name, kind in types.items()}
    assert profiles.pop("head") == {"Name": "liser-dist-head"}
    assert all(profile == {"Name": "liser-dist"} for profile in profiles.values())
    rights = json.loads((Path(OURS).parent / "infra" / "iam" / "policy.json").read_text())
    actions = [action for one in rights["Statement"] for action in one["Action"]]
    assert all(action.startswith("s3:") for action in actions)


def test_the_slowest_stage_and_its_price() -> None:
    spec = job(decoders=[8, 64], teachers=[1, 8])
    capacity = read_cluster(OURS, "resources.cluster")
    require_fit(spec.resources, 1, capacity)
    result = forecast(spec, capacity)
    counts = {stage.need.stage: stage.count for stage in result.stages}
    assert counts == {"train workers": 1, "teachers": 8, "decoders": 64, "stream executor": 1}
    assert result.slowest is not None
    assert result.slowest.need.stage == "decoders"
    assert result.slowest.clips_per_s == pytest.approx(64 / 0.118)
    assert result.nodes == {
        "m6i.xlarge": 1, "c6i.4xlarge spot": 4, "g6.2xlarge spot": 8, "g6.2xlarge": 1,
    }  # fmt: skip
    hourly = 0.192 + 4 * 0.28 + 8 * 0.42 + 0.978
    assert result.dollars_per_hour == pytest.approx(hourly)
    assert result.dollars_per_million == pytest.approx(hourly / 3600 * 1e6 * 0.118 / 64)


def test_no_stage_is_faster_than_the_single_executor_of_the_stream(tmp_path: Path) -> None:
    spec, capacity = job(decoders=[8, 64], teachers=[1, 8]), read_cluster(OURS, "resources.cluster")
    slow = changed(tmp_path, COSTS, lambda c: c["seconds_per_clip"].update(executor=0.01))
    result = forecast(spec, capacity, slow)
    assert result.slowest is not None
    assert (result.slowest.need.stage, result.slowest.clips_per_s) == ("stream executor", 100)
    unknown = changed(tmp_path, COSTS, lambda c: c["seconds_per_clip"].pop("executor"))
    assert forecast(spec, capacity, unknown).stages[-1].clips_per_s is None


def test_what_trains_nothing_has_no_train_workers_and_pays_for_none() -> None:
    capacity = read_cluster(OURS, "resources.cluster")
    result = forecast_job(job().resources, (0, 0), capacity, read_costs(COSTS))
    assert "train workers" not in {stage.need.stage for stage in result.stages}
    assert "g6.2xlarge" not in result.nodes


def test_the_cells_of_a_study_have_nodes_of_their_pool() -> None:
    study = Path(OURS).parent / "jobs" / "specs" / "study-cremad.yaml"
    places = ["--data.labelled", "one", "--data.unlabelled", "two"]
    spec = read_command([str(study), *places], study, "about", StudySpec).spec
    assert (spec.study.cells, spec.study.cell_cpus) == (6 * 5 * 5, 1)
    capacity = read_cluster(OURS, "resources.cluster")
    result = forecast_cells("students", spec.study.cells, 1, capacity, read_costs(COSTS))
    assert [(stage.need.stage, stage.count) for stage in result.stages] == [("cells", 4 * 8)]
    assert result.nodes == {"m6i.xlarge": 1, "g6.2xlarge": 4}


def test_no_more_than_there_is_room_for() -> None:
    resources = job(teachers=[1, 100]).resources
    result = forecast_job(resources, (1, 1), read_cluster(OURS, "resources.cluster"), None)
    assert {stage.need.stage: stage.count for stage in result.stages}["teachers"] == 8
    assert result.slowest is None
    assert result.dollars_per_hour is None


def test_what_does_not_fit_is_named() -> None:
    capacity = read_cluster(OURS, "resources.cluster")
    with pytest.raises(CapacityError, match=r"the pool students of .* has 4, so 1 GPU is miss"):
        require_fit(job().resources, 5, capacity)


def test_a_pool_without_a_label_is_refused(tmp_path: Path) -> None:
    place = changed(tmp_path, OURS, lambda c: c["available_node_types"]["decoders"].pop("labels"))
    with pytest.raises(
        CapacityError, match=r"in `available_node_types`, `decoders.labels`: it is missing"
    ):
        read_cluster(place, "resources.cluster")
    other = changed(
        tmp_path, OURS,
        lambda c: c["available_node_types"]["decoders"].update(labels={"team": "speech"}),
    )  # fmt: skip
    with pytest.raises(CapacityError, match="node type decoders has no label `pool`"):
        read_cluster(other, "resources.cluster")


def test_bounds_are_as_ray_reads_them(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["max_workers"] = 9
        types = content["available_node_types"]
        del types["students"]["max_workers"]  # the bound of all is its own, then
        types["teachers"]["max_workers"] = types["decoders"]["max_workers"] = 0

    nodes = read_cluster(changed(tmp_path, OURS, change), "resources.cluster").nodes
    assert [node.pool for node in nodes] == ["head", *["students"] * 9]
    assert [node.always_on for node in nodes] == [True, *[False] * 9]
    few = changed(tmp_path, OURS, lambda content: content.update(max_workers=9))
    with pytest.raises(CapacityError, match="cluster is 9, but its node types allow 28"):
        read_cluster(few, "resources.cluster")


def test_what_fits_is_foreseen_as_it_was_counted() -> None:
    # One worker and one teacher with a GPU: the worker must not take the only CPU beside it.
    two = Capacity("the Ray cluster", (Node({"CPU": 1.0, "GPU": 1.0}), Node({"CPU": 4.0})))
    spec = job(worker_gpus=0)
    require_fit(spec.resources, 1, two)
    assert all(stage.count for stage in forecast(spec, two).stages)


@pytest.mark.parametrize("text", ["just a word", "available_node_types: {}", "{"])
def test_what_is_no_cluster_is_refused(text: str, tmp_path: Path) -> None:
    place = tmp_path / "cluster.yaml"
    place.write_text(text)
    with pytest.raises(
        CapacityError, match=r"`resources.cluster` .* is not a cluster file for `ray up`"
    ):
        read_cluster(str(place), "resources.cluster")


def test_a_price_that_is_missing_is_named(tmp_path: Path) -> None:
    costs = changed(tmp_path, COSTS, lambda c: c["dollars_per_hour"].pop("g6.2xlarge spot"))
    with pytest.raises(CapacityError, match=r"`dollars_per_hour` has no price for g6.2xlarge spot"):
        forecast(job(), read_cluster(OURS, "resources.cluster"), costs)
    broken = changed(tmp_path, COSTS, lambda c: c.pop("seconds_per_clip"))
    with pytest.raises(CapacityError, match="`seconds_per_clip`: it is missing"):
        read_costs(broken)


def test_the_dashboard_reckons_with_the_same_prices() -> None:
    group, _ = yaml.safe_load((ROOT / "infra" / "monitoring" / "rules.yaml").read_text())["groups"]
    told = {
        rule["labels"]["node_type"]: float(rule["expr"].removeprefix("vector(").removesuffix(")"))
        for rule in group["rules"]
        if rule.get("record") == "liser:node_dollars_per_hour"
    }
    prices = read_costs(COSTS).dollars_per_hour
    nodes = read_cluster(OURS, "resources.cluster").nodes
    assert told.items() >= {str(node.pool): prices[node.kind] for node in nodes}.items()
