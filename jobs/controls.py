#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Run the demo together with negative controls, in which distillation should not help.

    jobs/controls.py [SPEC] [--FIELD VALUE ...]

1. Targets are shuffled between the clips of a batch, so that only their distribution is left.
2. One student learns from the face teacher alone, another from the face targets of other clips,
   which should remove the gain.
3. A student learns from the predictions of the student that was trained on labels alone, a teacher
   that knows nothing beyond these labels.

The first two learn from the same batches as the distilled student; the third is a separate run.
"""

import sys
from pathlib import Path

from liser_dist.command_line import read_command, run_job
from liser_dist.config.distill import DistillSpec
from liser_dist.config.teachers import StudentTeacher

DEFAULT = Path(__file__).parent / "specs" / "demo.yaml"
COMPARED = ("labels_only", "speech_only", "face_only", "swapped_faces", "shuffled_targets")


def main() -> None:
    """Check the demo and, without `--check`, run it and its controls."""
    command = read_command(
        sys.argv[1:], DEFAULT, "Run the demo and its negative controls.", DistillSpec
    )
    spec = command.spec
    from liser_dist.cluster.connect import leave_ray
    from liser_dist.console import print_controls, print_plan, print_result
    from liser_dist.pipeline.plan import (
        check_cluster,
        check_data,
        plan_distill,
        prepare_corpus,
        probe_outputs,
    )
    from liser_dist.training.distill import run_distill

    first = with_fields(spec, compare=COMPARED, name=f"{spec.name}-controls")
    job = check_cluster(first)
    probe_outputs(job.spec.output, job.spec.track)
    if command.check:
        shards = check_data(job)
        print_plan(job.spec, job.spec.resources, job.worker_bounds, job.capacity, shards)
        return
    prepare_corpus(job.spec.synthetic)
    plan = plan_distill(job)
    result, place = run_distill(plan)
    second_job = check_cluster(pseudo_labelled(first, result.checkpoint))
    second, _ = run_distill(plan_distill(second_job))
    leave_ray()
    print_result(result)
    print_controls(result, second.student)
    print(place, flush=True)


def pseudo_labelled(spec: DistillSpec, checkpoint: str) -> DistillSpec:
    """Return the spec of the same job with the labels-only student as its teacher."""
    teacher = StudentTeacher(model=checkpoint, which="labels_only")
    teachers = {"speech": teacher, "face": None, "batch_size": spec.teachers.batch_size}
    name = f"{spec.name}-pseudo-labels"
    return with_fields(spec, teachers=teachers, compare=(), synthetic=None, name=name)


def with_fields(spec: DistillSpec, **fields: object) -> DistillSpec:
    """Return the spec with other values of these fields, validated."""
    return DistillSpec.model_validate({**spec.model_dump(), **fields})


if __name__ == "__main__":
    run_job(main)
