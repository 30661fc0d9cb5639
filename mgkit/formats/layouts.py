"""Names of tensors and settings in both published layouts, and the strict plan from one to the other.

    Hugging Face   config.json, *.safetensors
    audiocraft     state_dict.bin (language model, projections), compression_state_dict.bin (codec)

Both hold the same numbers. The tables rename every tensor. `plan` compares the names and shapes of all
tensors of a module with those in the files before any is read, and refuses missing, unknown and misshapen
ones; `fill` then copies one after the other, which takes little more memory than one copy.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mgkit.formats.readers import WeightsError
from mgkit.formats.tensor_files import Stored

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

# --- the copy ---------------------------------------------------------------------------------------------

Plan = dict[str, Callable[[], Tensor]]
"""A function for each of our parameters that reads its value."""


def plan(
    parameters: Iterable[tuple[str, nn.Parameter]],
    source: dict[str, Stored],
    rename: Callable[[str], str],
    where: Path,
) -> Plan:
    """The values of all `parameters`, from `source`: weight norm folded, joint projections split.

    Only names and shapes of the parameters matter: they can be on the meta device.

    Raises: WeightsError for a missing, misshapen or unknown tensor, by its name in the file.
    """
    tensors = _one_spelling(source, where)
    used: set[str] = set()

    def take(name: str, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        if name not in tensors:
            raise WeightsError(
                f"{where} lacks the tensor {name!r}, which its config requires; are these files of one model?"
            )
        used.add(name)
        if tensors[name].shape != shape:
            raise WeightsError(
                f"{where}: {name!r} is {list(tensors[name].shape)}; the config asks for {list(shape)}"
            )
        if not tensors[name].floating:
            raise WeightsError(
                f"{where}: {name!r} holds integers or quantized numbers; expected plain floats"
            )
        return tensors[name].read

    values: Plan = {}
    for ours, parameter in parameters:
        theirs, _, third = rename(ours).partition("/")
        shape = tuple(parameter.shape)
        if third:
            joint = take(theirs, (3 * shape[0], *shape[1:]))
            values[ours] = partial(_third, joint, "qkv".index(third))
        elif f"{theirs}_v" in tensors:
            gain = take(f"{theirs}_g", (shape[0], *[1] * (len(shape) - 1)))
            values[ours] = partial(_weight_norm, take(f"{theirs}_v", shape), gain)
        elif theirs == T5_SHARED and theirs not in tensors:
            values[ours] = take(T5_TIED, shape)
        else:
            values[ours] = take(theirs, shape)
    unused = [name for name in tensors if name not in used and not NOT_WEIGHTS.fullmatch(name)]
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise WeightsError(
            f"{where} holds tensors unknown to a MusicGen of its config: {unused[0][:90]!r}{more}"
        )
    return values


def fill(parameters: Iterable[tuple[str, nn.Parameter]], values: Plan) -> None:
    """Copy the planned values into the parameters, one after the other."""
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(values[name]())


def _third(joint: Callable[[], Tensor], third: int) -> Tensor:
    return joint().chunk(3)[third]


def _weight_norm(direction: Callable[[], Tensor], gain: Callable[[], Tensor]) -> Tensor:
    """w = g v / |v|, the norm over all axes but the first."""
    return torch._weight_norm(direction().float(), gain().float(), 0)


def _one_spelling(source: dict[str, Stored], where: Path) -> dict[str, Stored]:
    """Names as older versions of torch spell weight norm, and without audiocraft's `convtr`.

    Raises: WeightsError for a tensor under both spellings.
    """
    tensors: dict[str, Stored] = {}
    for name, tensor in source.items():
        short_name = name.replace("parametrizations.weight.original0", "weight_g")
        short_name = short_name.replace("parametrizations.weight.original1", "weight_v")
        short_name = short_name.replace("convtr.convtr", "conv.conv")
        if short_name in tensors:
            raise WeightsError(f"{where} holds {name!r} twice, under an older name too; keep one of them")
        tensors[short_name] = tensor
    return tensors
