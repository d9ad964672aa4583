"""Rejection reasons: their names in files and their descriptions."""

import pickle

from liser_dist.records import Reason


def test_every_reason_is_described_and_keeps_its_name_in_files() -> None:
    for reason in Reason:
        assert reason == reason.name.lower()
        assert reason.description.endswith("."), reason
        assert Reason(str(reason)) is reason
        assert pickle.loads(pickle.dumps(reason)) is reason


def test_reasons_of_limits_and_crashes_depend_on_the_machine() -> None:
    found = {reason for reason in Reason if reason.depends_on_machine}
    assert found == {Reason.TIMEOUT, Reason.CRASHED, Reason.TOO_LARGE}
