"""Files that cannot be read or written are named in one clear sentence."""

import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile
from refusals import BAD_WAVES, GOOD, refusal
from tiny import RATE, noise

from mgkit import audio
from mgkit.formats import encoding


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


@pytest.mark.parametrize(
    ("ending", "rates"),
    [
        (".ogg", (200_001, 384_000, 999_999)),
        (".flac", (65_537, 96_001, 655_351, 1_000_000)),
        (".mp3", (1000, 7999, 44_101, 96_000)),
        (".wav", (44_100.5,)),
    ],
)
def test_only_rates_of_the_format_are_written(tmp_path, ending, rates):
    """libsndfile frees memory twice for OGG above 200 kHz, and writes FLAC files that it cannot read."""
    for rate in rates:
        name = f"a{ending}"
        refusal(lambda name=name, rate=rate: audio.write(tmp_path / name, GOOD, rate), name, f"{rate} Hz")
        refusal(lambda rate=rate: audio.encode(GOOD, rate, ending), f"{rate} Hz", ".wav")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("ending", "rates"),
    [
        (".ogg", (1000, 7999, 200_000)),
        (".flac", (1000, 7999, 65_535, 96_000, 655_350)),
        (".mp3", encoding.MP3_RATES),
        (".wav", (1000, 65_537, 1_000_000)),
    ],
)
def test_every_rate_of_the_format_is_written_and_read(tmp_path, ending, rates):
    for rate in rates:
        path = audio.write(tmp_path / f"a{ending}", noise(2, 5000) / 10, rate, "peak")
        assert audio.read(path)[1] == rate and audio.read(path)[0].shape == (2, 5000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_pipes_sockets_and_devices_are_not_opened(tmp_path):
    """Opening a pipe without a writer would hang; replacing a device would break the system."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.wav"))
        os.mkfifo(tmp_path / "pipe.wav")
        (tmp_path / "link.wav").symlink_to("/dev/null")
        for name in ("socket.wav", "pipe.wav", "link.wav"):
            for call in (audio.read, audio.read_manifest, lambda path: audio.write(path, GOOD, RATE)):
                refusal(
                    lambda call=call, name=name: call(tmp_path / name), name, "a device, a pipe or a socket"
                )
    assert len(os.listdir(tmp_path)) == 3 and not Path("/dev/null").is_file()


def test_a_sound_that_ends_early_is_damaged(tmp_path):
    path = audio.write(tmp_path / "a.flac", noise(1, 5 * RATE), RATE)
    path.write_bytes(path.read_bytes()[:100_000])
    refusal(lambda: audio.read(path), "a.flac", "cut off or damaged", "again")


def test_a_manifest_nested_too_deeply_is_refused(tmp_path):
    wav = audio.write(tmp_path / "a.wav", GOOD, RATE, manifest={"mgkit": "0", "text": "x" * 100_000})
    wav.write_bytes(
        wav.read_bytes().replace(b'{"mgkit": "0"', b"[" * 13).replace(b"x" * 100_000, b"[" * 100_000)
    )
    refusal(lambda: audio.read_manifest(wav), "a.wav", "how it was made")


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
