"""Labels are read from the file names of RAVDESS and CREMA-D."""

import itertools
from collections import defaultdict

import pytest

from liser_dist.data.public_corpora import missing_utterances, parse_file_name


def ravdess(modality: str = "01") -> list[str]:
    """The speech part, as its 24 folders name it."""
    return [
        f"Actor_{actor:02d}/{modality}-01-{emotion:02d}-{intensity:02d}-{said:02d}-{time:02d}-{actor:02d}.mp4"
        for actor, emotion, intensity, said, time in itertools.product(
            range(1, 25), range(1, 9), (1, 2), (1, 2), (1, 2)
        )
        if (emotion, intensity) != (1, 2)
    ]


def cremad() -> list[str]:
    sentences = ["TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI"]
    emotions = ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]
    speakers = range(1001, 1092)
    plain = [f"{p}_{s}_{e}_XX" for p, s, e in itertools.product(speakers, sentences, emotions)]
    graded = [
        f"{p}_IEO_{e}_{level}"
        for p, e, level in itertools.product(speakers, emotions, ("LO", "MD", "HI"))
        if e != "NEU"
    ]
    return [
        f"VideoFlash/{name}.flv" for name in plain + graded + [f"{p}_IEO_NEU_XX" for p in speakers]
    ]


@pytest.mark.parametrize(
    ("corpus", "files", "speakers", "folds", "clips"),
    [("ravdess", ravdess(), 24, 6, 1440), ("cremad", cremad(), 91, 5, 7462)],
    ids=["ravdess", "cremad"],
)
def test_a_whole_download_is_read(corpus, files, speakers, folds, clips):
    utterances = [parse_file_name(corpus, file) for file in files]
    assert len(utterances) == clips
    assert None not in utterances
    assert missing_utterances(corpus, utterances) == []
    folds_of = defaultdict(set)
    for utterance in utterances:
        folds_of[utterance.speaker].add(utterance.fold)
    assert len(folds_of) == speakers
    assert all(len(found) == 1 for found in folds_of.values())
    assert {fold for found in folds_of.values() for fold in found} == set(range(1, folds + 1))


@pytest.mark.parametrize(
    ("corpus", "file", "speaker", "emotion", "intensity", "fold"),
    [
        ("ravdess", "Actor_12/02-01-06-01-02-01-12.mp4", "ravdess-12", "fearful", "normal", 3),
        ("ravdess", "01-01-02-02-01-01-24.mp4", "ravdess-24", "calm", "strong", 6),
        ("cremad", "AudioWAV/1001_DFA_ANG_XX.wav", "cremad-1001", "angry", "unspecified", 1),
        ("cremad", "1091_IEO_SAD_HI.flv", "cremad-1091", "sad", "high", 5),
    ],
)
def test_a_name_says_who_and_how(corpus, file, speaker, emotion, intensity, fold):
    utterance = parse_file_name(corpus, file)
    assert (utterance.speaker, utterance.emotion, utterance.intensity, utterance.fold) == (
        speaker, emotion, intensity, fold,
    )  # fmt: skip


@pytest.mark.parametrize(
    "file",
    ["01-01-09-01-01-01-01.mp4", "01-01-01-02-01-01-01.mp4", "01-01-03-01-01-01-25.mp4", "a.mp4",
     "01-01-03-01-01-01-01.txt"],
)  # fmt: skip
def test_another_name_is_told(file):
    assert parse_file_name("ravdess", file) is None


def test_of_two_recordings_the_one_with_a_picture_is_first():
    ranks = [
        parse_file_name("ravdess", f"{modality}-01-03-01-01-01-05.{ending}").rank
        for modality, ending in (("01", "mp4"), ("03", "wav"), ("02", "mp4"))
    ]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == 3


def test_what_is_missing_is_named():
    files = [file for file in ravdess() if not file.endswith("-01-01-07.mp4")]
    gone = missing_utterances("ravdess", [parse_file_name("ravdess", file) for file in files])
    assert len(gone) == 15
    assert {utterance[-8:] for utterance in gone} == {"01-01-07"}
