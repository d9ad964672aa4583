"""Holds what the processes of one run share: rejected clips, progress and failure.

`RunCoordinator` is a plain class; `start_coordinator` makes it an actor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import ray
from pyroaring import BitMap
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from liser_dist.errors import CheckpointError, LiserError
from liser_dist.pipeline.store import Part
from liser_dist.records import Reason
from liser_dist.runs.progress import Progress

_ClipId = tuple[str, int]  # shard, index
_NAMESPACE = "liser_dist"
# Ray removes the actor of a driver that was killed within seconds.
_FORMER_ACTOR_LIMIT_S = 5.0


class RunCoordinator:
    """State that all processes of a run share: rejected clips, progress and failure."""

    def __init__(self) -> None:
        self._rejected: dict[tuple[str, str], BitMap] = {}  # by shard and reason
        self._progress = Progress()
        self._failure: LiserError | None = None
        self._broken: set[Part] = set()
        self._committed = 0  # passes in the newest checkpoint
        self._wanted = 0  # passes that a checkpoint must have before the workers are replaced
        self._checkpoint_requested = False

    def known_rejections(self, clips: Sequence[_ClipId]) -> dict[_ClipId, str]:
        """Return the reasons of those of the clips that were rejected before."""
        return {
            (shard, index): reason
            for shard, index in clips
            for reason in Reason
            if index in self._rejected.get((shard, reason), ())
        }

    def reject(self, reasons: dict[_ClipId, str]) -> None:
        """Record clips as rejected, so that later epochs do not decode them again."""
        for (shard, index), reason in reasons.items():
            self._rejected.setdefault((shard, reason), BitMap()).add(index)

    def begin(self, rejections: Iterable[tuple[str, str, BitMap]], passes: int) -> None:
        """Prepare for train workers that start, or start again.

        Args:
            rejections: The rejected clips of their checkpoint: shard, reason and clip numbers.
            passes: The passes in their checkpoint.
        """
        self._failure = None
        self._progress = replace(self._progress, passes=passes)
        self._committed, self._wanted, self._checkpoint_requested = passes, 0, False
        for shard, reason, clips in rejections:
            self._rejected[shard, reason] = self._rejected.get((shard, reason), BitMap()) | clips

    def set_progress(self, progress: Progress) -> None:
        """Record the progress of the first train worker."""
        self._progress = progress

    def progress(self) -> Progress:
        """Return the progress that was recorded last."""
        return self._progress

    def request_checkpoint(self) -> None:
        """Ask the train workers for a checkpoint of all that they have trained until now.

        It must have at least one step of these workers: if their group were replaced before its
        first step, again and again, the run would never end.
        """
        self._wanted = max(self._progress.passes, self._committed + 1)
        self._checkpoint_requested = True

    def take_checkpoint_request(self) -> bool:
        """Return whether a checkpoint was requested since the last call."""
        taken, self._checkpoint_requested = self._checkpoint_requested, False
        return taken

    def note_checkpoint(self, passes: int) -> None:
        """Record that a checkpoint with this number of passes was committed."""
        self._committed = passes

    def committed_passes(self) -> int:
        """Return the number of passes in the newest checkpoint."""
        return self._committed

    def awaits_checkpoint(self) -> bool:
        """Return whether the requested checkpoint is not committed yet."""
        return self._committed < self._wanted

    def fail(self, error: LiserError) -> None:
        """Record an error that ends the run because trying again would not help.

        The first error stays.
        """
        self._failure = self._failure or error

    def failure(self) -> LiserError | None:
        """Return the error that ended the run, if any."""
        return self._failure

    def report_broken(self, part: Part) -> bool:
        """Record a part of the target store that cannot be read; return whether that is new."""
        new = part not in self._broken
        self._broken.add(part)
        return new

    def take_broken(self) -> set[Part]:
        """Return the broken parts and forget them: their targets are computed again."""
        taken, self._broken = self._broken, set()
        return taken


def start_coordinator(run: str | None = None) -> Any:
    """Start the coordinator as an actor on this node, where it lives as long as the job.

    Args:
        run: Path of the runs of a name, OUTPUT/NAME, which names the actor, so that two jobs of a
            cluster cannot work on the same run. None: the actor has no name.

    Raises:
        CheckpointError: Another job of this cluster works on the same run.
    """
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    if run is not None:
        options |= {"name": run, "namespace": _NAMESPACE}
    actor = ray.remote(RunCoordinator).options(scheduling_strategy=this_node, **options)
    retrying = Retrying(
        retry=retry_if_exception_type(ValueError),  # Ray's error for a name that is in use
        stop=stop_after_delay(_FORMER_ACTOR_LIMIT_S),
        wait=wait_fixed(0.5),
        reraise=True,
    )
    try:
        return retrying(actor.remote)
    except ValueError as error:
        raise CheckpointError(
            f"another job is using the run {run}, or ended a few seconds ago: try again when it "
            "has ended, or give another `name`"
        ) from error


class CoordinatorCheckpoints:
    """The checkpoints of a run, as a coordinator actor knows them."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def passes(self) -> int:
        """Return the number of passes in the newest checkpoint."""
        passes: int = ray.get(self._coordinator.committed_passes.remote())
        return passes

    def trained(self) -> int:
        """Return the number of passes that the train workers have trained until now."""
        return read_progress(self._coordinator).passes

    def request(self) -> None:
        """Ask the train workers for a checkpoint of all that they have trained until now."""
        ray.get(self._coordinator.request_checkpoint.remote())

    def awaited(self) -> bool:
        """Return whether the requested checkpoint is not committed yet."""
        awaited: bool = ray.get(self._coordinator.awaits_checkpoint.remote())
        return awaited


def read_progress(coordinator: Any) -> Progress:
    """Ask a coordinator actor for the progress of its run."""
    progress: Progress = ray.get(coordinator.progress.remote())
    return progress


def raise_failure(coordinator: Any) -> None:
    """Raise the error that ended the run, if a coordinator actor has recorded one."""
    failure: LiserError | None = ray.get(coordinator.failure.remote())
    if failure is not None:
        raise failure
