"""The command `liser`: what people who have a student, and no cluster, want of it.

liser predict [--student FOLDER] [--pictures FOLDER] FILE...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
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
        "--student", default=".", metavar="FOLDER", help="that jobs/export.py wrote; this one"
    )
    command.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="where a PNG of each file is to go"
    )
    asked = parser.parse_args(arguments)
    use = partial(draw, asked.pictures, asked.hop_s) if asked.pictures else predict.forget
    sys.exit(predict.main(asked, asked.student, use))


def draw(folder: Path, hop_s: float, name: str, answers: Iterable[Answer]) -> None:
    """Emotions of a file over time, as FOLDER/NAME.png; silence is left white."""
    said = list(answers)
    folder.mkdir(parents=True, exist_ok=True)
    middles = np.array([(one.start_s + one.end_s) / 2 for one in said])
    edges = np.append(middles - hop_s / 2, middles[-1] + hop_s / 2).clip(min=0)
    emotions = max((one.probabilities for one in said), key=len)
    shares = {
        emotion: np.array([one.probabilities.get(emotion, 0.0) for one in said])
        for emotion in emotions
    }
    if shares:
        file = folder / f"{Path(name).stem}.png"
        draw_bands(edges, shares, Path(name).name, file)
        print(file, file=sys.stderr)
