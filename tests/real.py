"""Real clips and nets, which lie beside a developer's checkout and not in it.

They are other people's faces and weights, which are not ours to hand out, so a stranger's clone has
none. What needs them looks at what cannot be made: how a detector does on real faces and where
there are none, files that crash Decord or that other programs cut in their own way, a job on all of
that. All else is tested on clips and nets that the tests make, everywhere.
"""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
CLIPS = SHARED / "clips"

needs_clips = pytest.mark.skipif(
    not CLIPS.is_dir(),
    reason=f"real faces and files that crash Decord are not ours to ship; none at {CLIPS}",
)
