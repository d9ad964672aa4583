"""Real clips and nets, which lie beside a developer's checkout and not in it.

They are other people's faces, voices and weights, which are not ours to hand out, so a stranger's
clone has none. What needs them looks at what cannot be made: a face that a detector was trained to
find, a voice that is speech, a file that crashes Decord, a net's own preprocessing. All else is
tested on clips and nets that the tests make, everywhere.
"""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
CLIPS, MODELS = SHARED / "clips", SHARED / "models"

needs_clips = pytest.mark.skipif(
    not CLIPS.is_dir(),
    reason=f"real faces, voices and hostile files are not ours to ship; none at {CLIPS}",
)
needs_models = pytest.mark.skipif(
    not MODELS.is_dir(),
    reason=f"others' trained weights are not ours to ship; none at {MODELS}",
)
