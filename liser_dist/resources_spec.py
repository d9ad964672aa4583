"""How many of each stage a job takes, what one of each takes, and where it runs."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from liser_dist.fields import Bounds, Count, PlaceOrOff, Pool, Spec


class PoolsSpec(Spec):
    """The nodes of each stage: those whose label `pool` is this.

    On a cluster of which no node has that label, any stage runs anywhere.
    """

    decoders: Pool = "decoders"  # and what reads shards
    teachers: Pool = "teachers"
    students: Pool = "students"  # the train workers, and the cells of a study


class ResourcesSpec(Spec):
    """How many of each stage (least, most), what one of each takes, and where it runs."""

    decoders: Bounds = (1, 8)
    teachers: Bounds = (1, 1)
    readers: Count = 2
    decoder_cpus: Annotated[float, Field(gt=0)] = 1.0
    teacher_cpus: Annotated[float, Field(gt=0)] = 1.0
    worker_cpus: Annotated[float, Field(gt=0)] = 1.0
    teacher_gpus: Annotated[float, Field(ge=0)] = 0.0
    worker_gpus: Annotated[float, Field(ge=0)] = 0.0
    pools: PoolsSpec = PoolsSpec()
    cluster: PlaceOrOff = Field(
        None, description="a file for `ray up`: how far the cluster can grow; else what is there"
    )
    costs: PlaceOrOff = Field(
        None, description="a file with prices and seconds a clip, for `--check`: infra/costs.yaml"
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        for name in ("decoders", "teachers"):
            least, most = getattr(self, name)
            if least > most:
                raise ValueError(f"`{name}` is [least, most], not [{least}, {most}]")
        return self
