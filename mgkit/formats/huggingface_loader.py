"""The Hugging Face layout to a `Model` on the meta device and the plan to fill it.

config.json, generation_config.json, preprocessor_config.json, *.safetensors or *.bin, the tokenizer's files
"""

import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mgkit.codec import CodecConfig
from mgkit.formats import variants
from mgkit.formats.layouts import CODEC_SETTINGS, LM_SETTINGS, Plan, hugging_face, plan
from mgkit.formats.readers import WeightsError, read_config, read_json, short
from mgkit.formats.tensor_files import read_tensors
from mgkit.lm import LMConfig
from mgkit.melody import HOP
from mgkit.model import Model, empty_text_encoder, on_meta
from mgkit.text import Normalizer

if TYPE_CHECKING:
    from transformers import EncodecConfig, PretrainedConfig


def from_hugging_face(folder: Path, dtype: torch.dtype) -> tuple[Model, Plan]:
    """A model on the meta device and the plan to fill it, from files saved by transformers."""
    file = folder / "config.json"
    if (folder / "adapter_config.json").exists() and not file.exists():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise WeightsError(
            f"{folder} holds an adapter for {short(base)}, not a model: load that model, then the adapter "
            "with load_adapter, or with --adapter on the command line"
        )
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} holds no model: expected config.json with *.safetensors, or state_dict.bin with "
            "compression_state_dict.bin"
        )
    kind = read_json(file).get("model_type")
    if kind not in ("musicgen", "musicgen_melody"):
        raise WeightsError(
            f"{folder} holds a model of type {short(kind)}; expected musicgen or musicgen_melody"
        )
    source, metadata = read_tensors(folder)
    config = read_config(folder)
    variants.require(file, "decoder", _stated(config.decoder), variants.DECODER_REQUIRED)
    shape = LMConfig(
        **{ours: getattr(config.decoder, theirs) for ours, theirs in LM_SETTINGS.items()},
        cross_attention=kind == "musicgen",
    )
    variants.validate_lm(shape, folder)
    variants.require_sizes(file, max_position_embeddings=config.decoder.max_position_embeddings)
    codec = codec_config(config.audio_encoder, shape.codebooks // shape.channels, folder)
    frames = None
    if kind == "musicgen_melody":
        frames = config.chroma_length
        variants.require_sizes(file, chroma_length=frames)
        _require_chroma(folder, config.num_chroma, codec.sample_rate)
    text = empty_text_encoder(folder, config.text_encoder)
    if metadata.get("normalize_text") == "True":
        text.normalizer = Normalizer()
    model = on_meta(codec, shape, text, frames, dtype)
    model.window = _read_window(folder, metadata, model, config.decoder.max_position_embeddings)
    model.licence = metadata.get("licence", Model.licence)
    return model, plan(model.named_parameters(), source, hugging_face, folder)


def _stated(config: "PretrainedConfig") -> dict[str, object]:
    """The settings of a config, without those equal to an absent one."""
    same = variants.SAME_AS_ABSENT
    return {name: x for name, x in config.to_dict().items() if x is not None and x != same.get(name)}


def _require_chroma(folder: Path, num_chroma: int, sample_rate: int) -> None:
    """Raises: WeightsError if the files ask for another spectrogram than the one in `melody.py`."""
    file = folder / "preprocessor_config.json"
    variants.require(folder, "config.json", {"num_chroma": num_chroma}, {"num_chroma": 12})
    if file.exists():
        required = variants.CHROMA_REQUIRED | {"sampling_rate": sample_rate}
        variants.require(folder, file.name, read_json(file), required)


def _read_window(folder: Path, metadata: dict[str, str], model: Model, positions: int) -> float:
    """Window in seconds; 30 unless the files tell.

    mgkit's own files store it. transformers' have `max_length` in generation_config.json, which people also
    edit to limit a single run: it counts only from one second of music to the number of positions, and in a
    melody model only if it fits the length of the chroma. Otherwise a line names the window used instead.
    """
    file, rate = folder / "generation_config.json", model.frame_rate
    frames = read_json(file).get("max_length") if file.exists() else None
    if frames is not None and (not isinstance(frames, int) or frames < 1):
        raise WeightsError(
            f"{file}: max_length is {short(frames)}; expected the window in frames, such as 1500"
        )
    stored, chroma = metadata.get("window", ""), model.conditioner.melody_frames
    fits = frames is None or rate <= frames <= positions
    if re.fullmatch(r"\d{1,4}(\.\d{1,6})?", stored) and float(stored) > 0:
        window, reason = float(stored), "as it was trained"
        fits = frames is None or frames == round(window * rate)
    elif chroma is not None:
        covered = (chroma - 1) * HOP / model.sample_rate
        # The chroma of 30 s covers 29.95 s.
        lengths = [*([] if frames is None else [frames / rate]), Model.window, math.ceil(covered), covered]
        window = next((x for x in lengths if _chroma_frames(x, model) == chroma), covered)
        reason = f"the length of the model's chroma, {chroma} frames"
        fits = frames is None or window == frames / rate
    elif frames is not None and fits:
        window, reason = frames / rate, ""
    else:
        window = Model.window
        reason = f"the length of published models; a window is {rate} to {positions} frames"
    if frames is not None and not fits:
        print(
            f"{file}: max_length is {frames} frames, {frames / rate:g} s, and was probably edited to limit a "
            f"run; the window is {window:g} s, {reason}",
            file=sys.stderr,
        )
    return window


def _chroma_frames(seconds: float, model: Model) -> int:
    """Frames of chroma in `seconds`, as the model pads or cuts a melody."""
    return 1 + int(seconds * model.sample_rate) // HOP


def codec_config(config: "EncodecConfig", codebooks: int, where: Path) -> CodecConfig:
    """Our config for transformers' EncodecConfig.

    Raises: WeightsError for a codec of another architecture.
    """
    required = variants.CODEC_REQUIRED | {"codebook_dim": getattr(config, "hidden_size", None)}
    variants.require(where, "the codec's config", _stated(config), required)
    settings = {ours: getattr(config, theirs) for ours, theirs in CODEC_SETTINGS.items()}
    codec = CodecConfig(codebooks=codebooks, **(settings | {"ratios": tuple(settings["ratios"])}))
    variants.validate_codec(codec, where)
    return codec
