"""Shards that several test modules read."""

from pathlib import Path

import pytest

from liser_dist.data.shards import write_shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of ten, ten and five clips with an index; every clip says an emotion."""
    clips = (
        (f"clip-{n:02d}", bytes([n]) * (3000 + n), {"faces": [], "emotion": "sad", "speaker": "s"})
        for n in range(25)
    )
    write_shards(clips, str(tmp_path), clips_per_shard=10)
    return tmp_path
