"""A run's numbers in MLflow and Weights & Biases, beside its own files: given up when they fail.

The driver tells them, so that keys (MLFLOW_TRACKING_*, WANDB_*) are known to one process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

from liser_dist.desk import Progress
from liser_dist.errors import SpecError, in_a_line
from liser_dist.fields import leaves
from liser_dist.runs import Run
from liser_dist.spec import DistillSpec

EXPERIMENT = "liser_dist"
EVERY_S = 5.0
ENDS_WITHIN_S = 60.0
LOGS_IN_WITHIN_S = 30
_AT_ONCE = 100  # MLflow takes no more parameters
_TAG = "liser_dist.run"
# Its own patience is minutes.
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}

logger = logging.getLogger(__name__)
Numbers = Mapping[str, float]


class Tracker(Protocol):
    def tell(self, numbers: Numbers, step: int) -> None: ...

    def end(self, well: bool) -> None: ...


class MlflowRun:
    """The run of MLflow that is this one's, made where there is none yet."""

    def __init__(self, server: str, spec: DistillSpec, run: Run) -> None:
        self._client, experiment = self.reach(server)
        experiment = experiment or self._client.create_experiment(_experiment_name())
        begun = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.mark}'")
        if begun:
            self._id = begun[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            new = self._client.create_run(
                experiment, tags={"place": run.place}, run_name=_name_of(run)
            )
            self._id = new.info.run_id
            self._tell_spec(spec)
            self._client.set_tag(self._id, _TAG, run.mark)  # last: it is whole

    @staticmethod
    def reach(server: str) -> tuple[Any, str]:
        """The client, and the experiment's id, or nothing where there is none yet."""
        for name, value in _MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=server)
        found = client.get_experiment_by_name(_experiment_name())
        return client, found.experiment_id if found else ""

    def _tell_spec(self, spec: DistillSpec) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in leaves(spec.model_dump(mode="json"))]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self._id, params=params[first : first + _AT_ONCE])

    def tell(self, numbers: Numbers, step: int) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def end(self, well: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if well else "FAILED")


class WandbRun:
    """The run of Weights & Biases that is this one's, made where there is none yet."""

    def __init__(self, project: str, spec: DistillSpec, run: Run) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            id=run.mark,
            name=_name_of(run),
            config=spec.model_dump(mode="json") | {"place": run.place},
            resume="allow",
            # Our numbers alone, and no word of it on our screen.
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False,
                x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
                x_save_requirements=False, init_timeout=30, finish_timeout=ENDS_WITHIN_S,
            ),
        )  # fmt: skip
        # Its own count of steps goes up alone, and a run may go on from an earlier checkpoint.
        self._run.define_metric("*", step_metric="step")

    @staticmethod
    def reach(project: str) -> None:
        """It would ask a terminal for a key, and wait."""
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online":
            wandb.setup(wandb.Settings(silent=True, login_timeout=LOGS_IN_WITHIN_S))
            if not wandb.login(timeout=LOGS_IN_WITHIN_S):
                raise ValueError("there is no key: set WANDB_API_KEY")

    def tell(self, numbers: Numbers, step: int) -> None:
        self._run.log({**numbers, "step": step})

    def end(self, well: bool) -> None:
        self._run.finish(exit_code=0 if well else 1)


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)


def _name_of(run: Run) -> str:
    return "/".join(run.place.split("/")[-2:])


_KINDS: dict[str, Any] = {"mlflow": MlflowRun, "wandb": WandbRun}


def _asked_for(spec: DistillSpec) -> dict[str, str]:
    """Where each of them is told to, by its name."""
    return {name: where for name in _KINDS if (where := getattr(spec.track, name))}


def require_trackers(spec: DistillSpec) -> None:
    """Raise SpecError where one that is asked for is not installed, or does not answer."""
    for name, where in _asked_for(spec).items():
        if find_spec(name) is None:
            raise SpecError(
                f"`track.{name}` needs the library {name}, which is not installed: "
                "`pip install -e '.[track]'`, or leave the field out"
            )
        with _explained(name, where):
            _KINDS[name].reach(where)


@contextmanager
def _explained(name: str, where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the library raises
        raise SpecError(
            f"`track.{name}` {where} does not answer as it should: {in_a_line(error)}; check it "
            "and its keys in the environment, or leave the field out"
        ) from error


class Tracks:
    """All that a run's numbers are told to."""

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self._trackers = trackers
        self._one_at_a_time = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def tell(self, numbers: Numbers, step: int) -> None:
        self._each(lambda tracker: tracker.tell(numbers, step))

    def end(self, well: bool) -> None:
        self._each(lambda tracker: tracker.end(well))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        with self._one_at_a_time:
            for name, tracker in list(self._trackers.items()):
                try:
                    tell(tracker)
                except Exception as error:  # whatever a library raises: a run is worth more
                    del self._trackers[name]
                    logger.warning("%s is told no more of this run: %s", name, in_a_line(error))


@contextmanager
def tracked(spec: DistillSpec, run: Run) -> Iterator[Tracks]:
    """What the run's numbers may be told to until the block ends.

    Raises SpecError where it cannot be begun.
    """
    begun: dict[str, Tracker] = {}
    tracks, well = Tracks(begun), False
    try:
        for name, where in _asked_for(spec).items():
            with _explained(name, where):
                begun[name] = _KINDS[name](where, spec, run)
        yield tracks
        well = True
    finally:
        tracks.end(well)


@contextmanager
def following(tracks: Tracks, read: Callable[[], Progress]) -> Iterator[None]:
    """Tell how far the run is, every EVERY_S until the block ends, and then once more."""
    ended, last = threading.Event(), 0

    def tell() -> None:
        nonlocal last
        try:
            progress = read()
        except Exception as error:  # who is asked is gone: the run itself says why
            logger.debug("no progress to tell: %s", in_a_line(error))
            return
        if progress.steps > last:
            tracks.tell(progress.numbers, progress.steps)
            last = progress.steps

    def follow() -> None:
        while not ended.wait(EVERY_S):
            tell()

    if not tracks:
        yield
        return
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
    thread.join(ENDS_WITHIN_S)
    tell()
