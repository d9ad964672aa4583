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
from liser_dist.spec import DistillSpec, StudentTeacher, TeachersSpec

DEFAULT = Path(__file__).parent / "specs" / "demo.yaml"
COMPARED = ("labels_only", "speech_only", "face_only", "swapped_faces", "shuffled_targets")


def main() -> None:
    asked = read_command(sys.argv[1:], DEFAULT, "The demo and its controls.").spec
    from liser_dist import cluster, distillation, screen  # heavy: see jobs/distill.py

    first = asked.model_copy(update={"compare": COMPARED, "name": f"{asked.name}-controls"})
    result, place = distillation.run(distillation.plan(first))
    second, _ = distillation.run(distillation.plan(pseudo_labelled(first, result.checkpoint)))
    cluster.leave_ray()
    screen.print_result(result)
    screen.print_controls(result, second.student)
    print(place, flush=True)


def pseudo_labelled(spec: DistillSpec, checkpoint: str) -> DistillSpec:
    """The same job with the label-only student for a teacher."""
    teacher = StudentTeacher(model=checkpoint, which="labels_only")
    changed = {"teachers": TeachersSpec(speech=teacher), "compare": (), "synthetic": None}
    return spec.model_copy(update={**changed, "name": f"{spec.name}-pseudo-labels"})


if __name__ == "__main__":
    run_job(main)
