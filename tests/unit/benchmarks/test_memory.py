"""Memory is compared process by process, and the object store is a row of its own."""

from liser_dist.benchmarks.fault_report import memory_table
from liser_dist.benchmarks.memory import MemoryRow, _compare


def test_as_many_processes_as_before_are_compared_one_by_one() -> None:
    rows = list(_compare("decoder", [100, 200], [110, 190]))
    assert [(row.bytes_before, row.bytes_after) for row in rows] == [(100, 110), (200, 190)]
    assert [round(row.growth, 3) for row in rows] == [0.1, -0.05]


def test_the_largest_is_compared_where_their_number_has_changed() -> None:
    (row,) = _compare("decoder", [100, 200], [150])
    assert (row.bytes_before, row.bytes_after, row.growth) == (200, 150, -0.25)


def test_a_kind_that_has_ended_has_no_row() -> None:
    assert list(_compare("decoder", [100], [])) == []


def test_the_table_has_a_row_for_each_process() -> None:
    table = memory_table([MemoryRow.of("driver", 100 * 2**20, 110 * 2**20)])
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["driver", "100 MiB", "110 MiB", "+10.0%"]
