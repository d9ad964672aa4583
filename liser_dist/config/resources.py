"""The resources of a job: how many decoders and teachers run, and on which nodes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from liser_dist.config.base import Bounds, Count, PlaceOrOff, Spec

POOL = "pool"  # the Ray node label that says which stages run on a node
# A value that Ray accepts for a label.
Pool = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=63)]


class PoolsSpec(Spec):
    """The nodes on which each stage runs: those whose Ray label `pool` has this value.

    On a cluster in which no node has the label `pool`, every stage runs on any node.
    """

    decoders: Pool = Field(
        "decoders", description="Label of the nodes that read shards and decode clips."
    )
    teachers: Pool = Field("teachers", description="Label of the nodes that run teachers.")
    students: Pool = Field(
        "students",
        description="Label of the nodes that run train workers, and the cells of a study.",
    )


class ResourcesSpec(Spec):
    """How many decoders and teachers a job runs, what each of them takes, and on which nodes."""

    removed: ClassVar = {
        "reader_cpus": "this field was removed, as reading shards reserves no CPU; leave it out"
    }

    decoders: Bounds = Field(
        (1, 8),
        description="Minimum and maximum number of decoder actors. Ray scales between the two.",
    )
    teachers: Bounds = Field(
        (1, 1),
        description="Minimum and maximum number of teacher actors. Each holds the speech and the "
        "face teacher.",
    )
    readers: Count = Field(
        2,
        description=(
            "Number of tasks that read shards at the same time. Each task reads eight or more "
            "shards in turn."
        ),
    )
    decoder_cpus: Annotated[float, Field(gt=0)] = Field(
        1.0, description="CPUs that each decoder reserves. May be a fraction."
    )
    teacher_cpus: Annotated[float, Field(gt=0)] = Field(
        1.0, description="CPUs that each teacher actor reserves. May be a fraction."
    )
    worker_cpus: Annotated[float, Field(gt=0)] = Field(
        1.0, description="CPUs that each train worker reserves. May be a fraction."
    )
    teacher_gpus: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="GPUs that each teacher actor reserves. May be a fraction; 0 runs it on the "
        "CPU.",
    )
    worker_gpus: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="GPUs that each train worker reserves. 0 trains on the CPU. May be a fraction "
        "if there is one train worker.",
    )
    pools: PoolsSpec = Field(
        PoolsSpec(), description="Labels of the nodes on which each stage runs."
    )
    cluster: PlaceOrOff = Field(
        None,
        description="Cluster file for `ray up`. If given, the job is checked against the largest "
        "size that the cluster can grow to; if off, against the nodes that are up.",
    )
    costs: PlaceOrOff = Field(
        None,
        description="YAML file with the price of each node type and the seconds per clip of each "
        "stage, such as infra/costs.yaml. If given, `--check` prints which stage is the slowest, "
        "and the price of an hour and of a million clips. The job's total is not predicted.",
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        for name, (least, most) in (("decoders", self.decoders), ("teachers", self.teachers)):
            if least > most:
                raise ValueError(
                    f"`{name}` [{least}, {most}] has a minimum above its maximum: give "
                    "[minimum, maximum]"
                )
        return self

    def check_worker_gpus(self, workers: int, field: str) -> None:
        """Check that no two train workers share a GPU, which NCCL refuses.

        Args:
            workers: The most train workers.
            field: The field that gives their number, for the message.

        Raises:
            ValueError: They would.
        """
        if workers > 1 and self.worker_gpus % 1:
            raise ValueError(
                f"`resources.worker_gpus` is {self.worker_gpus:g}, but the {workers} workers of "
                f"`{field}` cannot share a GPU: give a whole number, or set `{field}` to 1"
            )
