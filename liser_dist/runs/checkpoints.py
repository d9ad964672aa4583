"""Saves and loads checkpoints: a run's weights, and the ledger of the clips they learned from.

A checkpoint is a folder. It counts as a checkpoint only once its marker, the last file, is written.
It holds tensors and JSON only. Training neither waits for a checkpoint to be written, nor ends when
one cannot be written.

    step-00001200-a003/     the step, and the attempt: see checkpoint_files.py
      spec.json             the resolved spec of the run
      students.safetensors  all students in training
      best.safetensors      the best weights of each student so far, by validation score
      optimizer.pt          tensors and numbers only
      state.json            step, scores and the rest of the training loop's state
      ledger.json           the clips that the weights learned from
      rejections.json       files in the run's `rejections/` that belong to the checkpoint
      COMMITTED             digests of the other files
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from liser_dist.config.distill import DistillSpec
from liser_dist.errors import CheckpointError, StorageError
from liser_dist.runs.checkpoint_files import (
    LEDGER,
    new_checkpoint_path,
    newest_checkpoint,
    parse_ledger,
    position_of,
    read_checkpoint_spec,
    read_digests,
    read_verified,
    remove_later,
    remove_old,
    remove_quietly,
    start_attempt,
    write_checkpoint,
)
from liser_dist.runs.ledger import Ledger, Rejection
from liser_dist.runs.rejections import part_path, parts_of_earlier_version, write_part

logger = logging.getLogger(__name__)

_PARTS = "rejections.json"
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything that a run needs to resume at a step.

    Attributes:
        best: By student: "distilled", and each of the spec's `compare`.
        parts: Names of the parts of rejections that belong to the ledger. They are known once the
            checkpoint was written: `CheckpointWriter` adds them.
    """

    spec: DistillSpec
    students: Tensors
    best: dict[str, Tensors]
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]
    ledger: Ledger
    parts: Sequence[str] = ()


def pack_checkpoint(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the files of a checkpoint by name, as copies that further training does not change."""
    optimizer = io.BytesIO()
    torch.save(checkpoint.optimizer, optimizer)
    best = {
        f"{kind}/{name}": tensor
        for kind, tensors in checkpoint.best.items()
        for name, tensor in tensors.items()
    }
    return {
        "spec.json": checkpoint.spec.model_dump_json(indent=1).encode(),
        "students.safetensors": save_tensors(checkpoint.students),
        "best.safetensors": save_tensors(best),
        "optimizer.pt": optimizer.getvalue(),
        "state.json": json.dumps(checkpoint.state, indent=1).encode(),
        LEDGER: json.dumps(checkpoint.ledger.to_json()).encode(),
    }


class CheckpointWriter:
    """Writes the checkpoints of one attempt of a run in the background, one at a time.

    If storage fails, an error is logged and training continues; `finish` raises if it was the last
    checkpoint that could not be written. Any other error is a fault of this package: it is logged
    at once, and ends the training at the next `save` or `finish`.

    Attributes:
        newest: Path of the newest checkpoint that was written.
    """

    def __init__(self, run: str, keep: int) -> None:
        """Begin an attempt of the run.

        Args:
            run: The folder of the run.
            keep: Number of newest checkpoints to keep.

        Raises:
            StorageError: The run's folder cannot be read or written.
        """
        self._run, self._keep = run, keep
        self._attempt = start_attempt(run)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._parts: list[str] = []  # of rejections, in the newest checkpoint
        self._rejections: list[Rejection] = []  # not yet written to a part
        self.newest: str | None = None

    def resume(self, path: str, parts: Sequence[str]) -> None:
        """Continue after a checkpoint, and remove later ones, which cannot be used.

        Args:
            path: Path of the checkpoint.
            parts: Its parts of rejections.
        """
        self._parts = list(parts)
        remove_later(self._run, path, self._attempt)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    def save(self, step: int, checkpoint: Checkpoint, then: Callable[[], None]) -> None:
        """Start writing a checkpoint once the one before is done.

        Args:
            step: The step that the checkpoint is of.
            checkpoint: What to write; it may change once this returns.
            then: Called in the background when the checkpoint is written.

        Raises:
            Exception: The one before ended with an error other than StorageError.
        """
        self._wait()
        self._rejections += checkpoint.ledger.take_rejections()
        files = pack_checkpoint(checkpoint)
        self._writing = self._thread.submit(self._work, step, files, then)

    def finish(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            StorageError: It could not be written.
        """
        self._thread.shutdown()
        if self._writing is not None:
            self._writing.result()

    def _wait(self) -> None:
        if self._writing is not None:
            with suppress(StorageError):  # logged
                self._writing.result()

    def _work(self, step: int, files: Mapping[str, bytes], then: Callable[[], None]) -> None:
        """Write a checkpoint in the background, and log a fault at once."""
        try:
            self._write(step, files, then)
        except StorageError:
            raise  # logged
        except BaseException:
            logger.exception(
                "writing the checkpoint of step %d failed; the training ends when it reaches the "
                "next checkpoint",
                step,
            )
            raise

    def _write(self, step: int, files: Mapping[str, bytes], then: Callable[[], None]) -> None:
        path = None
        try:
            path = new_checkpoint_path(self._run, step, self._attempt)
            parts = [*self._parts, *write_part(self._run, path, self._rejections)]
            write_checkpoint(path, {**files, _PARTS: json.dumps(parts).encode()})
        except StorageError as error:
            logger.error(
                "training continues without the checkpoint of step %d, which could not be "
                "written: %s",
                step, error,
            )  # fmt: skip
            self._discard(path)
            raise
        self._rejections.clear()
        self._parts, self.newest = parts, path
        try:
            then()
            remove_old(self._run, self._attempt, self._keep)
        except StorageError as error:
            logger.warning("the checkpoint is saved, but removing older ones failed: %s", error)

    def _discard(self, path: str | None) -> None:
        """Remove a half-written checkpoint, which may be what fills the disk.

        Its rejections come with the next checkpoint.
        """
        if path is not None:
            remove_quietly(path)
            if self._rejections:
                remove_quietly(part_path(self._run, path))


class _State(dict[str, Any]):
    """The state of a checkpoint, which may have been written by another version."""

    def __init__(self, path: str, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(
            f"the checkpoint {self._path} was written by another version of liser_dist: its state "
            f"has no `{key}`; resume the run with that version, or start a new one under another "
            "`name`"
        )


def load_checkpoint(path: str) -> Checkpoint:
    """Read a committed checkpoint, of this or an earlier version.

    Raises:
        CheckpointError: There is no checkpoint, a file of it is not as it was written, or another
            version wrote what this one cannot read. Looking up a key that is missing in `state`
            raises it, too.
    """
    digests = read_digests(path)
    spec = read_checkpoint_spec(path, digests)
    best: dict[str, Tensors] = {}
    for name, tensor in load_tensors(read_verified(path, "best.safetensors", digests)).items():
        kind, _, weight = name.partition("/")
        best.setdefault(kind, {})[weight] = tensor
    optimizer = io.BytesIO(read_verified(path, "optimizer.pt", digests))
    return Checkpoint(
        spec=spec,
        students=load_tensors(read_verified(path, "students.safetensors", digests)),
        best=best,
        # The reading machine may have no GPU, such as the cluster's head node.
        optimizer=torch.load(optimizer, weights_only=True, map_location="cpu"),
        state=_State(path, json.loads(read_verified(path, "state.json", digests))),
        ledger=parse_ledger(path, read_verified(path, LEDGER, digests)),
        parts=_read_parts(path, digests),
    )


def _read_parts(path: str, digests: Mapping[str, str]) -> Sequence[str]:
    """Return the names of the parts of rejections that belong to a checkpoint."""
    if _PARTS in digests:
        parts: list[str] = json.loads(read_verified(path, _PARTS, digests))
        return parts
    position = position_of(path)
    run = path.rpartition("/checkpoints/")[0]
    return parts_of_earlier_version(run, position.step) if position and run else []


def load_newest(run: str) -> tuple[str, Checkpoint] | None:
    """Return the newest intact checkpoint of a run with its path; None if there is none.

    Raises:
        CheckpointError: The run has checkpoints, and none of them can be used.
        StorageError: They cannot be reached.
    """
    return newest_checkpoint(run, load_checkpoint)
