"""The choice of audio in the panels: paths as they are copied, and files that cannot be used."""

import io
import math

import pytest
import soundfile
import torch
from tiny import RATE, noise

from mgkit.lab import sources
from mgkit.lab.sources import Source


def encoded(wave, subtype="FLOAT"):
    """Bytes of a WAV file with the samples of `wave` [C, N]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.numpy().T, RATE, subtype, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def source():
    return Source("melodies")


@pytest.mark.parametrize("channels", [3, 4, 6, 8])
def test_surround_sound_is_averaged(source, channels):
    wave = noise(channels, RATE) / 10
    source.upload("a.wav", encoded(wave))
    assert source.problem == "" and "<audio" in source.view.html
    torch.testing.assert_close(source.sound.wave, wave.mean(dim=0, keepdim=True))


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (noise(9, RATE), ["[9, 32000]", "channels"]),
        (noise(1, RATE) * math.nan, ["NaN"]),
        (noise(2, RATE) / 0, ["infinity"]),
        (noise(1, RATE)[:, :0], ["no samples"]),
    ],
)
def test_a_file_that_cannot_be_used_is_one_red_sentence(source, wave, words):
    source.upload("good.wav", encoded(noise(1, RATE)))
    source.upload("my <b>file.wav", encoded(wave))
    assert source.sound is None and source.view.html == ""
    assert all(word in source.problem for word in ["my <b>file.wav", *words])
    message = source._message.value
    assert message.startswith('<div class="mgkit-problem" role="alert">') and "<b>" not in message
    source.upload("good.wav", encoded(noise(1, RATE)))
    assert source.problem == source._message.value == "" and source.sound.name == "good.wav"


@pytest.mark.parametrize("rate", [1, 100, 2_000_000])
def test_an_absurd_sample_rate_is_one_sentence(source, rate):
    content = bytearray(encoded(noise(1, RATE)))
    content[24:28] = rate.to_bytes(4, "little")
    source.upload("a.wav", bytes(content))
    assert source.sound is None and str(rate) in source.problem


def test_the_path_field_takes_paths_as_they_are_copied(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "my tune é.wav"
    path.write_bytes(encoded(noise(1, RATE)))
    source.choice.value = sources.PATH
    for text in (
        str(path),
        f"  {path}\n",
        f'"{path}"',
        f"'{path}'",
        path.as_uri(),
        f'"{path.as_uri()}"',
        f"FILE://localhost{path}",
        "~/my tune é.wav",
    ):
        source.path.value = ""
        source.path.value = text
        assert source.sound is not None and source.sound.name == path.name, (text, source.problem)


def test_a_file_whose_name_has_quotes_is_found(source, tmp_path):
    path = tmp_path / "'~ file:a.wav'"
    path.write_bytes(encoded(noise(1, RATE)))
    source.choose(path)
    assert source.sound.name == path.name


@pytest.mark.parametrize(
    "text", ["'", '"', "~nobody-here/a.wav", "file://", "a\0b.wav", "n" * 300, "/dev/null", "."]
)
def test_a_path_that_leads_nowhere_is_one_sentence(source, text):
    source.choice.value = sources.PATH
    source.path.value = text
    assert source.sound is None
    with pytest.raises(ValueError):
        source.choose(text)
