"""Checkpoints: the weights and the ledger of the clips in them, together.

A checkpoint is a folder, written file by file and then committed: without its marker it does not
exist. Only tensors and JSON are in it. Training does not wait for it to be written, nor end when it
cannot be.

    step-00001200/
      spec.json             the resolved spec of its run
      students.safetensors  every student in training
      best.safetensors      of each kind of student, the best by validation so far
      optimizer.pt          tensors and numbers alone
      state.json            step, scores, what else the loop needs
      ledger.json           which clips are in the weights
      COMMITTED             digests of the others
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from liser_dist.committed import (
    LEDGER,
    new_place,
    newest,
    read_digests,
    read_file,
    read_spec,
    remove_old,
    remove_quietly,
    write_checkpoint,
)
from liser_dist.errors import CheckpointError, StorageError
from liser_dist.ledger import Ledger, Rejection
from liser_dist.rejections import part_place, write_part
from liser_dist.spec import DistillSpec
from liser_dist.students import Student

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    spec: DistillSpec
    students: Tensors
    best: dict[str, Tensors]  # by kind of student: "distilled", and each of the spec's `compare`
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]
    ledger: Ledger


def pack_checkpoint(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint, by name: what it holds now, whatever is trained meanwhile."""
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
    """Writes a run's checkpoints in the background, one at a time.

    One that cannot be written is told, and training goes on; `finish` raises when it was the last.

    Attributes:
        newest: the place of the last that was kept.
    """

    def __init__(self, run: str, keep: int) -> None:
        self._run, self._keep = run, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._rejections: list[Rejection] = []  # told to no part yet
        self.newest: str | None = None

    @property
    def busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def save(self, step: int, checkpoint: Checkpoint, then: Callable[[], None]) -> None:
        """Begin to write, and to do something more after it. Waits for the one before."""
        self._wait()
        self._rejections += checkpoint.ledger.take_rejections()
        files = pack_checkpoint(checkpoint)
        self._writing = self._thread.submit(self._write, step, files, then)

    def finish(self) -> None:
        """Wait for the last. Raises StorageError when it was not kept."""
        self._thread.shutdown()
        if self._writing is not None:
            self._writing.result()

    def _wait(self) -> None:
        if self._writing is not None:
            wait([self._writing])

    def _write(self, step: int, files: Mapping[str, bytes], then: Callable[[], None]) -> None:
        place = None
        try:
            place = new_place(self._run, step)
            write_part(self._run, step, self._rejections)
            write_checkpoint(place, files)
        except StorageError as error:
            logger.error("the checkpoint of step %d is lost, training goes on: %s", step, error)
            self._take_back(step, place)
            raise
        self._rejections.clear()
        self.newest = place
        try:
            remove_old(self._run, step, self._keep)
            then()
        except StorageError as error:
            logger.warning("%s", error)

    def _take_back(self, step: int, place: str | None) -> None:
        """What there is of a checkpoint may be what fills the disk; its part comes once more."""
        if place is not None:
            remove_quietly(place)
        if self._rejections:
            remove_quietly(part_place(self._run, step))


def load_checkpoint(place: str) -> Checkpoint:
    """Read a committed checkpoint. Raises CheckpointError, also where a file is not as written."""
    digests = read_digests(place)
    spec = read_spec(place, digests)
    best: dict[str, Tensors] = {}
    for name, tensor in load_tensors(read_file(place, "best.safetensors", digests)).items():
        kind, _, weight = name.partition("/")
        best.setdefault(kind, {})[weight] = tensor
    optimizer = io.BytesIO(read_file(place, "optimizer.pt", digests))
    return Checkpoint(
        spec=spec,
        students=load_tensors(read_file(place, "students.safetensors", digests)),
        best=best,
        # Who reads it may have no GPU: the first node, say.
        optimizer=torch.load(optimizer, weights_only=True, map_location="cpu"),
        state=json.loads(read_file(place, "state.json", digests)),
        ledger=Ledger.from_json(json.loads(read_file(place, LEDGER, digests))),
    )


def load_newest(run: str) -> tuple[str, Checkpoint] | None:
    """The newest checkpoint of a run that is whole, and its place. Raises as `newest`."""
    return newest(run, load_checkpoint)


def load_student(place: str, kind: str = "distilled") -> tuple[Student, tuple[str, ...]]:
    """The best student of a checkpoint, ready to answer, and the emotions it knows.

    Raises CheckpointError.
    """
    digests = read_digests(place)
    spec = read_spec(place, digests)
    tensors = load_tensors(read_file(place, "best.safetensors", digests))
    weights = {
        name.removeprefix(f"{kind}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{kind}/") and "/projections." not in name
    }
    if not weights:
        there = ", ".join(sorted({name.partition("/")[0] for name in tensors}))
        raise CheckpointError(f"the checkpoint {place} holds no student {kind!r}: give {there}")
    if spec.student.kind == "counting":
        raise CheckpointError(f"the student of {place} counts clips and answers nothing")
    student = Student(spec.student, len(spec.emotions), spec.clip.sample_rate_hz)
    student.load_state_dict(weights)
    return student.eval(), spec.emotions
