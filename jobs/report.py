#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Write a report of a run, two runs side by side, a study or a benchmark, as one HTML file.

    jobs/report.py RUN [RUN] [--output FILE] [--clips N] [--check]
"""

import argparse

from liser_dist.command_line import run_job


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(
        description="Write an HTML report of a run, two runs, a study or a benchmark."
    )
    parser.add_argument(
        "places", nargs="+", metavar="RUN", help="folder of a run, study or benchmark"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file or folder to write to; by default the folder of the first RUN",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=12,
        help="number of clips to show on which the teachers disagree most (default 12)",
    )
    parser.add_argument(
        "--check", action="store_true", help="print what each folder holds, then stop"
    )
    options = parser.parse_args()
    if len(options.places) > 2:
        parser.error("at most two runs can be compared")
    if options.clips < 0:
        parser.error(f"--clips {options.clips}: give 0 or more")
    from liser_dist.reports.page import folder_kind, write_report

    if options.check:
        for place in options.places:
            print(f"{place}: a {folder_kind(place)}")
        return
    print(write_report(options.places, options.clips, options.output), flush=True)


if __name__ == "__main__":
    run_job(main)
