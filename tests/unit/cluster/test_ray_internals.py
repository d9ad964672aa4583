"""The parts of Ray's private API that the package uses exist, and cost no more than they should."""

import inspect
import logging
import subprocess
import sys

import pytest
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from liser_dist.cluster.ray_errors import is_no_user_error
from liser_dist.errors import SpecError


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("liser_dist.cluster.capacity", ["ray", "torch"]),
        ("liser_dist.pipeline.dataset", ["ray.train", "torch"]),
        ("liser_dist.training.trainer", ["torch"]),
    ],
)
def test_a_process_loads_no_more_of_ray_than_it_needs(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert output.strip() == b"[]"


def test_what_is_overridden_is_still_there() -> None:
    assert "_output_blocks_stats" in inspect.getsource(MapOperator)
    assert "self._topology" in inspect.getsource(StreamingExecutor)
    for name in ("_maybe_send_resource_request", "_get_num_workers_for_resource_request"):
        assert callable(getattr(ElasticScalingPolicy, name))
    assert callable(DataParallelTrainer._initialize_and_run_controller)


def test_a_user_error_is_hidden_from_ray_data_and_another_is_not() -> None:
    def is_shown(error: Exception) -> bool:
        info = (type(error), error, None)
        record = logging.LogRecord("ray", logging.ERROR, "", 0, "failed", None, info)
        return is_no_user_error(record)

    assert not is_shown(SpecError("`name` is wrong"))
    assert is_shown(ValueError("something else"))
