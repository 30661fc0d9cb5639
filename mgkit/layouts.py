"""What the tensors of a MusicGen are called in its two published layouts, and how they are read into the modules.

Two layouts hold the same numbers. Hugging Face: `config.json` and `*.safetensors`. audiocraft: `state_dict.bin` and
`compression_state_dict.bin`. The tables give, for every tensor of ours, its name in each; `fill` looks each one up,
and a tensor that is missing, left over or of another shape is an error that names it. Tensors are read one by one,
from the mapped file into the module, so that memory holds little more than one copy.
"""

import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn


class WeightsError(ValueError):
    """Files that do not hold the model that they should; the message names the file and what is wrong with it."""


Read = Callable[[], Tensor]
Named = Iterable[tuple[str, nn.Parameter]]

T5_SHARED, T5_TIED = "text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight"

# The first pattern that fits a name of ours gives the other layout's; parts of a layer, in braces, have their own.
LAYER_HUGGING_FACE = {
    "cross_attention": "encoder_attn",
    "attention": "self_attn",
    "norm1": "self_attn_layer_norm",
    "norm_cross": "encoder_attn_layer_norm",
    "norm2": "final_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
}
LAYER_AUDIOCRAFT = {"attention": "self_attn"}

HUGGING_FACE = (
    (r"conditioner\.text\.t5\.(.*)", r"text_encoder.\1"),
    (r"conditioner\.text_proj\.(.*)", r"enc_to_dec_proj.\1"),
    (r"conditioner\.melody_proj\.(.*)", r"audio_enc_to_dec_proj.\1"),
    (r"lm\.embeddings\.(.*)", r"decoder.model.decoder.embed_tokens.\1"),
    (r"lm\.layers\.(\d+)\.(\w+)\.(.*)", r"decoder.model.decoder.layers.\1.{\2}.\3"),
    (r"lm\.norm\.(.*)", r"decoder.model.decoder.layer_norm.\1"),
    (r"lm\.heads\.(.*)", r"decoder.lm_heads.\1"),
    (r"codec\.(\w+)\.(\d+)\.((?:block\.\d\.)?)(weight|bias)", r"audio_encoder.\1.layers.\2.\3conv.\4"),
    (r"codec\.(\w+)\.(\d+)\.(\w+_l\d)", r"audio_encoder.\1.layers.\2.lstm.\3"),
    (r"codec\.quantizer\.codebooks\.(\d+)", r"audio_encoder.quantizer.layers.\1.codebook.embed"),
)
AUDIOCRAFT = (
    (r"conditioner\.text_proj\.(.*)", r"condition_provider.conditioners.description.output_proj.\1"),
    (r"conditioner\.melody_proj\.(.*)", r"condition_provider.conditioners.self_wav.output_proj.\1"),
    (r"lm\.embeddings\.(.*)", r"emb.\1"),
    (r"lm\.layers\.(\d+)\.(\w+)\.([qkv])_proj\.weight", r"transformer.layers.\1.{\2}.in_proj_weight/\3"),
    (r"lm\.layers\.(\d+)\.(\w+)\.(.*)", r"transformer.layers.\1.{\2}.\3"),
    (r"lm\.norm\.(.*)", r"out_norm.\1"),
    (r"lm\.heads\.(.*)", r"linears.\1"),
    (r"codec\.(\w+)\.(\d+)\.((?:block\.\d\.)?)(weight|bias)", r"\1.model.\2.\3conv.conv.\4"),
    (r"codec\.(\w+)\.(\d+)\.(\w+_l\d)", r"\1.model.\2.lstm.\3"),
    (r"codec\.quantizer\.codebooks\.(\d+)", r"quantizer.vq.layers.\1._codebook.embed"),
)
NOT_WEIGHTS = re.compile(
    r".*codebook\.(inited|cluster_size|embed_avg)|.*embed_positions\.weights|.*chroma\.spec\.window"
    r"|text_encoder\.encoder\.embed_tokens\.weight"  # another name of text_encoder.shared.weight
)


def hugging_face(name: str) -> str:
    """Name of our tensor `name` in the Hugging Face layout.

    >>> hugging_face("lm.layers.3.norm2.bias")
    'decoder.model.decoder.layers.3.final_layer_norm.bias'
    """
    return _rename(name, HUGGING_FACE, LAYER_HUGGING_FACE)


def audiocraft(name: str) -> str:
    """Name of our tensor `name` in audiocraft's layout; `/q` marks the first third of a joint projection.

    >>> audiocraft("lm.layers.3.cross_attention.q_proj.weight")
    'transformer.layers.3.cross_attention.in_proj_weight/q'
    """
    return _rename(name, AUDIOCRAFT, LAYER_AUDIOCRAFT)


def _rename(name: str, rules: tuple[tuple[str, str], ...], layer: dict[str, str]) -> str:
    for pattern, other in rules:
        if re.fullmatch(pattern, name):
            renamed = re.sub(pattern, other, name)
            return re.sub(r"\{(\w+)\}", lambda part: layer.get(part[1], part[1]), renamed)
    raise AssertionError(f"no rule names {name}")


def fill(parameters: Named, source: dict[str, Read], name_of: Callable[[str], str], where: Path) -> None:
    """Copies every one of `parameters` out of `source`, strictly. Weight norm is folded, thirds are cut out.

    Errors: WeightsError that names the tensor that is missing, of another shape, or not used.
    """
    source = {_plain(name): read for name, read in source.items()}
    used: set[str] = set()

    def take(name: str) -> Tensor:
        if name not in source:
            raise WeightsError(
                f"{where} lacks the tensor {name!r}: its files and its config are not of one MusicGen"
            )
        used.add(name)
        return source[name]()

    for ours, parameter in parameters:
        theirs, _, third = name_of(ours).partition("/")
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
    left = [name for name in source if name not in used and not NOT_WEIGHTS.fullmatch(name)]
    if left:
        raise WeightsError(
            f"{where} holds {len(left)} tensors that no MusicGen of its config has, such as {left[0]!r}"
        )


def _plain(name: str) -> str:
    """One spelling for what versions of torch and audiocraft spell differently."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    name = name.replace("parametrizations.weight.original1", "weight_v")
    return name.replace("convtr.convtr", "conv.conv")


def read_safetensors(folder: Path) -> tuple[dict[str, Read], dict[str, str]]:
    """Readers of every tensor in the folder's files, mapped and not loaded, and what the files say of themselves.

    Errors: WeightsError for a file that is cut or of another format.
    """
    from safetensors import SafetensorError, safe_open

    source: dict[str, Read] = {}
    said: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            handle = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise WeightsError(
                f"{file} is not a whole safetensors file ({error}); download or copy it again"
            ) from None
        said |= handle.metadata() or {}
        for name in handle.keys():  # noqa: SIM118 (a file's handle, not a dict)
            source[name] = lambda handle=handle, name=name: handle.get_tensor(name)  # type: ignore[misc]
    return source, said


def read_bin(file: Path) -> dict:
    """What `torch.save` wrote, mapped; only tensors and plain values are opened, never code.

    Errors: FileNotFoundError; ValueError for a file that holds anything else, or is cut.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing: audiocraft's layout is state_dict.bin with compression_state_dict.bin"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
    ):  # whose words advise to open it unsafely
        raise WeightsError(
            f"{file} was not opened: it is cut, of an old format, or holds code where tensors belong"
        ) from None
