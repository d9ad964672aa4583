#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

The demo beside ways in which distillation must not help.

    jobs/controls.py [SPEC] [--FIELD VALUE ...]

1. Targets shuffled between the clips of a batch: only their distribution is left.
2. The face teacher alone, and the same with the faces of other clips: its gain must go.
3. A student taught by the label-only student's own pseudo-labels: no teacher knows more than it.

The first two learn from the very batches of the distilled student; the third is a run of its own.
"""

import sys
from pathlib import Path

from liser_dist.command import read_command, run_job
from liser_dist.spec import DistillSpec
from liser_dist.teacher_spec import StudentTeacher

DEFAULT = Path(__file__).parent / "specs" / "demo.yaml"
COMPARED = ("labels_only", "speech_only", "face_only", "swapped_faces", "shuffled_targets")


def main() -> None:
    command = read_command(sys.argv[1:], DEFAULT, "The demo and its controls.", DistillSpec)
    asked = command.spec
    from liser_dist import cluster, distillation, planning, screen  # heavy: see jobs/distill.py

    first = changed(asked, compare=COMPARED, name=f"{asked.name}-controls")
    plan = planning.plan(first, make_corpus=not command.check)
    if command.check:
        screen.print_plan(plan.spec, plan.capacity, plan.shards)
        return
    result, place = distillation.run(plan)
    second, _ = distillation.run(planning.plan(pseudo_labelled(first, result.checkpoint)))
    cluster.leave_ray()
    screen.print_result(result)
    screen.print_controls(result, second.student)
    print(place, flush=True)


def pseudo_labelled(spec: DistillSpec, checkpoint: str) -> DistillSpec:
    """The same job with the label-only student for a teacher."""
    teacher = StudentTeacher(model=checkpoint, which="labels_only")
    teachers = {"speech": teacher, "face": None, "batch_size": spec.teachers.batch_size}
    name = f"{spec.name}-pseudo-labels"
    return changed(spec, teachers=teachers, compare=(), synthetic=None, name=name)


def changed(spec: DistillSpec, **fields: object) -> DistillSpec:
    """The spec with other fields, checked as any."""
    return DistillSpec.model_validate({**spec.model_dump(), **fields})


if __name__ == "__main__":
    run_job(main)
