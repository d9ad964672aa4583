"""Each clip lands once: the same bits, or what sounds alike."""

import numpy as np

from liser_dist import synthesis
from liser_dist.likeness import likeness_of
from liser_dist.register import Register

RATE_HZ = 16000


def talk(seed: int) -> np.ndarray:
    """5 s of a made-up voice that says made-up things."""
    draw = np.random.default_rng(seed)
    person = synthesis.draw_person("voice", draw)
    voice, _ = synthesis.draw_mood(person, "happy", 1.0, draw)
    syllables = synthesis.draw_syllables(person, voice, 5.0, draw)
    return synthesis.record(synthesis.speak(person, voice, syllables, draw), False, draw)


def print_of(sound: np.ndarray, digest: str) -> tuple[str, str]:
    return digest, likeness_of(sound.astype(np.int16), RATE_HZ).tobytes().hex()


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
    register = Register("exact")
    register.learn([("old", ("a", "00" * 16))])
    new = [("a", "00" * 16), ("b", "01" * 16), ("b", "01" * 16), ("c", "01" * 16)]
    assert register.claim("one", new) == [False, True, False, True]
    assert register.claim("one", new) == [False, True, False, True]
    assert register.claim("two", new) == [False, False, False, False]


def test_what_sounds_alike_lands_once():
    register = Register("perceptual")
    first = talk(0)
    assert register.claim("one", [print_of(first, "first")]) == [True]
    for how, sound in other_uploads(first).items():
        assert register.claim("two", [print_of(sound, how)]) == [False], how


def test_what_was_committed_is_known_to_the_next_job():
    register = Register("perceptual")
    register.learn([("old", print_of(talk(0), "first"))])
    assert register.claim("new", [print_of(0.5 * talk(0), "second")]) == [False]


def test_other_words_are_other_clips():
    register = Register("perceptual")
    clips = [print_of(talk(seed), str(seed)) for seed in range(30)]
    assert all(register.claim("one", clips))
