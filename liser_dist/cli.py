"""The command `liser`: what people who have a student, and no cluster, want of it.

liser predict [--student FOLDER] [--pictures FOLDER] FILE...
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from liser_dist import predict
from liser_dist.pictures import draw_bands
from liser_dist.predict import Answer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="liser", description="Speech-emotion students at work.")
    about = "emotions over time, of audio or video files, or of a pipe"
    command = parser.add_subparsers(required=True).add_parser("predict", help=about)
    predict.add_options(command)
    command.add_argument(
        "--student",
        default=".",
        metavar="FOLDER",
        help="of an export; the current one",
    )
    command.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="where a PNG of each file is to go"
    )
    asked = parser.parse_args(arguments)
    try:
        use = Pictures(asked.pictures) if asked.pictures else predict.forget
    except OSError as error:
        parser.error(f"--pictures {asked.pictures}: {error.strerror}; give a folder to write to")
    sys.exit(predict.main(asked, asked.student, use))


class Pictures:
    """Emotions of each file over time, as FOLDER/NAME.png; silence is left white.

    Raises OSError where the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._drawn = folder, Counter[str]()

    def __call__(self, name: str, answers: Iterable[Answer]) -> None:
        said = list(answers)
        emotions = max((one.probabilities for one in said), key=len)
        if not emotions:
            return  # all is silence
        middles = np.array([(one.start_s + one.end_s) / 2 for one in said])
        between = (middles[1:] + middles[:-1]) / 2
        edges = np.concatenate([[said[0].start_s], between, [said[-1].end_s]])
        shares = {
            emotion: np.array([one.probabilities.get(emotion, 0.0) for one in said])
            for emotion in emotions
        }
        title = Path(name).name
        self._drawn[title] += 1
        number = "" if self._drawn[title] == 1 else f"-{self._drawn[title]}"
        file = self._folder / f"{title}{number}.png"
        draw_bands(edges, shares, title, file)
        print(file, file=sys.stderr)
