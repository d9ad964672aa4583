"""What the synthetic corpus is, and how a job that names it gets its shards and teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from liser_dist.fields import EMOTIONS, Count, Place, Spec, fingerprint

SYNTHETIC_VERSION = 1  # goes up with every change of what the synthetic corpus is made like


class SyntheticSpec(Spec):
    """The synthetic corpus and two teachers for it, made under `place` when not there yet.

    Stands in for data that cannot be shipped; fills in `data` and `teachers` where they are not
    given. The corpus differs with the job's seed; the teachers' backbones do not, as a public
    model would not.
    """

    place: Place = "~/.cache/liser_dist/synthetic"
    seed: int | None = Field(None, description="the corpus's seed; the job's own when not given")
    labelled_per_emotion: Count = 2
    unlabelled_clips: Count = 1440
    validation_clips: Count = 120
    test_clips: Count = 240
    clips_per_shard: Count = 60
    backbone_clips: Count = 2400

    @property
    def root(self) -> Path:
        """Where this very corpus lies."""
        made_of = {**self.model_dump(exclude={"place"}), "version": SYNTHETIC_VERSION}
        return Path(self.place).expanduser() / f"corpus-{fingerprint(made_of)}"

    @property
    def backbones(self) -> Path:
        """Where the nets lie that its teachers are fitted on: "speech" and "face"."""
        name = f"backbones-{self.backbone_clips}-v{SYNTHETIC_VERSION}"
        return Path(self.place).expanduser() / name

    def places(self) -> dict[str, str]:
        """The four shard sets: labelled, unlabelled, validation, test."""
        return {
            name: str(self.root / name) for name in ("labelled", "unlabelled", "validation", "test")
        }

    def teachers(self) -> dict[str, str]:
        """The folders of the two teachers, whose heads are fitted on the labelled set."""
        return {name: str(self.root / "teachers" / name) for name in ("speech", "face")}


def fill_in_synthetic(given: Any) -> Any:
    """A job's fields, with the synthetic corpus's shards and teachers where it names none."""
    if not isinstance(given, dict) or not isinstance(given.get("synthetic"), dict):
        return given
    parts = [given.get(name) or {} for name in ("data", "teachers")]
    seed = str(given.get("seed", 0))
    if not (all(isinstance(part, dict) for part in parts) and seed.isdigit()):
        return given  # wrong, and told as such when the fields are read
    try:
        synthetic = SyntheticSpec.model_validate(given["synthetic"])
    except ValidationError:
        return given
    if synthetic.seed is None:
        synthetic = synthetic.model_copy(update={"seed": int(seed)})
    data, teachers = parts
    return {
        **given,
        "synthetic": synthetic.model_dump(),
        "data": {**synthetic.places(), **data},
        "teachers": {**teachers, **_with_synthetic_teachers(synthetic, teachers)},
    }


def _with_synthetic_teachers(
    synthetic: SyntheticSpec, given: dict[str, Any]
) -> dict[str, dict[str, Any] | None]:
    """Both teachers: as given, what is not given of them being the synthetic corpus's own."""
    labels = {name: name for name in EMOTIONS}
    teachers: dict[str, dict[str, Any] | None] = {}
    for name, folder in synthetic.teachers().items():
        own = {"kind": "huggingface", "model": folder, "labels": labels}
        wanted = given.get(name, {})
        kind = wanted.get("kind", own["kind"]) if isinstance(wanted, dict) else None
        if kind == "backbone":
            teachers[name] = {"model": str(synthetic.backbones / name), **wanted}
        else:
            teachers[name] = {**own, **wanted} if kind == own["kind"] else wanted
    return teachers
