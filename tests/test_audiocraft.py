"""mgkit computes the numbers of the reference implementation, audiocraft 1.3.0, without depending on it.

The reference's numbers are in `golden/`, made by `golden/make_golden.py` on tiny models whose weights are a
formula (`golden/filling.py`); most tests load those models from a folder in audiocraft's own layout. Where
mgkit differs on purpose, a test says how.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import filling
from torch import Tensor, nn

from mgkit import MusicGen, audio, checkpoint, hub
from mgkit.codec import Codec
from mgkit.delay import delay, delays, undelay
from mgkit.generate import windows
from mgkit.lm import Condition
from mgkit.melody import chroma, classes, rotate
from mgkit.sampling import probabilities

TENSORS, FACTS = filling.golden()
PAIR = [filling.CHOIR, filling.FLUTE]


class FilledText(nn.Module):
    """The text encoder of `make_golden.py`, in place of T5."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        rows = [torch.from_numpy(filling.text_vectors(text, self.dim)) for text in texts]
        longest = max(len(row) for row in rows)
        mask = [[i < len(row) and text != "" for i in range(longest)] for row, text in zip(rows, texts)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0), torch.tensor(mask)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small for more, and sums come out in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], MusicGen]:
    """Loads the filled model of a kind, once."""

    @cache
    def model(kind: str) -> MusicGen:
        folder = filling.audiocraft_folder(tmp_path_factory.mktemp(kind), kind)
        made = MusicGen.get_pretrained(str(folder), device="cpu")
        made.conditioner.text = FilledText(made.conditioner.text.dim)
        return made

    return model


@pytest.fixture(scope="module")
def load_codec(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Codec]:
    """Loads the filled codec of a name, once."""

    @cache
    def codec(name: str) -> Codec:
        folder = filling.audiocraft_folder(tmp_path_factory.mktemp(name), "small", codec=name)
        return checkpoint.load(str(folder), torch.device("cpu"), torch.float32).codec

    return codec


def close(actual: Tensor | np.ndarray, expected: str | np.ndarray, relative: float = 1e-5) -> bool:
    """Whether the largest difference is within `relative` of the largest value."""
    expected = TENSORS[expected] if isinstance(expected, str) else expected
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    return bool(np.abs(actual - expected).max() <= relative * np.abs(expected).max())


def under(prefix: str) -> list[str]:
    """Names of the arrays under `prefix`, sorted."""
    return sorted(name.removeprefix(prefix) for name in TENSORS if name.startswith(prefix))


def tunes(*backwards: bool) -> list[Tensor]:
    """The melody of 3 s, as it is or backwards."""
    tune = filling.tune(3.0)
    return [torch.from_numpy(tune[:, ::-1].copy() if back else tune) for back in backwards]


# --- the formulas -----------------------------------------------------------------------------------------


def test_weights_and_signals_equal_those_of_the_golden_run():
    assert filling.checksum() == pytest.approx(FACTS["checksum"], rel=1e-9)
    made = [filling.hum(4000), filling.tune(0.2), filling.burst(4000)]
    sums = [float(np.abs(wave).sum(dtype=np.float64)) for wave in made]
    assert sums == pytest.approx(FACTS["hum, tune, burst"], rel=1e-6)


def test_every_choice_in_the_golden_tokens_is_far_above_rounding():
    assert min(FACTS["margins"].values()) > 1e-4


# --- delay ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "channels"), [("mono", 1), ("stereo", 2)])
def test_delayed_steps_are_the_references(name, channels):
    steps = torch.from_numpy(TENSORS[f"delay/{name}"]).long()[None]
    shifts = delays(4 * channels, channels)
    codebooks, frames = len(shifts), FACTS[f"delay/{name}"]["frames"]
    numbered = (torch.arange(frames)[None] * codebooks + torch.arange(codebooks)[:, None] + 1)[None]
    assert list(shifts) == FACTS[f"delay/{name}"]["delays"]
    assert torch.equal(delay(numbered, shifts, special=0), steps)
    assert torch.equal(undelay(steps, shifts), numbered)


# --- codec ------------------------------------------------------------------------------------------------

CODES = [(name, int(n)) for name in filling.CODECS for n in under(f"codec/{name}/codes/")]
WAVES = [(name, int(n)) for name in filling.CODECS for n in under(f"codec/{name}/wave/")]


@pytest.mark.parametrize(("name", "samples"), CODES)
@torch.no_grad()
def test_codes_are_the_references_for_waves_of_any_length(load_codec, name, samples):
    codec = load_codec(name)
    wave = torch.from_numpy(filling.hum(samples, rate=codec.config.sample_rate))
    assert np.array_equal(codec.encode(wave[None])[0], TENSORS[f"codec/{name}/codes/{samples}"])


@pytest.mark.parametrize("name", filling.CODECS)
@torch.no_grad()
def test_latents_are_the_references(load_codec, name):
    codec = load_codec(name)
    (samples,) = under(f"codec/{name}/latent/")
    wave = torch.from_numpy(filling.hum(int(samples), rate=codec.config.sample_rate))
    assert close(codec.encoder(wave[None])[0], f"codec/{name}/latent/{samples}")


@pytest.mark.parametrize(("name", "frames"), WAVES)
@torch.no_grad()
def test_decoded_waves_are_the_references(load_codec, name, frames):
    codes = torch.from_numpy(filling.codes(f"decode {frames}", (1, 4, frames)))
    assert close(load_codec(name).decode(codes)[0], f"codec/{name}/wave/{frames}")


@torch.no_grad()
def test_stereo_is_coded_as_left_and_right_in_turn(load_codec):
    codec = load_codec("reflect")
    wave = torch.from_numpy(filling.hum(1580, channels=2))
    assert np.array_equal(codec.encode(wave[None])[0], TENSORS["codec/stereo/codes/1580"])
    codes = torch.from_numpy(filling.codes("decode stereo", (1, 8, 2)))
    assert close(codec.decode(codes, channels=2)[0], "codec/stereo/wave/2")


# --- language model ---------------------------------------------------------------------------------------


@torch.no_grad()
def conditioned(model: MusicGen, texts: list[str], melodies: list[Tensor | None] | None = None) -> Condition:
    """The condition of `texts` and `melodies`."""
    frames = model.conditioner.melody_frames
    grid = None
    if melodies is not None:
        grid = torch.zeros(len(texts), frames, dtype=torch.long)
        for row, wave in zip(grid, melodies):
            row[:] = 0 if wave is None else classes(wave, 32000, frames)
    return model.conditioner(model.conditioner.encode(texts), grid)


@pytest.mark.parametrize("kind", filling.KINDS)
@torch.no_grad()
def test_logits_are_the_references(load, kind):
    model = load(kind)
    codebooks = model.lm.config.codebooks
    steps = torch.from_numpy(filling.codes(f"logits {codebooks}", (2, codebooks, 9), card=33))
    melodies = [tunes(False)[0], None] if kind.endswith("melody") else None
    for name, condition in (
        ("logits", conditioned(model, PAIR, melodies)),
        ("logits without text", conditioned(model, ["", ""])),
    ):
        expected = TENSORS[f"lm/{kind}/{name}"]
        logits = model.lm(steps, condition)[:, :, -expected.shape[2] :]
        assert close(logits, expected), name


@torch.no_grad()
def test_logits_of_the_delayed_steps_are_the_predictions_that_the_reference_trains_on(load):
    """Of T frames the first T + 1 steps are fed; the last q frames of codebook q lie beyond them."""
    model = load("small")
    codes = torch.from_numpy(filling.codes("predictions", (2, 4, 7)))
    steps = delay(codes, delays(model.lm.config.codebooks, model.lm.config.channels), model.lm.config.special)
    logits = model.lm(steps[..., :8], conditioned(model, PAIR))
    expected = TENSORS["lm/small/predictions"]
    for q in range(4):
        inside = 7 - q
        assert np.isnan(expected[:, q, inside:]).all()
        assert close(logits[:, q, q:7], expected[:, q, :inside])


# --- generation -------------------------------------------------------------------------------------------

SAME = [
    (kind, case)
    for kind in filling.KINDS
    for case in under(f"lm/{kind}/tokens/")
    if case != "uneven batch" and (kind, case) != ("melody", "two steps")
]


def greedy(model: MusicGen, case: str, frames: int) -> tuple[Tensor, Tensor]:
    """Wave and tokens of a case of `make_golden.py`."""
    if case == "three windows":
        return three_windows(model, frames)
    model.set_generation_params(
        use_sampling=False,
        duration=frames / model.frame_rate,
        cfg_coef=1.0 if case == "guidance 1" else 3.0,
        two_step_cfg=case == "two steps",
    )
    if case == "unconditional":
        return model.generate_unconditional(1, return_tokens=True)
    if case == "continuation":
        prompts = torch.from_numpy(filling.prompts(model.audio_channels, model.sample_rate))
        return model.generate_continuation(prompts, model.sample_rate, PAIR, return_tokens=True)
    if case == "melody":
        return model.generate_with_chroma(PAIR, tunes(False, True), 32000, return_tokens=True)
    if case == "melody, no text":
        return model.generate_with_chroma([None], tunes(False), 32000, return_tokens=True)
    if case == "melody or none":
        return model.generate_with_chroma(PAIR, [*tunes(False), None], 32000, return_tokens=True)
    texts = {"long text": [filling.LONG], "uneven batch": [filling.CHOIR, filling.LONG]}.get(case, PAIR)
    return model.generate(texts, return_tokens=True)


def three_windows(model: MusicGen, frames: int) -> tuple[Tensor, Tensor]:
    """A piece in windows of 2 s that advance by 1.2 s, after a prompt or to a melody too short for it."""
    model.set_generation_params(use_sampling=False, duration=frames / model.frame_rate, extend_stride=1.2)
    model.max_duration = 2.0
    try:
        if model.conditioner.melody_frames:
            return model.generate_with_chroma(PAIR[:1], tunes(False), 32000, return_tokens=True)
        prompts = torch.from_numpy(filling.prompts())
        return model.generate_continuation(prompts, 32000, PAIR, return_tokens=True)
    finally:
        model.max_duration = 30.0


def same_start(tokens: Tensor, longer: np.ndarray) -> bool:
    """Whether 25 frames equal the first of a longer run, but for the last three.

    There, later codebooks see the special token where the longer run has the next frame of earlier ones.
    """
    return np.array_equal(tokens[..., :22], longer[..., :22])


@pytest.mark.parametrize(("kind", "case"), SAME)
def test_greedy_tokens_are_the_references(load, kind, case):
    expected = TENSORS[f"lm/{kind}/tokens/{case}"]
    _, tokens = greedy(load(kind), case, expected.shape[-1])
    assert np.array_equal(tokens, expected)


@pytest.mark.parametrize("kind", ["small", "stereo-small"])
def test_generated_waves_are_the_references(load, kind):
    wave, _ = greedy(load(kind), "text", 50)
    assert close(wave[:, :, ::64], f"lm/{kind}/wave/text", 1e-4)


@pytest.mark.parametrize("kind", ["small", "melody"])
def test_batch_mates_of_another_length_change_a_sample_in_the_reference_and_not_here(load, kind):
    reference = TENSORS[f"lm/{kind}/tokens/uneven batch"]
    short, long = TENSORS[f"lm/{kind}/tokens/text"][0], TENSORS[f"lm/{kind}/tokens/long text"][0]
    _, tokens = greedy(load(kind), "uneven batch", 25)
    assert same_start(tokens[0], short) and not same_start(reference[0], short)
    assert np.array_equal(tokens[1], long) and np.array_equal(reference[1], long)


def test_two_steps_of_guidance_give_the_tokens_of_one_though_the_reference_shortens_its_null_prefix(load):
    """The reference's null text is one zero vector in two steps, and as long as the text in one."""
    _, tokens = greedy(load("melody"), "two steps", 25)
    assert same_start(tokens, TENSORS["lm/melody/tokens/text"])
    assert not same_start(tokens, TENSORS["lm/melody/tokens/two steps"])


# --- windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan", FACTS["windows"], ids=lambda p: f"{p['duration']}s-{p['stride']}s-{p['prompt']}"
)
def test_windows_and_their_melody_are_the_references(plan):
    made = windows(round(plan["duration"] * 50), plan["prompt"], window=1500, stride=plan["stride"] * 50)
    expected = plan["windows"]
    assert [(w.known, w.end - w.start) for w in made] == [(w["prompt"], w["total"]) for w in expected]
    assert [w.end - w.start - w.known for w in made] == plan["frames from window"][1:]
    position = torch.arange(7 * 32000, dtype=torch.float32)[None]
    for window, heard in zip(made, expected):
        wave = position if plan["duration"] <= 30 else rotate(position, window.start * 640, 960000)
        assert [int(wave[0, 0]), int(wave[0, -1]), wave.shape[-1]] == heard["melody"]


@pytest.mark.parametrize("name", ["assertion", "one frame short"])
def test_durations_at_which_the_reference_fails_work(load, name):
    model = load("small")
    count, *seconds = FACTS["durations rounded down"][name]
    assert count >= len(seconds) > 0
    for duration in seconds:
        plan = windows(round(duration * model.frame_rate), 0, window=1500, stride=900)
        assert plan[-1].end == round(duration * 50) and all(w.end > w.start + w.known for w in plan)


# --- chroma -----------------------------------------------------------------------------------------------

MELODIES = {
    "3 s": filling.tune(3.0),
    "30 s": filling.tune(30.0),
    "40 s": filling.tune(40.0),
    "9001 samples": filling.tune(1.0)[:, :9001],
    "none": np.zeros((1, 1), np.float32),
    "3 s of silence": np.zeros((1, 96000), np.float32),
}


RAW = {
    "raw": filling.tune(2.0),
    "raw of 9001 samples": filling.tune(1.0)[:, :9001],
    "raw of a whisper": filling.tune(2.0) * np.float32(1e-5),
}


@pytest.mark.parametrize("name", RAW)
def test_chroma_is_the_references_however_short_or_quiet_the_wave(name):
    assert close(chroma(torch.from_numpy(RAW[name]), 32000).T, f"chroma/{name}")


@pytest.mark.parametrize("name", MELODIES)
def test_a_short_melody_repeats_a_long_one_is_cut_and_silence_is_class_0_as_in_the_reference(name):
    expected = TENSORS[f"chroma/grid/{name}"]
    assert np.array_equal(classes(torch.from_numpy(MELODIES[name]), 32000, 235), expected)


def test_a_melody_repeats_here_also_beside_a_longer_one(load):
    """The reference pads the waves of a batch with silence to the longest before it takes their chroma."""
    assert not np.array_equal(TENSORS["chroma/grid/3 s beside 6 s"], TENSORS["chroma/grid/3 s"])
    model = load("melody")
    model.set_generation_params(use_sampling=False, duration=0.5)
    both = [*tunes(False), torch.from_numpy(filling.tune(6.0))]
    _, tokens = model.generate_with_chroma([PAIR[0]] * 2, both, 32000, return_tokens=True)
    assert same_start(tokens[0], TENSORS["lm/melody/tokens/melody"][0])


# --- sampling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTS["sampling"])
def test_distributions_to_draw_from_are_the_references(name):
    options = dict(FACTS["sampling"][name])
    temperature = options.pop("temp", 1.0)
    made = probabilities(torch.from_numpy(TENSORS["sampling/logits"]), temperature, **options)
    expected = TENSORS[f"sampling/{name}"]
    assert np.array_equal(made > 0, expected > 0)
    assert close(made, expected)


# --- audio ------------------------------------------------------------------------------------------------

LEVELS = [fact for fact in FACTS["normalize"] if not fact["options"]]


@pytest.mark.parametrize("fact", LEVELS, ids=lambda f: f"{f['strategy']}-{f['channels']}-{f['level']}")
def test_levels_are_the_references(fact):
    wave = torch.from_numpy(filling.burst(32000, fact["channels"], fact["level"]))
    made = audio.normalize(wave, 32000, fact["strategy"])
    if fact["strategy"] == "loudness" and fact["level"] == 1.0:
        # The reference's meter clips a wave above full scale, finds it too quiet and makes it too loud.
        # Here it gets the level of the same wave at half the volume.
        loud, half = fact, ("loudness", fact["channels"], 0.5)
        fact = next(f for f in LEVELS if (f["strategy"], f["channels"], f["level"]) == half)
        assert loud["rms"] > 1.1 * fact["rms"]
    assert made.pow(2).mean().sqrt().item() == pytest.approx(fact["rms"], rel=1e-4)
    assert close(made[:, ::1999], fact["tensor"], 1e-4)


@pytest.mark.parametrize("fact", FACTS["resample"], ids=lambda f: str(f["rate"]))
def test_resampled_waves_are_close_to_the_references_and_no_sample_shorter(fact):
    rate, (start, end) = fact["rate"], fact["excerpt"]
    made = audio.resample(torch.from_numpy(filling.tune(0.5, rate=rate)), rate, 32000)
    assert close(made[0, start:end], f"resample/{rate}", 3e-3)
    for samples, shorter in zip((1000, 1001, 44101), fact["length of 1000, 1001, 44101 samples"]):
        length = audio.resample(torch.zeros(1, samples), rate, 32000).shape[-1]
        assert length == -(-samples * 32000 // rate) and length - shorter in (0, 1)


# --- checkpoints ------------------------------------------------------------------------------------------


def test_a_checkpoint_in_float16_loads_the_rounded_weights(load, tmp_path: Path):
    folder = filling.audiocraft_folder(tmp_path, "melody", half=True)
    half, full = MusicGen.get_pretrained(str(folder), device="cpu"), load("melody")
    for ours, theirs in zip(half.lm.parameters(), full.lm.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())
    fold = half.codec.decoder[0].weight, full.codec.decoder[0].weight
    assert close(fold[0], fold[1].numpy(), 1e-3)


def test_the_training_config_is_read_from_the_checkpoint(load, load_codec):
    assert load_codec("constant").config.pad_mode == "constant"
    assert load_codec("reflect").config.pad_mode == "reflect"
    said = {kind: load(kind) for kind in filling.KINDS}
    assert {kind: model.audio_channels for kind, model in said.items()} == {
        "small": 1, "melody": 1, "stereo-small": 2, "stereo-melody": 2, "audiogen": 1}  # fmt: skip
    assert [said[kind].max_duration for kind in ("small", "audiogen")] == [30, 10]
    assert [said[kind].sample_rate for kind in ("small", "audiogen")] == [32000, 16000]
    assert [said[kind].frame_rate for kind in ("small", "audiogen")] == [50, 50]
    assert {kind for kind, model in said.items() if model.conditioner.melody_frames == 235} == {
        "melody", "stereo-melody"}  # fmt: skip


@torch.no_grad()
def test_a_pointer_to_a_published_codec_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        sampling_rate=32000, audio_channels=1, num_filters=4, hidden_size=16, codebook_size=32,
        upsampling_ratios=[8, 5, 4, 4], use_causal_conv=False, use_conv_shortcut=False, normalize=False,
        norm_type="weight_norm", pad_mode="reflect", target_bandwidths=[1.0])  # fmt: skip
    published = EncodecModel(config).eval()
    published.save_pretrained(tmp_path / "published")
    asked = []
    monkeypatch.setattr(hub, "download", lambda hub_id: asked.append(hub_id) or tmp_path / "published")
    folder = filling.audiocraft_folder(tmp_path / "model", "small", pointer=True)
    codec = checkpoint.load(str(folder), torch.device("cpu"), torch.float32).codec
    assert asked == ["facebook/encodec_32khz"]
    wave = torch.from_numpy(filling.hum(3000))[None]
    assert torch.equal(codec.encode(wave), published.encode(wave, bandwidth=1.0).audio_codes[0])


@pytest.mark.parametrize("damage", ["missing", "unknown", "another shape"])
def test_a_checkpoint_with_a_wrong_tensor_is_refused_by_name(tmp_path: Path, damage: str):
    folder = filling.audiocraft_folder(tmp_path, "small")
    checkpoint = torch.load(folder / "state_dict.bin")
    state, name = checkpoint["best_state"], "transformer.layers.1.linear2.weight"
    if damage == "unknown":
        state["transformer.layers.1.layer_scale_1.scale"] = torch.ones(128)
        name = "transformer.layers.1.layer_scale_1.scale"
    elif damage == "missing":
        del state[name]
    else:
        state[name] = state[name][:, :-1].clone()
    torch.save(checkpoint, folder / "state_dict.bin")
    with pytest.raises(ValueError, match=name):
        MusicGen.get_pretrained(str(folder), device="cpu")
