"""Weights: where they are, what their tensors are called, and how they get into the modules and out again.

Two layouts hold the same numbers. Hugging Face: `config.json` and `*.safetensors`. audiocraft: `state_dict.bin` and
`compression_state_dict.bin`. The tables below give, for every tensor of ours, its name in each; loading looks each
one up, and a tensor that is missing, left over or of another shape is an error that names it. Tensors are read one
by one, from the mapped file into the module, so that memory holds little more than one copy.
"""

import json
import math
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .codec import Codec, CodecConfig
from .condition import Conditioner
from .lm import LM, LMConfig
from .melody import HOP, N_FFT
from .text import TextEncoder

if TYPE_CHECKING:
    from transformers import EncodecConfig, PretrainedConfig

SIZES = ("small", "medium", "melody", "large", "melody-large")
PRESETS = {
    **{size: f"facebook/musicgen-{size}" for size in SIZES},
    **{f"stereo-{size}": f"facebook/musicgen-stereo-{size}" for size in SIZES},
}
NAMES = ("nano", *PRESETS)

CC_BY_NC = "CC-BY-NC 4.0 (not for commercial use), Meta Platforms, Inc."
MIT = "MIT, the mgkit authors"
T5_SHARED, T5_TIED = "text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight"

FIXED = {  # what every codec of a MusicGen has in transformers' words, and `codec.py` takes for granted
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

Read = Callable[[], Tensor]
Named = Iterable[tuple[str, nn.Parameter]]


@dataclass
class Model:
    """The three parts of a MusicGen and what is said of them; `window` is the length in seconds that it learned."""

    codec: Codec
    lm: LM
    conditioner: Conditioner
    name: str = ""
    window: float = 30.0
    licence: str = "unknown: ask who made these weights"


# --- names ------------------------------------------------------------------------------------------------------

# The first pattern that fits a name of ours gives the other layout's; the rest of the pattern's table then applies.
LAYER_HF = {
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


def rename(name: str, table: tuple[tuple[str, str], ...], layer: dict[str, str]) -> str:
    """Name in another layout of our tensor `name`; `…/q` marks a third of a joint projection.

    >>> rename("lm.layers.3.cross_attention.q_proj.weight", AUDIOCRAFT, LAYER_AUDIOCRAFT)
    'transformer.layers.3.cross_attention.in_proj_weight/q'
    >>> rename("lm.layers.3.norm2.bias", HUGGING_FACE, LAYER_HF)
    'decoder.model.decoder.layers.3.final_layer_norm.bias'
    """
    for pattern, other in table:
        if re.fullmatch(pattern, name):
            renamed = re.sub(pattern, other, name)
            return re.sub(r"\{(\w+)\}", lambda part: layer.get(part[1], part[1]), renamed)
    raise AssertionError(f"no rule names {name}")


# --- reading and writing tensors --------------------------------------------------------------------------------


def fill(parameters: Named, source: dict[str, Read], name_of: Callable[[str], str], where: Path) -> None:
    """Copies every one of `parameters` out of `source`, strictly. Weight norm is folded, thirds are cut out.

    Errors: ValueError that names the tensor that is missing, of another shape, or not used.
    """
    source = {_plain(name): read for name, read in source.items()}
    used: set[str] = set()

    def take(name: str) -> Tensor:
        if name not in source:
            raise ValueError(
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
            raise ValueError(
                f"{where}: {theirs!r} is {list(value.shape)}; the config asks for {list(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(value)
    left = [name for name in source if name not in used and not NOT_WEIGHTS.fullmatch(name)]
    if left:
        raise ValueError(
            f"{where} holds {len(left)} tensors that no MusicGen of its config has, such as {left[0]!r}"
        )


def _plain(name: str) -> str:
    """One spelling for what versions of torch and audiocraft spell differently."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    name = name.replace("parametrizations.weight.original1", "weight_v")
    return name.replace("convtr.convtr", "conv.conv")


def read_safetensors(folder: Path) -> tuple[dict[str, Read], dict[str, str]]:
    """Readers of every tensor in the folder's files, mapped and not loaded, and what the files say of themselves.

    Errors: ValueError for a file that is cut or of another format.
    """
    from safetensors import SafetensorError, safe_open

    source: dict[str, Read] = {}
    said: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            handle = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ValueError(
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
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f"{file} was not opened: it is cut, or holds code where tensors belong ({reason})"
        ) from None


# --- finding ----------------------------------------------------------------------------------------------------


def embedded() -> Path:
    """Folder of the model that ships with mgkit: beside the package in a checkout, inside it once installed."""
    inside = Path(__file__).parent / "data" / "nano"
    return inside if inside.exists() else Path(__file__).parent.parent / "data" / "nano"


def find(name: str) -> Path:
    """The folder of the model `name`; a hub id is downloaded, or taken from the cache without a network.

    Errors: ValueError for an unknown name, with the nearest; FileNotFoundError where it is neither here nor to be had.
    """
    if name == "nano":
        return embedded()
    if Path(name).is_dir():
        return Path(name)
    hub_id = PRESETS.get(name, name)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", hub_id):
        near = get_close_matches(name, NAMES, n=1, cutoff=0)[0]
        raise ValueError(
            f"there is no model {name!r}; did you mean {near!r}? Known are {', '.join(NAMES)}, "
            "any hub id such as facebook/musicgen-small, and any folder"
        )
    return download(hub_id)


def download(hub_id: str, dest: Path | None = None) -> Path:
    """Folder with the files of `hub_id` that mgkit reads, in the hub's cache or in `dest`.

    Errors: FileNotFoundError with the command to run where there is a network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    files = ["*.json", "*.safetensors", "*.model", "README.md"]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=files, local_dir=dest))
        if not any(folder.glob("*.safetensors")):  # audiocraft's layout only
            folder = Path(snapshot_download(hub_id, allow_patterns=["*state_dict.bin"], local_dir=dest))
    except (HfHubHTTPError, OSError) as error:  # no network and not in the cache is an OSError, too
        raise FileNotFoundError(
            f"{hub_id} is not in the cache and could not be downloaded ({type(error).__name__}); where there is a network, "
            f"run: python -m mgkit fetch {hub_id} --dest models/{hub_id.split('/')[1]}  and load that folder"
        ) from None
    return folder


# --- loading ----------------------------------------------------------------------------------------------------


def load(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """The model `name`, its language model in `dtype`, codec and conditioner in float32.

    `name` is one of NAMES, a hub id such as `facebook/musicgen-small`, or a folder in either layout.
    Errors: ValueError or FileNotFoundError in one sentence.
    """
    folder = find(name)
    if (folder / "state_dict.bin").exists() and not any(folder.glob("*.safetensors")):
        model = _load_audiocraft(folder, device, dtype)
    else:
        model = _load_hugging_face(folder, device, dtype)
    model.name = name
    if PRESETS.get(name, name).startswith("facebook/"):
        model.licence = CC_BY_NC
    return model


def _load_hugging_face(folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """A model from `config.json`, `*.safetensors` and the tokenizer's files, as transformers saves them."""
    from transformers import AutoConfig, AutoTokenizer, T5EncoderModel

    if not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} holds no model: expected config.json with *.safetensors, or state_dict.bin with "
            "compression_state_dict.bin"
        )
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in ("musicgen", "musicgen_melody"):
        raise ValueError(
            f"{folder} holds a model of type {config.model_type!r}, not musicgen or musicgen_melody"
        )
    lm, melody = config.decoder, config.model_type == "musicgen_melody"
    shape = LMConfig(
        dim=lm.hidden_size,
        layers=lm.num_hidden_layers,
        heads=lm.num_attention_heads,
        feed_forward=lm.ffn_dim,
        codebooks=lm.num_codebooks,
        codebook_size=lm.vocab_size,
        channels=lm.audio_channels,
        cross_attention=not melody,
    )
    codec = codec_config(config.audio_encoder, lm.num_codebooks // lm.audio_channels)
    with torch.device("meta"):
        text = TextEncoder(AutoTokenizer.from_pretrained(folder), T5EncoderModel(config.text_encoder))
    text.to_empty(device=device)
    text.t5.encoder.embed_tokens.weight = text.t5.shared.weight  # one tensor, which `to_empty` made two
    model = _empty(codec, shape, text, config.chroma_length if melody else None, device, dtype)
    source, said = read_safetensors(folder)
    fill(_named(model), source, lambda name: rename(name, HUGGING_FACE, LAYER_HF), folder)
    generation = folder / "generation_config.json"
    frames = json.loads(generation.read_text()).get("max_length") if generation.exists() else None
    if frames:
        model.window = frames / codec.frame_rate
    model.licence = said.get("licence", model.licence)
    return model


def codec_config(config: "EncodecConfig", codebooks: int) -> CodecConfig:
    """Our config of transformers' EncodecConfig. Errors: ValueError for a codec of another architecture."""
    for name, value in FIXED.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"the codec's {name} is {getattr(config, name)!r}; MusicGen's codecs have {value!r}"
            )
    return CodecConfig(
        sample_rate=config.sampling_rate,
        filters=config.num_filters,
        ratios=tuple(config.upsampling_ratios),
        dim=config.hidden_size,
        codebooks=codebooks,
        codebook_size=config.codebook_size,
        pad_mode=config.pad_mode,
    )


def _load_audiocraft(folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """A model from audiocraft's two files, and T5, which they lack, from a folder of its name in it or from the hub.

    Shapes are read off the tensors, the rest off the YAML that the files carry.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    state, said = _checkpoint(folder / "state_dict.bin")
    t5_name = said["conditioners"]["description"]["t5"]["name"]
    t5 = folder / t5_name if (folder / t5_name).is_dir() else find(f"google-t5/{t5_name}")
    text = TextEncoder(
        AutoTokenizer.from_pretrained(t5), T5EncoderModel.from_pretrained(t5, dtype=torch.float32)
    )
    shape = LMConfig(
        dim=state["emb.0.weight"].shape[1],
        layers=sum(name.endswith("norm1.weight") for name in state),
        heads=said["transformer_lm"]["num_heads"],
        feed_forward=len(state["transformer.layers.0.linear1.weight"]),
        codebooks=sum(name.startswith("linears.") for name in state),
        codebook_size=len(state["emb.0.weight"]) - 1,
        channels=2 if (said.get("interleave_stereo_codebooks") or {}).get("use") else 1,
        cross_attention="transformer.layers.0.norm_cross.weight" in state,
    )
    codec, codec_source, codec_table = _audiocraft_codec(folder / "compression_state_dict.bin")
    window = float(said["dataset"]["segment_duration"])
    melody = "self_wav" in said["conditioners"]
    model = _empty(
        codec, shape, text, 1 + int(window * codec.sample_rate) // HOP if melody else None, device, dtype
    )
    model.window = window

    named = list(_named(model))
    mine = [(name, p) for name, p in named if not name.startswith(("codec.", "conditioner.text.t5."))]
    fill(mine, _readers(state), lambda name: rename(name, AUDIOCRAFT, LAYER_AUDIOCRAFT), folder)
    fill([(name, p) for name, p in named if name.startswith("codec.")], codec_source, codec_table, folder)
    text.to(device)
    return model


def _audiocraft_codec(file: Path) -> tuple[CodecConfig, dict[str, Read], Callable[[str], str]]:
    """Config, tensors and their names: of the file itself, or of the published codec that it points to."""
    from transformers import AutoConfig

    checkpoint = read_bin(file)
    if "pretrained" in checkpoint:
        folder = find(checkpoint["pretrained"])
        source, _ = read_safetensors(folder)
        config = AutoConfig.from_pretrained(folder)
        table = lambda name: rename(name, HUGGING_FACE, LAYER_HF).removeprefix("audio_encoder.")  # noqa: E731
        return codec_config(config, config.num_quantizers), source, table
    state, said = _checkpoint(file)
    seanet, books = said["seanet"], [name for name in state if name.endswith("_codebook.embed")]
    config = CodecConfig(
        sample_rate=said["sample_rate"],
        filters=seanet["n_filters"],
        ratios=tuple(seanet["ratios"]),
        dim=seanet["dimension"],
        codebooks=len(books),
        codebook_size=len(state[books[0]]),
        pad_mode=seanet.get("pad_mode", "reflect"),
    )
    return config, _readers(state), lambda name: rename(name, AUDIOCRAFT, LAYER_AUDIOCRAFT)


def _checkpoint(file: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and config of one of audiocraft's files. Errors: ValueError for a file of another make."""
    import yaml

    checkpoint = read_bin(file)
    if not isinstance(checkpoint, dict) or not {"best_state", "xp.cfg"} <= checkpoint.keys():
        raise ValueError(f"{file} is not audiocraft's: expected 'best_state' and 'xp.cfg' in it")
    return checkpoint["best_state"], yaml.safe_load(checkpoint["xp.cfg"])


def _readers(state: dict[str, Tensor]) -> dict[str, Read]:
    return {name: lambda tensor=tensor: tensor for name, tensor in state.items()}  # type: ignore[misc]


def _empty(
    codec: CodecConfig,
    lm: LMConfig,
    text: TextEncoder,
    melody_frames: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """A model around `text` whose memory is taken and not yet filled, ready for inference."""
    with torch.device("meta"):
        model = Model(Codec(codec), LM(lm).to(dtype), Conditioner(text, lm.dim, melody_frames))
    for module in (model.codec, model.lm, *model.conditioner.children()):
        if module is not text:
            module.to_empty(device=device)
    for module in (model.codec, model.lm, model.conditioner):
        module.eval().requires_grad_(False)
    return model


def _named(model: Model) -> Iterator[tuple[str, nn.Parameter]]:
    """Every tensor of the model under its name here."""
    for part in ("codec", "lm", "conditioner"):
        yield from getattr(model, part).named_parameters(prefix=part)


# --- saving -----------------------------------------------------------------------------------------------------


def save(model: Model, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Writes `folder` in the Hugging Face layout, which transformers and mgkit load; `dtype` converts, such as float16.

    Files of the folder are replaced only once all new ones are written. Errors: OSError where that fails.
    """
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    tensors: dict[str, Tensor] = {}
    for ours, parameter in _named(model):
        name = rename(ours, HUGGING_FACE, LAYER_HF)
        value = parameter.detach().to("cpu", dtype or parameter.dtype)
        if name.endswith("conv.weight"):  # as a weight norm: a gain and a direction
            norm = value.float().flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1)).to(value.dtype)
            stem = name.replace("weight", "parametrizations.weight.original")
            tensors[f"{stem}0"], tensors[f"{stem}1"] = norm, value.contiguous()
        else:
            tensors[name] = value.contiguous()
        if name.endswith(
            "codebook.embed"
        ):  # what transformers keeps beside a codebook, and does not use either
            stem = name.removesuffix("embed")
            tensors[f"{stem}embed_avg"] = value.clone()
            tensors[f"{stem}cluster_size"] = torch.ones(len(value), dtype=value.dtype)
            tensors[f"{stem}inited"] = torch.ones(1, dtype=value.dtype)

    frames = round(model.window * model.codec.config.frame_rate)
    special = model.lm.config.special
    generation = GenerationConfig(
        do_sample=True,
        guidance_scale=3.0,
        max_length=frames,
        bos_token_id=special,
        pad_token_id=special,
        decoder_start_token_id=special,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as draft:
        try:
            save_file(
                tensors, Path(draft, "model.safetensors"), metadata={"format": "pt", "licence": model.licence}
            )
        except Exception as error:  # safetensors has its own error for a full disk
            raise OSError(f"the weights could not be written to {folder}: {error}") from None
        _hugging_face_config(model, dtype).save_pretrained(draft)
        generation.save_pretrained(draft)
        model.conditioner.text.tokenizer.save_pretrained(draft)
        Path(draft, "preprocessor_config.json").write_text(json.dumps(_preprocessor(model), indent=2) + "\n")
        for file in Path(draft).iterdir():
            os.replace(file, folder / file.name)


def _hugging_face_config(model: Model, dtype: torch.dtype | None) -> "PretrainedConfig":
    """transformers' config of the model."""
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenMelodyConfig,
        MusicgenMelodyDecoderConfig,
    )

    codec, lm, t5 = model.codec.config, model.lm.config, model.conditioner.text.t5.config
    if t5.d_model == lm.dim:
        raise ValueError(
            f"transformers expects no projection where text and language model are both {lm.dim} wide"
        )
    bits = math.ceil(math.log2(codec.codebook_size))
    encodec = EncodecConfig(
        **FIXED,
        sampling_rate=codec.sample_rate,
        num_filters=codec.filters,
        upsampling_ratios=list(codec.ratios),
        hidden_size=codec.dim,
        codebook_size=codec.codebook_size,
        pad_mode=codec.pad_mode,
        target_bandwidths=[codec.codebooks * codec.frame_rate * bits / 1000],
    )
    frames = model.conditioner.melody_frames
    decoder = (MusicgenDecoderConfig if frames is None else MusicgenMelodyDecoderConfig)(
        hidden_size=lm.dim,
        num_hidden_layers=lm.layers,
        num_attention_heads=lm.heads,
        ffn_dim=lm.feed_forward,
        num_codebooks=lm.codebooks,
        vocab_size=lm.codebook_size,
        audio_channels=lm.channels,
        dropout=0.0,
        bos_token_id=lm.special,
        pad_token_id=lm.special,
    )
    parts = {"text_encoder": t5.to_dict(), "audio_encoder": encodec.to_dict(), "decoder": decoder.to_dict()}
    config = (
        MusicgenConfig(**parts) if frames is None else MusicgenMelodyConfig(**parts, chroma_length=frames)
    )
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForConditionalGeneration"]
    config.dtype = dtype or model.lm.dtype
    return config


def _preprocessor(model: Model) -> dict:
    """Settings of transformers' feature extractor: of chroma where the model takes a melody, else of audio prompts."""
    rate = model.codec.config.sample_rate
    if model.conditioner.melody_frames is None:
        return {
            "feature_extractor_type": "EncodecFeatureExtractor",
            "feature_size": model.lm.config.channels,
            "padding_side": "left",
            "padding_value": 0.0,
            "sampling_rate": rate,
        }
    return {
        "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
        "processor_class": "MusicgenMelodyProcessor",
        "chunk_length": round(model.window),
        "feature_size": 12,
        "hop_length": HOP,
        "n_fft": N_FFT,
        "num_chroma": 12,
        "sampling_rate": rate,
    }
