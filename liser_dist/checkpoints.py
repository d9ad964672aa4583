"""Checkpoints: the weights and the ledger of the clips in them, together.

A checkpoint is a folder, written file by file and then committed: without its marker it does not
exist. Only tensors and JSON are in it.

    step-00001200/
      spec.json             the resolved spec of its run
      students.safetensors  every student in training
      best.safetensors      of each kind of student, the best by validation so far
      optimizer.pt          tensors and numbers alone
      state.json            step, scores, what else the loop needs
      ledger.json           which clips are in the weights
      COMMITTED
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from liser_dist import storage
from liser_dist.errors import CheckpointError, StorageError
from liser_dist.ledger import Ledger
from liser_dist.spec import DistillSpec
from liser_dist.students import Student

COMMITTED = "COMMITTED"
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    spec: DistillSpec
    students: Tensors
    best: dict[str, Tensors]  # by kind of student: "distilled", and each of the spec's `compare`
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]
    ledger: Ledger


def checkpoint_place(run: str, step: int) -> str:
    return storage.join(run, "checkpoints", f"step-{step:08d}")


def save_checkpoint(place: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and then commit it. Raises StorageError."""
    optimizer = io.BytesIO()
    torch.save(checkpoint.optimizer, optimizer)
    best = {
        f"{kind}/{name}": tensor
        for kind, tensors in checkpoint.best.items()
        for name, tensor in tensors.items()
    }
    files = {
        "spec.json": checkpoint.spec.model_dump_json(indent=1).encode(),
        "students.safetensors": save_tensors(checkpoint.students),
        "best.safetensors": save_tensors(best),
        "optimizer.pt": optimizer.getvalue(),
        "state.json": json.dumps(checkpoint.state, indent=1).encode(),
        "ledger.json": json.dumps(checkpoint.ledger.to_json()).encode(),
    }
    for name, content in files.items():
        storage.write_bytes(storage.join(place, name), content)
    storage.write_bytes(storage.join(place, COMMITTED), b"")


def load_checkpoint(place: str) -> Checkpoint:
    """Read a committed checkpoint. Raises CheckpointError."""
    spec = _read_spec(place)
    best: dict[str, Tensors] = {}
    for name, tensor in load_tensors(_read(place, "best.safetensors")).items():
        kind, _, weight = name.partition("/")
        best.setdefault(kind, {})[weight] = tensor
    return Checkpoint(
        spec=spec,
        students=load_tensors(_read(place, "students.safetensors")),
        best=best,
        optimizer=torch.load(io.BytesIO(_read(place, "optimizer.pt")), weights_only=True),
        state=json.loads(_read(place, "state.json")),
        ledger=Ledger.from_json(json.loads(_read(place, "ledger.json"))),
    )


def _read(place: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(place, name))
    except StorageError as error:
        raise CheckpointError(
            f"no checkpoint at {place}: {error}; give a folder runs/NAME/N/checkpoints/step-..."
        ) from error


def _read_spec(place: str) -> DistillSpec:
    _read(place, COMMITTED)
    try:
        return DistillSpec.model_validate_json(_read(place, "spec.json"))
    except ValidationError as error:
        raise CheckpointError(f"the spec in {place} is of another version of this tool") from error


def list_checkpoints(run: str) -> list[str]:
    """The committed checkpoints of a run, oldest first."""
    folder = storage.join(run, "checkpoints")
    places = [storage.join(folder, name) for name in storage.list_folders(folder)]
    return [place for place in places if storage.exists(storage.join(place, COMMITTED))]


def remove_old(run: str, keep: int) -> None:
    """Keep the newest checkpoints; the best weights by validation are in each of them."""
    for place in list_checkpoints(run)[:-keep]:
        storage.remove(storage.join(place, COMMITTED))  # first: half a checkpoint is none
        storage.remove(place)


def load_student(place: str, kind: str = "distilled") -> tuple[Student, tuple[str, ...]]:
    """The best student of a checkpoint, ready to answer, and the emotions it knows.

    Raises CheckpointError.
    """
    spec = _read_spec(place)
    tensors = load_tensors(_read(place, "best.safetensors"))
    weights = {
        name.removeprefix(f"{kind}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{kind}/") and "/projections." not in name
    }
    if not weights:
        raise CheckpointError(f"the checkpoint {place} holds no student {kind!r}")
    student = Student(spec.student, len(spec.emotions), spec.clip.sample_rate_hz)
    student.load_state_dict(weights)
    return student.eval(), spec.emotions


def require_same_student(spec: DistillSpec) -> None:
    """Raise CheckpointError when `start_from` holds another student than the job's."""
    if spec.start_from is None:
        return
    other = _read_spec(spec.start_from)
    for field in ("student", "emotions", "clip.sample_rate_hz"):
        ours, theirs = _field(spec, field), _field(other, field)
        if ours != theirs:
            raise CheckpointError(
                f"`start_from` {spec.start_from} holds another student: its `{field}` is "
                f"{_shown(theirs)}, the job's is {_shown(ours)}; make them the same, or leave "
                "`start_from` out"
            )


def _field(spec: DistillSpec, dotted: str) -> Any:
    value: Any = spec
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _shown(value: Any) -> str:
    return str(value.model_dump()) if hasattr(value, "model_dump") else str(value)
