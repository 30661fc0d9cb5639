"""Programs written for audiocraft run on `mgkit.audiocraft` with nothing but their imports changed.

The programs are small versions of public ones. Their models, under the published names, are the tiny ones of
`golden/filling.py`. Numbers of the reference are in `golden/programs.npz`, made by `golden/make_programs.py`.
"""

import copy
import itertools
import json
import os
import pickle
import random
import re
import time
from argparse import ArgumentParser
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
import soundfile
import torch
from golden import filling
from test_audiocraft import FilledText

from mgkit import audiocraft, hub
from mgkit.audiocraft import (
    AudioGen,
    MusicGen,
    audio_read,
    audio_write,
    convert_audio,
    convert_audio_channels,
    display_audio,
)

PAIR = [filling.CHOIR, filling.FLUTE]
PUBLISHED = {
    "facebook/musicgen-small": "small",
    "facebook/musicgen-melody": "melody",
    "facebook/musicgen-stereo-small": "stereo-small",
    "facebook/musicgen-stereo-melody": "stereo-melody",
    "facebook/audiogen-medium": "audiogen",
}

with np.load(filling.HERE / "programs.npz") as arrays:
    TENSORS = {name: arrays[name] for name in arrays.files}
FACTS = json.loads((filling.HERE / "programs.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def published_names(tmp_path_factory):
    """The published names lead to tiny models."""
    folder = cache(lambda kind: filling.audiocraft_folder(tmp_path_factory.mktemp(kind), kind))
    find, threads = hub.find, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        names = {**PUBLISHED, **{kind: kind for kind in PUBLISHED.values()}}
        patch.setattr(hub, "find", lambda name: folder(names[name]) if name in names else find(name))
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """Programs write into the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def small(published_names):
    """A model for tests of refusals, which leave it unchanged."""
    return MusicGen.get_pretrained("facebook/musicgen-small")


@pytest.fixture
def load():
    """The model of a kind, with the text encoder of the golden numbers."""

    def model(kind):
        name = next(name for name, found in PUBLISHED.items() if found == kind)
        made = (AudioGen if kind == "audiogen" else MusicGen).get_pretrained(name, device="cpu")
        made.conditioner.text = FilledText(made.conditioner.text.dim)
        return made

    return model


def tune(rate=44100, channels=2, seconds=1.0):
    """A recording, in a file as people have them."""
    path = Path(f"tune-{rate}-{channels}.wav")
    soundfile.write(path, filling.tune(seconds, channels, rate).T, rate, subtype="PCM_16")
    return path


def length(path):
    """Seconds of a file."""
    info = soundfile.info(path)
    return info.frames / info.samplerate


# --- programs -----------------------------------------------------------------------------------------------


def test_the_readme_of_the_reference():
    model = MusicGen.get_pretrained("facebook/musicgen-melody")
    model.set_generation_params(duration=0.5)
    wav = model.generate_unconditional(2)
    descriptions = ["happy rock", "energetic EDM", "sad jazz"]
    wav = model.generate(descriptions)
    melody, sr = audio_read(tune())
    wav = model.generate_with_chroma(descriptions, melody[None].expand(3, -1, -1), sr)
    for idx, one_wav in enumerate(wav):
        audio_write(f"{idx}", one_wav.cpu(), model.sample_rate, strategy="loudness", loudness_compressor=True)

    assert [length(f"{i}.wav") for i in range(3)] == [0.5] * 3
    assert soundfile.info("0.wav").subtype == "PCM_16"


def test_a_batch_script_with_arguments_and_takes():
    parser = ArgumentParser()
    parser.add_argument("--takes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("sessions"))
    args = parser.parse_args(["--takes", "3"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = MusicGen.get_pretrained("facebook/musicgen-small", device=device)
    model.set_generation_params(duration=0.3)
    for name, prompt in {"neo soul": "neo-soul loop, 85 bpm", "lofi": "lofi beat"}.items():
        for take, one_wav in enumerate(model.generate([prompt] * args.takes)):
            stem = os.path.join(args.out, name.replace(" ", "_"), f"take_{take + 1}")
            audio_write(
                stem, one_wav.cpu(), model.sample_rate, strategy="loudness", format="mp3", mp3_rate=192
            )
    torch.cuda.empty_cache()

    assert len(list(args.out.glob("*/take_*.mp3"))) == 6


def test_the_web_app_of_the_reference_without_its_pages():
    """`demos/musicgen_app.py`: one model at a time, melodies of an upload, temporary files, a Stop button."""
    loaded, shown, interrupting = [], [], False

    def predict(version, text, melody, duration, **params):
        if not loaded or loaded[-1].name != version:
            loaded.append(MusicGen.get_pretrained(version))
        model = loaded[-1]
        model.set_generation_params(duration=duration, **params)

        def progress(generated, to_generate):
            shown.append(min(generated, to_generate) / to_generate)
            if interrupting and len(shown) > 3:
                raise RuntimeError("Interrupted.")

        model.set_custom_progress_callback(progress)
        sr, samples = melody
        wave = torch.from_numpy(samples).to(model.device).float().t()
        wave = wave[None] if wave.dim() == 1 else wave
        wave = convert_audio(wave[..., : int(sr * model.lm.cfg.dataset.segment_duration)], sr, 32000, 1)
        outputs = model.generate_with_chroma(
            descriptions=[text],
            melody_wavs=[wave],
            melody_sample_rate=32000,
            progress=True,
            return_tokens=False,
        )
        files = []
        for output in outputs.detach().cpu().float():
            with NamedTemporaryFile("wb", suffix=".wav", dir=".", delete=False) as file:
                audio_write(
                    file.name, output, model.sample_rate, strategy="loudness",
                    loudness_headroom_db=16, loudness_compressor=True, add_suffix=False,
                )  # fmt: skip
                files.append(file.name)
        return files

    upload = (44100, (filling.tune(0.6, 2, 44100).T * 32767).astype(np.int16))
    settings = {"top_k": 250, "top_p": 0.0, "temperature": 1.0, "cfg_coef": 3.0}
    for _ in range(2):
        [file] = predict("facebook/musicgen-melody", "sad jazz", upload, 0.4, **settings)
        assert length(file) == 0.4 and shown[-1] == 1 and shown == sorted(shown)
        shown.clear()
    assert len(loaded) == 1
    interrupting = True
    with pytest.raises(RuntimeError, match="Interrupted"):
        predict("facebook/musicgen-melody", "sad jazz", upload, 0.4, **settings)


def test_continuation_of_the_end_of_a_recording():
    model = MusicGen.get_pretrained("facebook/musicgen-stereo-small")
    model.set_generation_params(duration=0.8)
    prompt, sr = audio_read(tune(48000, 1), seek_time=0.5, duration=0.3)
    wave, tokens = model.generate_continuation(
        prompt, sr, ["soft strings"], progress=True, return_tokens=True
    )
    again = model.generate_continuation(prompt[None], prompt_sample_rate=sr)
    for i, one in enumerate([*wave, *again]):
        audio_write(f"continued_{i}", one, model.sample_rate, format="flac")

    assert wave.shape == again.shape == (1, 2, 25600) and tokens.shape == (1, 8, 40)
    assert tokens[..., :15].equal(
        model.compression_model.encode(convert_audio(prompt[None], sr, 32000, 2))[0]
    )
    assert soundfile.info("continued_1.flac").channels == 2


def test_a_song_of_continued_chunks():
    """Each chunk continues the end of the one before; a crossfade joins them."""
    model = MusicGen.get_pretrained("facebook/musicgen-small")
    rate, tail = model.sample_rate, int(0.2 * model.sample_rate)
    model.set_generation_params(duration=0.6)
    song = model.generate(["verse"])[0].cpu()
    for text in ("chorus", "bridge"):
        model.set_generation_params(duration=0.6)
        chunk = model.generate_continuation(song[..., -tail:], prompt_sample_rate=rate, descriptions=[text])[
            0
        ]
        fade = torch.linspace(0, 1, tail)
        seam = song[:, -tail:] * (1 - fade) + chunk.cpu()[:, :tail] * fade
        song = torch.cat([song[:, :-tail], seam, chunk.cpu()[:, tail:]], dim=-1)
    path = audio_write("song", song, rate, format="ogg", ogg_rate=96)

    assert path == Path("song.ogg") and length(path) == pytest.approx(1.4)


def test_a_sweep_over_sampling_settings_with_seeds():
    model = MusicGen.get_pretrained("facebook/musicgen-small")
    written = {}
    for temperature, top_k, cfg_coef in itertools.product((0.7, 1.3), (0, 50), (1.0, 3.0)):
        random.seed(7), torch.manual_seed(7)
        model.set_generation_params(
            use_sampling=True, top_k=top_k, top_p=0.9 if top_k == 0 else 0.0, temperature=temperature,
            duration=0.2, cfg_coef=cfg_coef, two_step_cfg=cfg_coef > 1,
        )  # fmt: skip
        tokens = model.generate(["upbeat pop"], return_tokens=True)[1]
        name = f"t{temperature}-k{top_k}-c{cfg_coef}"
        written[audio_write(f"sweep/{name}", torch.randn(1, 6400), model.sample_rate).name] = tokens
        torch.manual_seed(7)
        assert model.generate(["upbeat pop"], return_tokens=True)[1].equal(tokens)

    assert len(written) == len(list(Path("sweep").iterdir())) == 8
    assert len({tuple(tokens.flatten().tolist()) for tokens in written.values()}) > 4


def test_sound_effects_of_audiogen():
    model = AudioGen.get_pretrained("facebook/audiogen-medium")
    model.set_generation_params(duration=0.5)
    sounds = [("dog", "dog barking", 0.3), ("siren", "siren of an emergency vehicle", 0.5)]
    for filename, description, duration in sounds:
        model.set_generation_params(duration=duration)
        wav = model.generate([description])
        soundfile.write(f"{filename}.wav", wav[0].detach().cpu().numpy().T, samplerate=16000)

    assert model.sample_rate == 16000
    assert [length(f"{name}.wav") for name, _, _ in sounds] == [0.3, 0.5]


def test_a_notebook_with_players(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    model = MusicGen.get_pretrained("facebook/musicgen-stereo-melody")
    model.set_generation_params(use_sampling=True, top_k=250, duration=0.3)
    output = model.generate(descriptions=["80s pop", "90s rock"], progress=True, return_tokens=True)
    display_audio(output[0], sample_rate=32000)
    display_audio(output[0][0], 32000)

    assert len(shown) == 3
    assert all(player._repr_html_().count("data:audio/wav") == 1 for player in shown)
    assert "steps" in capsys.readouterr().err


def test_long_music_in_windows_with_a_stride():
    model = MusicGen.get_pretrained("facebook/musicgen-small")
    model.max_duration = 1.0
    model.set_generation_params(duration=2.5, extend_stride=0.4)
    steps = []
    model.set_custom_progress_callback(lambda done, total: steps.append((done, total)))
    long = model.generate(["slow ambient"], progress=True)
    model.duration, model.extend_stride = 1.5, 0.7
    model.set_custom_progress_callback()
    shorter = model.generate(["slow ambient"])

    assert (long.shape[-1], shorter.shape[-1]) == (80000, 48000)
    assert steps[-1][0] == steps[-1][1] and len({total for _, total in steps}) == 1


def test_tokens_are_edited_and_decoded():
    model = MusicGen.get_pretrained("facebook/musicgen-melody")
    model.set_generation_params(duration=0.5)
    wav, tokens = model.generate(["piano"], return_tokens=True)
    with torch.no_grad():
        codes, scale = model.compression_model.encode(wav)
        assert scale is None
        same = model.compression_model.decode(tokens, None)
        coarse = model.compression_model.decode(tokens[:, :2])
        swapped = model.compression_model.decode(torch.cat([tokens[..., 10:], tokens[..., :10]], dim=-1))
    for name, one in {"coarse": coarse, "swapped": swapped}.items():
        audio_write(name, one[0].cpu(), sample_rate=model.compression_model.sample_rate)

    assert same.equal(wav) and codes.shape == tokens.shape == (1, model.lm.n_q, 25)
    assert not coarse.equal(wav) and swapped.shape == wav.shape


def test_a_service_that_times_itself_and_saves_with_scipy():
    from scipy.io import wavfile

    start = time.time()
    model = MusicGen.get_pretrained("facebook/musicgen-small")
    parameters = sum(p.numel() for p in model.lm.parameters())
    model.lm.eval()
    model.lm.load_state_dict(model.lm.state_dict())
    model.generation_params["temp"] = 0.9
    model.generation_params.update(top_k=10)
    model.duration = 0.2
    results = model.generate(["classical rock"])
    wavfile.write("rock.wav", model.sample_rate, results[0].numpy().T)

    assert time.time() > start and parameters > 1e5
    assert model.settings.temperature == 0.9 and model.settings.top_k == 10
    assert length("rock.wav") == 0.2


# --- numbers of the reference -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", filling.KINDS)
def test_attributes_and_defaults_are_the_references(load, kind):
    model, facts = load(kind), FACTS["attributes"][kind]
    for state in ("loaded", "set_generation_params()"):
        expected = facts[state]
        for part in ("lm", "compression_model"):
            found = getattr(model, part)
            assert {name: getattr(found, name) for name in expected[part]} == expected[part]
        assert model.lm.cfg.dataset.segment_duration == expected["segment_duration"]
        params = dict(model.generation_params)
        assert params.pop("cfg_coef_beta") is None  # younger than 1.3.0
        assert params == expected["generation_params"]
        for name in (
            "duration",
            "extend_stride",
            "max_duration",
            "sample_rate",
            "frame_rate",
            "audio_channels",
        ):
            assert getattr(model, name) == expected[name], name
        assert str(model.device) == expected["device"]
        model.set_generation_params()


@pytest.mark.parametrize("kind", filling.KINDS)
def test_a_custom_callback_receives_the_references_steps(load, kind):
    model, steps = load(kind), []
    model.set_generation_params(use_sampling=False, duration=0.504)
    model.set_custom_progress_callback(lambda done, total: steps.append([done, total]))
    model.generate(PAIR[:1], progress=True)
    prompt = torch.from_numpy(filling.prompts(model.audio_channels, model.sample_rate))
    wave, tokens = model.generate_continuation(prompt, model.sample_rate, progress=True, return_tokens=True)
    assert steps == FACTS["attributes"][kind]["steps"]
    with torch.no_grad():
        assert model.compression_model.decode(tokens).equal(wave)


def test_attributes_that_a_program_sets_give_the_references_tokens(load):
    model = load("small")
    model.set_generation_params()
    model.duration = 0.304
    model.generation_params["use_sampling"] = False
    model.generation_params = {**model.generation_params, "cfg_coef": 2.0, "temp": 0.7}
    assert np.array_equal(model.generate(PAIR, return_tokens=True)[1], TENSORS["attributes set"])


def test_long_sounds_advance_by_the_references_stride(load):
    model = load("audiogen")
    model.max_duration = 3.0
    model.set_generation_params(use_sampling=False, duration=5.104)
    assert np.array_equal(model.generate(PAIR[:1], return_tokens=True)[1], TENSORS["audiogen/windows"])


@pytest.mark.parametrize("codec", ["reflect", "stereo"])
def test_the_codec_returns_the_references_codes_and_waves(load, codec):
    golden, _ = filling.golden()
    model = load("stereo-small" if codec == "stereo" else "small")
    samples = 1580 if codec == "stereo" else 1920
    with torch.no_grad():
        wave = torch.from_numpy(filling.hum(samples, channels=model.compression_model.channels))
        codes, scale = model.compression_model.encode(wave[None])
        assert np.array_equal(codes[0], golden[f"codec/{codec}/codes/{samples}"]) and scale is None
        frames, name = (2, "decode stereo") if codec == "stereo" else (4, "decode 4")
        tokens = torch.from_numpy(filling.codes(name, (1, model.lm.n_q, frames)))
        np.testing.assert_allclose(
            model.compression_model.decode(tokens)[0], golden[f"codec/{codec}/wave/{frames}"], atol=1e-5
        )


@pytest.mark.parametrize("case", FACTS["audio_write"], ids=str)
def test_written_samples_are_the_references(case):
    sound = torch.from_numpy(filling.burst(32000, case["channels"], case["level"]))
    before = sound.clone()
    path = audio_write("wave", sound, 32000, **case["options"])
    samples, _ = soundfile.read(path, dtype="int16", always_2d=True)
    expected = TENSORS[f"audio_write/{case['channels']}"][case["row"]]
    # Two meters differ by a thousandth of a decibel.
    tolerance = 1 + 3e-4 * np.abs(expected).max() if case["options"].get("strategy") == "loudness" else 0
    assert np.abs(samples[::3999].T - expected.astype(int)).max() <= tolerance
    assert sound.equal(before)


@pytest.mark.parametrize(("stem", "options", "path", "format"), FACTS["paths"])
def test_paths_and_formats_are_the_references(stem, options, path, format):
    made = audio_write(Path(stem), torch.from_numpy(filling.burst(32000, 1, 0.5))[0], 32000, **options)
    assert made == Path(path) and soundfile.info(made).format == format


@pytest.mark.parametrize(("rate", "options", "kbps"), FACTS["bit rates"])
def test_bit_rates_are_those_asked_for(rate, options, kbps):
    """Of a quiet tune, the reference's Vorbis stays far below the rate; here its quality rises towards it."""
    wave = torch.from_numpy(filling.tune(10.0, rate=rate))
    made = audio_write("rate", wave, rate, **options).stat().st_size * 8 / 10 / 1000
    if options["format"] == "mp3":
        assert made == pytest.approx(kbps, rel=0.01)
    else:
        assert kbps < made <= options["ogg_rate"]


@pytest.mark.parametrize("case", FACTS["audio_read"], ids=str)
def test_parts_of_files_are_read_as_by_the_reference(case):
    path = Path(f"read.{case['ending']}")
    soundfile.write(path, filling.hum(16001, channels=2).T, 16000, subtype="PCM_16")
    wave, rate = audio_read(path, **case["arguments"])
    assert rate == 16000 and list(wave.shape) == case["shape"]
    assert np.array_equal(wave[:, ::797], TENSORS[case["tensor"]])


@pytest.mark.parametrize("case", FACTS["convert_audio"], ids=str)
def test_converted_batches_are_close_to_the_references(case):
    rate, (before, after) = case["rate"], case["channels"]
    waves = [filling.tune(0.4001, before, rate), filling.hum(int(0.4001 * rate + 0.5), before, rate)]
    made = convert_audio(torch.from_numpy(np.stack(waves)), rate, case["to"], after)
    assert list(made.shape) == case["shape"]
    # The second wave has noise up to half the sample rate, where the filters differ.
    error = np.abs(made.numpy()[:, :, 4000:6000:23] - TENSORS[case["tensor"]]).max((1, 2))
    assert error[0] < 1e-5 and error[1] < 0.02


def test_channels_are_converted_as_by_the_reference():
    numbers = torch.arange(24.0).view(2, 3, 4)
    assert np.array_equal(convert_audio_channels(numbers), TENSORS["channels/3 to 2"])
    assert np.array_equal(convert_audio_channels(numbers, 1), TENSORS["channels/3 to 1"])
    assert np.array_equal(convert_audio_channels(numbers[:, :1], 2), TENSORS["channels/1 to 2"])


# --- names and refusals -------------------------------------------------------------------------------------


def test_models_load_by_the_references_names_and_defaults():
    assert MusicGen.get_pretrained().name == "facebook/musicgen-melody"
    assert AudioGen.get_pretrained().name == "facebook/audiogen-medium"
    assert hub.hub_id("audiogen") == "facebook/audiogen-medium"
    assert hub.licence("audiogen") == hub.CC_BY_NC
    model = MusicGen.get_pretrained("facebook/musicgen-small", torch.device("cpu"))
    assert isinstance(model, MusicGen) and not isinstance(model, AudioGen)


def test_the_imports_and_attributes_of_the_readme_exist(small):
    readme = (filling.HERE.parent.parent / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Code written for audiocraft")[2].partition("## ")[0]
    added = "\n".join(line[1:] for line in section.splitlines() if line.startswith("+"))
    names: dict[str, object] = {}
    exec(added, names)
    assert names["AudioGen"] is AudioGen and names["display_audio"] is display_audio
    form = r"to read: (.*?)`compression_model` \((.*?)\), `lm` \((.*?)and everything.*?To set: (.*?)\.\n"
    attributes, codec, lm, settable = re.search(form, section, re.DOTALL).groups()
    for part, listed in (
        (small, attributes + settable),
        (small.compression_model, codec),
        (small.lm, lm),
    ):
        found = re.findall(r"`(\w+)", listed)
        assert len(found) > 3 and all(hasattr(part, name) for name in found), listed


def test_a_model_is_copied_and_pickled_with_its_parts(load):
    model = MusicGen.get_pretrained("facebook/musicgen-melody")
    model.set_generation_params(duration=0.2, use_sampling=False)
    wave = model.generate(["piano"])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.generate(["piano"]).equal(wave)
        assert other.lm.n_q == 4 and other.lm.module is other.model.lm


def test_hooks_on_the_language_model_fire():
    model, seen = MusicGen.get_pretrained("facebook/musicgen-small"), []
    model.set_generation_params(duration=0.2)
    hook = model.lm.layers[0].register_forward_hook(lambda *_: seen.append(1))
    model.generate(["piano"])
    hook.remove()
    assert len(seen) >= 10


@pytest.mark.parametrize("name", audiocraft.OTHER_MODELS)
def test_other_models_are_refused_by_name(name):
    with pytest.raises(ImportError, match=f"{name} is another model: mgkit runs MusicGen and AudioGen"):
        exec(f"from mgkit.audiocraft import {name}")
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec("from mgkit.audiocraft import Nothing")


def test_models_of_other_kinds_are_refused_before_they_are_downloaded():
    for name in ("facebook/musicgen-style", "style", "facebook/magnet-small-10secs", "facebook/jasco-chords"):
        with pytest.raises(ValueError, match="another model"):
            MusicGen.get_pretrained(name)


def test_silence_and_clips_too_short_for_a_loudness_are_written():
    """The reference writes NaN for silence under `peak`, and cannot measure less than 0.4 s."""
    for strategy in ("peak", "rms", "clip", "loudness", "none", ""):
        silence, _ = soundfile.read(audio_write("silence", torch.zeros(1, 32000), 32000, strategy=strategy))
        assert not silence.any()
    short, _ = soundfile.read(audio_write("short", torch.ones(1, 100) / 8, 32000, strategy="loudness"))
    assert short == pytest.approx(10 ** (-1 / 20), abs=1e-4)


def test_clipping_is_reported_on_request(capsys):
    loud = 4 * torch.from_numpy(filling.burst(32000, 1, 0.5))
    options = {"strategy": "rms", "rms_headroom_db": 3}
    audio_write("loud", loud, 32000, **options)
    assert "loud: " in (said := capsys.readouterr().err) and "% clipped, largest sample" in said
    audio_write("loud", loud, 32000, log_clipping=False, **options)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: audio_write("a", torch.zeros(1, 9), 32000, format="aac"),
            "format is 'aac'.*wav, mp3, ogg",
        ),
        (
            lambda m: audio_write("a", torch.zeros(1, 9), 32000, strategy="max"),
            "strategy is 'max'.*peak, clip",
        ),
        (lambda m: audio_write("a", torch.zeros(1, 9).short(), 32000), "int16.*scale them"),
        (lambda m: audio_write("a", torch.zeros(2, 1, 9), 32000), r"shape \[2, 1, 9\]"),
        (lambda m: audio_write("a", torch.full((1, 9), torch.nan), 32000), "NaN"),
        (lambda m: audio_write("a", torch.ones(1, 9), 0), "sample rate is 0"),
        (
            lambda m: audio_write("a", torch.ones(1, 9), 96000, format="mp3"),
            "rate is 96000 Hz; .mp3 supports",
        ),
        (
            lambda m: audio_write("a", torch.ones(1, 9), 32000, "mp3", mp3_rate=0),
            "bit rate is 0.*such as 192",
        ),
        (lambda m: audio_write("a", torch.ones(1, 9), 32000, "ogg", ogg_rate="x"), "bit rate is 'x'"),
        (lambda m: audio_read(tune(), seek_time=9), "seek_time is 9 s.*lasts 1 s"),
        (lambda m: audio_read(tune(), seek_time=-1), "seek_time is -1 s"),
        (lambda m: convert_audio_channels(torch.zeros(2, 9), 4), "2 channels, too few for 4: average"),
        (lambda m: convert_audio(torch.zeros(1, 9), 44100, 0, 1), "sample rate is 0"),
        (lambda m: m.compression_model.encode(torch.zeros(1, 2, 999)), r"\[1, 2, 999\].*\[B, 1, N\]"),
        (
            lambda m: m.compression_model.decode(torch.zeros(1, 4, 2).long(), torch.ones(1)),
            "scale is .*leave it",
        ),
        (lambda m: m.generate("a string"), "descriptions"),
        (lambda m: m.generate_with_chroma(["x"], torch.zeros(1, 9), 32000), "takes no melody"),
    ],
)
def test_bad_input_gets_a_sentence(small, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(small)
    assert "\n" not in str(caught.value)
    assert not list(Path().glob("a.*"))


def test_a_wrong_parameter_and_an_inner_name_get_a_sentence():
    model = MusicGen.get_pretrained("facebook/musicgen-small")
    model.generation_params["max_gen_len"] = 100
    with pytest.raises(ValueError, match=r"has \['max_gen_len'\]; it takes use_sampling, temp"):
        model.generate(["piano"])
    with pytest.raises(AttributeError, match="no 'condition_provider' here.*mgkit, not audiocraft"):
        _ = model.lm.condition_provider


def test_a_missing_folder_is_made_or_named():
    assert audio_write("x/y/z", torch.ones(1, 9), 32000).exists()
    with pytest.raises(OSError, match="nowhere"):
        audio_write("nowhere/z", torch.ones(1, 9), 32000, make_parent_dir=False)
