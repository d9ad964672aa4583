"""Process titles that the benchmarks match as strings name classes and functions that exist."""

import re
from importlib.util import find_spec
from pathlib import Path

import liser_dist
from liser_dist.benchmarks.memory import READER, TITLES
from liser_dist.benchmarks.timed_runs import PARTS

OF_RAY = {
    "RayTrainWorker", "TrainController", "DatasetManager", "SplitCoordinator", "PreemptionWatcher",
}  # fmt: skip
KNOWN = {READER, *TITLES.values(), *(title for titles in PARTS.values() for title in titles)}
PIPELINE = Path(liser_dist.__file__).parent / "pipeline"


def test_actors_and_tasks_are_defined_in_the_pipeline() -> None:
    names = {name for title in KNOWN for name in re.findall(r"ray::(\w+)|\((\w+)\)", title)}
    own = {actor or task for actor, task in names} - OF_RAY
    assert {"Decode", "Teach", "_read", "StretchWriter"} < own
    source = "\n".join(file.read_text() for file in PIPELINE.glob("*.py"))
    assert own <= set(re.findall(r"^(?:class|def) (\w+)", source, re.MULTILINE))


def test_modules_of_child_processes_exist() -> None:
    modules = {title for title in KNOWN if title.startswith("liser_dist.")}
    assert modules
    assert all(find_spec(module) for module in modules)
