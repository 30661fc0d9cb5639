"""The supported variant of each architecture: settings with the only values mgkit runs.

Checkpoints of other models can have MusicGen's tensor names and shapes: MAGNeT has, and a rotary, post-norm
or non-causal MusicGen has. Only the settings differ, so each one with an influence on the results is compared
here, in both layouts. In a section passed to a constructor by the reference, a field unknown to these tables
is refused too; fields of training, logging and data sets are ignored.
"""

from collections.abc import Mapping
from pathlib import Path

from mgkit.codec import CodecConfig
from mgkit.formats.readers import WeightsError, short
from mgkit.lm import LMConfig

Settings = Mapping[str, object]

# --- Hugging Face: fields of transformers' configs ----------------------------------------------------------

# Fields absent from a config have transformers' default; None also stands for fields it does not define.
DECODER_REQUIRED = {
    "activation_function": "gelu",
    "scale_embedding": False,
    "position_embedding_type": None,
    "rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": None,
    "num_key_value_heads": None,
    "sliding_window": None,
    "attention_bias": None,
    "layer_norm_eps": None,
}
# Values with the meaning of an absent field.
SAME_AS_ABSENT = {
    "position_embedding_type": "sinusoidal",
    "attention_bias": False,
    "layer_norm_eps": 1e-5,
}
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
    "trim_right_ratio": 1.0,
    "chunk_length_s": None,
}
# preprocessor_config.json of a melody model: the spectrogram under its chroma.
CHROMA_REQUIRED = {"n_fft": 16384, "hop_length": 4096, "num_chroma": 12, "feature_size": 12}

# --- audiocraft: fields of xp.cfg, by section ---------------------------------------------------------------

LM_SECTIONS: dict[str, dict[str, object]] = {
    "transformer_lm": {
        "activation": "gelu",
        "norm": "layer_norm",
        "norm_first": True,
        "causal": True,
        "past_context": None,
        "positional_embedding": "sin",
        "positional_scale": 1.0,
        "max_period": 10_000,
        "bias_ff": False,
        "bias_attn": False,
        "bias_proj": False,
        "layer_scale": None,
        "qk_layer_norm": False,
        "qk_layer_norm_cross": False,
        "kv_repeat": 1,
    },
    "codebooks_pattern.delay": {"flatten_first": 0, "empty_initial": 0},
    "fuser": {"cross_attention_pos_emb": False},
    "conditioners.description.t5": {},
}
CHROMA_SECTION: dict[str, object] = {
    "n_chroma": 12,
    "radix2_exp": 14,
    "nfft": None,
    "winlen": None,
    "winhop": None,
    "norm": float("inf"),
    "argmax": True,
    "eval_wavs": None,
}
CODEC_SECTIONS: dict[str, dict[str, object]] = {
    "encodec": {
        "autoencoder": "seanet",
        "quantizer": "rvq",
        "channels": 1,
        "causal": False,
        "renormalize": False,
    },
    "rvq": {},
}
# For the encoder and the decoder, each with its own overrides. Whether a convolution has weight norm, its
# tensors tell.
SEANET_SECTION: dict[str, object] = {
    "channels": 1,
    "causal": False,
    "n_residual_layers": 1,
    "activation": "ELU",
    "activation_params": {"alpha": 1.0},
    "norm_params": {},
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "true_skip": True,
    "compress": 2,
    "lstm": 2,
    "trim_right_ratio": 1.0,
    "final_activation": None,
}
# Defaults of the reference other than the required value: such a field has to be in the file.
ABSENT = {
    "transformer_lm.activation": "relu",
    "transformer_lm.norm_first": False,
    "transformer_lm.causal": False,
    "transformer_lm.bias_ff": True,
    "transformer_lm.bias_attn": True,
    "transformer_lm.bias_proj": True,
    "chroma_stem.argmax": False,
    "chroma_stem.radix2_exp": 12,
    "seanet.n_residual_layers": 3,
    "seanet.lstm": 0,
}
# Other fields of the same sections: read elsewhere (sizes, names), or without influence on the results.
KNOWN = {
    "transformer_lm": (
        "dim num_heads num_layers hidden_scale n_q card q_modeling cross_attention dropout attention_dropout "
        "emb_lr lr weight_decay custom memory_efficient attention_as_float32 xpos checkpointing weight_init "
        "depthwise_init zero_bias_init two_step_cfg layer_norm_eps batch_first device dtype"
    ),
    "codebooks_pattern.delay": "delays",
    "fuser": "sum prepend cross ignore input_interpolate cross_attention_pos_emb_scale",
    "conditioners.description.t5": "name finetune word_dropout autocast_dtype normalize_text",
    "conditioners.self_wav.chroma_stem": "sample_rate match_len_on_eval n_eval_wavs cache_path",
    "encodec": "sample_rate renorm",
    "rvq": (
        "n_q bins q_dropout decay kmeans_init kmeans_iters threshold_ema_dead_code orthogonal_reg_weight "
        "orthogonal_reg_active_codes_only orthogonal_reg_max_codes"
    ),
    "seanet": (
        "dimension n_filters ratios pad_mode norm disable_norm_outer_blocks dilation_base "
        "final_activation_params encoder decoder"
    ),
}
# The text encoders of the reference.
T5_NAMES = (
    *("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b"),
    *(f"google/flan-t5-{size}" for size in ("small", "base", "large", "xl", "xxl")),
)
# Values of another model of audiocraft, by field.
OTHER_MODELS = {
    "lm_model": {"transformer_lm_magnet": "MAGNeT", "flow_matching": "JASCO"},
    "solver": {
        "magnet": "MAGNeT",
        "audio_magnet": "MAGNeT",
        "jasco": "JASCO",
        "diffusion": "MultiBandDiffusion",
        "compression": "EnCodec without a language model",
        "watermark": "AudioSeal",
    },
    "conditioners.self_wav.model": {"style": "MusicGen-Style", "drum_latents": "JASCO", "melody": "JASCO"},
    "conditioners.description.model": {
        "clap": "MusicGen with CLAP embeddings",
        "lut": "MusicGen with word tables",
    },
    "conditioners.chords.model": {"chords_emb": "JASCO"},
}


def another_model(where: Path, field: str, value: object) -> None:
    """Refuse a `value` of `field` used by another model.

    Raises: WeightsError with the name of the model.
    """
    name = OTHER_MODELS[field].get(value) if isinstance(value, str) else None
    if name is not None:
        raise WeightsError(f"{where}: {field} is {value!r}; {name} is another model; mgkit does not run it")


def require(where: Path, section: str, settings: Settings, required: Settings) -> None:
    """Compare the `required` fields of a section with its `settings`; an absent field has its default.

    Raises: WeightsError for another value, by field.
    """
    for field, value in required.items():
        default = ABSENT.get(f"{section.rpartition('.')[2]}.{field}", value)
        found = settings.get(field, default)
        if found != value:
            given = short(found) if field in settings else f"absent, which means {short(found)}"
            raise WeightsError(
                f"{where}: {section}.{field} is {given}; mgkit runs models with {value!r} only, "
                "and would play noise with other values"
            )


def require_known(where: Path, section: str, settings: Settings, required: Settings, known: str = "") -> None:
    """Compare as `require` does, and refuse fields absent from both `required` and `KNOWN`.

    Raises: WeightsError for another value or an unknown field.
    """
    require(where, section, settings, required)
    names = (known or KNOWN[section]).split()
    for field, value in settings.items():
        if field not in required and field not in names:
            raise WeightsError(
                f"{where}: {section} has the field {short(field)} = {short(value)}, which mgkit does not "
                "know and which may change the model; run it with the program that made it"
            )


# --- sizes --------------------------------------------------------------------------------------------------

PAD_MODES = ("reflect", "constant")
# Far above every published model: a damaged config must not fill the memory before any tensor is read.
LARGEST = {
    "layers": 512,
    "codebooks": 64,
    "channels": 2,
    "sample_rate": 1_000_000,
}


def validate_lm(config: LMConfig, where: Path) -> None:
    """Check for possible sizes, and for a width divisible by the heads.

    Raises: WeightsError about `where`, the source of the config.
    """
    names = ("dim", "layers", "heads", "feed_forward", "codebooks", "codebook_size", "channels")
    require_sizes(where, **{name: getattr(config, name) for name in names})
    if config.dim % config.heads:
        raise WeightsError(f"{where}: {config.heads} heads do not divide the width {config.dim}")
    if config.dim % 2 or config.dim < 4:
        raise WeightsError(f"{where}: the width is {config.dim}; expected an even number from 4")
    if config.codebooks % config.channels:
        raise WeightsError(
            f"{where}: {config.codebooks} codebooks cannot be shared by {config.channels} channels"
        )


def validate_codec(config: CodecConfig, where: Path) -> None:
    """Check for possible sizes, and for a supported padding mode.

    Raises: WeightsError about `where`, the source of the config.
    """
    names = ("sample_rate", "filters", "dim", "codebooks", "codebook_size")
    sizes = {f"ratio {i}": ratio for i, ratio in enumerate(config.ratios)}
    require_sizes(
        where, **{name: getattr(config, name) for name in names}, ratios=len(config.ratios), **sizes
    )
    if config.filters % 2:
        raise WeightsError(f"{where}: the codec has {config.filters} filters; expected an even number")
    if config.pad_mode not in PAD_MODES:
        raise WeightsError(
            f"{where}: the codec's pad_mode is {short(config.pad_mode)}; expected one of {PAD_MODES}"
        )
    if config.hop > config.sample_rate:
        raise WeightsError(
            f"{where}: the codec has {config.hop} samples a frame at {config.sample_rate} Hz; "
            "expected at least one frame per second"
        )


def require_sizes(where: Path, **sizes: object) -> None:
    """Check for positive integers within `LARGEST`.

    Raises: WeightsError about `where`, by name.
    """
    for name, size in sizes.items():
        largest = 16 if name.startswith("ratios") else LARGEST.get(name, 1_000_000)
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= largest:
            raise WeightsError(
                f"{where}: {name} is {short(size)} in its config; expected an integer from 1 to {largest}"
            )
