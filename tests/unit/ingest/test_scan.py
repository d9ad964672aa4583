"""Speech and shot changes -> pieces."""

import pytest

from liser_dist.config.ingest import CutSpec
from liser_dist.ingest.scan import Scan, cut_pieces

SPEC = CutSpec(margin_s=0.0)


def pieces(speech, cuts=(), spec=SPEC, length_s=100.0):
    found, short = cut_pieces(Scan(speech, list(cuts), length_s), spec)
    return [tuple(round(edge, 3) for edge in piece) for piece in found], len(short)


def test_a_short_pause_ends_no_piece_and_a_long_one_does():
    assert pieces([(1, 3), (3.4, 6), (6.6, 9)]) == ([(1, 6), (6.6, 9)], 0)


def test_a_change_of_the_shot_ends_a_piece_before_its_first_frame():
    assert pieces([(1, 9)], cuts=[5.0]) == ([(1, 4.98), (5, 9)], 0)


def test_long_speech_is_divided_evenly():
    assert pieces([(0, 24)]) == ([(0, 8), (8, 16), (16, 24)], 0)


def test_what_is_too_short_is_told():
    assert pieces([(1, 2), (5, 9)], cuts=[8.0]) == ([(5, 7.98)], 2)


def test_margins_stay_within_the_film():
    spec = CutSpec(margin_s=0.2)
    assert pieces([(0.1, 4), (96, 99.9)], spec=spec) == ([(0, 4.2), (95.8, 100)], 0)


@pytest.mark.parametrize("pause_s", [0.4, 0.6])
def test_a_pause_is_measured_without_the_margins(pause_s):
    found, _ = pieces([(1, 4), (4 + pause_s, 8)], spec=CutSpec(margin_s=0.25, pause_s=0.5))
    assert len(found) == (1 if pause_s < 0.5 else 2)
