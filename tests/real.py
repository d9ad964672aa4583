"""Finds the real clips and models that some tests use, which are not part of the repository.

They contain faces and weights of other people and cannot be distributed, so a fresh clone skips
these tests. They cover what cannot be generated: face detection on real pictures, files that crash
Decord, files cut by other programs, and a job on all of these. Every other test generates its
clips and models, and runs everywhere.
"""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
CLIPS = SHARED / "clips"

needs_clips = pytest.mark.skipif(
    not CLIPS.is_dir(),
    reason=f"real clips cannot be distributed with the repository; there are none at {CLIPS}",
)
