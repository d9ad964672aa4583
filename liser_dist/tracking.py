"""A run's numbers in MLflow and Weights & Biases, beside its own files: given up when they fail.

The driver tells them, so that keys (MLFLOW_TRACKING_*, WANDB_*) are known to one process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

from liser_dist.desk import Progress
from liser_dist.errors import SpecError, in_a_line
from liser_dist.fields import fingerprint, leaves
from liser_dist.spec import DistillSpec

EXPERIMENT = "liser_dist"
EVERY_S = 5.0
ENDS_WITHIN_S = 60.0
_PARAMS_AT_ONCE = 100  # MLflow takes no more
# Its own patience is minutes; a job that begins is waited for.
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}

logger = logging.getLogger(__name__)
Numbers = Mapping[str, float]


class Tracker(Protocol):
    def tell(self, numbers: Numbers, step: int) -> None: ...

    def end(self, well: bool) -> None: ...


class MlflowRun:
    """The run of MLflow that is this one's, made where there is none yet."""

    def __init__(self, server: str, spec: DistillSpec, run: str) -> None:
        for name, value in _MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=server)
        name, mark = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT), fingerprint(run)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        begun = self._client.search_runs([experiment], f"tags.`liser_dist.run` = '{mark}'")
        if begun:
            self._id = begun[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {"liser_dist.run": mark, "place": run}
            new = self._client.create_run(experiment, tags=tags, run_name=_name_of(run))
            self._id = new.info.run_id
            self._tell_spec(spec)

    def _tell_spec(self, spec: DistillSpec) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in leaves(spec.model_dump(mode="json"))]
        for first in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=params[first : first + _PARAMS_AT_ONCE])

    def tell(self, numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self._id, name, value, step=step)

    def end(self, well: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if well else "FAILED")


class WandbRun:
    """The run of Weights & Biases that is this one's, made where there is none yet."""

    def __init__(self, project: str, spec: DistillSpec, run: str) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            id=fingerprint(run),
            name=_name_of(run),
            config=spec.model_dump(mode="json") | {"place": run},
            resume="allow",
            # Our numbers alone, and no word of it on our screen.
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                init_timeout=30,
                finish_timeout=ENDS_WITHIN_S,
            ),
        )
        # Its own count of steps goes up alone, and a run may go on from an earlier checkpoint.
        self._run.define_metric("*", step_metric="step")

    def tell(self, numbers: Numbers, step: int) -> None:
        self._run.log({**numbers, "step": step})

    def end(self, well: bool) -> None:
        self._run.finish(exit_code=0 if well else 1)


def _name_of(run: str) -> str:
    return "/".join(run.split("/")[-2:])


_KINDS: dict[str, Callable[[str, DistillSpec, str], Tracker]] = {
    "mlflow": MlflowRun,
    "wandb": WandbRun,
}


def _asked_for(spec: DistillSpec) -> dict[str, str]:
    """Where each of them is told to, by its name."""
    return {name: where for name in _KINDS if (where := getattr(spec.track, name))}


def require_libraries(spec: DistillSpec) -> None:
    """Raise SpecError where one that is asked for is not installed."""
    for name in _asked_for(spec):
        if find_spec(name) is None:
            raise SpecError(
                f"`track.{name}` needs the library {name}, which is not installed: "
                f"`pip install {name}`, or leave the field out"
            )


class Tracks:
    """All that a run's numbers are told to."""

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self._trackers = trackers

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def tell(self, numbers: Numbers, step: int) -> None:
        self._each(lambda tracker: tracker.tell(numbers, step))

    def end(self, well: bool) -> None:
        self._each(lambda tracker: tracker.end(well))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except Exception as error:  # whatever a library raises: a run is worth more
                del self._trackers[name]
                logger.warning("%s is told no more of this run: %s", name, in_a_line(error))


@contextmanager
def tracked(spec: DistillSpec, run: str) -> Iterator[Tracks]:
    """What the run's numbers may be told to until the block ends.

    Raises SpecError where it cannot be begun.
    """
    trackers = {}
    for name, where in _asked_for(spec).items():
        try:
            trackers[name] = _KINDS[name](where, spec, run)
        except Exception as error:  # as above, but before anything was begun
            Tracks(trackers).end(well=False)
            raise SpecError(
                f"`track.{name}` {where} does not answer as it should: {in_a_line(error)}; check "
                "it and its keys in the environment, or leave the field out"
            ) from error
    tracks, well = Tracks(trackers), False
    try:
        yield tracks
        well = True
    finally:
        tracks.end(well)


@contextmanager
def following(tracks: Tracks, read: Callable[[], Progress]) -> Iterator[None]:
    """Tell how far the run is, every EVERY_S until the block ends, and then."""
    ended, last = threading.Event(), 0

    def follow() -> None:
        nonlocal last
        while tracks:
            done = ended.wait(EVERY_S)
            progress = read()
            if progress.steps > last:
                tracks.tell(progress.numbers, progress.steps)
                last = progress.steps
            if done:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(ENDS_WITHIN_S)
