"""Starts the jobs that the benchmarks measure, each in processes of its own, as a user would.

`BenchmarkJob` is a distillation job that a benchmark runs in several variants, and
`run_measurement` runs a module of this package on a spec. Every measuring process loads this
module, so it must import little.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from liser_dist.config.distill import DistillSpec
from liser_dist.config.student import CountingStudent

DISTILL_JOB = Path(__file__).parents[2] / "jobs" / "distill.py"


@dataclass(frozen=True, slots=True)
class BenchmarkJob:
    """A distillation job of which a benchmark runs variants."""

    spec: DistillSpec

    def variant(self, **changes: Any) -> BenchmarkJob:
        """Return the job with other values of some fields of its spec, validated again.

        A mapping updates the fields of a section; any other value replaces the field.
        """
        content = self.spec.model_dump()
        for name, change in changes.items():
            updates = isinstance(change, Mapping)
            content[name] = {**content[name], **change} if updates else change
        return BenchmarkJob(DistillSpec.model_validate(content))

    def counting(self, **changes: Any) -> BenchmarkJob:
        """Return a variant whose student counts how often it was trained on each clip."""
        return self.variant(student=CountingStudent(), **changes)

    def count_clips(self) -> int:
        """Return the number of clips of the job's unlabelled shards."""
        from liser_dist.data.shard_list import find_shards  # heavy

        shards = find_shards(self.spec.data.unlabelled, "data.unlabelled")
        return sum(shard.clips for shard in shards)

    def start(
        self, folder: Path, log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start `jobs/distill.py` on `folder`/spec.yaml; its output is appended to `log`."""
        file = folder / "spec.yaml"
        file.write_text(yaml.safe_dump(self.spec.model_dump(mode="json")))
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, str(DISTILL_JOB), str(file)],
                env=environment, stdout=output, stderr=output,
            )  # fmt: skip


# ---------------------------------------------------------------- measurements


def run_measurement(
    module: str,
    job: BenchmarkJob,
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run `python -m MODULE spec.json ARGUMENTS measured.json` in a process of its own.

    Args:
        module: a module of this package that calls `read_measurement_command`.
        job: its spec is written to `folder`/spec.json.
        folder: a new folder, for the spec, the log and the measurement.
        arguments: further arguments of the module.
        environment: of the process; this process's own when not given.

    Returns:
        The content of measured.json, which the module has written.

    Raises:
        CalledProcessError: the process failed.
    """
    folder.mkdir(parents=True)
    spec, measured = folder / "spec.json", folder / "measured.json"
    spec.write_text(job.spec.model_dump_json())
    with (folder / "log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", f"liser_dist.benchmarks.{module}", spec, *arguments, measured],
            env=environment, stdout=log, stderr=log, check=True,
        )  # fmt: skip
    return measured.read_text()


def read_measurement_command() -> tuple[BenchmarkJob, list[str], Path]:
    """Return the job, the further arguments and the output file of a measurement's command."""
    spec, *arguments, measured = sys.argv[1:]
    job = BenchmarkJob(DistillSpec.model_validate_json(Path(spec).read_text()))
    return job, arguments, Path(measured)
