"""Failures that may pass are retried, and the user is told for how long."""

import time
from collections.abc import Callable

import pytest

from liser_dist.storage_errors import retry


def failing_for(seconds: float) -> Callable[[], str]:
    end = time.monotonic() + seconds

    def attempt() -> str:
        if time.monotonic() < end:
            raise ConnectionError("the server is away")
        return "content"

    return attempt


def test_a_long_outage_is_survived_and_told_again(caplog: pytest.LogCaptureFixture) -> None:
    assert retry(failing_for(3), "read s3://bucket/file", 1800, remind_s=1) == "content"
    first, *later = [record.getMessage() for record in caplog.records]
    assert first == "cannot read s3://bucket/file: the server is away; retrying for 30 min"
    assert 1 <= len(later) <= 3


def test_patience_ends(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionError, match="the server is away"):
        retry(failing_for(60), "read s3://bucket/file", 0.5)
    assert caplog.messages == ["cannot read s3://bucket/file: the server is away; retrying for 0 s"]


def test_other_failures_are_not_retried() -> None:
    def attempt() -> None:
        raise FileNotFoundError("no such file")

    with pytest.raises(FileNotFoundError):
        retry(attempt, "read s3://bucket/file", 60)
