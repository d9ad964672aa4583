"""Lines that an ingest job prints."""

import pytest

from liser_dist.cluster.capacity import Capacity
from liser_dist.config.ingest import IngestSpec
from liser_dist.ingest.console import show_ingest
from liser_dist.ingest.job import IngestPlan
from liser_dist.ingest.manifest import (
    DoneRecording,
    RecordingGroup,
    RejectedPiece,
    WrittenShard,
)
from liser_dist.ingest.sources.base import Recording


def group(clips: int) -> RecordingGroup:
    return RecordingGroup(
        settings={},
        sources=[DoneRecording(place="a.wav", member="", version="1", length_s=60.0, clips=clips)],
        shards=[WrittenShard(url="a.tar", nsamples=clips, bytes=1, length_s=30.0, version="1")],
        refused=[RejectedPiece(source="a.wav", start_s=0, end_s=6, reason="too_short", detail="")],
        fingerprints=[],
    )


@pytest.mark.parametrize(
    ("recordings", "clips", "lines"),
    [
        (1, 1, ("1 recording, 0 done; 1 pending", "1/1 recording · 1 new clip · 1 piece rejected")),
        (
            2,
            3,
            ("2 recordings, 0 done; 2 pending", "1/2 recordings · 3 new clips · 1 piece rejected"),
        ),
    ],
)
def test_lines_agree_in_number(recordings, clips, lines, capsys) -> None:
    listed = [Recording(f"{n}.wav", 1000, "1", str(n)) for n in range(recordings)]
    spec = IngestSpec(source="films", output="made")
    show_ingest(IngestPlan(spec, Capacity("here", ()), listed, listed, {}), [group(clips)])
    printed = capsys.readouterr().out
    assert all(line in printed for line in lines)
    assert "rejected: too_short" in printed
