"""A `Model` to a folder in the Hugging Face layout, which transformers and mgkit load."""

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgkit.checkpoint import Model
from mgkit.files import replace_files
from mgkit.formats.layouts import CODEC_SETTINGS, LM_SETTINGS, hugging_face
from mgkit.formats.readers import quiet_transformers
from mgkit.formats.variants import CODEC_REQUIRED
from mgkit.melody import HOP, N_FFT
from mgkit.packed import plain

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig


def save(model: Model, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Write `model` to `folder`; `dtype` converts the weights, for example to torch.float16.

    Files already there are replaced only once all the new ones are written.

    Raises: ValueError for adapters that are not merged; OSError for a full or read-only disk.
    """
    if model.tuner is not None or any(".lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("the model has adapters, and this layout has no place for them: merge() them first")
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if any(parameter.dtype == torch.int8 for _, parameter in model.named_parameters()):
        raise ValueError(
            "the weights are rounded to int8; load the model with dtype=torch.float32 to save it"
        )
    named = tensors(model, dtype)
    metadata = {"format": "pt", "licence": model.licence, "window": f"{model.window:.6f}"}
    if model.conditioner.text.normalizer is not None:
        metadata["normalize_text"] = "True"
        print(
            "the model takes normalized prompts, which transformers does not know: normalize them "
            "there with model.conditioner.text.normalizer",
            file=sys.stderr,
        )
    preprocessor = json.dumps(_preprocessor(model), indent=2) + "\n"

    def write(draft: Path) -> None:
        try:
            save_file(named, draft / "model.safetensors", metadata=metadata)
        except SafetensorError as error:
            # A full disk, for example.
            raise OSError(str(error)) from None
        with quiet_transformers():
            config(model, dtype).save_pretrained(draft)
            _generation_config(model).save_pretrained(draft)
        model.conditioner.text.tokenizer.save_pretrained(draft)
        (draft / "preprocessor_config.json").write_text(preprocessor, encoding="utf-8")
        # safetensors lets only the owner read its file; the umask decides for the others.
        (draft / "model.safetensors").chmod((draft / "preprocessor_config.json").stat().st_mode & 0o777)

    Path(folder).mkdir(parents=True, exist_ok=True)
    replace_files(folder, write)


def tensors(
    model: Model, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Every tensor of the model under its name in the Hugging Face layout, on `device`."""
    tensors: dict[str, Tensor] = {}
    for ours, parameter in model.named_parameters():
        name = hugging_face(ours)
        value = plain(parameter.detach()).to(device, dtype or parameter.dtype)
        if name.endswith("conv.weight"):
            # Weight norm, w = g v / |v|: our weight serves as the direction v, its norm as the gain g.
            gain = value.float().flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1)).to(value.dtype)
            stem = name.replace("weight", "parametrizations.weight.original")
            tensors[f"{stem}0"], tensors[f"{stem}1"] = gain, value.contiguous()
        else:
            tensors[name] = value.contiguous()
        if name.endswith("codebook.embed"):
            # Statistics from training, which transformers requires and does not use.
            stem = name.removesuffix("embed")
            tensors[f"{stem}embed_avg"] = value.clone()
            tensors[f"{stem}cluster_size"] = value.new_ones(len(value))
            tensors[f"{stem}inited"] = value.new_ones(1)
    return tensors


def config(model: Model, dtype: torch.dtype | None = None) -> "PretrainedConfig":
    """transformers' config of the model, the content of config.json."""
    import transformers

    codec, lm, t5 = model.codec.config, model.lm.config, model.conditioner.text.t5.config
    frames = model.conditioner.melody_frames
    kind = "Musicgen" if frames is None else "MusicgenMelody"
    if t5.d_model == lm.dim:
        raise ValueError(
            f"text encoder and language model are both {lm.dim} wide, in which case transformers has no "
            "projection between them; choose another width for the language model"
        )
    bits = math.ceil(math.log2(codec.codebook_size))
    encodec = transformers.EncodecConfig(
        **{
            name: value
            for name, value in CODEC_REQUIRED.items()
            if name != "model_type" and value is not None
        },
        **{theirs: getattr(codec, ours) for ours, theirs in CODEC_SETTINGS.items()},
        target_bandwidths=[codec.codebooks * codec.frame_rate * bits / 1000],
    )
    decoder = getattr(transformers, f"{kind}DecoderConfig")(
        **{theirs: getattr(lm, ours) for ours, theirs in LM_SETTINGS.items()},
        dropout=0.0,
        max_position_embeddings=max(2048, model.window_frames),
        bos_token_id=lm.special,
        pad_token_id=lm.special,
    )
    whole = getattr(transformers, f"{kind}Config")(
        text_encoder=t5.to_dict(),
        audio_encoder=encodec.to_dict(),
        decoder=decoder.to_dict(),
        **({} if frames is None else {"chroma_length": frames}),
    )
    whole.architectures = [f"{kind}ForConditionalGeneration"]
    whole.dtype = dtype or model.lm.dtype
    return whole


def _generation_config(model: Model) -> "GenerationConfig":
    """transformers' defaults for `generate`, of which mgkit reads `max_length`: the window in frames."""
    from transformers import GenerationConfig

    special = model.lm.config.special
    return GenerationConfig(
        do_sample=True,
        guidance_scale=3.0,
        max_length=round(model.window * model.codec.config.frame_rate),
        bos_token_id=special,
        pad_token_id=special,
        decoder_start_token_id=special,
    )


def _preprocessor(model: Model) -> dict[str, str | int | float]:
    """Settings of transformers' feature extractor: chroma for a melody model, audio prompts for any other."""
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
