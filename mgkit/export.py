"""A `Model` to a folder in the Hugging Face layout, which transformers and mgkit load."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgkit import audio
from mgkit.checkpoint import FIXED, Model, quiet
from mgkit.layouts import hugging_face
from mgkit.melody import HOP, N_FFT

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def save(model: Model, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Writes `folder` in the Hugging Face layout, which transformers and mgkit load; `dtype` converts, such as float16.

    Files of the folder are replaced only once all new ones are written. Errors: OSError where that fails.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    tensors: dict[str, Tensor] = {}
    for ours, parameter in model.named_parameters():
        name = hugging_face(ours)
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

    def write(draft: Path) -> None:
        try:
            save_file(
                tensors, draft / "model.safetensors", metadata={"format": "pt", "licence": model.licence}
            )
        except SafetensorError as error:  # for a full disk too
            raise OSError(f"{error}") from None
        (draft / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
        with quiet():
            _hugging_face_config(model, dtype).save_pretrained(draft)
            generation.save_pretrained(draft)
        model.conditioner.text.tokenizer.save_pretrained(draft)
        (draft / "preprocessor_config.json").write_text(json.dumps(_preprocessor(model), indent=2) + "\n")

    audio.replace_files(folder, write)


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
        **{name: value for name, value in FIXED.items() if name != "model_type"},
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
