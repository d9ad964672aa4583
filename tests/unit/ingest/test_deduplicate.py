"""Duplicate clips are dropped: those with equal bytes, and those that sound alike."""

import numpy as np

from liser_dist.ingest.deduplicate import ClipRegistry, audio_fingerprint
from liser_dist.synthetic.voices import draw_mood, draw_person, draw_syllables, record, speak

RATE_HZ = 16000


def talk(seed: int) -> np.ndarray:
    """5 s of a made-up voice that says made-up things."""
    draw = np.random.default_rng(seed)
    person = draw_person("voice", draw)
    voice, _ = draw_mood(person, "happy", 1.0, draw)
    syllables = draw_syllables(person, voice, 5.0, draw)
    return record(speak(person, voice, syllables, draw), False, draw)


def identity_of(sound: np.ndarray, digest: str) -> tuple[str, str]:
    return digest, audio_fingerprint(sound.astype(np.int16), RATE_HZ).tobytes().hex()


def other_uploads(sound: np.ndarray) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "quieter": sound * 0.3,
        "noisier": sound + 100 * random.normal(size=len(sound)),
        "cut 50 ms later": sound[RATE_HZ // 20 :],
        "cut 80 ms earlier": sound[: -RATE_HZ // 12],
        "of fewer pitches": np.convolve(sound, np.ones(3) / 3, "same"),
    }


def test_a_digest_lands_once_and_the_same_group_hears_the_same_again():
    registry = ClipRegistry("exact")
    registry.learn([("old", ("a", "00" * 16))])
    new = [("a", "00" * 16), ("b", "01" * 16), ("b", "01" * 16), ("c", "01" * 16)]
    assert registry.claim("one", new) == [False, True, False, True]
    assert registry.claim("one", new) == [False, True, False, True]
    assert registry.claim("two", new) == [False, False, False, False]


def test_what_sounds_alike_lands_once():
    registry = ClipRegistry("perceptual")
    first = talk(0)
    assert registry.claim("one", [identity_of(first, "first")]) == [True]
    for how, sound in other_uploads(first).items():
        assert registry.claim("two", [identity_of(sound, how)]) == [False], how


def test_what_was_committed_is_known_to_the_next_job():
    registry = ClipRegistry("perceptual")
    registry.learn([("old", identity_of(talk(0), "first"))])
    assert registry.claim("new", [identity_of(0.5 * talk(0), "second")]) == [False]


def test_other_words_are_other_clips():
    registry = ClipRegistry("perceptual")
    clips = [identity_of(talk(seed), str(seed)) for seed in range(30)]
    assert all(registry.claim("one", clips))
