"""The same model in audiocraft, the reference implementation, which `bench` times where it can be imported.

audiocraft 1.3.0 pins packages of 2023. It also runs beside the current ones, installed like this:

    pip install -c constraints.txt torchaudio av demucs einops flashy hydra-core julius
    pip install -c constraints.txt num2words spacy torchmetrics xformers
    pip install --no-deps audiocraft==1.3.0

Its own builders make the model, with the settings that `formats.variants` requires of a checkpoint; the
weights get the names in `formats.layouts`. Nothing is timed unless its logits equal mgkit's. This has run on
CPUs, and not on a GPU yet.
"""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from mgkit.bench.stopwatch import REFERENCE, TEXT, TIMED, Clock, differences, seconds, synchronize
from mgkit.condition import cat
from mgkit.delay import delays
from mgkit.formats.layouts import NOT_WEIGHTS, audiocraft
from mgkit.formats.variants import CHROMA_SECTION, CODEC_SECTIONS, LM_SECTIONS, SEANET_SECTION
from mgkit.model import Model
from mgkit.musicgen import MusicGen
from mgkit.packed import plain

if TYPE_CHECKING:
    from audiocraft.models import MusicGen as Theirs

LIMIT = {torch.float32: 1e-4, torch.float16: 3e-2}  # difference of logits, relative to the largest one


class Audiocraft:
    """audiocraft's `generate`, as its users call it, on the same weights.

    Raises: ImportError without audiocraft; RuntimeError for other logits than mgkit's.
    """

    def __init__(self, model: MusicGen, name: str, clock: Clock = time.perf_counter):
        self.model, self.device, self.name, self.clock = model, model.lm.device, name, clock
        self.theirs = in_audiocraft(model.model)
        found, limit = self.difference(), LIMIT[model.lm.dtype]
        if not found <= limit:
            raise RuntimeError(f"its logits differ from mgkit's by {found:.1e}, expected at most {limit:g}")
        # What fails here is reported and left out; later it would end the turns of the others too.
        self.piece(0.1, 1)

    def piece(self, duration: float, batch: int) -> float:
        """Seconds of work for `batch` pieces of `duration` seconds; on a GPU scaled from REFERENCE."""
        timed = min(duration, REFERENCE) if self.device.type == "cuda" else duration
        rate = self.model.frame_rate
        # audiocraft rounds down, and 0.58 * 50 is a little less than 29.
        most = min(250, self.theirs.lm.card)
        self.theirs.set_generation_params(duration=(round(timed * rate) + 0.2) / rate, top_k=most)
        return (
            seconds(lambda: self.theirs.generate([TEXT] * batch), self.device, self.clock) * duration / timed
        )

    @torch.no_grad()
    def steps(self, frames: int, batch: int) -> list[float]:
        """Milliseconds of single forward passes after `frames` frames."""
        lm, conditions = self.theirs.lm, self._conditions(batch)
        ids = torch.randint(lm.card, (2 * batch, lm.n_q, 1), device=self.device)
        times = []
        with self.theirs.autocast, lm.streaming():
            # The first step puts a melody model's prefix into the cache.
            lm(ids, [], conditions)
            lm.set_streaming_state(
                {name: longer(name, value, frames - 1) for name, value in lm.get_streaming_state().items()}
            )
            for _ in range(TIMED):
                lm(ids, [], conditions)
                synchronize(self.device)
                times.append(self.clock())
        return differences(times, torch.device("cpu"))

    @torch.no_grad()
    def difference(self) -> float:
        """Largest difference of both libraries' logits, relative to the largest logit.

        Of the first three steps, with the text and without.
        """
        lm = self.model.lm
        ids = torch.randint(lm.config.codebook_size, (1, lm.config.codebooks, 3), device=self.device)
        ids[..., 0] = lm.config.special
        ids = torch.cat([ids, ids])
        texts = self.model.conditioner.encode([TEXT])
        ours = lm(ids, cat([self.model.conditioner(texts), self.model.conditioner.null(texts)])).float()
        with self.theirs.autocast:
            theirs = self.theirs.lm(ids, [], self._conditions(1)).float()
        return ((ours - theirs).abs().max() / ours.abs().max()).item()

    def _conditions(self, batch: int) -> dict[str, tuple[Tensor, Tensor]]:
        """audiocraft's conditions of `batch` rows with the text, and as many without."""
        from audiocraft.modules.conditioners import ClassifierFreeGuidanceDropout

        rows, _ = self.theirs._prepare_tokens_and_attributes([TEXT] * batch, None)
        provider = self.theirs.lm.condition_provider
        return provider(provider.tokenize(rows + ClassifierFreeGuidanceDropout(p=1.0)(rows)))


def longer(name: str, state: Tensor, steps: int) -> Tensor:
    """A part of the streaming state after `steps` more steps, with random keys and values."""
    if name.endswith("offsets"):
        return state + steps
    if name.endswith(("past_keys", "past_values")):
        rows, heads, _, width = state.shape
        return torch.cat([state, state.new_empty(rows, heads, steps, width).normal_()], dim=2)
    return state


def in_audiocraft(model: Model) -> "Theirs":
    """The same weights in audiocraft's MusicGen, which shares T5 with `model` and lacks Demucs.

    Raises: ImportError without audiocraft.
    """
    # It warns that it was built for another torch. audiocraft uses torch's attention by default.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        from audiocraft.models import MusicGen, builders
        from omegaconf import OmegaConf
    except ImportError as error:
        raise ImportError(f"{error}; see mgkit/bench/reference.py for how to install audiocraft") from None
    settings = OmegaConf.create(config(model))
    # torch calls the weight norm of its codec deprecated.
    with without_downloads(model), warnings.catch_warnings(action="ignore", category=FutureWarning):
        lm, codec = builders.get_lm_model(settings), builders.get_compression_model(settings)
    named = tensors(model)
    load(lm, named)
    load(codec, named)
    lm.cfg = settings
    # Its constructor refuses windows up to 18 s, such as nano's. No piece here is longer than the window.
    return MusicGen(model.name, codec, lm, max_duration=model.window + 20)


@contextmanager
def without_downloads(model: Model) -> Iterator[None]:
    """Give audiocraft our T5 and, as there is no melody to separate, an empty Demucs."""
    from audiocraft.modules import conditioners

    text, demucs = model.conditioner.text, nn.Identity()
    demucs.sources = ["vocals", "other"]
    # Its T5 would stumble over a third tensor of the tokenizer.
    tokenizer = partial(text.tokenizer, return_token_type_ids=False)
    with (
        patch.object(conditioners, "T5EncoderModel", SimpleNamespace(from_pretrained=lambda name: text.t5)),
        patch.object(conditioners, "T5Tokenizer", SimpleNamespace(from_pretrained=lambda name: tokenizer)),
        patch.dict(conditioners.T5Conditioner.MODELS_DIMS, {"t5-base": text.dim}),
        patch("demucs.pretrained.get_model", lambda name: demucs),
    ):
        yield


def config(model: Model) -> dict[str, Any]:
    """The settings of the model, as in `xp.cfg` of audiocraft's checkpoints."""
    lm, codec, text = model.lm.config, model.codec.config, model.conditioner.text
    t5 = {"name": "t5-base", "finetune": False, "normalize_text": text.normalizer is not None}
    conditioners: dict[str, Any] = {"description": {"model": "t5", "t5": t5}}
    if not lm.cross_attention:
        chroma = {**CHROMA_SECTION, "sample_rate": codec.sample_rate, "match_len_on_eval": True}
        conditioners["self_wav"] = {"model": "chroma_stem", "chroma_stem": chroma}
    names = list(conditioners)
    fused = {"cross": names, "prepend": []} if lm.cross_attention else {"cross": [], "prepend": names}
    pattern = {**LM_SECTIONS["codebooks_pattern.delay"], "delays": list(delays(lm.codebooks, lm.channels))}
    decoder = ("trim_right_ratio", "final_activation")
    return {
        "device": model.lm.device.type,
        "dtype": str(model.lm.dtype).removeprefix("torch."),
        "sample_rate": codec.sample_rate,
        "dataset": {"segment_duration": model.window},
        "classifier_free_guidance": {"training_dropout": 0.0, "inference_coef": 3.0},
        "attribute_dropout": {},
        "conditioners": conditioners,
        "fuser": {**LM_SECTIONS["fuser"], **fused, "sum": [], "input_interpolate": []},
        "codebooks_pattern": {"modeling": "delay", "delay": pattern},
        "interleave_stereo_codebooks": {"use": lm.channels == 2, "per_timestep": False},
        "lm_model": "transformer_lm",
        "transformer_lm": {
            **LM_SECTIONS["transformer_lm"],
            "dim": lm.dim,
            "num_layers": lm.layers,
            "num_heads": lm.heads,
            "hidden_scale": lm.feed_forward / lm.dim,
            "n_q": lm.codebooks,
            "card": lm.codebook_size,
            "dropout": 0.0,
            "memory_efficient": True,
        },
        "compression_model": "encodec",
        "encodec": {**CODEC_SECTIONS["encodec"], "sample_rate": codec.sample_rate},
        "seanet": {
            **{name: value for name, value in SEANET_SECTION.items() if name not in decoder},
            "dimension": codec.dim,
            "n_filters": codec.filters,
            "ratios": list(codec.ratios),
            "pad_mode": codec.pad_mode,
            "norm": "weight_norm",
            "encoder": {},
            "decoder": {name: SEANET_SECTION[name] for name in decoder},
        },
        "rvq": {"n_q": codec.codebooks, "bins": codec.codebook_size},
    }


def tensors(model: Model) -> dict[str, Tensor]:
    """Every tensor of the model but T5's under its name in audiocraft's layout.

    That is what `layouts.plan` reads from a checkpoint, except that weight norm is folded.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for ours, parameter in model.named_parameters():
        if not ours.startswith("conditioner.text."):
            theirs, _, third = audiocraft(ours).partition("/")
            parts.setdefault(theirs, {})[third] = plain(parameter.detach())
    return {
        name: torch.cat([part[third] for third in "qkv"]) if "q" in part else part[""]
        for name, part in parts.items()
    }


def load(module: nn.Module, named: dict[str, Tensor]) -> None:
    """Fill an audiocraft module with its part of `named`, weight norm unfolded.

    w = g v / |v|: our weight serves as the direction v, its norm as the gain g.
    """
    state = {}
    for name in module.state_dict():
        short_name = name.replace("convtr.convtr", "conv.conv")
        if short_name in named:
            state[name] = named[short_name]
        elif name.endswith("weight_v"):
            state[name] = named[short_name.removesuffix("_v")]
        elif name.endswith("weight_g"):
            state[name] = torch.norm_except_dim(named[short_name.removesuffix("_g")], 2, 0)
    missing, _ = module.load_state_dict(state, strict=False)
    assert all(NOT_WEIGHTS.fullmatch(name) for name in missing), missing
