"""Run the reference (audiocraft 1.3.0) on tiny filled models and write golden.npz and golden.json.

Only needed to make the files anew. In an environment with this project's packages and torchaudio:

    pip install --no-deps audiocraft==1.3.0 omegaconf antlr4-python3-runtime==4.9.3 einops julius
    python tests/golden/make_golden.py

audiocraft pins packages that no longer install. What its models need of them is little, so `stub_packages`
puts stand-ins into `sys.modules`: xformers' `unbind`, and a Demucs that hands back the mix as it came.
T5 is replaced by `filling.text_vectors`; everything else, projections and masks included, is the reference's
own code, its own builders and loaders, run on folders written by `filling.audiocraft_folder`.
"""

import json
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filling
import numpy as np
import torch

TENSORS: dict[str, np.ndarray] = {}
FACTS: dict[str, Any] = {}


# ---------------------------------------------------------------------------------------------- stand-ins


def stub_packages() -> None:
    """Puts minimal stand-ins for the packages that audiocraft imports and the models here hardly use."""

    def module(name: str, **members: Any) -> types.ModuleType:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, sys.modules[name])
        return sys.modules[name]

    class Profiler:
        _CURRENT_PROFILER = None

    class Demucs(torch.nn.Module):
        """A separator whose `other` stem is the whole mix: chroma is then taken of the wave as it is."""

        sources = ["drums", "bass", "other", "vocals"]
        samplerate, audio_channels = 32000, 1

    def apply_model(model: Demucs, wave: torch.Tensor, device: Any = None) -> torch.Tensor:
        stems = wave.new_zeros(len(wave), 4, *wave.shape[1:])
        stems[:, 2] = wave
        return stems

    def convert_audio(wave: torch.Tensor, old: int, new: int, channels: int) -> torch.Tensor:
        assert old == new and wave.shape[-2] == channels
        return wave

    module("flashy")
    module("flashy.distrib", broadcast_tensors=None)
    module("xformers")
    module("xformers.ops", unbind=torch.unbind, memory_efficient_attention=None, LowerTriangularMask=object)
    module("xformers.profiler")
    module("xformers.profiler.profiler", _Profiler=Profiler)
    module("av")
    module("spacy")
    module("num2words", num2words=None)
    module("demucs")
    module("demucs.pretrained", get_model=lambda name: Demucs())
    module("demucs.apply", apply_model=apply_model)
    module("demucs.audio", convert_audio=convert_audio)
    module("audiocraft.models.multibanddiffusion", MultiBandDiffusion=None)  # would import all the trainers


stub_packages()

from audiocraft.data import audio_utils  # noqa: E402
from audiocraft.models import builders, loaders  # noqa: E402
from audiocraft.models.audiogen import AudioGen  # noqa: E402
from audiocraft.models.encodec import InterleaveStereoCompressionModel  # noqa: E402
from audiocraft.models.musicgen import MusicGen  # noqa: E402
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # noqa: E402
from audiocraft.modules.conditioners import T5Conditioner, TextConditioner, WavCondition  # noqa: E402
from audiocraft.quantization.core_vq import EuclideanCodebook  # noqa: E402
from audiocraft.utils import utils  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402


class FilledT5(T5Conditioner):
    """The reference's T5 conditioner with `filling.text_vectors` for tokenizer and encoder.

    `forward`, that is projection and mask, is inherited. Padding is filled with noise: the mask must hide it.
    """

    def __init__(self, name: str, output_dim: int, finetune: bool, device: str, **ignored: Any) -> None:
        TextConditioner.__init__(self, self.MODELS_DIMS[name], output_dim)
        self.finetune, self.autocast = False, torch.autocast("cpu", enabled=False)
        self.t5 = self.encode

    def tokenize(self, x: list[str | None]) -> dict[str, Any]:
        texts = [text or "" for text in x]
        lengths = [len(filling.words(text)) for text in texts]
        mask = torch.tensor([[i < n for i in range(max(lengths))] for n in lengths]).long()
        mask[[i for i, text in enumerate(texts) if text == ""]] = 0
        return {"texts": texts, "attention_mask": mask}

    def encode(self, texts: list[str], attention_mask: torch.Tensor) -> types.SimpleNamespace:
        hidden = torch.from_numpy(filling.fill("padding", (*attention_mask.shape, self.dim)))
        for row, text in zip(hidden, texts):
            vectors = torch.from_numpy(filling.text_vectors(text, self.dim))
            row[: len(vectors)] = vectors
        return types.SimpleNamespace(last_hidden_state=hidden)


builders.T5Conditioner = FilledT5


# ---------------------------------------------------------------------------------------------- bookkeeping


def keep(name: str, tensor: Any) -> None:
    """Stores a tensor under a new name; integers as small as they fit."""
    array = np.asarray(tensor)
    if array.dtype.kind in "iu":
        array = array.astype(np.int8 if np.abs(array).max(initial=0) < 128 else np.int16)
    assert name not in TENSORS and array.dtype != np.float64, name
    assert array.dtype.kind != "f" or np.isfinite(array[~np.isnan(array)]).all(), name
    TENSORS[name] = array


@contextmanager
def margins(name: str, owner: Any, function: str, scores: Callable) -> Iterator[None]:
    """Notes in FACTS the smallest gap between best and second score while `owner.function` chooses.

    Far above float32 noise it means that equal tokens can be demanded of another implementation.
    """
    original, gaps = getattr(owner, function), []

    def watched(*args: Any, **kwargs: Any) -> Any:
        best = scores(*args).topk(2, dim=-1).values
        gaps.append((best[..., 0] - best[..., 1]).min().item())
        return original(*args, **kwargs)

    setattr(owner, function, watched)
    try:
        yield
    finally:
        setattr(owner, function, original)
    FACTS.setdefault("margins", {})[name] = round(min(gaps), 5)
    assert min(gaps) > 1e-4, f"{name}: two choices are only {min(gaps)} apart; change its input"


def wave(array: np.ndarray) -> torch.Tensor:
    """One sample as a batch: [1, C, N]."""
    return torch.from_numpy(array)[None]


# ---------------------------------------------------------------------------------------------- the parts


def shapes() -> None:
    """Names and shapes of every state dict, from models built by the reference out of `xp.cfg`."""
    found = FACTS["shapes"] = {}
    for kind in filling.KINDS:
        config = OmegaConf.create(filling.lm_config(kind))
        config.device, config.dtype = "cpu", "float32"
        loaders._delete_param(config, "conditioners.self_wav.chroma_stem.cache_path")
        lm = builders.get_lm_model(config)
        found[kind] = [[name, list(tensor.shape)] for name, tensor in lm.state_dict().items()]
    for codec in filling.CODECS:
        config = OmegaConf.create(filling.codec_config(codec))
        config.device = "cpu"
        model = builders.get_compression_model(config)
        found[f"codec {codec}"] = [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()]


def delay() -> None:
    """Source of each step of the delayed sequence: frame * K + codebook + 1, or 0 for the special token."""
    for name, delays in (("mono", [0, 1, 2, 3]), ("stereo", [0, 0, 1, 1, 2, 2, 3, 3])):
        pattern = DelayedPatternProvider(len(delays), delays).get_pattern(6)
        numbered = torch.arange(6)[None] * len(delays) + torch.arange(len(delays))[:, None] + 1
        sequence, _, mask = pattern.build_pattern_sequence(numbered[None], special_token=0)
        assert torch.equal(mask, sequence[0] > 0)
        keep(f"delay/{name}", sequence[0])
        back, _, _ = pattern.revert_pattern_sequence(sequence, special_token=0)
        assert torch.equal(back[0], numbered)
        FACTS[f"delay/{name}"] = {
            "delays": delays,
            "frames": 6,
            "first step with frame": [pattern.get_first_step_with_timesteps(t) for t in range(6)],
        }


def codec(folder: Path) -> None:
    """Codes and waves of the three codecs: lengths of whole frames, of others, and below the padding."""
    for name in filling.CODECS:
        rate = 16000 if name == "audiogen" else 32000
        model = loaders.load_compression_model(filling.audiocraft_folder(folder / name, "small", codec=name))
        hop = rate // 50
        assert (model.frame_rate, model.sample_rate) == (50, rate)
        lengths = [3 * hop, 3 * hop + 1, 2 * hop - 7, 100, 3, 1] if name == "reflect" else [2 * hop + 77, 3]
        with margins(f"codec {name}", EuclideanCodebook, "quantize", distances):
            for n in lengths:
                codes, scale = model.encode(wave(filling.hum(n, rate=rate)))
                assert scale is None and codes.shape[-1] == -(-n // hop)
                keep(f"codec/{name}/codes/{n}", codes[0])
                if n == lengths[0]:
                    keep(f"codec/{name}/latent/{n}", model.encoder(wave(filling.hum(n, rate=rate)))[0])
        for frames in (4, 1) if name == "reflect" else (2,):
            tokens = torch.from_numpy(filling.codes(f"decode {frames}", (1, 4, frames)))
            sound = model.decode(tokens)
            assert sound.shape == (1, 1, frames * hop)
            keep(f"codec/{name}/wave/{frames}", sound[0])
        if name == "reflect":
            stereo = InterleaveStereoCompressionModel(model)
            codes, _ = stereo.encode(wave(filling.hum(2 * hop + 300, channels=2)))
            keep(f"codec/stereo/codes/{2 * hop + 300}", codes[0])
            tokens = torch.from_numpy(filling.codes("decode stereo", (1, 8, 2)))
            keep("codec/stereo/wave/2", stereo.decode(tokens)[0])


def distances(codebook: EuclideanCodebook, x: torch.Tensor) -> torch.Tensor:
    """The negative squared distances that `EuclideanCodebook.quantize` maximises."""
    return -torch.cdist(x.double(), codebook.embed.double()).square()


def language_models(folder: Path) -> None:
    """Logits, guided greedy tokens and waves of every kind of model, through the reference's own API."""
    for kind in filling.KINDS:
        model_class = AudioGen if kind == "audiogen" else MusicGen
        model = model_class.get_pretrained(str(filling.audiocraft_folder(folder / kind, kind)), device="cpu")
        k = model.lm.n_q
        logits(kind, model, k)
        greedy(kind, model, k)


def condition_tensors(model: MusicGen, texts: list[str | None], melodies: Any = None) -> dict:
    attributes, _ = model._prepare_tokens_and_attributes(texts, None, *([melodies] if melodies else []))
    provider = model.lm.condition_provider
    return provider(provider.tokenize(attributes))


def logits(kind: str, model: MusicGen, k: int) -> None:
    """Logits for given delayed codes [B, K, S], without guidance."""
    melody = "self_wav" in model.lm.condition_provider.conditioners
    tunes = [torch.from_numpy(filling.tune(3.0)), None] if melody else None
    steps = 9
    sequence = torch.from_numpy(filling.codes(f"logits {k}", (2, k, steps), card=33))
    tensors = condition_tensors(model, [filling.CHOIR, filling.FLUTE], tunes)
    out = model.lm(sequence, [], tensors)
    keep(f"lm/{kind}/logits", out if kind in ("small", "melody") else out[:, :, -2:])
    keep(
        f"lm/{kind}/logits without text",
        model.lm(sequence, [], condition_tensors(model, [None, ""]))[:, :, -2:],
    )
    if kind == "small":
        codes = torch.from_numpy(filling.codes("predictions", (2, k, 7)))
        predictions = model.lm.compute_predictions(codes, [], tensors)
        assert torch.equal(predictions.mask, ~predictions.logits.isnan().any(-1))
        keep(f"lm/{kind}/predictions", predictions.logits)


def greedy(kind: str, model: MusicGen, k: int) -> None:
    """Greedy tokens with guidance 3, [B, K, T]."""
    melody = kind.endswith("melody")
    pair = [filling.CHOIR, filling.FLUTE]
    short = [torch.from_numpy(filling.tune(3.0)), torch.from_numpy(filling.tune(3.0)[:, ::-1].copy())]

    def run(case: str, seconds: float, call: Callable, sound: bool = False, **settings: Any) -> None:
        model.set_generation_params(use_sampling=False, duration=seconds, **settings)
        with margins(f"{kind} {case}", torch, "argmax", lambda scores, **_: scores):
            audio, tokens = call(return_tokens=True)
        keep(f"lm/{kind}/tokens/{case}", tokens)
        if sound:
            keep(f"lm/{kind}/wave/{case}", audio[:, :, ::64].contiguous())
        distinct = len({tuple(frame) for frame in tokens[0].T.tolist()})
        print(f"{kind} {case}: {tuple(tokens.shape)}, {distinct} distinct frames in the first sample")

    run("text", 1.0, lambda **kw: model.generate(pair, **kw), sound=kind in ("small", "stereo-small"))
    run("long text", 0.5, lambda **kw: model.generate([filling.LONG], **kw))
    run("unconditional", 0.5, lambda **kw: model.generate_unconditional(1, **kw))
    if kind in ("small", "melody"):
        run("guidance 1", 0.5, lambda **kw: model.generate(pair, **kw), cfg_coef=1.0)
        run("two steps", 0.5, lambda **kw: model.generate(pair, **kw), two_step_cfg=True)
        # One word against eight in a batch: the reference lets the padding of the shorter be attended to.
        run("uneven batch", 0.5, lambda **kw: model.generate([filling.CHOIR, filling.LONG], **kw))
    prompt = torch.from_numpy(filling.prompts(model.audio_channels, model.sample_rate))
    run("continuation", 0.9, lambda **kw: model.generate_continuation(prompt, model.sample_rate, pair, **kw))
    if kind in ("small", "melody"):  # windows of 2 s that advance by 1.2 s
        model.max_duration, params = 2.0, {"extend_stride": 1.2}
        with_prompt = lambda **kw: model.generate_continuation(prompt, model.sample_rate, pair, **kw)  # noqa: E731
        with_melody = lambda **kw: model.generate_with_chroma(pair[:1], short[:1], 32000, **kw)  # noqa: E731
        run("three windows", 3.7, with_melody if melody else with_prompt, **params)
        model.max_duration = 30.0
    if melody:
        run("melody", 1.0, lambda **kw: model.generate_with_chroma(pair, short, 32000, **kw))
        run("melody, no text", 0.5, lambda **kw: model.generate_with_chroma([None], short[:1], 32000, **kw))
        run(
            "melody or none",
            0.5,
            lambda **kw: model.generate_with_chroma(pair, [short[0], None], 32000, **kw),
        )


def chroma(folder: Path) -> None:
    """Chroma of a tune, and the bin chosen in each of the 235 frames of the conditioning grid."""
    model = MusicGen.get_pretrained(str(filling.audiocraft_folder(folder / "melody", "melody")), device="cpu")
    conditioner = model.lm.condition_provider.conditioners["self_wav"]
    assert conditioner.chroma_len == 235
    extractor = conditioner.chroma
    gap = FACTS.setdefault("margins", {})

    def raw(sound: torch.Tensor) -> torch.Tensor:
        extractor.argmax = False
        try:
            return extractor(sound)
        finally:
            extractor.argmax = True

    def grid(sound: torch.Tensor) -> torch.Tensor:
        condition = WavCondition(sound, torch.tensor([sound.shape[-1]]), [32000], [None], [None])
        out = conditioner._get_wav_embedding(condition)
        assert out.shape == (1, 235, 12) and torch.equal(out.sum(-1), torch.ones(1, 235))
        return out[0].argmax(-1)

    keep("chroma/raw", raw(wave(filling.tune(2.0)))[0])
    keep("chroma/raw of 9001 samples", raw(wave(filling.tune(1.0)[:, :9001]))[0])
    keep(
        "chroma/raw of a whisper", raw(wave(filling.tune(2.0) * np.float32(1e-5)))[0]
    )  # below the norm's eps
    cases = {
        "3 s": wave(filling.tune(3.0)),
        "30 s": wave(filling.tune(30.0)),
        "40 s": wave(filling.tune(40.0)),
        "9001 samples": wave(filling.tune(1.0)[:, :9001]),
        "none": torch.zeros(1, 1, 1),
        "3 s of silence": torch.zeros(1, 1, 96000),
    }
    for name, sound in cases.items():
        keep(f"chroma/grid/{name}", grid(sound))
        if sound.any():
            best = raw(sound).topk(2, dim=-1).values
            gap[f"chroma {name}"] = round((best[..., 0] - best[..., 1]).min().item(), 5)
    # Two melodies in a batch: the shorter is followed by silence, not repeated.
    attributes, _ = model._prepare_tokens_and_attributes(
        [None, None], None, [torch.from_numpy(filling.tune(3.0)), torch.from_numpy(filling.tune(6.0))]
    )
    batch = model.lm.condition_provider.tokenize(attributes)["self_wav"]
    keep("chroma/grid/3 s beside 6 s", conditioner._get_wav_embedding(batch)[0].argmax(-1))


def windows(folder: Path) -> None:
    """Calls that the reference makes to its language model, here a stub, for pieces longer than 30 s."""
    model = MusicGen.get_pretrained(str(filling.audiocraft_folder(folder / "melody", "melody")), device="cpu")
    melody = torch.arange(7 * 32000, dtype=torch.float32)[None]  # a sample's value is its position
    plans = FACTS["windows"] = []
    cases = [(seconds, 18, prompt) for prompt in (0, 250) for seconds in (30, 30.5, 45, 60, 61)]
    for duration, stride, prompt in [*cases, (40, 25, 0), (30.5, 29, 0)]:
        calls: list[dict] = []

        def generate(
            given: Any, attributes: Any, max_gen_len: int, calls: list = calls, **_: Any
        ) -> torch.Tensor:
            tune, length, *_ = attributes[0].wav["self_wav"]
            known = 0 if given is None else given.shape[-1]
            calls.append(
                {
                    "prompt": known,
                    "total": max_gen_len,
                    "new": max_gen_len - known,
                    "melody": [int(tune[0, 0, 0]), int(tune[0, 0, -1]), int(length)],
                }
            )
            new = torch.full((1, 4, max_gen_len - known), len(calls))
            return new if given is None else torch.cat([given, new], dim=-1)

        model.lm.generate = generate
        model.set_generation_params(duration=duration, extend_stride=stride)
        attributes, _ = model._prepare_tokens_and_attributes([None], None, [melody])
        tokens = model._generate_tokens(attributes, torch.zeros(1, 4, prompt).long() if prompt else None)
        plans.append(
            {
                "duration": duration,
                "stride": stride,
                "prompt": prompt,
                "windows": calls,
                "frames from window": torch.bincount(tokens[0, 0]).tolist(),
            }
        )
    refused, short = [], []
    model.lm.generate = refusing
    for hundredths in range(3002, 6000, 2):
        model.set_generation_params(duration=hundredths / 100)
        attributes, _ = model._prepare_tokens_and_attributes([None], None, None)
        try:
            frames = model._generate_tokens(attributes, None).shape[-1]
        except AssertionError:
            refused.append(hundredths / 100)
        else:
            short += [hundredths / 100] if frames < hundredths / 2 else []
            assert frames in (hundredths / 2, hundredths / 2 - 1)
    FACTS["durations rounded down"] = {  # times in seconds times 50 are truncated, not rounded
        "tried": "30.02 to 59.98 by 0.02",
        "assertion": [len(refused), *refused[:5]],
        "one frame short": [len(short), *short[:5]],
    }


def refusing(prompt: torch.Tensor | None, _: Any, max_gen_len: int, **__: Any) -> torch.Tensor:
    """`LMModel.generate` reduced to what it asserts about lengths."""
    prompt = torch.zeros(1, 4, 0) if prompt is None else prompt
    assert prompt.shape[-1] < max_gen_len
    return torch.cat([prompt, torch.zeros(1, 4, max_gen_len - prompt.shape[-1])], dim=-1)


def loudness() -> None:
    """Gains, levels and some samples of `normalize_audio`, and what it does to quiet sound."""
    facts = FACTS["normalize"] = []
    for channels in (1, 2):
        for level in (1.0, 0.5, 0.05):
            sound = torch.from_numpy(filling.burst(32000, channels, level))
            for strategy, options in [
                ("clip", {}),
                ("peak", {}),
                ("peak", {"normalize": False}),
                ("rms", {}),
                ("rms", {"normalize": False}),
                ("loudness", {}),
                ("loudness", {"loudness_compressor": True}),
                ("loudness", {"loudness_headroom_db": 20}),
            ]:
                out = audio_utils.normalize_audio(
                    sound.clone(), strategy=strategy, sample_rate=32000, **options
                )
                name = f"normalize/{len(facts)}"
                keep(name, out[:, ::1999].contiguous())
                facts.append(
                    {
                        "tensor": name,
                        "channels": channels,
                        "level": level,
                        "strategy": strategy,
                        "options": options,
                        "rms": out.pow(2).mean().sqrt().item(),
                        "peak": out.abs().max().item(),
                    }
                )
    # The filters inside torchaudio's meter clip at 1: a wave with a peak above that measures too quiet.
    meter = audio_utils.torchaudio.transforms.Loudness(32000)
    FACTS["lufs"] = [
        {"channels": c, "level": v, "lufs": meter(torch.from_numpy(filling.burst(32000, c, v))).item()}
        for c in (1, 2)
        for v in (1.0, 0.5, 0.05)
    ]
    whisper = torch.from_numpy(filling.burst(32000, 1, 0.001))
    assert torch.equal(audio_utils.normalize_audio(whisper, strategy="loudness", sample_rate=32000), whisper)


def resampling() -> None:
    """A tune taken from other rates to 32 kHz by julius; lengths are rounded down."""
    facts = FACTS["resample"] = []
    for rate in (44100, 48000, 16000, 22050):
        sound = torch.from_numpy(filling.tune(0.5, rate=rate))
        out = audio_utils.convert_audio(sound, rate, 32000, 1)
        keep(f"resample/{rate}", out[0, 8000:8200].clone())
        odd = [
            audio_utils.convert_audio(torch.zeros(1, n), rate, 32000, 1).shape[-1]
            for n in (1000, 1001, 44101)
        ]
        facts.append({"rate": rate, "excerpt": [8000, 8200], "length of 1000, 1001, 44101 samples": odd})


def sampling(folder: Path) -> None:
    """The distributions that the reference draws from, [B, K, V]: its own code up to `multinomial`."""
    lm = loaders.load_lm_model(str(filling.audiocraft_folder(folder / "small", "small")))
    given = torch.from_numpy(filling.fill("sampling", (2, 4, 1, 32)).copy() * 6)
    given[0, 0, 0, 3:9] = 2.5  # ties, some of them at the edge of the top five
    keep("sampling/logits", given[:, :, 0])
    lm.__dict__["_fsdp"] = lambda *_, **__: given
    cases = {
        "plain": {},
        "temperature 0.7": {"temp": 0.7},
        "top 5": {"top_k": 5},
        "top 1": {"top_k": 1},
        "top 5, temperature 1.3": {"top_k": 5, "temp": 1.3},
        "top p 0.8": {"top_p": 0.8},
        "top p 0.3": {"top_p": 0.3},
        "top p 0.9, temperature 0.6": {"top_p": 0.9, "temp": 0.6},
        "top p 0.8 and top 2": {"top_p": 0.8, "top_k": 2},
    }
    original = utils.multinomial
    for name, options in cases.items():
        seen: list[torch.Tensor] = []

        def draw(probs: torch.Tensor, num_samples: int, seen: list = seen) -> torch.Tensor:
            seen.append(probs.clone())
            return original(probs, num_samples)

        utils.multinomial = draw
        lm._sample_next_token(torch.zeros(2, 4, 1), {}, {}, use_sampling=True, **options)
        utils.multinomial = original
        (probs,) = seen
        if "top_p" in options:  # drawn in sorted order; back to the order of the tokens
            order = torch.softmax(given[:, :, 0] / options.get("temp", 1.0), dim=-1).sort(
                dim=-1, descending=True
            )[1]
            probs = torch.zeros_like(probs).scatter(-1, order, probs)
        keep(f"sampling/{name}", probs)
    FACTS["sampling"] = cases


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    FACTS["made with"] = {
        "audiocraft": "1.3.0",
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
    }
    FACTS["checksum"] = filling.checksum()
    FACTS["hum, tune, burst"] = [
        float(np.abs(made).sum(dtype=np.float64))
        for made in (filling.hum(4000), filling.tune(0.2), filling.burst(4000))
    ]
    shapes()
    here = filling.HERE
    (here / "golden.json").write_text(
        json.dumps(FACTS), encoding="utf-8"
    )  # `audiocraft_folder` reads the shapes from here
    if not (here / "golden.npz").exists():
        np.savez(here / "golden.npz")
    filling.golden.cache_clear()
    delay()
    resampling()
    loudness()
    with tempfile.TemporaryDirectory() as folder:
        sampling(Path(folder))
        codec(Path(folder))
        chroma(Path(folder))
        windows(Path(folder))
        language_models(Path(folder))
    np.savez_compressed(here / "golden.npz", **TENSORS)
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in FACTS.items()]
    (here / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
