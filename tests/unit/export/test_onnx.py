"""Every student kind that predicts can be exported with 8-bit weights."""

from typing import get_args

import pytest

from liser_dist.config.student import Quantisation, StudentSpec
from liser_dist.export import onnx

KINDS = get_args(get_args(StudentSpec)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_kind_that_predicts_names_a_quantisation_and_others_none(kind: type) -> None:
    assert (kind.quantisation is not None) is kind.answers


def test_each_quantisation_has_an_implementation() -> None:
    assert set(onnx._QUANTISE) == set(get_args(Quantisation))
