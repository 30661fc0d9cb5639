"""Weights, signals and checkpoint folders made by formula: golden numbers need none stored with them.

`make_golden.py` runs the reference implementation on these; the tests run mgkit on the same. A weight is a
function of its name and shape alone:

    fill(name, shape) = offset + scale * numpy.random.default_rng(crc32(name)).standard_normal(shape)

`golden.npz` holds what the reference computed, `golden.json` the names and shapes of its state dicts and
everything that is not a tensor. Nothing here needs the reference or mgkit.
"""

import json
import re
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml

HERE = Path(__file__).parent

KINDS = ("small", "melody", "stereo-small", "stereo-melody", "audiogen")
"""Tiny models with the settings of the released one of that name: width 128, 2 heads, 2 layers, 32 tokens."""

CODECS = ("reflect", "constant", "audiogen")
"""Tiny EnCodecs: 32 kHz with either padding mode, and one at 16 kHz. Width 16, 4 filters, 4 × 32 codes."""


# ---------------------------------------------------------------------------------------------- weights

# First pattern that matches the name wins. A scale of None is 1/sqrt(fan-in): shape[1:] multiplied.
RULES: tuple[tuple[str, float, float | None], ...] = (
    # pattern, offset, scale
    (r"_codebook\.inited$", 1.0, 0.0),
    (r"_codebook\.cluster_size$", 10.0, 1.0),
    (r"layers\.0\._codebook\.embed", 0.0, 0.5),  # each codebook is finer than the one before
    (r"layers\.1\._codebook\.embed", 0.0, 0.35),
    (r"layers\.2\._codebook\.embed", 0.0, 0.25),
    (r"layers\.3\._codebook\.embed", 0.0, 0.2),
    (r"convtr.*weight_g$", 2.0, 0.2),
    (r"weight_g$", 1.2, 0.1),
    (r"weight_v$", 0.0, 1.0),
    (r"norm(1|2|_cross)?\.weight$", 1.0, 0.1),
    (r"bias(_[ih]h_l\d)?$", 0.0, 0.1),
    (r"^emb\.", 0.0, 0.5),
    (r"^linears\.", 0.0, 0.15),
    (r"", 0.0, None),
)


def fill(name: str, shape: tuple[int, ...] | list[int]) -> np.ndarray:
    """The weight called `name`, float32: activations of the tiny models come out at about 1."""
    if name.endswith("chroma.spec.window"):  # a buffer, not a weight: the true periodic Hann window
        return np.hanning(shape[0] + 1)[:-1].astype(np.float32)
    offset, scale = next((o, s) for pattern, o, s in RULES if re.search(pattern, name))
    if scale is None:
        scale = float(np.prod(shape[1:])) ** -0.5
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return (offset + scale * noise).astype(np.float32)


def state(shapes: list) -> dict[str, torch.Tensor]:
    """The state dict with these (name, shape) pairs."""
    return {name: torch.from_numpy(fill(name, shape)) for name, shape in shapes}


def checksum() -> float:
    """A number that changes when numpy's generator, and with it every weight, does."""
    return float(np.abs(fill("emb.0.weight", (33, 128))).sum(dtype=np.float64))


# ---------------------------------------------------------------------------------------------- inputs

CHOIR = "a slow choir"  # as many words as FLUTE
FLUTE = "one bright flute"
LONG = "fast drums under a very distorted guitar"


def words(text: str) -> list[str]:
    """The pretended tokens: words and an end of sentence."""
    return [*text.split(), "</s>"]


def text_vectors(text: str, width: int = 768) -> np.ndarray:
    """What a T5 might have said of `text`: [L, width], L words and one end of sentence."""
    return np.stack([fill(f"{text} {i}", (width, 1))[:, 0] for i in range(len(words(text)))])


def hum(samples: int, channels: int = 1, rate: int = 32000) -> np.ndarray:
    """Tones and a little noise, [channels, samples]: something for a codec to encode."""
    t = np.arange(samples) / rate
    noise = np.random.default_rng(samples + channels).standard_normal((channels, samples))
    tone = [
        0.4 * np.sin(2 * np.pi * (220 + 110 * c) * t) + 0.2 * np.sin(2 * np.pi * 1375 * t + c)
        for c in range(channels)
    ]
    return (np.stack(tone) + 0.1 * noise).astype(np.float32)


def prompts(channels: int = 1, rate: int = 32000) -> np.ndarray:
    """Two sounds of 0.29 s to go on from, [2, channels, samples]: 15 frames, the last one half full."""
    one = hum(int(0.29 * rate), channels, rate)
    return np.stack([one, one[:, ::-1]])


TUNE = (60, 64, 67, 69, 72, 71, 65, 62, 66, 70, 68, 61, 63)
"""MIDI notes; every pitch class but none twice in a row."""


def tune(seconds: float, channels: int = 1, rate: int = 32000, note: float = 0.64) -> np.ndarray:
    """A melody, [channels, samples]: a note of TUNE every `note` seconds, with two overtones and a decay."""
    t = np.arange(round(seconds * rate)) / rate
    which = (t // note).astype(int) % len(TUNE)
    pitch = 440.0 * 2.0 ** ((np.array(TUNE)[which] - 69) / 12)
    since = t % note
    wave = sum(a * np.sin(2 * np.pi * k * pitch * since) for k, a in ((1, 0.5), (2, 0.2), (3, 0.05)))
    wave = wave * np.exp(-2 * since)
    return np.stack([wave * (1 - 0.5 * c) for c in range(channels)]).astype(np.float32)


def burst(samples: int, channels: int = 1, level: float = 1.0, rate: int = 32000) -> np.ndarray:
    """A swell with a peak of about 1.6 * level, [channels, samples]: something to normalise."""
    t = np.arange(samples) / rate
    envelope = 0.1 + 1.5 * np.sin(np.pi * t / t[-1]) ** 4
    wave = [
        level * envelope * np.sin(2 * np.pi * (330 + 200 * c) * t + c) * (1 - 0.3 * c)
        for c in range(channels)
    ]
    return np.stack(wave).astype(np.float32)


def codes(name: str, shape: tuple[int, ...], card: int = 32) -> np.ndarray:
    """Random tokens below `card`, int64."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, card, shape)


# ---------------------------------------------------------------------------------------------- golden files


@cache
def golden() -> tuple[dict[str, np.ndarray], dict]:
    """(tensors, everything else) as the reference computed them."""
    with np.load(HERE / "golden.npz") as arrays:
        tensors = {name: arrays[name] for name in arrays.files}
    return tensors, json.loads((HERE / "golden.json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------- checkpoints


def lm_config(kind: str) -> str:
    """`xp.cfg` of a language model: YAML with unresolved ${references}, as the released checkpoints carry it.

    Keys and values are those of the reference's `musicgen_base_32khz`, `musicgen_melody_32khz` and
    `audiogen_base_16khz` trainings, made small: what a loader needs and some of what it must pass over.
    """
    stereo, melody, audiogen = kind.startswith("stereo"), kind.endswith("melody"), kind == "audiogen"
    t5 = {
        "name": "t5-large" if audiogen else "t5-base",
        "finetune": False,
        "word_dropout": 0.3,
        "normalize_text": False,
    }
    chroma = {
        "sample_rate": "${sample_rate}",
        "n_chroma": 12,
        "radix2_exp": 14,
        "argmax": True,
        "match_len_on_eval": False,
        "eval_wavs": None,
        "n_eval_wavs": 100,
        "cache_path": "/a/cluster/caches/chroma_stem",
    }
    conditioners: dict = {"args": {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5}}
    if melody:
        conditioners["self_wav"] = {"model": "chroma_stem", "chroma_stem": chroma}
    conditioners["description"] = {"model": "t5", "t5": t5}
    config = {
        "device": "cuda",
        "dtype": "float32",
        "autocast": True,
        "autocast_dtype": "float16",
        "seed": 2036,
        "efficient_attention_backend": "torch",
        "solver": "audiogen" if audiogen else "musicgen",
        "sample_rate": 16000 if audiogen else 32000,
        "channels": 2 if stereo else 1,
        "compression_model_checkpoint": "//pretrained/facebook/encodec_32khz",
        "compression_model_n_q": None,
        "dataset": {"batch_size": 192, "segment_duration": 10 if audiogen else 30, "min_segment_ratio": 0.8,
                    "train": {"merge_text_p": 0.25, "drop_desc_p": 0.5, "drop_other_p": 0.5}},
        "generate": {"audio": {"format": "wav", "strategy": "loudness", "sample_rate": "${sample_rate}"},
                     "lm": {"use_sampling": True, "top_k": 250, "top_p": 0.0}},
        "optim": {"epochs": 500, "optimizer": "dadam", "lr": 1, "ema": {"use": True, "device": "cuda"}},
        "classifier_free_guidance": {"training_dropout": 0.2 if melody else 0.3, "inference_coef": 3.0},
        "attribute_dropout": {"args": {"active_on_eval": False}, "text": {}, "wav": {"self_wav": 0.5}}
                             if melody else {},
        "fuser": {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [],
                  "prepend": ["self_wav", "description"] if melody else [],
                  "cross": [] if melody else ["description"], "input_interpolate": []},
        "conditioners": conditioners,
        "lm_model": "transformer_lm",
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": [0, 0, 1, 1, 2, 2, 3, 3] if stereo else [0, 1, 2, 3],
                      "flatten_first": 0, "empty_initial": 0},
            "unroll": {"flattening": [0, 1, 2, 3], "delays": [0, 0, 0, 0]},
            "music_lm": {"group_by": 2}, "valle": {"delays": [0, 0, 0]}},
        "transformer_lm": {
            "dim": 128, "num_heads": 2, "num_layers": 2, "hidden_scale": 4, "n_q": 8 if stereo else 4,
            "card": 32, "dropout": 0.0, "emb_lr": None, "activation": "gelu", "norm_first": True,
            "bias_ff": False, "bias_attn": False, "bias_proj": False, "past_context": None, "causal": True,
            "custom": False, "memory_efficient": True, "attention_as_float32": False, "layer_scale": None,
            "positional_embedding": "sin", "xpos": False, "checkpointing": "torch",
            "weight_init": "gaussian", "depthwise_init": "current", "zero_bias_init": True,
            "norm": "layer_norm", "cross_attention": False, "qk_layer_norm": False,
            "qk_layer_norm_cross": False, "attention_dropout": None, "kv_repeat": 1, "two_step_cfg": False},
    }  # fmt: skip
    if stereo:
        config["interleave_stereo_codebooks"] = {"use": True, "per_timestep": False}
    return yaml.safe_dump(config, sort_keys=False)


def codec_config(codec: str) -> str:
    """`xp.cfg` of an EnCodec, with unresolved ${references}: `encodec_large_nq4_s640` made small."""
    config = {
        "device": "cuda",
        "dtype": "float32",
        "solver": "compression",
        "sample_rate": 16000 if codec == "audiogen" else 32000,
        "channels": 1,
        "dataset": {"batch_size": 64, "segment_duration": 1},
        "losses": {"adv": 4.0, "feat": 4.0, "l1": 0.1, "mel": 0.0, "msspec": 2.0, "sisnr": 0.0},
        "compression_model": "encodec",
        "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": "${sample_rate}",
                    "channels": "${channels}", "causal": False, "renormalize": False},
        "seanet": {"dimension": 16, "channels": "${channels}", "causal": "${encodec.causal}", "n_filters": 4,
                   "n_residual_layers": 1, "ratios": [8, 5, 4, 2] if codec == "audiogen" else [8, 5, 4, 4],
                   "activation": "ELU", "activation_params": {"alpha": 1.0}, "norm": "weight_norm",
                   "norm_params": {}, "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 7,
                   "dilation_base": 2, "pad_mode": "reflect" if codec == "reflect" else "constant",
                   "true_skip": True, "compress": 2, "lstm": 2, "disable_norm_outer_blocks": 0,
                   "decoder": {"trim_right_ratio": 1.0, "final_activation": None,
                               "final_activation_params": None},
                   "encoder": {}},
        "rvq": {"n_q": 4, "q_dropout": False, "bins": 32, "decay": 0.99, "kmeans_init": True,
                "kmeans_iters": 50, "threshold_ema_dead_code": 2, "orthogonal_reg_weight": 0.0,
                "orthogonal_reg_active_codes_only": False},
        "no_quant": {},
    }  # fmt: skip
    return yaml.safe_dump(config, sort_keys=False)


def t5_folder(path: str | Path, width: int) -> Path:
    """A T5 of the right width, with a tokenizer of no words, that takes up no room: random and untrained.

    audiocraft's checkpoints lack the T5 that they need, so a folder that must load offline holds one.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    config = T5Config(vocab_size=3, d_model=width, d_kv=4, d_ff=4, num_layers=1, num_heads=1)
    T5EncoderModel(config).save_pretrained(path)
    return Path(path)


def audiocraft_folder(
    path: str | Path, kind: str, *, half: bool = False, codec: str = "", pointer: bool = False
) -> Path:
    """A folder laid out as the reference publishes its models, with filled weights; no reference needed.

    `state_dict.bin` and `compression_state_dict.bin` are as its exporters write them; beside them lies a T5,
    under its name in `xp.cfg`.

        {best_state: {name: tensor}, xp.cfg: YAML, version: 1.3.0, exported: True}

    kind: one of KINDS. half: float16, as published. codec: one of CODECS; by default the kind's own.
    pointer: the codec's file only names a published one, {pretrained: facebook/encodec_32khz, …}.
    """
    shapes = golden()[1]["shapes"]
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    codec = codec or ("audiogen" if kind == "audiogen" else "reflect")

    def save(file: str, tensors: dict[str, torch.Tensor], config: str) -> None:
        best = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        torch.save(
            {"best_state": best, "xp.cfg": config, "version": "1.3.0", "exported": True}, folder / file
        )

    t5_folder(folder / ("t5-large" if kind == "audiogen" else "t5-base"), 1024 if kind == "audiogen" else 768)
    save("state_dict.bin", state(shapes[kind]), lm_config(kind))
    if pointer:
        reference = {"pretrained": "facebook/encodec_32khz", "exported": True, "version": "1.3.0"}
        torch.save(reference, folder / "compression_state_dict.bin")
    else:
        save("compression_state_dict.bin", state(shapes[f"codec {codec}"]), codec_config(codec))
    return folder
