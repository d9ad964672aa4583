"""The manifest: what is pending, how recordings are grouped, and what earlier versions wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liser_dist.errors import SpecError
from liser_dist.ingest.manifest import (
    RecordingGroup,
    commit_group,
    group_recordings,
    name_group,
    pending_recordings,
    read_groups,
    require_same_settings,
    write_index,
)
from liser_dist.ingest.sources.base import Recording

# As the version before the sub-packages wrote it.
MANIFEST = {
    "settings": {"version": 1, "kind": "video", "cut": {"max_s": 10.0}},
    "sources": [
        {"place": "/films/a.mp4", "member": "", "version": "7", "length_s": 9.5, "clips": 1}
    ],
    "shards": [
        {"url": "0123-0000.tar", "nsamples": 1, "bytes": 10240, "length_s": 4.0, "version": "8"}
    ],
    "refused": [
        {
            "source": "/films/a.mp4", "start_s": 5.0, "end_s": 6.0, "reason": "too_short",
            "detail": "",
        }
    ],
    "fingerprints": [["digest", "00" * 16]],
}  # fmt: skip


def recordings(count: int, size_bytes: int = 1, fold: int = 0) -> list[Recording]:
    return [Recording(f"/f{n}.mp4", size_bytes, "1", f"{n:016d}", fold=fold) for n in range(count)]


def test_a_manifest_of_an_earlier_version_is_read_and_written_alike(tmp_path: Path) -> None:
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "0123.json").write_text(json.dumps(MANIFEST))
    groups = read_groups(str(tmp_path))
    assert list(groups) == ["0123"]
    assert groups["0123"].clips == 1
    commit_group(str(tmp_path), "4567", groups["0123"])
    assert json.loads((tmp_path / "manifest" / "4567.json").read_text()) == MANIFEST
    write_index(str(tmp_path), groups, MANIFEST["settings"])
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["clips"], index["complete"]) == (1, True)
    assert index["shardlist"] == MANIFEST["shards"]


def test_only_new_and_changed_recordings_are_pending() -> None:
    group = RecordingGroup.model_validate(MANIFEST)
    done = Recording("/films/a.mp4", 1, "7", "a")
    changed = Recording("/films/a.mp4", 1, "9", "b")
    new = Recording("/films/b.mp4", 1, "7", "c")
    assert pending_recordings([done, changed, new], {"0123": group}) == [changed, new]


def test_groups_share_the_work_and_keep_folds_apart() -> None:
    assert [len(group) for group in group_recordings(recordings(10), workers=1)] == [3, 3, 3, 1]
    mixed = recordings(2, fold=1) + recordings(2, fold=2)
    folds = [{r.fold for r in group} for group in group_recordings(mixed, workers=1)]
    assert all(len(fold) == 1 for fold in folds)
    large = recordings(3, size_bytes=2**30 + 1)
    assert [len(group) for group in group_recordings(large, workers=1)] == [1, 1, 1]


def test_a_group_is_named_after_its_recordings() -> None:
    first, second = recordings(2)
    assert name_group([first]) != name_group([second])
    assert name_group([first]) == name_group([first])
    assert name_group(recordings(1, fold=3)).startswith("fold-3-")


def test_other_settings_are_refused_with_what_differs() -> None:
    groups = {"0123": RecordingGroup.model_validate(MANIFEST)}
    require_same_settings("made", groups, MANIFEST["settings"])
    changed = {**MANIFEST["settings"], "cut": {"max_s": 5.0}}
    with pytest.raises(SpecError, match=r"`cut.max_s` was 10.0 and is now 5.0"):
        require_same_settings("made", groups, changed)
