"""mgkit computes the same as transformers from the same weights: CPU, float32, random, several shapes.

Every test prints the largest difference that it saw: `pytest tests/test_transformers.py -rP | grep largest`.
The slow ones take the true shapes of the published models.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from tiny import CODEC, RATE, codec, noise, oracle_run, scattered, t5, tiny, tokenizer, tune
from torch import Tensor, nn
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyFeatureExtractor,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

from mgkit import MusicGen, checkpoint, hub
from mgkit.codec import Codec, CodecConfig
from mgkit.condition import Conditioner
from mgkit.formats.layouts import hugging_face
from mgkit.lm import LM, LMConfig
from mgkit.melody import classes, one_hot
from mgkit.text import TextEncoder

FRAMES = 105
TEXTS = ["calm piano", "fast loud drums with a dark choir"]
EVEN = ["calm piano", "fast drums"]  # of one length: transformers does not mask the padding of a melody model
KINDS = {"text": (False, 1), "melody": (True, 1), "stereo-text": (False, 2), "stereo-melody": (True, 2)}

Pair = Callable[[str], tuple[MusicGen, PreTrainedModel, Path]]
Seen = Callable[[str, Tensor, Tensor, float], None]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tiny model of a kind, as saved by mgkit and loaded by mgkit and by transformers."""

    @cache
    def load(kind: str) -> tuple[MusicGen, PreTrainedModel, Path]:
        folder = tmp_path_factory.mktemp(kind)
        tiny(*KINDS[kind]).save_pretrained(folder)
        return (*both(folder), folder)

    return load


def both(folder: Path) -> tuple[MusicGen, PreTrainedModel]:
    """The model of a folder here and in transformers, which finds there all its weights and no others."""
    ours = MusicGen.get_pretrained(str(folder), "cpu")
    melody = ours.conditioner.melody_frames is not None
    kind = MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration
    oracle, told = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(told.values()), told
    return ours, oracle.eval()


@pytest.fixture
def seen(record_property: Callable[[str, object], None]) -> Seen:
    """Assert that two tensors differ by `most` at most, relative to the largest value or absolutely."""

    def compare(what: str, ours: Tensor, theirs: Tensor, most: float, relative: bool = False) -> None:
        assert ours.shape == theirs.shape
        assert theirs.std() > 0.02, "nothing to compare"
        difference = float((ours - theirs).abs().max() / (theirs.abs().max() if relative else 1))
        record_property(what, difference)
        print(f"largest difference, {what}: {difference:.1e}{' of the largest' if relative else ''}")
        assert difference <= most

    return compare


def greedy(model: MusicGen, duration: float = FRAMES / 50, **settings: object) -> None:
    model.set_generation_params(use_sampling=False, duration=duration, **settings)


def tokenized(model: MusicGen, texts: list[str]) -> dict[str, Tensor]:
    """The texts as inputs of transformers."""
    ids, mask = model.conditioner.text.tokens(texts)
    return {"input_ids": ids, "attention_mask": mask.long()}


def features(folder: Path, waves: Tensor) -> dict[str, Tensor]:
    """The melodies [B, C, N] as inputs of transformers."""
    extractor = MusicgenMelodyFeatureExtractor.from_pretrained(folder)
    return {"input_features": extractor(waves, sampling_rate=RATE, return_tensors="pt").input_features}


def melodies() -> Tensor:
    """Two melodies [2, 1, N] of 3 s."""
    return torch.stack([tune(3), tune(3, notes=(62, 61, 70, 65, 68))])


def test_transformers_is_new_enough_to_use_text_and_melody() -> None:
    """5.16, 5.17 and 4.57 ignore both in the melody model."""
    assert tuple(int(part) for part in version("transformers").split(".")[:2]) >= (5, 18)


# --- codec ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[CodecConfig], tuple[Codec, nn.Module]]:
    """A codec of that shape here and in transformers."""

    @cache
    def load(config: CodecConfig) -> tuple[Codec, nn.Module]:
        model, folder = tiny(), tmp_path_factory.mktemp("codec")
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model.model.codec = codec(config)
        model.save_pretrained(folder)
        ours, oracle = both(folder)
        oracle.audio_encoder.config.target_bandwidths = [bandwidth(config, keep) for keep in range(1, 5)]
        return ours.codec, oracle.audio_encoder

    return load


def bandwidth(config: CodecConfig, keep: int) -> float:
    """Kilobits in a second of `keep` codebooks, which is how transformers counts them."""
    return keep * config.frame_rate * (config.codebook_size - 1).bit_length() / 1000


@torch.no_grad()
def compare_codecs(
    ours: Codec, oracle: nn.Module, seen: Seen, lengths: tuple[int, ...], keeps: range
) -> None:
    """Codes are equal and waves within 1e-5: noise and a tune, several lengths, any number of codebooks."""
    name = f"codec, {ours.config.filters} filters, {ours.config.pad_mode}"
    there, back = [], []
    for samples in lengths:
        wave = torch.stack([noise(1, samples, seed=samples), tune(samples / RATE + 1)[:, :samples]])
        for keep in keeps:
            codes = ours.encode(wave, keep)
            theirs = oracle.encode(wave, bandwidth=bandwidth(ours.config, keep)).audio_codes
            assert codes.shape == (2, keep, -(-samples // ours.config.hop))
            assert torch.equal(codes, theirs[0])
            there.append(oracle.decode(theirs, [None]).audio_values.flatten())
            back.append(ours.decode(codes).flatten())
    seen(f"wave of {name}", torch.cat(back), torch.cat(there), 1e-5)


@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
def test_codec_gives_the_same_codes_and_waves(pad_mode: str, codecs: Callable, seen: Seen) -> None:
    ours, oracle = codecs(replace(CODEC, pad_mode=pad_mode))
    compare_codecs(ours, oracle, seen, (640, 641, 1300, 20_001), range(1, 5))


@pytest.mark.parametrize("samples", [1, 2, 3, 100, 639])
def test_codec_gives_the_same_codes_for_less_than_a_frame(samples: int, codecs: Callable) -> None:
    ours, oracle = codecs(CODEC)
    wave = noise(3, 1, samples)
    with torch.no_grad():
        assert torch.equal(
            ours.encode(wave), oracle.encode(wave, bandwidth=bandwidth(CODEC, 4)).audio_codes[0]
        )


@torch.no_grad()
def test_stereo_codes_are_transformers_left_and_right_in_turn(codecs: Callable, seen: Seen) -> None:
    ours, oracle = codecs(CODEC)
    wave = noise(2, 2, 20_000)
    codes = ours.encode(wave)
    for side in (0, 1):
        theirs = oracle.encode(wave[:, side : side + 1], bandwidth=bandwidth(CODEC, 4)).audio_codes
        assert torch.equal(codes[:, side::2], theirs[0])
        there = oracle.decode(theirs, [None]).audio_values[:, 0]
        seen("wave of the codec, stereo", ours.decode(codes, channels=2)[:, side], there, 1e-5)


# --- text and melody --------------------------------------------------------------------------------------


@torch.no_grad()
def test_text_vectors_are_the_same(pair: Pair, seen: Seen) -> None:
    ours, oracle, _ = pair("text")
    vectors, mask = ours.conditioner.text(TEXTS)
    theirs = oracle.text_encoder(**tokenized(ours, TEXTS)).last_hidden_state
    seen("text vectors", vectors[mask], theirs[mask], 1e-5)


@pytest.mark.parametrize("rate", [16_000, 32_000, 44_100])
@pytest.mark.parametrize("seconds", [0.0001, 0.01, 0.3, 0.512, 2.0, 10.0, 12.3])
def test_melodies_give_the_same_pitch_classes(seconds: float, rate: int) -> None:
    extractor = MusicgenMelodyFeatureExtractor(sampling_rate=rate, chunk_length=10)
    wave = tune(12.3, notes=(60, 64, 67, 69, 72, 71, 65, 61), channels=2)[:, : max(1, round(seconds * rate))]
    wave = wave + 0.02 * noise(*wave.shape)
    theirs = extractor(wave[None], sampling_rate=rate, return_tensors="pt").input_features[0]
    assert torch.equal(one_hot(classes(wave, rate, len(theirs))), theirs)


def test_silence_gives_the_same_pitch_class() -> None:
    theirs = MusicgenMelodyFeatureExtractor()(torch.zeros(1, 1, RATE), sampling_rate=RATE).input_features[0]
    assert torch.equal(one_hot(classes(torch.zeros(1, RATE), RATE, len(theirs))), theirs)


# --- language model ---------------------------------------------------------------------------------------


def random_steps(model: MusicGen, batch: int, length: int) -> Tensor:
    """Steps [B, K, S] of any token, the special one included."""
    config = model.lm.config
    generator = torch.Generator().manual_seed(3)
    return torch.randint(config.special + 1, (batch, config.codebooks, length), generator=generator)


def ours_of(model: MusicGen, steps: Tensor, texts: list[str], melody: Tensor | None = None) -> Tensor:
    """Our logits [B, K, S, V]."""
    return model.lm(steps, model.conditioner(model.conditioner.encode(texts), melody))


def theirs_of(oracle: PreTrainedModel, steps: Tensor, **inputs: Tensor) -> Tensor:
    """transformers' logits [B, K, S, V]; it gives some for the prefix, too."""
    logits = oracle(**inputs, decoder_input_ids=steps.flatten(0, 1)).logits
    return logits[:, -steps.shape[-1] :].unflatten(0, steps.shape[:2])


@pytest.mark.parametrize("kind", ["text", "stereo-text"])
@torch.no_grad()
def test_logits_of_a_padded_batch_of_texts_are_the_same(kind: str, pair: Pair, seen: Seen) -> None:
    ours, oracle, _ = pair(kind)
    steps = random_steps(ours, 2, 40)
    theirs = theirs_of(oracle, steps, **tokenized(ours, TEXTS))
    seen(f"logits, {kind}", ours_of(ours, steps, TEXTS), theirs, 1e-4, relative=True)


@pytest.mark.parametrize("kind", ["melody", "stereo-melody"])
@torch.no_grad()
def test_logits_after_a_melody_and_a_text_are_the_same(kind: str, pair: Pair, seen: Seen) -> None:
    ours, oracle, folder = pair(kind)
    steps, told = random_steps(ours, 2, 40), features(folder, melodies())
    heard = torch.stack([classes(wave, RATE, ours.conditioner.melody_frames) for wave in melodies()])
    theirs = theirs_of(oracle, steps, **tokenized(ours, EVEN), **told)
    seen(f"logits, {kind}", ours_of(ours, steps, EVEN, heard), theirs, 1e-4, relative=True)


@torch.no_grad()
def test_logits_of_a_padded_batch_of_melodies_are_those_of_each_alone(pair: Pair, seen: Seen) -> None:
    """Alone, because transformers does not mask the padding of a melody model."""
    ours, oracle, folder = pair("melody")
    steps, waves = random_steps(ours, 2, 40), melodies()
    heard = torch.stack([classes(wave, RATE, ours.conditioner.melody_frames) for wave in waves])
    alone = [
        theirs_of(oracle, steps[i : i + 1], **tokenized(ours, [text]), **features(folder, waves[i : i + 1]))
        for i, text in enumerate(TEXTS)
    ]
    seen("logits, melody, padded", ours_of(ours, steps, TEXTS, heard), torch.cat(alone), 1e-4, relative=True)


# --- greedy tokens ----------------------------------------------------------------------------------------


def assert_same_music(
    ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], seen: Seen, what: str
) -> None:
    assert len(ours[1].unique()) > 8, "too few tokens vary to compare"
    assert torch.equal(ours[1], theirs[1])
    seen(f"wave, {what}", ours[0], theirs[0], 1e-5)


@pytest.mark.parametrize("kind", ["text", "stereo-text"])
def test_greedy_tokens_for_texts_are_the_same(kind: str, pair: Pair, seen: Seen) -> None:
    ours, oracle, _ = pair(kind)
    greedy(ours, cfg_coef=3.0)
    theirs = oracle_run(oracle, FRAMES, guidance_scale=3.0, **tokenized(ours, TEXTS))
    assert_same_music(ours.generate(TEXTS, return_tokens=True), theirs, seen, kind)


@pytest.mark.parametrize("kind", ["melody", "stereo-melody"])
def test_greedy_tokens_for_melodies_are_the_same(kind: str, pair: Pair, seen: Seen) -> None:
    ours, oracle, folder = pair(kind)
    greedy(ours, cfg_coef=3.0)
    told = tokenized(ours, EVEN) | features(folder, melodies())
    theirs = oracle_run(oracle, FRAMES, guidance_scale=3.0, **told)
    assert_same_music(
        ours.generate_with_chroma(EVEN, melodies(), RATE, return_tokens=True), theirs, seen, kind
    )


def test_the_oracle_follows_text_and_melody(pair: Pair) -> None:
    """In versions of transformers which ignored both, an equal output proved nothing."""
    ours, oracle, folder = pair("melody")
    told = [
        tokenized(ours, [text]) | features(folder, wave[None])
        for text, wave in ((EVEN[0], melodies()[0]), (EVEN[1], melodies()[0]), (EVEN[0], melodies()[1]))
    ]
    tokens, other_text, other_melody = (
        oracle_run(oracle, 20, guidance_scale=3.0, **inputs)[1] for inputs in told
    )
    assert not torch.equal(tokens, other_text)
    assert not torch.equal(tokens, other_melody)


def test_greedy_tokens_of_a_melody_model_without_a_melody_are_the_same(pair: Pair, seen: Seen) -> None:
    ours, oracle, _ = pair("melody")
    greedy(ours, cfg_coef=3.0)
    theirs = oracle_run(oracle, FRAMES, guidance_scale=3.0, **tokenized(ours, EVEN))
    assert_same_music(ours.generate(EVEN, return_tokens=True), theirs, seen, "melody model, text only")


def test_greedy_tokens_without_guidance_are_the_same(pair: Pair, seen: Seen) -> None:
    ours, oracle, _ = pair("text")
    greedy(ours, cfg_coef=1.0)
    theirs = oracle_run(oracle, FRAMES, guidance_scale=1.0, **tokenized(ours, TEXTS))
    assert_same_music(ours.generate(TEXTS, return_tokens=True), theirs, seen, "text, unguided")


@pytest.mark.parametrize("kind", KINDS)
def test_unconditional_greedy_tokens_are_the_same(kind: str, pair: Pair, seen: Seen) -> None:
    ours, oracle, _ = pair(kind)
    greedy(ours)
    nothing = {
        "input_ids": torch.ones(1, 1, dtype=torch.long),
        "attention_mask": torch.zeros(1, 1, dtype=torch.long),
    }
    told = nothing if KINDS[kind][0] else oracle.get_unconditional_inputs(1)
    theirs = oracle_run(oracle, FRAMES, **dict(told) | {"guidance_scale": 1.0})
    assert_same_music(
        ours.generate_unconditional(1, return_tokens=True), theirs, seen, f"{kind}, unconditional"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_continuation_is_the_same(kind: str, pair: Pair, seen: Seen) -> None:
    """transformers encodes the prompt itself, but for its melody model, which wants codes."""
    ours, oracle, _ = pair(kind)
    prompt = torch.stack([tune(0.5, channels=KINDS[kind][1]), noise(KINDS[kind][1], RATE // 2)])
    greedy(ours, duration=0.5 + FRAMES / 50, cfg_coef=3.0)
    told: dict[str, object] = {"input_values": prompt, "padding_mask": torch.ones_like(prompt[:, 0])}
    if KINDS[kind][0]:
        told = {"decoder_input_ids": ours.codec.encode(prompt).flatten(0, 1)}
    theirs = oracle_run(oracle, FRAMES, guidance_scale=3.0, **tokenized(ours, EVEN), **told)
    made = ours.generate_continuation(prompt, RATE, EVEN, return_tokens=True)
    assert_same_music(made, theirs, seen, f"{kind}, continuation")


# --- folders ----------------------------------------------------------------------------------------------


def saved_by_transformers(folder: Path, melody: bool, channels: int) -> None:
    """A random MusicGen created and saved by transformers alone."""
    shape = {
        "vocab_size": 32,
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "ffn_dim": 256,
        "num_attention_heads": 2,
        "num_codebooks": 4 * channels,
        "audio_channels": channels,
        "pad_token_id": 32,
        "bos_token_id": 32,
    }
    text = t5().config
    audio = EncodecConfig(
        sampling_rate=RATE,
        target_bandwidths=[1.0],
        upsampling_ratios=[8, 5, 4, 4],
        num_filters=4,
        hidden_size=16,
        codebook_size=32,
        use_causal_conv=False,
        use_conv_shortcut=False,
        normalize=False,
        pad_mode="reflect",
    )
    if melody:
        decoder = MusicgenMelodyDecoderConfig(**shape)
        config = MusicgenMelodyConfig(
            text_encoder=text, audio_encoder=audio, decoder=decoder, chroma_length=79
        )
        model: PreTrainedModel = MusicgenMelodyForConditionalGeneration(config)
    else:
        config = MusicgenConfig(
            text_encoder=text, audio_encoder=audio, decoder=MusicgenDecoderConfig(**shape)
        )
        model = MusicgenForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and name.startswith(("decoder.", "enc_to_dec", "audio_enc_to")):
                parameter.normal_(std=1.4 if "embed_tokens" in name else 0.15)
            elif name.endswith("original0"):  # the gains of the codec's weight norm
                parameter.mul_(2.5)
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
    model.generation_config.decoder_start_token_id = model.generation_config.pad_token_id = 32
    model.generation_config.bos_token_id = 32
    model.generation_config.max_length = 500
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if melody:
        MusicgenMelodyFeatureExtractor().save_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_saved_by_transformers_loads_and_gives_the_same_tokens(
    kind: str, tmp_path: Path, seen: Seen
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        saved_by_transformers(tmp_path, *KINDS[kind])
    ours, oracle = both(tmp_path)
    assert ours.max_duration == 10 and ours.audio_channels == KINDS[kind][1]
    greedy(ours, cfg_coef=3.0)
    theirs = oracle_run(oracle, FRAMES, guidance_scale=3.0, **tokenized(ours, EVEN))
    assert_same_music(ours.generate(EVEN, return_tokens=True), theirs, seen, f"{kind}, saved by transformers")


def test_the_embedded_model_gives_the_same_tokens(seen: Seen) -> None:
    if not (hub.embedded() / "config.json").exists():
        pytest.skip("data/nano is not there")
    ours, oracle = both(hub.embedded())
    texts = ["calm piano with soft strings"]
    greedy(ours, cfg_coef=3.0)
    told = tokenized(ours, texts)
    theirs = oracle_run(oracle, FRAMES, guidance_scale=3.0, **told)
    assert_same_music(ours.generate(texts, return_tokens=True), theirs, seen, "nano, text")
    if ours.conditioner.melody_frames is not None:
        theirs = oracle_run(
            oracle, FRAMES, guidance_scale=3.0, **told, **features(hub.embedded(), melodies()[:1])
        )
        made = ours.generate_with_chroma(texts, melodies()[:1], RATE, return_tokens=True)
        assert_same_music(made, theirs, seen, "nano, melody")


# --- true shapes ------------------------------------------------------------------------------------------

SHAPES = {
    "small": LMConfig(),
    "medium": LMConfig(dim=1536, layers=48, heads=24, feed_forward=6144),
    "melody": LMConfig(dim=1536, layers=48, heads=24, feed_forward=6144, cross_attention=False),
    "large": LMConfig(dim=2048, layers=48, heads=32, feed_forward=8192),
}
T5 = T5Config(vocab_size=len(tokenizer()), d_model=768, d_ff=3072, num_layers=12, num_heads=12)
SMALL_CODEC = EncodecConfig(
    sampling_rate=RATE,
    target_bandwidths=[2.2],
    upsampling_ratios=[8, 5, 4, 4],
    num_filters=4,
    hidden_size=16,
    codebook_size=2048,
    use_causal_conv=False,
)
PUBLISHED = {
    "small": 0.3e9,
    "medium": 1.5e9,
    "melody": 1.5e9,
    "large": 3.3e9,
}  # arXiv:2306.05284, section 3.1


def oracle_of(config: LMConfig) -> PreTrainedModel:
    """transformers' model with a language model of that shape, without memory for its weights."""
    shape = {
        "vocab_size": config.codebook_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.dim,
        "ffn_dim": config.feed_forward,
        "num_attention_heads": config.heads,
        "num_codebooks": config.codebooks,
        "audio_channels": config.channels,
        "pad_token_id": config.special,
        "bos_token_id": config.special,
    }
    parts = {"text_encoder": T5, "audio_encoder": SMALL_CODEC}
    with torch.device("meta"):
        if config.cross_attention:
            return MusicgenForConditionalGeneration(
                MusicgenConfig(**parts, decoder=MusicgenDecoderConfig(**shape))
            )
        decoder = MusicgenMelodyDecoderConfig(**shape)
        return MusicgenMelodyForConditionalGeneration(MusicgenMelodyConfig(**parts, decoder=decoder))


def true_shape(kind: str) -> tuple[MusicGen, PreTrainedModel]:
    """A random model with the shapes of a published one, here and in transformers: one copy of the weights.

    The codecs are tiny, but for the size of their codebooks.
    """
    config = SHAPES[kind]
    text = TextEncoder(tokenizer(), T5EncoderModel(T5).eval())
    with torch.device("meta"):
        lm = LM(config)
    lm = scattered(lm.to_empty(device="cpu"))
    conditioner = Conditioner(text, config.dim, None if config.cross_attention else 235)
    ours = checkpoint.Model(codec(CodecConfig(filters=4, dim=16)), lm, conditioner)
    for part in (ours.codec, lm, conditioner):
        part.eval().requires_grad_(False)
    for parameter in conditioner.text_proj.parameters():
        parameter.mul_(0.1)  # louder, the text would drown what was played

    oracle = oracle_of(config)
    oracle.text_encoder, oracle.audio_encoder = text.t5, EncodecModel(SMALL_CODEC)
    state = {
        hugging_face(f"{part}.{name}"): parameter
        for part in ("lm", "conditioner")
        for name, parameter in getattr(ours, part).named_parameters()
    }
    told = oracle.load_state_dict(state, strict=False, assign=True)
    assert not told.unexpected_keys
    assert all(name.startswith(("audio_encoder", "text_encoder.encoder.embed")) for name in told.missing_keys)
    positions = oracle.decoder.model.decoder.embed_positions
    positions.weights = positions.get_embedding(*positions.weights.shape)
    settings = oracle.generation_config
    settings.decoder_start_token_id = settings.pad_token_id = settings.bos_token_id = config.special
    return MusicGen(ours), oracle.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "made"), [("small", 15), ("melody", 10)])
def test_true_shapes_give_the_same_logits_and_greedy_tokens(kind: str, made: int, seen: Seen) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        ours, oracle = true_shape(kind)
    steps, told, heard = random_steps(ours, 1, 8), tokenized(ours, TEXTS[:1]), None
    if kind == "melody":
        extractor = MusicgenMelodyFeatureExtractor()
        told |= {
            "input_features": extractor(
                tune(30)[None], sampling_rate=RATE, return_tensors="pt"
            ).input_features
        }
        heard = classes(tune(30), RATE, 235)[None]
    with torch.no_grad():
        theirs = theirs_of(oracle, steps, **told)
        seen(
            f"logits, {kind}, true shape", ours_of(ours, steps, TEXTS[:1], heard), theirs, 1e-4, relative=True
        )
    greedy(ours, duration=made / 50, cfg_coef=3.0)
    if kind == "melody":
        tokens = ours.generate_with_chroma(TEXTS[:1], tune(30), RATE, return_tokens=True)[1]
    else:
        tokens = ours.generate(TEXTS[:1], return_tokens=True)[1]
    assert len(tokens.unique()) > made
    assert torch.equal(tokens, oracle_run(oracle, made, guidance_scale=3.0, **told)[1])


@pytest.mark.slow
def test_true_codec_gives_the_same_codes_and_waves(codecs: Callable, seen: Seen) -> None:
    ours, oracle = codecs(CodecConfig())
    compare_codecs(ours, oracle, seen, (641, 50_001), range(2, 5, 2))


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes_have_as_many_parameters(name: str) -> None:
    """Exactly as many as in transformers and about as many as published; some sizes lack cross-attention."""
    with torch.device("meta"):
        ours = LM(SHAPES[name])
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in oracle_of(SHAPES[name]).decoder.parameters())
    across = sum(p.numel() for name, p in ours.named_parameters() if "cross" in name)
    print(f"{name}: {count:,} parameters, {across:,} of them for cross-attention")
    assert 0.92 * (count - across) < PUBLISHED[name] < 1.1 * count
