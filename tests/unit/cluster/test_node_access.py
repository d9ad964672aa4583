"""The access check reports which paths a node cannot reach."""

from pathlib import Path

import pytest

from liser_dist import storage
from liser_dist.cluster.node_access import _probe, require_access
from liser_dist.config.resources import PoolsSpec
from liser_dist.errors import StorageError


def test_nothing_is_asked_of_nodes_when_all_paths_are_local(tmp_path: Path) -> None:
    require_access([str(tmp_path / "a.tar")], PoolsSpec())


def test_a_missing_file_is_reachable_and_a_refused_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _probe([str(tmp_path / "missing")]) == ""

    def refuse(place: str, patience_s: float) -> bool:
        raise StorageError(f"cannot look up {place}: access denied")

    monkeypatch.setattr(storage, "exists", refuse)
    assert _probe(["s3://bucket/a"]) == "cannot look up s3://bucket/a: access denied"
