"""Implements the command `liser`, which runs exported students without a cluster.

liser predict [--student FOLDER] [--pictures FOLDER] FILE...
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from liser_dist.export import predict
from liser_dist.export.predict import Prediction
from liser_dist.plots import draw_bands


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. If `arguments` are not given, they are those of the process."""
    parser = argparse.ArgumentParser(prog="liser", description="Run speech-emotion models.")
    about = "predict emotions over time for audio or video files, or for audio from a pipe"
    command = parser.add_subparsers(required=True).add_parser("predict", help=about)
    predict.add_options(command)
    command.add_argument(
        "--student",
        default=".",
        metavar="FOLDER",
        help="folder of an exported student (default: the current folder)",
    )
    command.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="also draw the emotions of each file over time, as a PNG in FOLDER",
    )
    options = parser.parse_args(arguments)
    try:
        consume = Pictures(options.pictures) if options.pictures else predict.discard
    except OSError as error:
        parser.error(f"--pictures {options.pictures}: {error.strerror}; give a writable folder")
    sys.exit(predict.run_command(options, options.student, consume))


class Pictures:
    """Draws the emotions of each file over time as FOLDER/NAME.png. Silence stays white.

    Args:
        folder: where the pictures are written; created if need be.

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._drawn = folder, Counter[str]()

    def __call__(self, name: str, predictions: Iterable[Prediction]) -> None:
        """Draw the predictions of a file."""
        windows = list(predictions)
        emotions = max((window.probabilities for window in windows), key=len)
        if not emotions:
            return  # silent from start to end
        middles = np.array([(window.start_s + window.end_s) / 2 for window in windows])
        between = (middles[1:] + middles[:-1]) / 2
        edges = np.concatenate([[windows[0].start_s], between, [windows[-1].end_s]])
        shares = {
            emotion: np.array([window.probabilities.get(emotion, 0.0) for window in windows])
            for emotion in emotions
        }
        title = Path(name).name
        self._drawn[title] += 1
        number = "" if self._drawn[title] == 1 else f"-{self._drawn[title]}"
        file = self._folder / f"{title}{number}.png"
        draw_bands(edges, shares, title, file)
        print(file, file=sys.stderr)
