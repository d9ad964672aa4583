"""A paced decoder hands out equal blocks, and the table shows each size."""

from liser_dist.benchmarks.simulation import (
    BLOCKS_PER_TASK,
    PacedDecoder,
    SimulationRow,
    simulation_table,
)
from liser_dist.config.stream import ClipSpec


def test_a_paced_decoder_hands_out_equal_blocks() -> None:
    decoder = PacedDecoder(ClipSpec(faces=1, face_px=16), rows=3, block_s=0.001)
    tables = list(decoder(None))
    assert len(tables) == BLOCKS_PER_TASK
    assert {table.num_rows for table in tables} == {3}


def test_the_table_shows_shares_and_sizes() -> None:
    row = SimulationRow(
        gpu="L4", gpus=8, teacher_busy=0.987, clips_per_s=1234.4,
        object_store_peak_bytes=3 * 2**20, driver_cpu_s=12.3,
    )  # fmt: skip
    table = simulation_table([row])
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["L4", "8", "98.7%", "1234", "3 MiB", "12 s"]
