"""Names of tensors and settings in both published layouts, valid settings, and the strict copy of tensors.

    Hugging Face   config.json, *.safetensors
    audiocraft     state_dict.bin (language model, projections), compression_state_dict.bin (codec)

Both hold the same numbers. The tables rename every tensor; `fill` copies one after the other from the mapped
file into the module, which takes little more memory than one copy, and refuses missing, unknown and misshapen
tensors.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from mgkit.codec import CodecConfig
from mgkit.lm import LMConfig
from mgkit.readers import Read, WeightsError

# --- names of tensors --------------------------------------------------------------------------------------

# Our name, their name. `*` matches one part of a name, `**` several; the first matching row applies.
HUGGING_FACE = """
    conditioner.text.t5.**                   text_encoder.**
    conditioner.text_proj.*                  enc_to_dec_proj.*
    conditioner.melody_proj.*                audio_enc_to_dec_proj.*
    lm.embeddings.*.weight                   decoder.model.decoder.embed_tokens.*.weight
    lm.layers.*.norm1.*                      decoder.model.decoder.layers.*.self_attn_layer_norm.*
    lm.layers.*.attention.*.weight           decoder.model.decoder.layers.*.self_attn.*.weight
    lm.layers.*.norm_cross.*                 decoder.model.decoder.layers.*.encoder_attn_layer_norm.*
    lm.layers.*.cross_attention.*.weight     decoder.model.decoder.layers.*.encoder_attn.*.weight
    lm.layers.*.norm2.*                      decoder.model.decoder.layers.*.final_layer_norm.*
    lm.layers.*.feed_forward.linear1.weight  decoder.model.decoder.layers.*.fc1.weight
    lm.layers.*.feed_forward.linear2.weight  decoder.model.decoder.layers.*.fc2.weight
    lm.norm.*                                decoder.model.decoder.layer_norm.*
    lm.heads.*.weight                        decoder.lm_heads.*.weight
    codec.quantizer.codebooks.*              audio_encoder.quantizer.layers.*.codebook.embed
    codec.*.*.weight                         audio_encoder.*.layers.*.conv.weight
    codec.*.*.bias                           audio_encoder.*.layers.*.conv.bias
    codec.*.*.block.*.*                      audio_encoder.*.layers.*.block.*.conv.*
    codec.*.*.*h_l*                          audio_encoder.*.layers.*.lstm.*h_l*
"""
# `/q`, `/k`, `/v`: that third of one joint projection. audiocraft's files do not contain T5.
AUDIOCRAFT = """
    conditioner.text_proj.*                  condition_provider.conditioners.description.output_proj.*
    conditioner.melody_proj.*                condition_provider.conditioners.self_wav.output_proj.*
    lm.embeddings.*.weight                   emb.*.weight
    lm.layers.*.attention.out_proj.weight    transformer.layers.*.self_attn.out_proj.weight
    lm.layers.*.attention.*_proj.weight      transformer.layers.*.self_attn.in_proj_weight/*
    lm.layers.*.cross_attention.out_proj.*   transformer.layers.*.cross_attention.out_proj.*
    lm.layers.*.cross_attention.*_proj.weight  transformer.layers.*.cross_attention.in_proj_weight/*
    lm.layers.*.feed_forward.*.*             transformer.layers.*.*.*
    lm.layers.*.*.*                          transformer.layers.*.*.*
    lm.norm.*                                out_norm.*
    lm.heads.*.weight                        linears.*.weight
    codec.quantizer.codebooks.*              quantizer.vq.layers.*._codebook.embed
    codec.*.*.weight                         *.model.*.conv.conv.weight
    codec.*.*.bias                           *.model.*.conv.conv.bias
    codec.*.*.block.*.*                      *.model.*.block.*.conv.conv.*
    codec.*.*.*h_l*                          *.model.*.lstm.*h_l*
"""
# Statistics of the codebooks' training, constants, and the second name of text_encoder.shared.weight.
NOT_WEIGHTS = re.compile(
    r".*codebook\.(inited|cluster_size|embed_avg)|.*embed_positions\.weights|.*chroma\.spec\.window"
    r"|text_encoder\.encoder\.embed_tokens\.weight"
)
T5_SHARED, T5_TIED = "text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight"


def hugging_face(name: str) -> str:
    """Name of our tensor `name` in the Hugging Face layout.

    >>> hugging_face("lm.layers.3.norm2.bias")
    'decoder.model.decoder.layers.3.final_layer_norm.bias'
    """
    return _rename(name, HUGGING_FACE)


def audiocraft(name: str) -> str:
    """Name of our tensor `name` in audiocraft's layout; `/q` marks the first third of a joint projection.

    >>> audiocraft("lm.layers.3.cross_attention.q_proj.weight")
    'transformer.layers.3.cross_attention.in_proj_weight/q'
    """
    return _rename(name, AUDIOCRAFT)


def _rename(name: str, table: str) -> str:
    for pattern, theirs in _rules(table):
        if match := pattern.fullmatch(name):
            for part in match.groups():
                theirs = re.sub(r"\*+", part, theirs, count=1)
            return theirs
    raise AssertionError(f"no row of the table names {name}")


@cache
def _rules(table: str) -> list[tuple[re.Pattern[str], str]]:
    rows = [line.split() for line in table.strip().splitlines()]
    regex = {".": r"\.", "**": "(.+)", "*": r"([^.]+)"}
    return [
        (re.compile(re.sub(r"\.|\*+", lambda part: regex[part[0]], ours)), theirs) for ours, theirs in rows
    ]


# --- names of settings ------------------------------------------------------------------------------------

# Our field: transformers' field, for loading and saving.
LM_SETTINGS = {
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "ffn_dim",
    "codebooks": "num_codebooks",
    "codebook_size": "vocab_size",
    "channels": "audio_channels",
}
CODEC_SETTINGS = {
    "sample_rate": "sampling_rate",
    "filters": "num_filters",
    "ratios": "upsampling_ratios",
    "dim": "hidden_size",
    "codebook_size": "codebook_size",
    "pad_mode": "pad_mode",
}
# Fields of transformers' EncodecConfig whose only supported value is the one in `codec.py`.
CODEC_REQUIRED = {
    "model_type": "encodec",
    "audio_channels": 1,
    "use_causal_conv": False,
    "norm_type": "weight_norm",
    "num_residual_layers": 1,
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "compress": 2,
    "num_lstm_layers": 2,
    "use_conv_shortcut": False,
    "normalize": False,
}
PAD_MODES = ("reflect", "constant")


def validate_lm(config: LMConfig, where: Path) -> None:
    """Check for positive sizes, and for heads that divide the width.

    Raises: WeightsError about `where`, the source of the config.
    """
    _require_positive(where, **{name: getattr(config, name) for name in LM_SETTINGS})
    if config.dim % config.heads:
        raise WeightsError(f"{where}: {config.heads} heads do not divide the width {config.dim}")


def validate_codec(config: CodecConfig, where: Path) -> None:
    """Check for positive sizes, and for a supported padding mode.

    Raises: WeightsError about `where`, the source of the config.
    """
    sizes = {name: getattr(config, name) for name in CODEC_SETTINGS if name not in ("ratios", "pad_mode")}
    _require_positive(where, **sizes, **{f"ratio {i}": ratio for i, ratio in enumerate(config.ratios)})
    if config.pad_mode not in PAD_MODES:
        raise WeightsError(
            f"{where}: the codec's pad_mode is {config.pad_mode!r}; expected one of {PAD_MODES}"
        )


def _require_positive(where: Path, **sizes: object) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise WeightsError(f"{where}: {name} is {size!r} in its config; expected a positive integer")


# --- the copy ---------------------------------------------------------------------------------------------


def fill(
    parameters: Iterable[tuple[str, nn.Parameter]],
    source: dict[str, Read],
    rename: Callable[[str], str],
    where: Path,
) -> None:
    """Copy every one of `parameters` out of `source`, folding weight norm and splitting joint projections.

    Raises: WeightsError for a missing, misshapen or unknown tensor, by its name in the file.
    """
    source = {_one_spelling(name): read for name, read in source.items()}
    used: set[str] = set()

    def take(name: str) -> Tensor:
        if name not in source:
            raise WeightsError(
                f"{where} lacks the tensor {name!r}, which its config requires; are these files of one model?"
            )
        used.add(name)
        return source[name]()

    for ours, parameter in parameters:
        theirs, _, third = rename(ours).partition("/")
        if third:
            value = take(theirs).chunk(3)["qkv".index(third)]
        elif f"{theirs}_v" in source:
            value = torch._weight_norm(take(f"{theirs}_v").float(), take(f"{theirs}_g").float(), 0)
        elif theirs == T5_SHARED and theirs not in source:
            value = take(T5_TIED)
        else:
            value = take(theirs)
        if value.shape != parameter.shape:
            raise WeightsError(
                f"{where}: {theirs!r} is {list(value.shape)}; the config asks for {list(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(value)
    unused = [name for name in source if name not in used and not NOT_WEIGHTS.fullmatch(name)]
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise WeightsError(f"{where} holds tensors unknown to a MusicGen of its config: {unused[0]!r}{more}")


def _one_spelling(name: str) -> str:
    """Name of a tensor as older versions of torch spell weight norm, and without audiocraft's `convtr`."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    name = name.replace("parametrizations.weight.original1", "weight_v")
    return name.replace("convtr.convtr", "conv.conv")
