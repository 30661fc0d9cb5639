"""A folder to a `Model`, strictly: either published layout, every tensor and every setting accounted for."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mgkit import hub
from mgkit.codec import Codec, CodecConfig
from mgkit.condition import Conditioner
from mgkit.delay import delays
from mgkit.layouts import Read, WeightsError, audiocraft, fill, hugging_face, read_bin, read_safetensors
from mgkit.lm import LM, LMConfig
from mgkit.melody import HOP
from mgkit.text import TextEncoder

if TYPE_CHECKING:
    from transformers import EncodecConfig, PretrainedConfig


PAD_MODES = ("reflect", "constant")
FIXED = {  # what every codec of a MusicGen has in transformers' words, and `codec.py` takes for granted
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


@dataclass
class Model:
    """The three parts of a MusicGen and what is said of them; `window` is the length in seconds that it learned."""

    codec: Codec
    lm: LM
    conditioner: Conditioner
    name: str = ""
    window: float = 30.0
    licence: str = "unknown: ask who made these weights"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every tensor of the model under its name here."""
        for part in ("codec", "lm", "conditioner"):
            yield from getattr(self, part).named_parameters(prefix=part)

    def memory(self, seconds: float = 0.0) -> float:
        """Approximate bytes of the weights and of the KV cache for `seconds` of music on a CPU; see `hub.memory`."""
        weights = sum(p.numel() * p.element_size() for _, p in self.named_parameters())
        steps = min(seconds, self.window) * self.codec.config.frame_rate
        return weights + hub.kv_cache(self.lm.config.layers, self.lm.config.dim, steps)


def load(name: str | os.PathLike, device: torch.device, dtype: torch.dtype) -> Model:
    """The model `name`, its language model in `dtype`, codec and conditioner in float32.

    `name` is one of NAMES, a hub id such as `facebook/musicgen-small`, or a folder in either layout.
    Errors: ValueError or FileNotFoundError in one sentence.
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"the model is {name!r}; it must be a name, a hub id or a folder")
    name = os.fspath(name)
    folder = hub.find(name)
    of_audiocraft = (folder / "state_dict.bin").exists() and not any(folder.glob("*.safetensors"))
    _pass_over_broken_torchaudio()
    try:
        with quiet():
            model = (_load_audiocraft if of_audiocraft else _load_hugging_face)(folder, device, dtype)
    except (WeightsError, FileNotFoundError):
        raise
    except (
        Exception
    ) as error:  # from the many readers of many files: theirs are of every kind, and pages long
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise WeightsError(f"{folder} does not hold a MusicGen that can be read ({reason})") from error
    model.name = name
    if hub.PRESETS.get(name, name).startswith("facebook/"):
        model.licence = hub.CC_BY_NC
    elif model.licence == Model.licence:
        model.licence = _card_licence(folder)
    return model


def _pass_over_broken_torchaudio() -> None:
    """Makes a torchaudio that does not load count as absent.

    transformers imports it wherever it is installed, and beside another torch, or one without CUDA, it raises
    OSError or RuntimeError: then no model at all would load, for want of what none of them needs.
    """
    if "torchaudio" not in sys.modules and find_spec("torchaudio"):
        try:
            import torchaudio  # noqa: F401
        except Exception:  # of several kinds
            sys.modules["torchaudio"] = None  # type: ignore[assignment]


def _card_licence(folder: Path) -> str:
    """The licence that the model card of the folder names, as those of the hub do."""
    card = folder / "README.md"
    named = re.search(r"^license: *(\S+)", card.read_text(), re.MULTILINE) if card.exists() else None
    if named is None:
        return Model.licence
    return hub.CC_BY_NC if named[1] == "cc-by-nc-4.0" else named[1]


def _load_hugging_face(folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """A model from `config.json`, `*.safetensors` and the tokenizer's files, as transformers saves them."""
    from transformers import AutoConfig

    if not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} holds no model: expected config.json with *.safetensors, or state_dict.bin with "
            "compression_state_dict.bin"
        )
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind not in ("musicgen", "musicgen_melody"):
        raise WeightsError(f"{folder} holds a model of type {kind!r}, not musicgen or musicgen_melody")
    config = AutoConfig.from_pretrained(folder)
    lm, melody = config.decoder, kind == "musicgen_melody"
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
    text = _empty_text(folder, config.text_encoder, device)
    model = _empty(codec, shape, text, config.chroma_length if melody else None, device, dtype)
    source, said = read_safetensors(folder)
    fill(model.named_parameters(), source, hugging_face, folder)
    generation = folder / "generation_config.json"
    frames = json.loads(generation.read_text()).get("max_length") if generation.exists() else None
    if frames is not None:
        if not isinstance(frames, int) or frames < 1:
            raise WeightsError(
                f"{generation}: max_length is {frames!r}; it must be the frames of a window, such as 1500"
            )
        model.window = frames / codec.frame_rate
    model.licence = said.get("licence", model.licence)
    return model


def codec_config(config: "EncodecConfig", codebooks: int) -> CodecConfig:
    """Our config of transformers' EncodecConfig. Errors: WeightsError for a codec of another architecture."""
    for name, value in FIXED.items():
        if getattr(config, name, None) != value:
            raise WeightsError(
                f"the codec's {name} is {getattr(config, name, None)!r}; MusicGen's codecs have {value!r}"
            )
    if config.pad_mode not in PAD_MODES:
        raise WeightsError(f"the codec's pad_mode is {config.pad_mode!r}; it must be one of {PAD_MODES}")
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
    from transformers import AutoConfig

    state, said = _checkpoint(folder / "state_dict.bin")
    t5 = _find_t5(folder, said["conditioners"]["description"]["t5"]["name"])
    text = _empty_text(t5, AutoConfig.from_pretrained(t5), device)
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

    pattern = (said.get("codebooks_pattern") or {}).get("delay") or {}
    shifts = delays(shape.codebooks, shape.channels)
    if tuple(pattern.get("delays") or shifts) != shifts:
        raise WeightsError(f"{folder} has the delays {pattern['delays']}; MusicGen's are {list(shifts)}")

    words, _ = read_safetensors(t5)
    words = {
        f"text_encoder.{name}": read
        for name, read in words.items()
        if name.startswith(("shared.", "encoder."))
    }
    sources = (
        ("codec.", codec_source, codec_table, folder),
        ("conditioner.text.t5.", words, hugging_face, t5),
    )
    named = dict(model.named_parameters())
    for prefix, source, table, where in (*sources, ("", _readers(state), audiocraft, folder)):
        part = [name for name in named if name.startswith(prefix)]
        fill([(name, named.pop(name)) for name in part], source, table, where)
    return model


def _find_t5(folder: Path, name: str) -> Path:
    """The folder of the T5 that a model of audiocraft's was trained with."""
    if (folder / name).is_dir():
        return folder / name
    try:
        return hub.find(f"google-t5/{name}")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} goes with the text encoder {name}, which is not in the cache and could not be downloaded; where "
            f"there is a network, run: python -m mgkit fetch google-t5/{name} --dest {folder / name}"
        ) from None


def _audiocraft_codec(file: Path) -> tuple[CodecConfig, dict[str, Read], Callable[[str], str]]:
    """Config, tensors and their names: of the file itself, or of the published codec that it points to."""
    from transformers import AutoConfig

    checkpoint = read_bin(file)
    if "pretrained" in checkpoint:
        folder = hub.find(checkpoint["pretrained"])
        source, _ = read_safetensors(folder)
        config = AutoConfig.from_pretrained(folder)
        alone = lambda name: hugging_face(name).removeprefix("audio_encoder.")  # noqa: E731
        return codec_config(config, config.num_quantizers), source, alone
    state, said = _checkpoint(file)
    for name in ("causal", "renormalize"):
        if said["encodec"].get(name):
            raise WeightsError(f"{file}: the codec is {name}; those of MusicGen are not")
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
    return config, _readers(state), audiocraft


def _checkpoint(file: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and config of one of audiocraft's files. Errors: WeightsError for a file of another make."""
    import yaml

    checkpoint = read_bin(file)
    if not isinstance(checkpoint, dict) or not {"best_state", "xp.cfg"} <= checkpoint.keys():
        raise WeightsError(f"{file} is not audiocraft's: expected 'best_state' and 'xp.cfg' in it")
    return checkpoint["best_state"], yaml.safe_load(checkpoint["xp.cfg"])


def _readers(state: dict[str, Tensor]) -> dict[str, Read]:
    return {name: lambda tensor=tensor: tensor for name, tensor in state.items()}  # type: ignore[misc]


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warning that the special token lies outside the codebook, where it belongs."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _empty_text(folder: Path, config: "PretrainedConfig", device: torch.device) -> TextEncoder:
    """The folder's tokenizer with a T5 whose memory is taken and not yet filled."""
    from transformers import AutoTokenizer, T5EncoderModel

    if not any((folder / file).exists() for file in ("tokenizer.json", "spiece.model")):
        raise FileNotFoundError(f"{folder} lacks its tokenizer: expected tokenizer.json or spiece.model")
    with torch.device("meta"):
        text = TextEncoder(AutoTokenizer.from_pretrained(folder), T5EncoderModel(config))
    text.to_empty(device=device)
    text.t5.encoder.embed_tokens.weight = text.t5.shared.weight  # one tensor, which `to_empty` made two
    return text


def _empty(
    codec: CodecConfig,
    lm: LMConfig,
    text: TextEncoder,
    melody_frames: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """A model around `text` whose memory is taken and not yet filled, ready for inference."""
    if lm.dim % lm.heads:
        raise WeightsError(
            f"the config asks for {lm.heads} heads in a width of {lm.dim}, which they do not divide"
        )
    with torch.device("meta"):
        model = Model(Codec(codec), LM(lm).to(dtype), Conditioner(text, lm.dim, melody_frames))
    for module in (model.codec, model.lm, *model.conditioner.children()):
        if module is not text:
            module.to_empty(device=device)
    for module in (model.codec, model.lm, model.conditioner):
        module.eval().requires_grad_(False)
    return model
