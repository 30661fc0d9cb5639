"""Audio files keep their samples and manifest, and are written completely or not at all; levels."""

import json
import math
import os
import subprocess
import sys
from wave import open as open_wav

import numpy as np
import pyloudnorm
import pytest
import soundfile
import torch
from tiny import noise, tune

from mgkit import audio, files

RATE = 32000
ENDINGS = tuple(audio.FORMATS)
EXACT = (".wav", ".flac")
STRATEGIES = ("loudness", "peak", "rms", "clip")
MANIFEST = {
    "mgkit": "0.1.0",
    "licence": "MIT, the mgkit authors",
    "text": "calm 'piano' \"and\" rain, für Élise, 雪 🎹\n\tat \\night",
    "settings": {"top_p": 0.1, "cfg_coef_beta": None, "use_sampling": True},
}


def decibels(level):
    return 20 * math.log10(float(level))


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_wave_survives_writing_and_reading(tmp_path, ending, channels):
    wave = tune(1.03, channels=channels)[:, : RATE + 123]
    path = audio.write(tmp_path / f"a{ending}", wave, RATE, "clip")
    back, rate = audio.read(path)
    assert rate == RATE and back.shape == wave.shape and back.dtype == torch.float32
    error = (back - wave).pow(2).mean() / wave.pow(2).mean()
    if ending in EXACT:
        assert (back - wave).abs().max() < 1 / 32768
    assert decibels(error.sqrt().clamp(min=1e-9)) < -25


@pytest.mark.parametrize("ending", ENDINGS)
def test_decoding_bytes_equals_reading_the_file(tmp_path, ending):
    path = audio.write(tmp_path / f"a{ending}", tune(1), RATE)
    wave, rate = audio.decode(path.read_bytes(), "an upload")
    assert rate == RATE
    assert wave.equal(audio.read(path)[0])


@pytest.mark.parametrize("content", [b"", b"do re mi", b"RIFF"])
def test_bytes_that_are_not_audio_are_refused_with_the_file_name(content):
    with pytest.raises(ValueError, match=r"'notes\.txt' is not audio .*WAV, FLAC, OGG or MP3") as caught:
        audio.decode(content, "notes.txt")
    assert "BytesIO" not in str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_left_stays_left(tmp_path, ending):
    wave = torch.cat([tune(0.5), 0.05 * tune(0.5)])
    back, _ = audio.read(audio.write(tmp_path / f"a{ending}", wave, RATE, "clip"))
    assert 15 < back[0].std() / back[1].std() < 25


@pytest.mark.parametrize("samples", [1, 2, 100, 1152, 1153, 5000])
@pytest.mark.parametrize("ending", ENDINGS)
def test_short_clips_keep_their_length(tmp_path, ending, samples):
    back, _ = audio.read(audio.write(tmp_path / f"a{ending}", tune(1.0)[:, 40 : 40 + samples], RATE))
    assert back.shape == (1, samples)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_every_format_supports_every_common_rate(tmp_path, rate):
    for ending in ENDINGS:
        back, seen = audio.read(audio.write(tmp_path / f"a{ending}", noise(2, rate // 2), rate))
        assert seen == rate and back.shape == (2, rate // 2)


def test_upper_case_extensions_are_accepted_and_the_path_is_returned(tmp_path):
    path = audio.write(str(tmp_path / "SONG.WAV"), tune(0.2), RATE)
    assert path == tmp_path / "SONG.WAV" and soundfile.info(path).format == "WAV"


def test_arrays_doubles_and_halves_are_written_like_float32_tensors(tmp_path):
    wave = tune(0.2)
    audio.write(tmp_path / "a.wav", wave, RATE)
    for i, same in enumerate((wave.numpy(), wave.double(), wave[0], wave.clone().requires_grad_())):
        audio.write(tmp_path / f"{i}.wav", same, float(RATE))
        assert (tmp_path / f"{i}.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()
    audio.write(tmp_path / "half.wav", wave.half(), RATE)
    torch.testing.assert_close(
        audio.read(tmp_path / "half.wav")[0], audio.read(tmp_path / "a.wav")[0], atol=2e-3, rtol=0
    )


def test_a_long_piece_can_be_written_from_a_thread_with_a_small_stack(tmp_path):
    """libsndfile's OGG encoder puts a whole `write` on the stack: 512 kB in worker threads on macOS."""
    program = (
        "import sys, threading, torch; from mgkit import audio;"
        "threading.stack_size(512 * 1024);"
        "wave = torch.randn(1, 60 * 8000, generator=torch.Generator().manual_seed(0)) / 10;"
        "thread = threading.Thread(target=audio.write, args=(sys.argv[1], wave, 8000, 'peak'));"
        "thread.start(); thread.join()"
    )
    path = tmp_path / "long.ogg"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr or f"died of signal {-done.returncode}"
    assert soundfile.info(path).frames == 60 * 8000


def environment():
    """Environment of a subprocess with this process's import path."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.parametrize("ending", EXACT)
def test_16_bit_files_are_rounded_to_the_nearest_step(tmp_path, ending):
    wave = 0.85 * torch.linspace(-1, 1, 99_991)[None]
    back, _ = audio.read(audio.write(tmp_path / f"a{ending}", wave, RATE, "clip"))
    steps = 32768 * (back.double() - wave.double())
    assert abs(steps.mean()) < 0.01 and steps.abs().max() <= 0.51
    again, _ = audio.read(audio.write(tmp_path / f"b{ending}", back, RATE, "clip"))
    assert torch.equal(again, back)


@pytest.mark.parametrize("ending", EXACT)
def test_full_scale_does_not_wrap_in_16_bits(ending):
    wave = torch.tensor([[1.0, -1.0, 0.99999, -0.99999, 0.0, 1.5, -1.5]])
    back, _ = audio.decode(audio.encode(wave, RATE, ending), "a")
    top = 32767 / 32768
    torch.testing.assert_close(back, torch.tensor([[top, -1, top, -1, 0, top, -1]]), atol=1e-7, rtol=0)


# --- the manifest -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 2_000, 20_000, 500_000])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_manifest_survives_at_any_length(tmp_path, ending, size):
    manifest = {**MANIFEST, "prompt": "Ab+/" * (size // 4)}
    path = audio.write(tmp_path / f"a{ending}", tune(0.5), RATE, "clip", manifest)
    stored = audio.read_manifest(path)
    assert {name: stored[name] for name in manifest} == manifest
    assert audio.read(path)[0].shape == (1, RATE // 2)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_manifest_does_not_change_the_samples(tmp_path, ending):
    wave = tune(0.5)
    bare, tagged = (
        audio.write(tmp_path / f"{i}{ending}", wave, RATE, "clip", [None, MANIFEST][i]) for i in (0, 1)
    )
    assert torch.equal(audio.read(bare)[0], audio.read(tagged)[0])


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_wav_file_with_a_manifest_is_valid_for_other_readers(tmp_path, size):
    path = audio.write(tmp_path / "a.wav", noise(2, 999), RATE, "peak", MANIFEST | {"prompt": "A" * size})
    data = path.read_bytes()
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    with open_wav(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, RATE, 999)
        samples = np.frombuffer(file.readframes(999), "<i2").reshape(-1, 2).T / 32768
    torch.testing.assert_close(audio.read(path)[0], torch.from_numpy(samples.astype(np.float32)))


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_programs_can_read_the_licence(tmp_path, ending):
    path = audio.write(tmp_path / f"a{ending}", tune(0.5), RATE, "clip", MANIFEST)
    with soundfile.SoundFile(path) as file:
        tag = file.license if ending != ".wav" else ""
    assert MANIFEST["licence"] in (tag or path.read_bytes().decode("latin-1"))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_minimal_manifest_survives(tmp_path, ending):
    path = audio.write(tmp_path / f"a{ending}", tune(0.5), RATE, manifest={"mgkit": "0"})
    assert audio.read_manifest(path)["mgkit"] == "0"


# --- completely or not at all -----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_replaced_completely(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    for seconds in (0.5, 0.2):
        audio.write(path, tune(seconds), RATE)
        assert audio.read(path)[0].shape[-1] == round(seconds * RATE)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, monkeypatch, error):
    path = audio.write(tmp_path / "a.wav", tune(0.5), RATE)
    before, real = path.read_bytes(), soundfile.SoundFile.write

    def half(file, data):
        real(file, data[: len(data) // 2])
        raise error

    monkeypatch.setattr(soundfile.SoundFile, "write", half)
    with pytest.raises(error):
        audio.write(path, noise(1, RATE), RATE)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.wav"]


def test_a_failed_replacement_leaves_the_earlier_files(tmp_path):
    for name in ("a.txt", "b.txt"):
        audio.replace_file(tmp_path / name, lambda draft: draft.write_text("earlier", encoding="utf-8"))

    def write(drafts):
        (drafts / "a.txt").write_text("later", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"could not write .* \(No space left on device\); an earlier version"):
        files.replace_files(tmp_path, write)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a.txt", "b.txt"), "earlier"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_other_users_may_read_a_written_file(tmp_path):
    assert audio.write(tmp_path / "a.wav", tune(0.1), RATE).stat().st_mode & 0o777 == 0o644


# --- rates and channels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "to"),
    [
        (44100, 32000),
        (48000, 32000),
        (32000, 44100),
        (11025, 48000),
        (44101, 32000),
        (31999, 32000),
        (96000, 8000),
    ],
)
@pytest.mark.parametrize("samples", [1, 2, 3, 441, 4410, 12345])
def test_a_resampled_wave_has_exactly_the_expected_length(rate, to, samples):
    for channels in (1, 2):
        back = audio.resample(noise(channels, samples), rate, to)
        assert back.shape == (channels, -(-samples * to // rate)) and back.dtype == torch.float32


@pytest.mark.parametrize(("rate", "to"), [(44100, 32000), (22050, 32000), (48000, 32000)])
def test_resampling_preserves_pitch_level_and_channels(rate, to):
    def tone(rate):
        time = torch.arange(rate, dtype=torch.float64) / rate
        return torch.stack([(2 * torch.pi * hertz * time).sin() for hertz in (440, 3000)]).float()

    back, middle = audio.resample(tone(rate), rate, to), slice(to // 10, -to // 10)
    torch.testing.assert_close(back[:, middle], tone(to)[:, middle], atol=1e-3, rtol=0)


def test_resampling_to_the_same_rate_changes_nothing():
    wave = noise(2, 1000)
    assert torch.equal(audio.resample(wave, 44100, 44100), wave)


def test_channels_are_averaged_or_duplicated():
    wave = noise(2, 100)
    torch.testing.assert_close(audio.to_channels(wave, 1), (wave[:1] + wave[1:]) / 2)
    assert torch.equal(audio.to_channels(wave[:1], 2), torch.cat([wave[:1], wave[:1]]))
    for channels in (1, 2):
        assert torch.equal(audio.to_channels(wave[:channels], channels), wave[:channels])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("to", [1, 2])
def test_channels_of_a_batch_are_mixed_within_each_sample_as_in_audiocraft(channels, to):
    waves = noise(3 * channels, 50).view(3, channels, 50)
    mixed = audio.to_channels(waves, to)
    if to == 1:
        expected = waves.sum(dim=1, keepdim=True) / channels
    else:
        expected = waves[:, [0, min(1, channels - 1)]]
    torch.testing.assert_close(mixed, expected)
    for wave, one in zip(waves, mixed):
        torch.testing.assert_close(audio.to_channels(wave, to), one)


# --- levels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.02, 0.3, 3.0])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16000, 32000, 44100])
def test_loudness_normalization_reaches_minus_14_lufs(rate, channels, gain):
    level = audio.normalize(gain * tune(3.0, channels=channels), rate, "loudness")
    loudness = pyloudnorm.Meter(rate).integrated_loudness(level.numpy().T)
    assert level.abs().max() < 1, "clipped, so this wave cannot test the level"
    assert loudness == pytest.approx(-14, abs=0.05)


@pytest.mark.parametrize("gain", [0.01, 1.0, 7.0])
def test_peak_rms_and_clip_reach_their_levels(gain):
    wave = gain * tune(1.0, channels=2)
    assert decibels(audio.normalize(wave, RATE, "peak").abs().max()) == pytest.approx(-1, abs=1e-3)
    mono = audio.normalize(wave, RATE, "rms").mean(dim=0)
    assert decibels(mono.pow(2).mean().sqrt()) == pytest.approx(-18, abs=1e-3)
    top = 10 ** (-1 / 20)
    torch.testing.assert_close(audio.normalize(wave, RATE, "clip"), wave.clamp(-top, top))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("samples", [1, 5, 400, 12799, 12800, 12801, 40000])
def test_normalized_waves_are_finite_and_within_full_scale(strategy, samples):
    for wave in (noise(1, samples), 50 * noise(2, samples), torch.ones(1, samples), 1e-6 * noise(2, samples)):
        level = audio.normalize(wave, RATE, strategy)
        assert level.shape == wave.shape and level.dtype == torch.float32
        assert level.isfinite().all() and level.abs().max() <= 1


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seconds", [0.1, 2.0])
def test_silence_stays_silence(strategy, seconds):
    wave = torch.zeros(2, round(seconds * RATE))
    assert torch.equal(audio.normalize(wave, RATE, strategy), wave)


def test_loudness_normalization_does_not_amplify_near_silence():
    wave = 1e-3 * noise(1, RATE)
    assert torch.equal(audio.normalize(wave, RATE, "loudness"), wave)


def test_clips_too_short_for_a_loudness_are_normalized_by_peak():
    wave = tune(0.399)
    torch.testing.assert_close(audio.normalize(wave, RATE, "loudness"), audio.normalize(wave, RATE, "peak"))


def test_both_channels_get_the_same_gain():
    wave = tune(1.0, channels=2)
    for strategy in ("loudness", "peak", "rms"):
        level = audio.normalize(0.1 * wave, RATE, strategy)
        torch.testing.assert_close(level[1] / level[0].std(), wave[1] / wave[0].std())


def test_files_are_at_minus_14_lufs_by_default(tmp_path):
    data, _ = soundfile.read(audio.write(tmp_path / "a.wav", 0.05 * tune(2.0), RATE))
    assert pyloudnorm.Meter(RATE).integrated_loudness(data) == pytest.approx(-14, abs=0.05)


def test_as_wave_returns_the_same_samples_as_float32_with_a_channel_axis():
    wave = noise(1, 50)
    for same in (wave, wave[0], wave.numpy(), wave.double()):
        converted = audio.as_wave(same)
        assert converted.dtype == torch.float32 and torch.equal(converted, wave)


def test_the_manifest_is_plain_json(tmp_path):
    path = audio.write(tmp_path / "a.flac", tune(0.5), RATE, "clip", MANIFEST)
    with soundfile.SoundFile(path) as file:
        stored = json.loads(file.comment)
    assert {name: stored[name] for name in MANIFEST} == MANIFEST
