"""Files that cannot be read or written are named in one clear sentence."""

import math
import os

import numpy as np
import pytest
import soundfile
from refusals import BAD_WAVES, GOOD, refusal
from tiny import RATE

from mgkit import audio


@pytest.mark.parametrize("name", ["a.aac", "a", "a.m4a", ".wav", "a.wav.txt", ""])
def test_an_unsupported_extension_is_refused(tmp_path, name):
    refusal(lambda: audio.write(tmp_path / name if name else "", GOOD, RATE), ".wav", ".flac", ".ogg", ".mp3")
    assert not os.listdir(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    sentence = refusal(
        lambda: audio.write(tmp_path / "no" / "a.wav", GOOD, RATE), str(tmp_path / "no"), kinds=OSError
    )
    assert "/." not in sentence, "the draft is an implementation detail"


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.wav").mkdir()
    refusal(lambda: audio.write(tmp_path / "a.wav", GOOD, RATE), "a.wav", kinds=(OSError, ValueError))
    refusal(lambda: audio.read(tmp_path / "a.wav"), "a.wav", kinds=(OSError, ValueError))
    assert os.listdir(tmp_path) == ["a.wav"]


@pytest.mark.parametrize(
    "case", [case for case in BAD_WAVES if case not in ("no waves", "too many", "one too deep")]
)
def test_an_invalid_wave_is_not_written(tmp_path, case):
    wave, words = BAD_WAVES[case]
    refusal(lambda: audio.write(tmp_path / "a.wav", wave, RATE), *([] if isinstance(wave, tuple) else words))
    assert not os.listdir(tmp_path)


def test_a_batch_is_not_written_to_one_file(tmp_path):
    refusal(lambda: audio.write(tmp_path / "a.wav", GOOD[None], RATE), "[1, 1, ", "channels")


@pytest.mark.parametrize("strategy", ["loudness", "peak"])
@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, "32000", None])
def test_nothing_is_written_at_an_invalid_sample_rate(tmp_path, rate, strategy):
    refusal(lambda: audio.write(tmp_path / "a.wav", GOOD, rate, strategy), "sample rate", str(rate))
    assert not os.listdir(tmp_path)


def test_a_sample_rate_not_supported_by_mp3_is_refused(tmp_path):
    refusal(lambda: audio.write(tmp_path / "a.mp3", GOOD, 96000), "a.mp3", kinds=(OSError, ValueError))
    assert not os.listdir(tmp_path)


def test_an_unknown_strategy_is_refused_for_silence_too(tmp_path):
    for wave in (GOOD, 0 * GOOD):
        refusal(lambda wave=wave: audio.write(tmp_path / "a.wav", wave, RATE, "loud"), "'loud'", "peak")


@pytest.mark.parametrize("content", [b"", b"hello" * 99, b"RIFF\xff\xff\xff\x7fWAVE"])
@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.raw", "a.txt"])
def test_a_file_that_is_not_audio_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refusal(lambda: audio.read(tmp_path / name), name)
    refusal(lambda: audio.read_manifest(tmp_path / name), name)


def test_a_missing_file_is_named(tmp_path):
    for read in (audio.read, audio.read_manifest):
        refusal(lambda read=read: read(tmp_path / "no.wav"), "no.wav", kinds=FileNotFoundError)


def test_a_file_without_samples_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((0, 1)), RATE)
    refusal(lambda: audio.read(tmp_path / "a.wav"), "no samples")
