#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

One HTML file that shows a run, two runs side by side, a study or a benchmark.

    jobs/report.py RUN [RUN] [--output FILE] [--clips N] [--check]
"""

import argparse

from liser_dist.command import run_job


def main() -> None:
    parser = argparse.ArgumentParser(description="A page of a run, two runs, a study, a benchmark.")
    parser.add_argument("places", nargs="+", metavar="RUN", help="its folder, on disk or s3://")
    parser.add_argument(
        "--output", metavar="FILE", help="or a folder; not given, that of the first"
    )
    parser.add_argument("--clips", type=int, default=12, help="on which the teachers differ; shown")
    parser.add_argument("--check", action="store_true", help="say what each place is; stop")
    asked = parser.parse_args()
    if len(asked.places) > 2:
        parser.error("two can be shown side by side, not more")
    if asked.clips < 0:
        parser.error(f"--clips {asked.clips}: give 0 or more")
    from liser_dist import report  # heavy

    if asked.check:
        for place in asked.places:
            print(f"{place}: a {report.kind_of(place)}")
        return
    print(report.write_report(asked.places, asked.clips, asked.output), flush=True)


if __name__ == "__main__":
    run_job(main)
