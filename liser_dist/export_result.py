"""What was found of an exported student: `export.json`, and what a person sees of it."""

from __future__ import annotations

from rich.table import Table

from liser_dist.assessment import Scored
from liser_dist.footprint import Footprint
from liser_dist.results import Record
from liser_dist.yardsticks import PUBLISHED


class Export(Record):
    """Shares, 0 to 1. Where no model is named it is `model.onnx`."""

    name: str
    checkpoint: str  # NAME/NUMBER/checkpoints/STEP
    student: str
    finished: bool  # whether the checkpoint is the last of its run
    passes: int  # clips in the weights, counted once an epoch
    params: int
    parity_max_abs: float  # the largest difference to torch in a probability
    int8_max_abs: float
    compared: int  # stretches of sound, of 0.5 to 30 s
    clips: int  # that they are made of
    onnx_bytes: int
    int8_bytes: int
    front_bytes: int  # of either, the front end's
    uar: float | None  # None where there are no labelled clips
    int8_uar: float | None
    real_time_factor: float
    p99_ms: float | None  # None: too few windows were measured
    scores: Scored | None
    footprints: dict[str, Footprint]  # "model.onnx", "model.int8.onnx", "speech teacher", ...


def tables_of(found: Export) -> list[Table]:
    """How large and fast, beside the teachers and what others published; how good."""
    sizes = Table(
        "", "parameters", "bytes", "load", "real-time factor", "99 %", "memory",
        title=f"{found.name}, {found.student}: on one core, a window every second",
    )  # fmt: skip
    for column in sizes.columns[1:]:
        column.justify = "right"
    for name, one in found.footprints.items():
        sizes.add_row(
            name,
            f"{found.params:,}" if name.startswith("model") else "",
            f"{one.size_bytes:,}",
            f"{one.load_s:.2f} s",
            f"{one.real_time_factor:.4f}",
            "-" if one.p99_ms is None else f"{one.p99_ms:.1f} ms",
            f"{one.memory_bytes / 1e6:.0f} MB",
        )
    sizes.add_row("the log-mel within either", "", f"{found.front_bytes:,}", "", "", "", "")
    for name, params, size_bytes, _ in PUBLISHED:
        if params:
            sizes.add_row(f"{name}, as published", params, size_bytes, "", "", "", "")
    worth = Table("", "model.onnx", "int8", title="the student that leaves the house")
    worth.add_row(
        f"probabilities off torch's by at most, {found.compared} stretches",
        f"{found.parity_max_abs:.1e}", f"{found.int8_max_abs:.1e}",
    )  # fmt: skip
    if found.scores is not None:
        speakers = f" of {found.scores.speakers} speakers" if found.scores.speakers else ""
        title = f"UAR on {found.scores.clips} clips{speakers}"
        over = ""
        if interval := found.scores.uar_interval:
            over = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
        assert found.uar is not None
        assert found.int8_uar is not None
        worth.add_row(title, f"{100 * found.uar:.1f} %{over}", f"{100 * found.int8_uar:.1f} %")
    return [sizes, worth]
