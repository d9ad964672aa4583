"""Defines `export.json` and the console tables of an export job."""

from __future__ import annotations

from rich.table import Table

from liser_dist.config.base import Record
from liser_dist.evaluation.assess import DetailedScores
from liser_dist.export.footprint import Footprint


class Export(Record):
    """Measurements of an exported student: `export.json`.

    Shares are 0 to 1. Fields that name no model are those of `model.onnx`.

    Attributes:
        name: Name of the run.
        checkpoint: NAME/NUMBER/checkpoints/STEP.
        student: Which student of the run.
        finished: Whether the checkpoint is the last of its run.
        passes: Unlabelled clips trained or rejected up to the checkpoint, counted once per epoch.
        params: Number of parameters.
        parity_max_abs: Largest difference from torch in any probability.
        int8_max_abs: The same for `model.int8.onnx`.
        compared: Number of audio segments of 0.5 to 30 s that were compared.
        clips: Number of clips that the segments were made of.
        onnx_bytes: Size of `model.onnx`.
        int8_bytes: Size of `model.int8.onnx`.
        front_bytes: Size of the front end, which is part of both models.
        uar: Unweighted average recall; None without labelled clips.
        int8_uar: The same for `model.int8.onnx`.
        real_time_factor: Seconds of computation per second of audio.
        p99_ms: 99th percentile of the latency; None if too few windows were measured.
        scores: All scores of `model.onnx`, without groups of clips.
        footprints: By "model.onnx", "model.int8.onnx", "speech teacher", "face teacher".
    """

    name: str
    checkpoint: str
    student: str
    finished: bool
    passes: int
    params: int
    parity_max_abs: float
    int8_max_abs: float
    compared: int
    clips: int
    onnx_bytes: int
    int8_bytes: int
    front_bytes: int
    uar: float | None
    int8_uar: float | None
    real_time_factor: float
    p99_ms: float | None
    scores: DetailedScores | None
    footprints: dict[str, Footprint]


def export_tables(export: Export) -> list[Table]:
    """Return two tables: size and speed next to the teachers, and accuracy."""
    return [_size_table(export), _accuracy_table(export)]


def _size_table(export: Export) -> Table:
    table = Table(
        "", "parameters", "bytes", "load", "real-time factor", "p99 latency", "memory",
        title=f"{export.name}, {export.student}: on one CPU core, one window per second",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for name, footprint in export.footprints.items():
        table.add_row(
            name,
            f"{export.params:,}" if name.startswith("model") else "",
            f"{footprint.size_bytes:,}",
            f"{footprint.load_s:.2f} s",
            f"{footprint.real_time_factor:.4f}",
            "-" if footprint.p99_ms is None else f"{footprint.p99_ms:.1f} ms",
            f"{footprint.memory_bytes / 1e6:.0f} MB",
        )
    table.add_row("log-mel front end in each model", "", f"{export.front_bytes:,}", *[""] * 4)
    return table


def _accuracy_table(export: Export) -> Table:
    table = Table("", "model.onnx", "model.int8.onnx", title="accuracy of the exported student")
    table.add_row(
        f"largest difference from torch in a probability, {export.compared} audio segments",
        f"{export.parity_max_abs:.1e}", f"{export.int8_max_abs:.1e}",
    )  # fmt: skip
    if export.scores is not None:
        speakers = f" of {export.scores.speakers} speakers" if export.scores.speakers else ""
        title = f"UAR on {export.scores.clips} clips{speakers}"
        bounds = ""
        if interval := export.scores.uar_interval:
            bounds = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
        assert export.uar is not None
        assert export.int8_uar is not None
        table.add_row(title, f"{100 * export.uar:.1f} %{bounds}", f"{100 * export.int8_uar:.1f} %")
    return table
