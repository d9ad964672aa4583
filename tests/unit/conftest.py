"""Fixtures of the unit tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from liser_dist.benchmarks.testbed.flaky_s3 import FlakyS3


@pytest.fixture
def s3_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    """A real S3 server that this process reaches; the folder `bucket` is its bucket."""
    (tmp_path / "bucket").mkdir()
    with FlakyS3(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # it knows an earlier test's server
        yield server
    s3fs.S3FileSystem.clear_instance_cache()
