"""A folder to a `Model`, strictly, from either published layout.

    Hugging Face   config.json            -> empty modules <- *.safetensors
    audiocraft     xp.cfg, tensor shapes  -> empty modules <- state_dict.bin, compression_state_dict.bin, T5

Modules are built on the meta device, allocated, and filled tensor by tensor.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mgkit import hub
from mgkit.codec import Codec, CodecConfig
from mgkit.condition import Conditioner
from mgkit.delay import delays
from mgkit.layouts import (
    CODEC_REQUIRED,
    CODEC_SETTINGS,
    LM_SETTINGS,
    audiocraft,
    fill,
    hugging_face,
    validate_codec,
    validate_lm,
)
from mgkit.lm import LM, LMConfig
from mgkit.melody import HOP
from mgkit.readers import (
    AudiocraftFile,
    Read,
    WeightsError,
    meta_t5,
    quiet_transformers,
    read_bin,
    read_config,
    read_json,
    read_safetensors,
    read_tokenizer,
)
from mgkit.text import TextEncoder

if TYPE_CHECKING:
    from transformers import EncodecConfig, PretrainedConfig


@dataclass
class Model:
    """The three parts of a MusicGen; `window` is the length of its training clips in seconds."""

    codec: Codec
    lm: LM
    conditioner: Conditioner
    name: str = ""
    window: float = 30.0
    licence: str = "unknown: ask who made these weights"

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.codec.config.sample_rate

    @property
    def frame_rate(self) -> int:
        """Frames of tokens per second."""
        return self.codec.config.frame_rate

    @property
    def channels(self) -> int:
        """1, or 2 for stereo."""
        return self.lm.config.channels

    @property
    def window_frames(self) -> int:
        """Frames of a window."""
        return round(self.window * self.frame_rate)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter under its full name: `codec.…`, `lm.…` or `conditioner.…`."""
        for part in ("codec", "lm", "conditioner"):
            yield from getattr(self, part).named_parameters(prefix=part)

    def memory(self, seconds: float = 0.0) -> float:
        """Approximate bytes of weights and KV cache for `seconds` of music on a CPU; see `hub.memory`."""
        weights = sum(p.numel() * p.element_size() for _, p in self.named_parameters())
        steps = min(seconds, self.window) * self.codec.config.frame_rate
        return weights + hub.kv_cache(self.lm.config.layers, self.lm.config.dim, steps)


def load(name: str | os.PathLike, device: torch.device, dtype: torch.dtype) -> Model:
    """Load the model `name`: its language model in `dtype`, codec and conditioner in float32.

    `name` is one of `hub.NAMES`, a hub id such as `facebook/musicgen-small`, or a folder in either layout.

    Raises: ValueError for an unknown name, or files of another model; FileNotFoundError for missing files.
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"the model is {name!r}; give a name, a hub id or a folder")
    name = os.fspath(name)
    folder = hub.find(name)
    has_safetensors = any(folder.glob("*.safetensors"))
    with quiet_transformers():
        if (folder / "state_dict.bin").exists() and not has_safetensors:
            model = _from_audiocraft(folder, device, dtype)
        else:
            model = _from_hugging_face(folder, device, dtype)
    model.name = name
    if licence := hub.licence(name):
        model.licence = licence
    elif model.licence == Model.licence:
        model.licence = _licence_of_card(folder)
    return model


def _licence_of_card(folder: Path) -> str:
    """The licence in the front matter of the folder's model card, README.md."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    match = re.search(r"^license: *(\S+)", text, re.MULTILINE)
    if match is None:
        return Model.licence
    return hub.CC_BY_NC if match[1] == "cc-by-nc-4.0" else match[1]


# --- Hugging Face -----------------------------------------------------------------------------------------


def _from_hugging_face(folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """A model from `config.json`, `*.safetensors` and the tokenizer's files, as transformers saves them."""
    if not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} holds no model: expected config.json with *.safetensors, or state_dict.bin with "
            "compression_state_dict.bin"
        )
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in ("musicgen", "musicgen_melody"):
        raise WeightsError(f"{folder} holds a model of type {kind!r}; expected musicgen or musicgen_melody")
    config = read_config(folder)
    shape = LMConfig(
        **{ours: getattr(config.decoder, theirs) for ours, theirs in LM_SETTINGS.items()},
        cross_attention=kind == "musicgen",
    )
    validate_lm(shape, folder)
    codec = _codec_config(config.audio_encoder, shape.codebooks // shape.channels, folder)
    text = _empty_text_encoder(folder, config.text_encoder, device)
    frames = config.chroma_length if kind == "musicgen_melody" else None
    model = _allocate(codec, shape, text, frames, device, dtype)
    source, metadata = read_safetensors(folder)
    fill(model.named_parameters(), source, hugging_face, folder)
    model.window = _read_window(folder, codec.frame_rate)
    model.licence = metadata.get("licence", Model.licence)
    return model


def _read_window(folder: Path, frame_rate: int) -> float:
    """Window in seconds, from `max_length` in generation_config.json; 30 without one."""
    file = folder / "generation_config.json"
    frames = read_json(file).get("max_length") if file.exists() else None
    if frames is None:
        return Model.window
    if not isinstance(frames, int) or frames < 1:
        raise WeightsError(f"{file}: max_length is {frames!r}; expected the window in frames, such as 1500")
    return frames / frame_rate


def _codec_config(config: "EncodecConfig", codebooks: int, where: Path) -> CodecConfig:
    """Our config for transformers' EncodecConfig.

    Raises: WeightsError for a codec of another architecture.
    """
    for name, required in CODEC_REQUIRED.items():
        value = getattr(config, name, None)
        if value != required:
            raise WeightsError(
                f"{where}: the codec's {name} is {value!r}; MusicGen's codecs have {required!r}"
            )
    settings = {ours: getattr(config, theirs) for ours, theirs in CODEC_SETTINGS.items()}
    codec = CodecConfig(codebooks=codebooks, **(settings | {"ratios": tuple(settings["ratios"])}))
    validate_codec(codec, where)
    return codec


# --- audiocraft -------------------------------------------------------------------------------------------


def _from_audiocraft(folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """A model from audiocraft's two files and their T5, which is in the folder or on the hub."""
    file = AudiocraftFile.read(folder / "state_dict.bin")
    t5 = _find_t5(folder, file.setting("conditioners.description.t5.name", str))
    text = _empty_text_encoder(t5, read_config(t5), device)
    embedding = file.tensor("emb.0.weight")
    shape = LMConfig(
        dim=embedding.shape[1],
        layers=sum(name.endswith("norm1.weight") for name in file.tensors),
        heads=file.setting("transformer_lm.num_heads", int),
        feed_forward=len(file.tensor("transformer.layers.0.linear1.weight")),
        codebooks=sum(name.startswith("linears.") for name in file.tensors),
        codebook_size=len(embedding) - 1,
        channels=2 if file.setting("interleave_stereo_codebooks.use", bool, default=False) else 1,
        cross_attention="transformer.layers.0.norm_cross.weight" in file.tensors,
    )
    validate_lm(shape, folder)
    shifts = list(delays(shape.codebooks, shape.channels))
    if (found := file.setting("codebooks_pattern.delay.delays", list, default=shifts) or shifts) != shifts:
        raise WeightsError(f"{folder} has the delays {found}; MusicGen's are {shifts}")

    codec, codec_source, codec_name = _audiocraft_codec(folder / "compression_state_dict.bin")
    window = float(file.setting("dataset.segment_duration", int, float))
    melody = "self_wav" in file.setting("conditioners", dict)
    frames = 1 + int(window * codec.sample_rate) // HOP if melody else None
    model = _allocate(codec, shape, text, frames, device, dtype)
    model.window = window

    t5_source, _ = read_safetensors(t5)
    parts = ("shared.", "encoder.")
    t5_source = {f"text_encoder.{name}": read for name, read in t5_source.items() if name.startswith(parts)}
    elsewhere = ("codec.", "conditioner.text.")
    rest = ((name, p) for name, p in model.named_parameters() if not name.startswith(elsewhere))
    fill(model.codec.named_parameters(prefix="codec"), codec_source, codec_name, folder)
    fill(text.named_parameters(prefix="conditioner.text"), t5_source, hugging_face, t5)
    fill(rest, file.source, audiocraft, folder)
    return model


def _find_t5(folder: Path, name: str) -> Path:
    """Folder of the text encoder `name`: inside the folder of an audiocraft model, or from the hub."""
    if (folder / name).is_dir():
        return folder / name
    try:
        return hub.find(f"google-t5/{name}")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} needs the text encoder {name}, which is not in the cache and could not be downloaded; "
            f"on a machine with a network, run: python -m mgkit fetch google-t5/{name} --dest {folder / name}"
        ) from None


def _audiocraft_codec(path: Path) -> tuple[CodecConfig, dict[str, Read], Callable[[str], str]]:
    """Config, tensors and naming of the codec in the file, or of the published codec named in it."""
    content = read_bin(path)
    if "pretrained" in content:
        folder = hub.find(str(content["pretrained"]))
        config = read_config(folder)
        source, _ = read_safetensors(folder)
        codec = _codec_config(config, getattr(config, "num_quantizers", 0), folder)
        return codec, source, lambda name: hugging_face(name).removeprefix("audio_encoder.")
    file = AudiocraftFile.read(path)
    for name in ("causal", "renormalize"):
        if file.setting(f"encodec.{name}", bool, default=False):
            raise WeightsError(f"{path}: the codec's {name} is true; MusicGen's codecs have false")
    codec = CodecConfig(
        sample_rate=file.setting("sample_rate", int),
        filters=file.setting("seanet.n_filters", int),
        ratios=tuple(file.setting("seanet.ratios", list)),
        dim=file.setting("seanet.dimension", int),
        codebooks=sum(name.endswith("_codebook.embed") for name in file.tensors),
        codebook_size=len(file.tensor("quantizer.vq.layers.0._codebook.embed")),
        pad_mode=file.setting("seanet.pad_mode", str, default="reflect"),
    )
    validate_codec(codec, path)
    return codec, file.source, audiocraft


# --- empty modules ----------------------------------------------------------------------------------------


def _empty_text_encoder(folder: Path, config: "PretrainedConfig", device: torch.device) -> TextEncoder:
    """The folder's tokenizer with a T5 encoder, allocated but not yet filled."""
    text = TextEncoder(read_tokenizer(folder), meta_t5(config, folder)).to_empty(device=device)
    # `to_empty` separates these two names of one tensor.
    text.t5.encoder.embed_tokens.weight = text.t5.shared.weight
    return text


def _allocate(
    codec: CodecConfig,
    lm: LMConfig,
    text: TextEncoder,
    melody_frames: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """A model around `text`, in inference mode, allocated but not yet filled."""
    with torch.device("meta"):
        model = Model(Codec(codec), LM(lm).to(dtype), Conditioner(text, lm.dim, melody_frames))
    for module in (model.codec, model.lm, *model.conditioner.children()):
        if module is not text:
            module.to_empty(device=device)
    for module in (model.codec, model.lm, model.conditioner):
        module.eval().requires_grad_(False)
    return model
