"""Logs a run's numbers to MLflow and Weights & Biases, beside the run's own files.

A tracker that fails is dropped, and the run continues. Only the driver logs, so that credentials
(MLFLOW_TRACKING_*, WANDB_*) are needed in one process.
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

from liser_dist.config.base import leaves
from liser_dist.config.distill import TrackSpec
from liser_dist.errors import SpecError, one_line
from liser_dist.runs.folder import Run
from liser_dist.runs.progress import Progress

LOG_EVERY_S = 5.0
_FINISH_LIMIT_S = 60.0
_LOGIN_LIMIT_S = 30
_PARAMS_PER_BATCH = 100  # MLflow's limit
_TAG = "liser_dist.run"
# MLflow's own defaults retry for minutes.
_MLFLOW_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}

logger = logging.getLogger(__name__)
Numbers = Mapping[str, float]


class Tracker(Protocol):
    """A run in one tracking service. For a resumed run, it continues the same one."""

    def log(self, numbers: Numbers, step: int) -> None:
        """Log numbers of a step."""

    def finish(self, succeeded: bool) -> None:
        """Mark the run as finished or failed."""


class _Mlflow:
    """A run in MLflow, found by its tag or created."""

    def __init__(self, server: str, params: Mapping[str, Any], run: Run) -> None:
        from mlflow.entities import Param

        self._client, experiment = self.check(server)
        experiment = experiment or self._client.create_experiment(_experiment_name())
        existing = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.mark}'")
        if existing:
            self._id = existing[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"place": run.place}
        created = self._client.create_run(experiment, tags=tags, run_name=_run_name(run))
        self._id = created.info.run_id
        entries = [Param(name, str(value)) for name, value in leaves(params)]
        for start in range(0, len(entries), _PARAMS_PER_BATCH):
            self._client.log_batch(self._id, params=entries[start : start + _PARAMS_PER_BATCH])
        self._client.set_tag(self._id, _TAG, run.mark)  # last: marks the run as complete

    @staticmethod
    def check(server: str) -> tuple[Any, str]:
        """Return a client, and the experiment's ID, empty if it does not exist yet."""
        for name, value in _MLFLOW_LIMITS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=server)
        experiment = client.get_experiment_by_name(_experiment_name())
        return client, experiment.experiment_id if experiment else ""

    def log(self, numbers: Numbers, step: int) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, succeeded: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if succeeded else "FAILED")


class _Wandb:
    """A run in Weights & Biases, resumed by its ID or created."""

    def __init__(self, project: str, params: Mapping[str, Any], run: Run) -> None:
        import wandb

        # Log only the numbers given here, and print nothing.
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False,
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
            x_save_requirements=False, init_timeout=30, finish_timeout=_FINISH_LIMIT_S,
        )  # fmt: skip
        config = {**params, "place": run.place}
        self._run = wandb.init(
            project=project, id=run.mark, name=_run_name(run), config=config, resume="allow",
            settings=settings,
        )  # fmt: skip
        # W&B's own step may only increase, and a run may resume from an earlier checkpoint.
        self._run.define_metric("*", step_metric="step")

    @staticmethod
    def check(project: str) -> None:
        """Log in without a prompt: W&B itself would wait for a key on the terminal."""
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online":
            wandb.setup(wandb.Settings(silent=True, login_timeout=_LOGIN_LIMIT_S))
            if not wandb.login(timeout=_LOGIN_LIMIT_S):
                raise ValueError("W&B has no API key: set WANDB_API_KEY")

    def log(self, numbers: Numbers, step: int) -> None:
        self._run.log({**numbers, "step": step})

    def finish(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


_KINDS: dict[str, type[_Mlflow | _Wandb]] = {"mlflow": _Mlflow, "wandb": _Wandb}


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "liser_dist")


def _run_name(run: Run) -> str:
    return "/".join(run.place.split("/")[-2:])


def _requested(track: TrackSpec) -> dict[str, str]:
    """Server or project of each requested tracker, by the tracker's name."""
    addresses = {"mlflow": track.mlflow, "wandb": track.wandb}
    return {name: address for name, address in addresses.items() if address}


def require_trackers(track: TrackSpec) -> None:
    """Check that every requested tracker is installed and responds.

    Raises:
        SpecError: One is not installed, or does not respond.
    """
    for name, address in _requested(track).items():
        if find_spec(name) is None:
            raise SpecError(
                f"`track.{name}` needs the package {name}, which is not installed: run `pip "
                "install -e '.[track]'`, or leave the field out"
            )
        with _explained(name, address):
            _KINDS[name].check(address)


@contextmanager
def _explained(name: str, address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each library raises errors of its own
        raise SpecError(
            f"`track.{name}` {address} cannot be used: {one_line(error)}; check the value and "
            "the credentials in the environment, or leave the field out"
        ) from error


class Trackers:
    """The trackers of a run. One that fails is dropped with a warning."""

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self._trackers = trackers
        self._lock = threading.Lock()

    def log(self, numbers: Numbers, step: int) -> None:
        """Log numbers of a step to every tracker."""
        self._each(lambda tracker: tracker.log(numbers, step))

    def finish(self, succeeded: bool) -> None:
        """Mark the run as finished or failed in every tracker."""
        self._each(lambda tracker: tracker.finish(succeeded))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        with self._lock:
            for name, tracker in list(self._trackers.items()):
                try:
                    call(tracker)
                except Exception as error:  # a failing tracker must not end the run
                    del self._trackers[name]
                    cause = one_line(error)
                    logger.warning(
                        "logging to %s failed: %s; the run continues without this tracker",
                        name,
                        cause,
                    )

    @contextmanager
    def following(self, read: Callable[[], Progress]) -> Iterator[None]:
        """Log progress every LOG_EVERY_S seconds, and once more when the block ends."""
        ended, last_step = threading.Event(), 0

        def log_new_steps() -> None:
            nonlocal last_step
            try:
                progress = read()
            except Exception as error:  # the coordinator is gone; the run itself reports why
                logger.debug("no progress to log: %s", one_line(error))
                return
            if progress.steps > last_step:
                self.log(progress.numbers, progress.steps)
                last_step = progress.steps

        def poll() -> None:
            while not ended.wait(LOG_EVERY_S):
                log_new_steps()

        if not self._trackers:
            yield
            return
        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
        thread.join(_FINISH_LIMIT_S)
        log_new_steps()


@contextmanager
def tracked(track: TrackSpec, params: Mapping[str, Any], run: Run) -> Iterator[Trackers]:
    """Yield the trackers of a run, and mark the run as finished or failed when the block ends.

    Args:
        track: The requested trackers.
        params: The spec, as nested dicts of JSON values.
        run: The run to log.

    Raises:
        SpecError: A tracker cannot be started.
    """
    started: dict[str, Tracker] = {}
    trackers, succeeded = Trackers(started), False
    try:
        for name, address in _requested(track).items():
            with _explained(name, address):
                started[name] = _KINDS[name](address, params, run)
        yield trackers
        succeeded = True
    finally:
        trackers.finish(succeeded)
