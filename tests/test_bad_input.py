"""Bad input gets one clear sentence, and nothing that was made is lost."""

import errno
import json
import math
import os
import pickle
import resource
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from tiny import RATE, noise, tiny, tune

from mgkit import MusicGen, audio

SECONDS = 0.2
FRAMES = 10  # of SECONDS
STEPS = FRAMES + 3  # the last codebook is three steps late


@pytest.fixture(scope="module")
def models():
    return {"text": tiny(), "melody": tiny(melody=True), "stereo": tiny(channels=2)}


@pytest.fixture
def text(models):
    return ready(models["text"])


@pytest.fixture
def melody(models):
    return ready(models["melody"])


@pytest.fixture
def stereo(models):
    return ready(models["stereo"])


def ready(model):
    model.set_generation_params(duration=SECONDS)
    model.set_custom_progress_callback(None)
    return model


def refusal(action, *words, kinds=(ValueError,)):
    """The sentence that `action` is refused with: one line, not a page, that holds the `words`."""
    with pytest.raises(kinds) as caught:
        action()
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1 and 15 < len(sentence) < 420, sentence
    for word in words:
        assert word in sentence, f"{word!r} is not in {sentence!r}"
    return sentence


# --- descriptions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], ["list", "[]"]),
        (None, ["list", "None"]),
        (5, ["list", "5"]),
        ("calm", ["one string", "['calm']"]),
        (b"calm", ["list", "calm"]),
        ([b"calm"], ["b'calm'", "string"]),
        ([5], ["5", "string"]),
        (["calm", 5], ["5", "string"]),
        ([["calm"]], ["['calm']", "string"]),
        (["\ud800"], []),
    ],
)
def test_descriptions_are_a_list_of_strings(text, given, words):
    refusal(lambda: text.generate(given), *words)
    refusal(lambda: text.stream(given), *words) if words else refusal(lambda: list(text.stream(given)))


def test_any_iterable_of_strings_will_do_and_none_is_no_text(text):
    assert text.generate(("calm", None, "")).shape[0] == 3
    assert text.generate(np.array(["calm", "sad"])).shape[0] == 2
    assert text.generate(word for word in ("calm", "sad")).shape[0] == 2


def test_ten_thousand_words_are_refused_before_a_step_is_made(text):
    steps = []
    long = "calm piano " * 5000
    for prompts in ({"descriptions": [long]}, {"descriptions": ["calm"], "negative": long}):
        refusal(
            lambda prompts=prompts: text.generate(**prompts, on_step=lambda *n: steps.append(n)),
            "10001",
            "512",
        )
    assert not steps


@pytest.mark.parametrize("given", [5, [], [5], ["a", "b"], b"sad"])
def test_negative_descriptions_are_as_many_strings(text, given):
    refusal(lambda: text.generate(["calm"], negative=given), "negative")


@pytest.mark.parametrize("number", [0, -1, 2.5, "2", None])
def test_the_number_of_unconditional_samples_is_a_whole_number(text, number):
    refusal(lambda: text.generate_unconditional(number), "num_samples", repr(number))


# --- settings -----------------------------------------------------------------------------------------------

BAD_SETTINGS = {
    "duration": [0, -1, math.nan, math.inf, "8", None, [8], True],
    "temperature": [-0.1, math.nan, math.inf, "1", None],
    "top_p": [-0.1, 1.1, math.nan, "0.5", None],
    "top_k": [-1, 2.5, math.nan, math.inf, "5", None],
    "cfg_coef": [math.nan, -math.inf, "3", None],
    "cfg_coef_beta": [math.nan, "5"],
    "extend_stride": [0, -1, math.nan, math.inf, "6"],
    "use_sampling": ["no", None],
    "two_step_cfg": ["no", 5],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, bad in BAD_SETTINGS.items() for value in bad]
)
def test_a_setting_that_makes_no_sense_is_named_and_the_others_stay(text, name, value):
    before = text.settings
    refusal(lambda: text.set_generation_params(**{name: value}), name, str(value), "must be")
    assert text.settings == before


def test_numbers_of_numpy_and_whole_floats_are_numbers(text):
    text.set_generation_params(
        duration=np.float32(SECONDS), top_k=3.0, temperature=np.float64(0.9), use_sampling=1
    )
    assert text.generate(["calm"]).shape == (1, 1, round(SECONDS * RATE))


@pytest.mark.parametrize("stride", [10, 18, 1e-9])
def test_a_stride_that_no_window_can_take_is_refused_where_it_matters(text, stride):
    text.set_generation_params(duration=SECONDS, extend_stride=stride)
    text.generate(["calm"])  # within one window the stride is of no account
    text.set_generation_params(duration=12, extend_stride=stride)
    refusal(lambda: text.generate(["calm"]), "extend_stride", f"{stride:g}", "10 s")


def test_double_guidance_without_a_melody_is_refused(text, melody):
    for model in (text, melody):
        model.set_generation_params(duration=SECONDS, cfg_coef_beta=5)
        refusal(lambda model=model: model.generate(["calm"]), "cfg_coef_beta", "melody")


# --- seeds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [3.5, "12", "ab", 2**70, -(2**70), [1.7, 2], ["a", 1], [None, 1], [2**70, 1], [1], [1, 2, 3], []]
)
def test_seeds_are_whole_numbers_one_for_each_sample(text, seed):
    refusal(lambda: text.generate(["calm", "sad"], seed=seed), "seed")


@pytest.mark.parametrize(
    "seed", [np.int64(3), np.uint8(3), torch.tensor(3), [3, 4], (3, 4), np.array([3, 4]), range(3, 5)]
)
def test_seeds_may_be_whole_numbers_of_any_make(text, seed):
    tokens = [text.generate(["calm", "sad"], return_tokens=True, seed=s)[1] for s in (3, seed)]
    assert torch.equal(*tokens)
    json.dumps(text.manifests)


# --- waves --------------------------------------------------------------------------------------------------

GOOD = tune(0.1)
BAD_WAVES = {
    "four axes": (torch.zeros(1, 1, 1, 9), ["[1, 1, 1, 9]"]),
    "no axis": (torch.tensor(1.0), ["[]"]),
    "eight channels": (torch.zeros(8, 99), ["[8, 99]", "channels"]),
    "samples first": (torch.zeros(99, 2), ["[99, 2]", "channels"]),
    "whole numbers": (torch.zeros(1, 99, dtype=torch.int16), ["int16", "32768"]),
    "whole numbers of numpy": (np.zeros((1, 99), np.int32), ["int32"]),
    "complex": (torch.zeros(1, 99) * 1j, ["complex"]),
    "NaN": (GOOD * math.nan, ["NaN"]),
    "infinity": (GOOD / 0, ["infinity"]),
    "no samples": (GOOD[:, :0], ["no samples"]),
    "no waves": ([], []),
    "None": (None, ["None"]),
    "a path": (Path("a.wav"), ["a.wav", "read"]),
    "a string": ("a.wav", ["a.wav", "read"]),
    "what read gives, in one": ((GOOD, RATE), [str(RATE)]),
    "too many": ([GOOD, GOOD], ["2", "1"]),
    "one too deep": ([GOOD[None]], ["[1, 1, "]),
}


@pytest.mark.parametrize(
    ("role", "case"),
    [
        *(("audio prompt", case) for case in BAD_WAVES),
        *(("melody", case) for case in BAD_WAVES if case != "None"),
    ],
)
def test_a_wave_that_is_none_is_refused_by_its_role(text, melody, role, case):
    wave, words = BAD_WAVES[case]
    ways = {
        "audio prompt": lambda: text.generate_continuation(wave, RATE, ["calm"]),
        "melody": lambda: melody.generate_with_chroma(["calm"], wave, RATE),
    }
    refusal(ways[role], role, *words)


@pytest.mark.parametrize("case", [case for case in BAD_WAVES if case != "too many"])
def test_a_prompt_without_descriptions_is_refused_just_so(text, case):
    wave, words = BAD_WAVES[case]
    refusal(lambda: text.generate_continuation(wave, RATE), *words)


@pytest.mark.parametrize("rate", [0, -44100, math.nan, math.inf, "44100", None])
def test_a_sample_rate_that_is_none_is_refused(text, melody, rate):
    refusal(lambda: text.generate_continuation(GOOD, rate, ["calm"]), "sample rate", str(rate))
    refusal(lambda: melody.generate_with_chroma(["calm"], GOOD, rate), "sample rate", str(rate))
    refusal(lambda: audio.resample(GOOD, RATE, rate), "sample rate", str(rate))


def test_one_sample_is_a_prompt_and_a_melody(text, melody, stereo):
    for model in (text, stereo):
        assert model.generate_continuation(GOOD[:, 99:100], 44100, ["calm"]).shape[-1] == SECONDS * RATE
    assert melody.generate_with_chroma(["calm"], GOOD[:, 99:100], 44100).shape[-1] == SECONDS * RATE


def test_a_wave_far_over_full_scale_is_a_prompt_and_a_melody(text, melody):
    assert text.generate_continuation(1e6 * GOOD, RATE, ["calm"]).isfinite().all()
    assert melody.generate_with_chroma(["calm"], 1e6 * GOOD, RATE).isfinite().all()


def test_silence_is_a_prompt_but_no_melody(text, melody):
    assert text.generate_continuation(0 * GOOD, RATE, ["calm"]).shape[-1] == SECONDS * RATE
    refusal(lambda: melody.generate_with_chroma(["calm"], 0 * GOOD, RATE), "silent", "melody")


@pytest.mark.parametrize("grid", [[12, 0], [-1, 0], [], [[[0]]]])
def test_whole_numbers_that_are_no_pitch_classes_are_no_melody(text, melody, grid):
    grid = torch.tensor(grid, dtype=torch.long)
    refusal(lambda: melody.generate_with_chroma(["calm"], grid, RATE), "the melody", "pitch classes")
    refusal(lambda: text.generate_continuation(grid, RATE, ["calm"]), "prompt")


def test_pitch_classes_are_one_row_or_as_many_as_the_samples(melody):
    refusal(lambda: melody.generate_with_chroma(["calm"] * 3, torch.zeros(2, 9).long()), "2", "3")


def test_a_list_of_prompts_is_a_batch(text):
    assert text.generate_continuation([GOOD, GOOD], RATE).shape[0] == 2
    assert text.generate_continuation([GOOD, GOOD], RATE, ["calm", "sad"]).shape[0] == 2
    refusal(lambda: text.generate_continuation([GOOD, GOOD[:, :99]], RATE, ["calm", "sad"]), "one length")
    refusal(lambda: text.generate_continuation([GOOD, None], RATE, ["calm", "sad"]), "None")


def test_waves_are_one_or_as_many_as_the_samples(text, melody):
    waves = torch.stack([GOOD, GOOD])
    refusal(lambda: text.generate_continuation(waves, RATE, ["calm"] * 3), "2", "3")
    refusal(lambda: melody.generate_with_chroma(["calm"] * 3, waves, RATE), "2", "3")


def test_a_melody_needs_a_model_that_takes_one(text, stereo):
    for model in (text, stereo):
        refusal(lambda model=model: model.generate_with_chroma(["calm"], GOOD, RATE), "tiny", "melody-large")


@pytest.mark.parametrize("seconds", [SECONDS, SECONDS - 0.005, 3 * SECONDS])
def test_a_prompt_as_long_as_the_duration_is_refused(text, seconds):
    sentence = refusal(lambda: text.generate_continuation(tune(seconds), RATE, ["calm"]), f"{SECONDS:g} s")
    assert "longer duration" in sentence and "shorter prompt" in sentence


def test_a_stream_needs_the_rates_of_its_waves(text, melody):
    refusal(lambda: text.stream(["calm"], prompt=GOOD), "sample rate")
    refusal(lambda: melody.stream(["calm"], melody_wavs=GOOD), "sample rate")


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "1", None])
def test_chunks_last_more_than_nothing(text, seconds):
    refusal(lambda: text.stream(["calm"], chunk_seconds=seconds), "chunk_seconds", str(seconds))


@pytest.mark.parametrize(
    ("tokens", "word"),
    [
        (torch.zeros(4, 3, dtype=torch.long), "[4, 3]"),
        (torch.zeros(1, 5, 3, dtype=torch.long), "codebooks"),
        (torch.zeros(1, 4, 3), "float"),
        (torch.full((1, 4, 3), 32), "32"),
        (torch.full((1, 4, 3), -1), "-1"),
    ],
)
def test_tokens_that_no_codec_has_are_refused(text, tokens, word):
    refusal(lambda: text.generate_audio(tokens), word)


def test_refusals_leave_the_model_as_it_was(melody):
    def tokens():
        return melody.generate_with_chroma(["calm", "sad"], GOOD, RATE, return_tokens=True, seed=1)[1]

    before, manifests = tokens(), melody.manifests
    refusal(lambda: melody.generate([]))
    refusal(lambda: melody.generate(["calm " * 999]))
    refusal(lambda: melody.generate(["calm"], seed=2**70))
    refusal(lambda: melody.set_generation_params(duration=-1))
    refusal(lambda: melody.generate_with_chroma(["calm"], GOOD * math.nan, RATE))
    assert melody.manifests == manifests
    assert torch.equal(tokens(), before)


# --- stopping -----------------------------------------------------------------------------------------------


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, whatever started this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c_at(step):
    def on_step(done, total):
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return on_step


def interrupt_call(monkeypatch, module, name, n):
    """Ctrl-C in the middle of the nth call of the module's method."""
    real, calls = getattr(module, name), []

    def method(*args, **kwargs):
        calls.append(name)
        if len(calls) == n:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, method)


@pytest.fixture
def whole(text):
    return text.generate(["calm", "sad"], return_tokens=True, seed=5)[1]


def assert_begins(model, whole, wave, tokens):
    """The wave and the tokens are a playable beginning of the whole, and so says the manifest."""
    frames = tokens.shape[-1]
    assert tokens.shape[:2] == whole.shape[:2] and torch.equal(tokens, whole[..., :frames])
    assert wave.shape == (len(whole), 1, frames * 640)
    assert [manifest["frames"] for manifest in model.manifests] == [frames] * len(whole)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_ctrl_c_at_any_step_returns_what_was_made(text, whole, interruptible, capsys, step):
    wave, tokens = text.generate(["calm", "sad"], return_tokens=True, seed=5, on_step=ctrl_c_at(step))
    assert_begins(text, whole, wave, tokens)
    assert step - 4 <= tokens.shape[-1] <= max(0, step - 3)
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize("call", [1, 2, 5, STEPS])
def test_ctrl_c_inside_the_language_model_returns_what_was_made(
    text, whole, interruptible, monkeypatch, call
):
    interrupt_call(monkeypatch, text.lm, "hidden", call)
    wave, tokens = text.generate(["calm", "sad"], True, True, seed=5)
    assert_begins(text, whole, wave, tokens)
    assert tokens.shape[-1] == max(0, call - 4)


def test_ctrl_c_while_decoding_does_not_lose_the_music(text, whole, interruptible, monkeypatch):
    interrupt_call(monkeypatch, text.codec, "decode", 1)
    wave, tokens = text.generate(["calm", "sad"], return_tokens=True, seed=5)
    assert_begins(text, whole, wave, tokens)
    assert tokens.shape == whole.shape


@pytest.mark.parametrize("step", [1, 3, 4, 5, 9, STEPS])
def test_ctrl_c_at_any_step_of_a_stream_yields_what_was_made(text, whole, interruptible, step):
    with plays(text, whole) as chunks:
        chunks.extend(text.stream(["calm", "sad"], seed=5, chunk_seconds=0.06, on_step=ctrl_c_at(step)))
    assert step - 4 <= text.manifests[0]["frames"] <= max(0, step - 3)


@pytest.mark.parametrize("call", [1, 2])
def test_ctrl_c_inside_the_decoder_of_a_stream_yields_what_was_made(
    text, whole, interruptible, monkeypatch, call
):
    interrupt_call(monkeypatch, text.codec.decoder[1], "resume", call)
    with plays(text, whole) as chunks:
        chunks.extend(text.stream(["calm", "sad"], seed=5, chunk_seconds=0.06))
    assert text.manifests[0]["frames"] > 0


@contextmanager
def plays(model, whole):
    """Collects chunks that, joined, must be the sound of as many frames as the manifest says."""
    chunks = []
    yield chunks
    frames = model.manifests[0]["frames"]
    wave = torch.cat([torch.zeros(len(whole), 1, 0), *chunks], dim=-1)
    torch.testing.assert_close(wave, model.generate_audio(whole[..., :frames]), atol=1e-5, rtol=0)


def test_leaving_a_stream_early_keeps_what_it_said_of_itself(text, whole):
    for chunk in text.stream(["calm", "sad"], seed=5, chunk_seconds=0.06):
        assert chunk.shape[:2] == (2, 1)
        break
    else:
        pytest.fail("nothing was yielded")
    assert 0 < text.manifests[0]["frames"] <= FRAMES


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_a_stop_event_after_any_step_returns_what_was_made(text, whole, steps):
    stop = Event()

    def on_step(done, total):
        if done >= steps:
            stop.set()

    if steps == 0:
        stop.set()
    wave, tokens = text.generate(["calm", "sad"], return_tokens=True, seed=5, on_step=on_step, stop=stop)
    assert_begins(text, whole, wave, tokens)
    assert tokens.shape[-1] == max(0, steps - 3)


def test_stopped_before_the_start_means_no_step_and_an_empty_wave(text, tmp_path):
    stop, steps = Event(), []
    stop.set()
    wave, tokens = text.generate(["calm"], return_tokens=True, stop=stop, on_step=lambda *n: steps.append(n))
    assert wave.shape == (1, 1, 0) and tokens.shape == (1, 4, 0) and steps == []
    assert torch.cat([torch.zeros(1, 1, 0), *text.stream(["calm"], stop=stop)], dim=-1).shape == (1, 1, 0)
    refusal(lambda: audio.write(tmp_path / "a.wav", wave[0], RATE, manifest=text.manifests[0]), "no samples")
    assert not os.listdir(tmp_path)


def test_stopped_before_the_start_leaves_the_prompt(text):
    stop = Event()
    stop.set()
    wave = text.generate_continuation(tune(0.1), RATE, ["calm"], stop=stop)
    assert wave.shape == (1, 1, round(0.1 * RATE)) and text.manifests[0]["frames"] == 5


def test_what_was_stopped_replays(text):
    text.generate(["calm", "sad"], seed=5, on_step=None, stop=StopAfter(7))
    _, tokens = text.replay(text.manifests[1])
    assert 0 < tokens.shape[-1] < FRAMES


class StopAfter:
    """A stop that sets itself at the nth time that it is asked."""

    def __init__(self, n):
        self.left = n

    def is_set(self):
        self.left -= 1
        return self.left < 0


def test_an_error_in_a_callback_is_the_callers_own_and_breaks_nothing(text, whole):
    class Mine(Exception):
        pass

    error = Mine("my\nown")

    def on_step(done, total):
        if done == 5:
            raise error

    for run in (
        lambda: text.generate(["calm"], on_step=on_step),
        lambda: text.generate(["calm"], progress=True, on_step=on_step),
        lambda: list(text.stream(["calm"], on_step=on_step)),
    ):
        with pytest.raises(Mine) as caught:
            run()
        assert caught.value is error
    assert torch.equal(text.generate(["calm", "sad"], return_tokens=True, seed=5)[1], whole)


def test_the_progress_bar_is_closed_however_a_run_ends(text, interruptible, capsys):
    import tqdm.auto

    for end in (
        {"on_step": ctrl_c_at(4)},
        {"stop": StopAfter(3)},
        {"on_step": lambda done, total: 1 // (done - 5)},
    ):
        with suppress(ZeroDivisionError):
            text.generate(["calm"], progress=True, **end)
        assert not [bar for bar in tqdm.auto.tqdm._instances if not bar.disable]


# --- weights ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    models["text"].save_pretrained(folder / "text")
    models["melody"].save_pretrained(folder / "melody")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a good model's folder, to spoil."""
    return shutil.copytree(saved / "text", tmp_path / "model")


def load(folder):
    return MusicGen.get_pretrained(str(folder), device="cpu")


def edit(file, **changes):
    """Changes values of a JSON file; `a__b` is the key b in a; ... takes a key away."""
    content = json.loads(file.read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        inner = content
        for key in path:
            inner = inner[key]
        inner[last] = value
        if value is ...:
            del inner[last]
    file.write_text(json.dumps(content))


def test_a_good_folder_loads_by_string_and_by_path(folder):
    for name in (str(folder), folder):
        model = MusicGen.get_pretrained(name)
        model.set_generation_params(duration=SECONDS)
        model.generate(["calm"])
        assert json.loads(json.dumps(model.manifests[0]))["model"] == str(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_cut_safetensors_file_is_refused(folder, keep):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else keep])
    refusal(lambda: load(folder), "model.safetensors", "again")


@pytest.mark.parametrize("other", ["melody", "bert", "nothing", "garbage"])
def test_the_safetensors_of_another_model_are_refused(saved, folder, other):
    file = folder / "model.safetensors"
    if other == "melody":
        shutil.copy(saved / "melody" / file.name, file)
    elif other == "garbage":
        file.write_bytes(b"<html>not found</html>" * 999)
    else:
        safetensors.torch.save_file({"bert.x": torch.zeros(3)} if other == "bert" else {}, file)
    refusal(lambda: load(folder), str(folder))


def test_a_tensor_too_many_is_refused_by_name(folder):
    safetensors.torch.save_file({"stowaway": torch.zeros(3)}, folder / "more.safetensors")
    refusal(lambda: load(folder), "stowaway")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"decoder__hidden_size": 64}, "128"),
        ({"decoder__hidden_size": "wide"}, "config"),
        ({"decoder__num_hidden_layers": 1}, "layers.1"),
        ({"decoder__num_hidden_layers": 3}, "layers.2"),
        ({"decoder__num_attention_heads": 3}, "heads"),
        ({"decoder__ffn_dim": 128}, "fc1"),
        ({"decoder__num_codebooks": 8}, "codebook"),
        ({"decoder__vocab_size": 64}, "embed_tokens"),
        ({"decoder__audio_channels": 2}, ""),
        ({"decoder__audio_channels": 3}, "channels"),
        ({"decoder": ...}, ""),
        ({"text_encoder__d_model": 32}, "48"),
        ({"text_encoder__num_layers": 1}, "block.1"),
        ({"text_encoder": None}, ""),
        ({"audio_encoder__codebook_size": 64}, "codebook"),
        ({"audio_encoder__upsampling_ratios": [8, 5, 4, 2]}, "audio_encoder"),
        ({"audio_encoder__sampling_rate": 0}, ""),
        ({"model_type": "musicgen_melody"}, ""),
    ],
)
def test_a_config_that_disagrees_with_its_weights_is_refused(folder, change, word):
    edit(folder / "config.json", **change)
    refusal(lambda: load(folder), word)


@pytest.mark.parametrize(
    "change",
    [
        {"audio_encoder__num_lstm_layers": 1},
        {"audio_encoder__use_causal_conv": True},
        {"audio_encoder__audio_channels": 2},
        {"audio_encoder__norm_type": "time_group_norm"},
        {"audio_encoder__model_type": "dac"},
    ],
)
def test_a_codec_of_another_architecture_is_refused(folder, change):
    edit(folder / "config.json", **change)
    refusal(lambda: load(folder), "codec", str(*change.values()))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", "null", "{}", '{"a": 1} x', '{"model_type": 5}', "\x00\x01"]
)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_broken_json_file_is_refused_or_does_not_matter(folder, name, content):
    (folder / name).write_text(content)
    if name == "generation_config.json" and content in ("{}", '{"model_type": 5}'):
        load(folder)  # nothing that is needed was in it
    else:
        refusal(lambda: load(folder), str(folder))


def test_a_window_that_is_no_length_is_refused(folder):
    for length in (-1, "long", [5]):
        edit(folder / "generation_config.json", max_length=length)
        refusal(lambda: load(folder), str(folder))


@pytest.mark.parametrize("kind", ["bert", "encodec", "t5", "llama", "no-such-type"])
def test_a_model_of_another_type_is_refused_by_type(folder, kind):
    edit(folder / "config.json", model_type=kind)
    refusal(lambda: load(folder), kind, "musicgen")


@pytest.mark.parametrize(
    "missing", [["config.json"], ["model.safetensors"], ["tokenizer.json", "tokenizer_config.json"]]
)
def test_a_folder_that_lacks_a_part_is_refused(folder, missing):
    for name in missing:
        (folder / name).unlink()
    refusal(lambda: load(folder), str(folder), kinds=(ValueError, FileNotFoundError))


# --- audiocraft's layout ------------------------------------------------------------------------------------


class Payload:
    """A pickle that creates a file when it is opened."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (Path.touch, (Path(self.file),))


def zipped(content, file):
    torch.save(content, file)


def legacy(content, file):
    torch.save(content, file, _use_new_zipfile_serialization=False)


def pickled(content, file):
    file.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [zipped, legacy, pickled])
@pytest.mark.parametrize("hidden", [False, True])
def test_code_in_a_bin_file_is_not_run(tmp_path, write, hidden):
    ran = tmp_path / "ran"
    payload = Payload(ran)
    write(
        {"best_state": {"x": payload}, "xp.cfg": "a: 1"} if hidden else payload, tmp_path / "state_dict.bin"
    )
    sentence = refusal(lambda: load(tmp_path), "state_dict.bin")
    assert not ran.exists()
    assert "weights_only" not in sentence, "tells how to run the code after all"
    payload.__reduce__()[0](ran)
    assert ran.exists(), "the payload would not have done anything"


@pytest.fixture
def audiocraft(tmp_path):
    """The least that passes for audiocraft's first file."""
    torch.save({"best_state": {"x": torch.zeros(3)}, "xp.cfg": "a: 1"}, tmp_path / "state_dict.bin")
    return tmp_path


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_cut_bin_file_is_refused(audiocraft, keep):
    file = audiocraft / "state_dict.bin"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else keep])
    refusal(lambda: load(audiocraft), "state_dict.bin")


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {},
        {"best_state": {}},
        {"best_state": [1], "xp.cfg": "a: 1"},
        {"best_state": {"x": 1}, "xp.cfg": None},
        {"best_state": {}, "xp.cfg": ""},
        {"best_state": {}, "xp.cfg": "- 1"},
        {"best_state": {}, "xp.cfg": "a: ["},
        {"best_state": {}, "xp.cfg": "a: 1"},
        {"best_state": {}, "xp.cfg": "!!python/object/apply:os.system ['true']"},
        {"best_state": {}, "xp.cfg": "conditioners: {description: {t5: {name: 5}}}"},
    ],
)
def test_a_bin_file_of_another_make_is_refused(audiocraft, content):
    torch.save(content, audiocraft / "state_dict.bin")
    refusal(lambda: load(audiocraft), str(audiocraft))


def test_a_text_encoder_of_other_weights_is_not_made_up_at_random(saved, audiocraft, capfd):
    """transformers fills what it does not find with random numbers and prints a page."""
    shutil.copytree(saved / "text", audiocraft / "t5-base")
    said = "conditioners: {description: {t5: {name: t5-base}}}"
    torch.save({"best_state": {"x": torch.zeros(3)}, "xp.cfg": said}, audiocraft / "state_dict.bin")
    refusal(lambda: load(audiocraft), str(audiocraft))
    assert len(capfd.readouterr().err.splitlines()) < 3


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("meldy", "'melody'"),
        ("melody-lrge", "'melody-large'"),
        ("Small", "'small'"),
        ("musicgen-small", "'small'"),
        ("stereo_medium", "'stereo-medium'"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, nearest):
    refusal(lambda: MusicGen.get_pretrained(name), repr(name), nearest)


@pytest.mark.parametrize("name", ["", "   ", None, 5, b"nano", "xyzzy"])
def test_what_is_no_name_is_refused(name):
    refusal(lambda: MusicGen.get_pretrained(name), repr(name))


def test_a_file_is_not_a_folder(folder):
    refusal(lambda: load(folder / "model.safetensors"), "model.safetensors", "folder")


def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path):
    refusal(lambda: load(tmp_path / "nope"), "nope", "no folder", kinds=(ValueError, FileNotFoundError))


def test_an_empty_folder_says_what_should_be_in_it(tmp_path):
    refusal(lambda: load(tmp_path), "config.json", "state_dict.bin", kinds=FileNotFoundError)


@pytest.mark.parametrize("name", ["small", "facebook/musicgen-melody", "someone/something"])
def test_without_a_network_the_command_is_named(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    sentence = refusal(
        lambda: MusicGen.get_pretrained(name), "python -m mgkit fetch", kinds=FileNotFoundError
    )
    assert name.split("/")[-1] in sentence


def test_a_device_that_is_not_here_is_refused(folder):
    kinds = (ValueError, RuntimeError, AssertionError)
    refusal(lambda: MusicGen.get_pretrained(str(folder), device="gpu"), "gpu", kinds=kinds)
    if not torch.cuda.is_available():
        refusal(lambda: MusicGen.get_pretrained(str(folder), device="cuda"), kinds=kinds)


# --- disks --------------------------------------------------------------------------------------------------


def contents(folder):
    """Every file of the folder, hidden ones too, and what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def full_disk(free):
    """No file can grow past `free` bytes: the system refuses the write, as it does when the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def read_only(monkeypatch):
    """Nothing can be created, as on a disk that is mounted read-only (permissions do not bind root)."""
    real_open, real_mkdir = os.open, os.mkdir

    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))

    monkeypatch.setattr(
        os, "open", lambda p, f, *a, **k: refuse(p) if f & os.O_CREAT else real_open(p, f, *a, **k)
    )
    monkeypatch.setattr(os, "mkdir", lambda p, *a, **k: refuse(p))
    yield
    monkeypatch.setattr(os, "mkdir", real_mkdir)


FIRST = {"mgkit": "0.1.0", "licence": "MIT", "text": "first"}


@pytest.fixture(params=list(audio.FORMATS))
def recording(request, tmp_path):
    """A file that must survive."""
    return audio.write(tmp_path / f"a{request.param}", tune(0.1), RATE, manifest=FIRST)


@pytest.mark.parametrize(("seconds", "free"), [(0.1, 0), (0.1, 500), (1, 3000), (1, 7000), (5, 20000)])
def test_a_full_disk_leaves_the_earlier_recording(recording, seconds, free):
    before, wave = contents(recording.parent), noise(2, round(seconds * RATE))
    with full_disk(free):
        refusal(lambda: audio.write(recording, wave, RATE), recording.name, kinds=OSError)
    assert contents(recording.parent) == before
    assert audio.read_manifest(recording)["text"] == "first"


def test_a_disk_with_no_room_for_the_manifest_leaves_the_earlier_recording(recording):
    before = contents(recording.parent)
    with full_disk(20000):
        refusal(
            lambda: audio.write(recording, tune(0.1), RATE, manifest=FIRST | {"prompt": "Ab+/" * 9999}),
            recording.name,
            kinds=OSError,
        )
    assert contents(recording.parent) == before


def test_a_read_only_disk_leaves_the_earlier_recording(recording, read_only):
    before = contents(recording.parent)
    refusal(lambda: audio.write(recording, noise(2, RATE), RATE), "ead-only", kinds=OSError)
    assert contents(recording.parent) == before


def test_a_disk_that_fills_at_the_last_moment_leaves_the_earlier_recording(recording, monkeypatch):
    before = contents(recording.parent)

    def replace(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    monkeypatch.setattr(os, "replace", replace)
    refusal(lambda: audio.write(recording, noise(2, RATE), RATE), recording.name, kinds=OSError)
    assert contents(recording.parent) == before


@pytest.mark.parametrize("free", [0, 500, 20000])
def test_a_full_disk_leaves_the_earlier_weights(models, folder, free):
    before = contents(folder)
    with full_disk(free):
        refusal(lambda: models["melody"].save_pretrained(folder), str(folder), kinds=OSError)
    assert contents(folder) == before
    load(folder)


def test_a_read_only_disk_leaves_the_earlier_weights(models, folder, read_only):
    before = contents(folder)
    refusal(lambda: models["melody"].save_pretrained(folder), str(folder), kinds=OSError)
    assert contents(folder) == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_an_interrupted_save_leaves_the_earlier_weights(models, folder, monkeypatch, part, error):
    before, model = contents(folder), models["melody"]

    def fail(*args, **kwargs):
        raise error

    if part == "weights":
        monkeypatch.setattr(safetensors.torch, "save_file", fail)
    else:
        monkeypatch.setattr(model.conditioner.text.tokenizer, "save_pretrained", fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        model.save_pretrained(folder)
    assert contents(folder) == before


def test_a_new_model_in_an_old_folder_is_whole(models, folder):
    models["melody"].save_pretrained(folder)
    assert load(folder).conditioner.melody_frames
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.aac", "a", "a.m4a", ".wav", "a.wav.txt", ""])
def test_an_ending_that_cannot_be_written_is_refused(tmp_path, name):
    refusal(lambda: audio.write(tmp_path / name if name else "", GOOD, RATE), ".wav", ".flac", ".ogg", ".mp3")
    assert not os.listdir(tmp_path)


def test_a_folder_that_is_missing_is_named(tmp_path):
    sentence = refusal(
        lambda: audio.write(tmp_path / "no" / "a.wav", GOOD, RATE), str(tmp_path / "no"), kinds=OSError
    )
    assert "/." not in sentence, "names a draft, which is none of the user's business"


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.wav").mkdir()
    refusal(lambda: audio.write(tmp_path / "a.wav", GOOD, RATE), "a.wav", kinds=(OSError, ValueError))
    refusal(lambda: audio.read(tmp_path / "a.wav"), "a.wav", kinds=(OSError, ValueError))
    assert os.listdir(tmp_path) == ["a.wav"]


@pytest.mark.parametrize(
    "case", [case for case in BAD_WAVES if case not in ("no waves", "too many", "one too deep")]
)
def test_what_is_no_wave_is_not_written(tmp_path, case):
    wave, words = BAD_WAVES[case]
    refusal(lambda: audio.write(tmp_path / "a.wav", wave, RATE), *([] if isinstance(wave, tuple) else words))
    assert not os.listdir(tmp_path)


def test_a_batch_is_not_written_as_one_file(tmp_path):
    refusal(lambda: audio.write(tmp_path / "a.wav", GOOD[None], RATE), "[1, 1, ", "channels")


@pytest.mark.parametrize("strategy", ["loudness", "peak"])
@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, "32000", None])
def test_nothing_is_written_at_a_rate_that_is_none(tmp_path, rate, strategy):
    refusal(lambda: audio.write(tmp_path / "a.wav", GOOD, rate, strategy), "sample rate", str(rate))
    assert not os.listdir(tmp_path)


def test_a_rate_that_mp3_lacks_is_refused(tmp_path):
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


def test_a_file_that_is_not_there_is_named(tmp_path):
    for look in (audio.read, audio.read_manifest):
        refusal(lambda look=look: look(tmp_path / "no.wav"), "no.wav", kinds=FileNotFoundError)


def test_a_file_without_samples_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((0, 1)), RATE)
    refusal(lambda: audio.read(tmp_path / "a.wav"), "no samples")


# --- manifests ----------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(text):
    text.generate_continuation(GOOD, RATE, ["calm"], seed=3)
    return text.manifests[0]


@pytest.mark.parametrize("ending", list(audio.FORMATS))
def test_a_file_that_does_not_say_how_it_was_made_is_refused(tmp_path, ending):
    for comment in (None, "recorded at home", "[]", '{"title": "song"}', "{"):
        form, encoding = audio.FORMATS[ending]
        with soundfile.SoundFile(tmp_path / f"a{ending}", "w", RATE, 1, encoding, format=form) as file:
            if comment:
                file.comment = comment
            file.write(GOOD.T.numpy())
        refusal(lambda: audio.read_manifest(tmp_path / f"a{ending}"), f"a{ending}", "how it was made")


BAD_VALUES = {
    "weights": [..., None, 5],
    "settings": [..., None, 5, "x", []],
    "text": [..., 5, [], {}],
    "negative": [..., 5, []],
    "seed": [..., None, "x", [], {}, -1, 2**70],
    "melody": [..., None, 5, "x", [], {"x": "eJw="}, {"0": "eJw="}, {"0": 5}],
    "prompt": [..., None, 5, "x", [], "eJw=", "eJwDAAAAAAE="],
    "frames": ["x", [], {}, 5, -1],
    "tokens": [..., None, 5, "x"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, bad in BAD_VALUES.items() for value in bad])
def test_a_broken_manifest_is_refused(text, manifest, key, value):
    broken = {
        name: value if name == key else was for name, was in manifest.items() if (name, value) != (key, ...)
    }
    assert broken != manifest
    refusal(lambda: text.replay(broken))


@pytest.mark.parametrize("manifest", [None, {}, [], "calm", {"mgkit": "9.9"}])
def test_what_is_no_manifest_is_refused(text, manifest):
    refusal(lambda: text.replay(manifest))


def test_a_manifest_with_an_unknown_setting_is_refused_by_name(text, manifest):
    settings = manifest["settings"] | {"reverb": 1}
    refusal(lambda: text.replay(manifest | {"settings": settings}), "reverb")


def test_a_manifest_of_other_weights_is_refused(melody, stereo, manifest):
    for model in (melody, stereo):
        refusal(lambda model=model: model.replay(manifest), "weights")


def test_replaying_what_was_refused_leaves_the_last_run(text, manifest):
    before = text.manifests
    refusal(lambda: text.replay(manifest | {"weights": "other"}))
    assert text.manifests is before


if sys.platform == "win32":
    pytest.skip("the limits that stand for a full disk are POSIX", allow_module_level=True)
