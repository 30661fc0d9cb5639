"""audiocraft's layout to a `Model` on the meta device and the plan to fill it.

    state_dict.bin or checkpoint.th (language model, projections), compression_state_dict.bin (codec), a T5

Sizes come from the tensors; the settings have to be MusicGen's, see `variants`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from mgkit import hub
from mgkit.codec import CodecConfig
from mgkit.delay import delays
from mgkit.formats import huggingface_loader, variants
from mgkit.formats.audiocraft_files import CODEC, EXPORTED, AudiocraftFile
from mgkit.formats.layouts import Plan, audiocraft, hugging_face, plan
from mgkit.formats.readers import WeightsError, read_config, short
from mgkit.formats.tensor_files import Stored, read_bin, read_tensors
from mgkit.lm import LMConfig
from mgkit.melody import HOP
from mgkit.model import Model, empty_text_encoder, on_meta
from mgkit.text import Normalizer

LONGEST_WINDOW = 300  # seconds
TEXT, MELODY = "conditioners.description", "conditioners.self_wav"
T5_TENSORS = "condition_provider.conditioners.description.t5."
T5_PARTS = ("text_encoder.shared.", "text_encoder.encoder.")


def from_audiocraft(first: Path, folder: Path, dtype: torch.dtype) -> tuple[Model, Plan]:
    """A model on the meta device and the plan to fill it, from audiocraft's files and their T5."""
    codec_file = folder / CODEC
    if first.name == EXPORTED and not codec_file.exists():
        AudiocraftFile.read(first)
        raise FileNotFoundError(
            f"{codec_file} is missing, the codec that belongs to {first.name}: audiocraft's layout is both "
            "files; copy it from the model that this one was trained from"
        )
    file = AudiocraftFile.read(first)
    shape = lm_config(file)
    melody = has_melody(file, shape.cross_attention)
    seconds = window(file)
    codec, codec_source, codec_name = _audiocraft_codec(file, codec_file, shape.codebooks // shape.channels)
    if melody:
        require_chroma(file, codec.sample_rate)
    name = t5_name(file)
    t5 = _find_t5(folder, name)
    text = empty_text_encoder(t5, read_config(t5))
    if file.setting(f"{TEXT}.t5.normalize_text", bool, default=False):
        text.normalizer = Normalizer()
    frames = 1 + int(seconds * codec.sample_rate) // HOP if melody else None
    model = on_meta(codec, shape, text, frames, dtype)
    model.window = seconds

    own, tuned = T5_TENSORS, f"{TEXT}.t5.finetune"
    t5_source = {f"text_encoder.{name}": tensor for name, tensor in read_tensors(t5)[0].items()}
    source = dict(file.source)
    if file.setting(tuned, bool, default=False):
        t5_source = {
            f"text_encoder.{n.removeprefix(own)}": source.pop(n) for n in list(source) if n.startswith(own)
        }
    t5_source = {n: tensor for n, tensor in t5_source.items() if n.startswith(T5_PARTS)}
    elsewhere = ("codec.", "conditioner.text.")
    rest = ((name, p) for name, p in model.named_parameters() if not name.startswith(elsewhere))
    values = plan(model.codec.named_parameters(prefix="codec"), codec_source, codec_name, folder)
    values |= plan(text.named_parameters(prefix="conditioner.text"), t5_source, hugging_face, t5)
    return model, values | plan(rest, source, audiocraft, folder)


def _find_t5(folder: Path, name: str) -> Path:
    """Folder of the text encoder `name`: inside the folder of an audiocraft model, or from the hub."""
    repository = name if "/" in name else f"google-t5/{name}"
    for inside in (folder / name, folder / repository, folder / name.rpartition("/")[2]):
        if inside.is_dir():
            return inside
    try:
        return hub.find(repository)
    except FileNotFoundError:
        # audiocraft asks for it without the owner.
        if (found := hub.cached(name)) is not None:
            return found
        raise FileNotFoundError(
            f"{folder} needs the text encoder {name}, which is not in the cache and could not be downloaded; "
            f"on a machine with a network, run: python -m mgkit fetch {repository} --dest {folder / name}"
        ) from None


def _audiocraft_codec(
    file: AudiocraftFile, path: Path, codebooks: int
) -> tuple[CodecConfig, dict[str, Stored], Callable[[str], str]]:
    """Config, tensors and naming of the first `codebooks` of the codec: in its file, or a published one.

    A checkpoint of a training names the published one in its configuration.
    """
    pretrained = file.at("compression_model_checkpoint")
    content = (
        read_bin(path) if path.exists() else {"pretrained": str(pretrained).removeprefix("//pretrained/")}
    )
    if "pretrained" in content:
        folder = hub.snapshot(hub.find(str(content["pretrained"])))
        codec = huggingface_loader.codec_config(read_config(folder), codebooks, folder)
        source, _ = read_tensors(folder)
        layer, rename = "quantizer.layers.{}.", lambda name: hugging_face(name).removeprefix("audio_encoder.")
        available = sum(name.endswith("codebook.embed") for name in source)
    else:
        own = AudiocraftFile.read(path, content)
        codec = replace(codec_config(own), codebooks=codebooks)
        source, layer, rename = own.source, "quantizer.vq.layers.{}.", audiocraft
        available = sum(name.endswith("_codebook.embed") for name in source)
    used = file.setting("compression_model_n_q", int, default=available)
    if used != codebooks or used > available:
        raise WeightsError(
            f"{file.path} models {codebooks} codebooks a channel, and its codec {path.name} has {available}, "
            f"of which compression_model_n_q takes {used}; are these files of one model?"
        )
    surplus = tuple(layer.format(number) for number in range(used, available))
    return codec, {name: tensor for name, tensor in source.items() if not name.startswith(surplus)}, rename


def refuse_other_models(file: AudiocraftFile) -> None:
    """Raises: WeightsError for a file of MAGNeT, JASCO, MusicGen-Style or another model, by name."""
    for field in variants.OTHER_MODELS:
        variants.another_model(file.path, field, file.at(field))


def lm_config(file: AudiocraftFile) -> LMConfig:
    """Config of the language model: sizes from the tensors, which the settings must confirm.

    Raises: WeightsError for another model or an unsupported variant.
    """
    refuse_other_models(file)
    rows, dim = file.shape("emb.0.weight", 2)
    stereo = bool(file.setting("interleave_stereo_codebooks.use", bool, default=False))
    config = LMConfig(
        dim=dim,
        layers=sum(name.endswith("norm1.weight") for name in file.tensors),
        heads=file.setting("transformer_lm.num_heads", int),
        feed_forward=file.shape("transformer.layers.0.linear1.weight", 2)[0],
        codebooks=sum(name.startswith("linears.") and name.endswith(".weight") for name in file.tensors),
        codebook_size=rows - 1,
        channels=2 if stereo else 1,
        cross_attention="transformer.layers.0.norm_cross.weight" in file.tensors,
    )
    variants.validate_lm(config, file.path)
    file.require("lm_model", "transformer_lm")
    sizes = {"dim": dim, "num_layers": config.layers, "n_q": config.codebooks, "card": config.codebook_size}
    for field, size in sizes.items():
        file.require(f"transformer_lm.{field}", size)
    file.require("transformer_lm.hidden_scale", config.feed_forward / dim)
    file.require_sections(variants.LM_SECTIONS)

    pattern = (
        "codebooks_pattern.modeling" if file.at("codebooks_pattern.modeling") else "transformer_lm.q_modeling"
    )
    file.require(pattern, "delay", default="absent")
    file.require("interleave_stereo_codebooks.per_timestep", False)
    shifts = list(delays(config.codebooks, config.channels))
    if (found := file.setting("codebooks_pattern.delay.delays", list, default=shifts) or shifts) != shifts:
        raise WeightsError(f"{file.path} has the delays {short(found)}; MusicGen's are {shifts}")
    return config


def has_melody(file: AudiocraftFile, cross_attention: bool) -> bool:
    """Whether a melody is a condition beside the text; its chroma must be the one of `melody.py`.

    Raises: WeightsError for other conditions, or another way of fusing them with the music.
    """
    names = set(file.section("conditioners")) - {"args"}
    melody = "self_wav" in names
    expected = {"description", "self_wav"} if melody else {"description"}
    if names != expected:
        raise WeightsError(
            f"{file.path}: the conditioners are {short(sorted(names))}; mgkit runs models with 'description' "
            "(a T5), alone or with 'self_wav' (a melody)"
        )
    file.require(f"{TEXT}.model", "t5", default="absent")
    # The order of a list does not matter: audiocraft puts texts next to the music, then waves in front.
    fused = {"prepend": expected if melody else set(), "cross": set() if melody else expected}
    for kind in ("sum", "prepend", "cross", "ignore", "input_interpolate"):
        found = file.at(f"fuser.{kind}") or []
        wanted = sorted(fused.get(kind, ()))
        if not isinstance(found, list) or sorted(map(str, found)) != wanted:
            raise WeightsError(
                f"{file.path}: fuser.{kind} is {short(found)}; mgkit runs models with {wanted} only, and "
                "would play noise with other values"
            )
    if cross_attention == melody:
        has, whom = ("has", "prepends its text") if melody else ("lacks", "attends to its text")
        raise WeightsError(f"{file.path} {has} cross-attention, but {whom}; are these files of one model?")
    return melody


def require_chroma(file: AudiocraftFile, sample_rate: int) -> None:
    """Raises: WeightsError for another chroma than `melody.py` computes at the codec's sample rate."""
    file.require(f"{MELODY}.model", "chroma_stem", default="absent")
    path = f"{MELODY}.chroma_stem"
    variants.require_known(file.path, path, file.section(path), variants.CHROMA_SECTION)
    file.require(f"{path}.sample_rate", sample_rate)


def window(file: AudiocraftFile) -> float:
    """Length of the training clips in seconds.

    Raises: WeightsError for an impossible length.
    """
    seconds = float(file.setting("dataset.segment_duration", int, float))
    if not 0 < seconds <= LONGEST_WINDOW:
        raise WeightsError(
            f"{file.path}: dataset.segment_duration is {seconds:g}; expected the length of the training "
            f"clips, at most {LONGEST_WINDOW} seconds"
        )
    return seconds


def t5_name(file: AudiocraftFile) -> str:
    """Name of the text encoder on the hub, as the reference knows it.

    Raises: WeightsError for any other name.
    """
    name = file.setting(f"{TEXT}.t5.name", str)
    if name not in variants.T5_NAMES:
        raise WeightsError(
            f"{file.path}: {TEXT}.t5.name is {short(name)}; expected one of {', '.join(variants.T5_NAMES)}"
        )
    return name


def codec_config(file: AudiocraftFile) -> CodecConfig:
    """Config of the codec in the file, with all of its codebooks.

    Raises: WeightsError for another codec or an unsupported variant.
    """
    file.require("compression_model", "encodec")
    file.require_sections(variants.CODEC_SECTIONS)
    shared = file.section("seanet")
    for part in ("encoder", "decoder"):
        own = file.section(f"seanet.{part}")
        variants.require_known(file.path, "seanet", shared | own, variants.SEANET_SECTION)
        for name in ("dimension", "n_filters", "ratios", "pad_mode", "norm"):
            if name in own and own[name] != shared.get(name):
                raise WeightsError(
                    f"{file.path}: seanet.{part}.{name} is {short(own[name])}, but seanet.{name} is "
                    f"{short(shared.get(name))}; mgkit runs codecs with equal halves"
                )
    if (norm := shared.get("norm", "none")) not in ("weight_norm", "none"):
        raise WeightsError(f"{file.path}: seanet.norm is {short(norm)}; expected 'weight_norm'")
    codebooks = sum(name.endswith("_codebook.embed") for name in file.tensors)
    config = CodecConfig(
        sample_rate=file.setting("sample_rate", int),
        filters=file.setting("seanet.n_filters", int),
        ratios=tuple(file.setting("seanet.ratios", list)),
        dim=file.setting("seanet.dimension", int),
        codebooks=codebooks,
        codebook_size=file.shape("quantizer.vq.layers.0._codebook.embed", 2)[0],
        pad_mode=file.setting("seanet.pad_mode", str, default="reflect"),
    )
    variants.validate_codec(config, file.path)
    file.require("encodec.sample_rate", config.sample_rate)
    file.require("rvq.n_q", codebooks)
    file.require("rvq.bins", config.codebook_size)
    if config.sample_rate % math.prod(config.ratios):
        raise WeightsError(
            f"{file.path}: {config.sample_rate} Hz are not a whole number of frames of {config.hop} samples; "
            "mgkit runs codecs with whole frame rates"
        )
    return config
