"""audiocraft's names, for programs written for it: `from mgkit.audiocraft import MusicGen, audio_write`.

    audiocraft.models            MusicGen, AudioGen
    audiocraft.data.audio        audio_write, audio_read
    audiocraft.data.audio_utils  convert_audio, convert_audio_channels
    audiocraft.utils.notebook    display_audio

Arguments, defaults and results as in audiocraft 1.3.0, but ValueErrors in place of assertions; models also
have mgkit's additions, such as `seed=`. Axes: B batch, C channels, K codebooks, N samples.
"""

import math
import os
import sys
from functools import partialmethod
from numbers import Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit import audio, musicgen
from mgkit.checkpoint import Model
from mgkit.settings import Settings

OTHER_MODELS = ("MultiBandDiffusion", "MAGNeT", "JASCO", "AudioSeal")
PARAMS = ("use_sampling", "temp", "top_k", "top_p", "cfg_coef", "two_step_cfg", "cfg_coef_beta")
Device: TypeAlias = str | torch.device | None
Dtype: TypeAlias = torch.dtype | None
File: TypeAlias = str | os.PathLike | None


def __getattr__(name: str) -> Any:
    """Refuse audiocraft's other models by name."""
    if name in OTHER_MODELS:
        raise ImportError(f"{name} is another model: mgkit runs MusicGen and AudioGen, with their EnCodec")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- audio --------------------------------------------------------------------------------------------------


def audio_read(
    filepath: str | os.PathLike, seek_time: float = 0.0, duration: float = -1.0, pad: bool = False
) -> tuple[Tensor, int]:
    """Wave [C, N] and sample rate of a file, from `seek_time` for `duration` seconds, or to the end for -1.

    Raises: FileNotFoundError; ValueError if the file is not audio, or ends before `seek_time`.
    """
    wave, rate = audio.read(filepath)
    start = int(seek_time * rate)
    if not 0 <= start < wave.shape[-1]:
        raise ValueError(
            f"seek_time is {seek_time} s; {filepath} lasts {wave.shape[-1] / rate:g} s: seek less"
        )
    samples = int(duration * rate) if duration > 0 else wave.shape[-1] - start
    wave = wave[:, start : start + samples].clone()
    return F.pad(wave, (0, samples - wave.shape[-1])) if pad else wave, rate


def audio_write(
    stem_name: str | os.PathLike,
    wav: Tensor,
    sample_rate: int,
    format: str = "wav",
    mp3_rate: int = 320,
    ogg_rate: int | None = None,
    normalize: bool = True,
    strategy: str = "peak",
    peak_clip_headroom_db: float = 1,
    rms_headroom_db: float = 18,
    loudness_headroom_db: float = 14,
    loudness_compressor: bool = False,
    log_clipping: bool = True,
    make_parent_dir: bool = True,
    add_suffix: bool = True,
) -> Path:
    """Write the wave [C, N] or [N] as wav, mp3, ogg or flac; the path returned is `stem_name` and suffix.

    Rates are in kbit/s. The strategies set the level, and the samples are clipped to full scale in the end:

        peak       largest sample at -`peak_clip_headroom_db` dBFS; if not `normalize`, only if it is above
        clip       level unchanged, clipped to -`peak_clip_headroom_db` dBFS
        rms        RMS of the mono mix at -`rms_headroom_db` dBFS; if not `normalize`, only if it is above
        loudness   -`loudness_headroom_db` LUFS, through tanh with the compressor; as peak below 0.4 s
        none       level unchanged

    Raises: ValueError for an invalid wave, format, strategy or rate; OSError if the file cannot be written.
    """
    suffix = f".{format}"
    if suffix not in audio.FORMATS:
        raise ValueError(f"the format is {format!r}; it must be wav, mp3, ogg or flac")
    headrooms = {"loudness": loudness_headroom_db, "rms": rms_headroom_db, "": 0, "none": 0}
    headrooms["peak"] = headrooms["clip"] = peak_clip_headroom_db
    if strategy not in headrooms:
        raise ValueError(f"the strategy is {strategy!r}; it must be peak, clip, rms, loudness or none")
    wave, rate = audio.as_wave(wav), int(audio.parse_rate(sample_rate, suffix))
    if strategy == "loudness" and wave.shape[-1] < audio.BLOCK * rate:
        strategy, normalize = "peak", True
    wave = _at_level(wave, rate, strategy, headrooms[strategy], normalize, loudness_compressor)
    if log_clipping and strategy in ("rms", "loudness") and wave.abs().max() > 1:
        share = (wave.abs() > 1).float().mean()
        print(f"{stem_name}: {share:.2%} clipped, largest sample {wave.abs().max():.2f}", file=sys.stderr)
    wave = wave.clamp(-1, 1)
    path = Path(f"{os.fspath(stem_name)}{suffix if add_suffix else ''}")
    if make_parent_dir:
        path.parent.mkdir(parents=True, exist_ok=True)
    kbps = {".mp3": mp3_rate, ".ogg": ogg_rate}.get(suffix)
    content = audio.encode(wave, rate, suffix, compression=_compression(wave, rate, suffix, kbps))
    return audio.replace_file(path, lambda draft: draft.write_bytes(content))


def _at_level(wave: Tensor, rate: int, strategy: str, headroom: float, normalize: bool, tanh: bool) -> Tensor:
    """The wave [C, N] at `headroom` dB below full scale by a strategy of `audio_write`, not yet clipped."""
    target = 10 ** (-headroom / 20)
    if strategy == "loudness":
        loud = audio.loudness(wave, rate)
        # Near silence stays quiet, and a constant offset has a level, but no loudness.
        if wave.pow(2).mean().sqrt() < audio.SILENCE or not math.isfinite(loud):
            return wave
        wave = wave * target / 10 ** (loud / 20)
        return wave.tanh() if tanh else wave
    if strategy in ("peak", "rms"):
        level = wave.abs().max() if strategy == "peak" else wave.mean(dim=0).pow(2).mean().sqrt()
        gain = target / level.clamp(min=1e-8)
        return wave * gain if normalize or gain < 1 else wave
    return wave.clamp(-target, target)


def _compression(wave: Tensor, rate: int, suffix: str, kbps: float | None) -> float | None:
    """The compression of `audio.encode` nearest to a bit rate; None for the default."""
    if kbps is None:
        return None
    if not isinstance(kbps, Real) or not kbps > 0:
        raise ValueError(f"the bit rate is {kbps!r}; it must be a number of kbit/s, such as 192")
    if suffix == ".mp3":
        # Bit rates of MPEG 1, 2 and 2.5.
        lowest, highest = (32, 320) if rate >= 32000 else (8, 160) if rate >= 16000 else (8, 64)
        return min(max((highest - kbps) / (highest - lowest), 0.0), 0.9999)
    # Vorbis has qualities in place of rates: search for the one with the right size.
    size, low, high = 125 * kbps * wave.shape[-1] / rate, 0.0, 0.9999
    for _ in range(6):
        middle = (low + high) / 2
        too_large = len(audio.encode(wave, rate, suffix, compression=middle)) > size
        low, high = (middle, high) if too_large else (low, middle)
    return high


def convert_audio(wav: Tensor, from_rate: float, to_rate: float, to_channels: int) -> Tensor:
    """Waves [..., C, N] with other channels, and floor(N * to_rate / from_rate) samples at another rate."""
    samples = wav.shape[-1] * int(to_rate) // int(from_rate)
    wav = audio.resample(wav.detach(), int(from_rate), int(to_rate))[..., :samples]
    return convert_audio_channels(wav, to_channels)


def convert_audio_channels(wav: Tensor, channels: int = 2) -> Tensor:
    """Waves [..., C, N] with other channels: the mean for 1, mono repeated for more, else the first ones.

    Raises: ValueError for fewer channels than requested, unless the wave is mono.
    """
    *shape, found, samples = wav.shape
    if channels == 1 < found:
        return wav.mean(dim=-2, keepdim=True)
    if found == 1:
        return wav.expand(*shape, channels, samples)
    if found < channels:
        raise ValueError(f"the wave has {found} channels, too few for {channels}: average them first")
    return wav[..., :channels, :]


def display_audio(samples: Tensor, sample_rate: int) -> None:
    """Show a player for each of the waves [B, C, N] or [C, N] in a notebook; it plays them at full scale."""
    from IPython.display import Audio, display

    for wave in samples.detach().cpu().float().reshape(-1, *samples.shape[-2:]):
        display(Audio(wave.numpy(), rate=sample_rate))


# --- parts of a model ---------------------------------------------------------------------------------------


class View:
    """A module with audiocraft's names for facts about it; all other attributes are the module's own."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # `copy` and `pickle` ask for methods before there are attributes.
        if name.startswith("__") or name == "module":
            raise AttributeError(name)
        if not hasattr(self.module, name):
            raise AttributeError(
                f"no {name!r} here: inside the model, names are those of mgkit, not audiocraft"
            )
        return getattr(self.module, name)


class LanguageModel(View):
    """`model.lm`."""

    def __init__(self, model: Model):
        super().__init__(model.lm)
        self.cfg = SimpleNamespace(dataset=SimpleNamespace(segment_duration=model.window))
        self.n_q = self.num_codebooks = model.lm.config.codebooks
        self.card, self.special_token_id = model.lm.config.codebook_size, model.lm.config.special


class CompressionModel(View):
    """`model.compression_model`; the codebooks of stereo alternate between left and right."""

    def __init__(self, model: Model):
        super().__init__(model.codec)
        config = model.codec.config
        self.sample_rate, self.frame_rate, self.channels = model.sample_rate, model.frame_rate, model.channels
        self.cardinality, self.total_codebooks = config.codebook_size, config.codebooks
        self.num_codebooks = model.channels * config.codebooks

    def encode(self, x: Tensor) -> tuple[Tensor, None]:
        """Codes [B, K, frames] of waves [B, C, N], and no scale, as MusicGen's codec does not normalize."""
        if x.dim() != 3 or x.shape[1] != self.channels:
            raise ValueError(f"the waves have shape {list(x.shape)}; they must be [B, {self.channels}, N]")
        return self.module.encode(x), None  # type: ignore[operator]

    def decode(self, codes: Tensor, scale: None = None) -> Tensor:
        """Waves [B, C, N] of codes [B, K, frames]."""
        if scale is not None:
            raise ValueError(f"scale is {scale!r:.40}; leave it out, as MusicGen's codec does not normalize")
        return self.module.decode(codes, self.channels)  # type: ignore[operator]


# --- models -------------------------------------------------------------------------------------------------


class BaseGenModel(musicgen.MusicGen):
    """MusicGen and AudioGen: `duration`, `extend_stride` and `generation_params` may be set, too."""

    duration: float = 15.0

    def __init__(self, model: Model):
        super().__init__(model)
        self.lm = LanguageModel(model)  # type: ignore[assignment]
        self.compression_model = CompressionModel(model)
        self.device = model.lm.device
        self.set_generation_params(duration=type(self).duration)

    @property
    def settings(self) -> Settings:
        """Settings of the next run, from the attributes as they are now."""
        params = {"temperature" if name == "temp" else name: v for name, v in self.generation_params.items()}
        if unknown := self.generation_params.keys() - set(PARAMS):
            raise ValueError(f"generation_params has {sorted(unknown)}; it takes {', '.join(PARAMS)}")
        return Settings(**params, duration=self.duration, extend_stride=self.extend_stride)

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.duration = settings.duration
        self.extend_stride = settings.extend_stride or 0.6 * self.max_duration
        fields = vars(settings) | {"temp": settings.temperature}
        self.generation_params = {name: fields[name] for name in PARAMS}


class MusicGen(BaseGenModel):
    """MusicGen; music above 30 s advances by 18 s."""

    @staticmethod
    def get_pretrained(
        name: str = "facebook/musicgen-melody", device: Device = None, dtype: Dtype = None, *, lm: File = None
    ) -> "MusicGen":
        """Load a model by audiocraft's name or mgkit's; see `mgkit.MusicGen.get_pretrained`."""
        return MusicGen(musicgen.MusicGen.get_pretrained(name, device, dtype, lm=lm).model)


class AudioGen(BaseGenModel):
    """AudioGen: sounds at 16 kHz; those above 10 s advance by 2 s."""

    duration = 5.0

    @staticmethod
    def get_pretrained(
        name: str = "facebook/audiogen-medium", device: Device = None, dtype: Dtype = None, *, lm: File = None
    ) -> "AudioGen":
        """Load a model by audiocraft's name or mgkit's; see `mgkit.MusicGen.get_pretrained`."""
        return AudioGen(musicgen.MusicGen.get_pretrained(name, device, dtype, lm=lm).model)

    # The same settings with other defaults, so arguments from the duration on are given by name.
    set_generation_params = partialmethod(
        BaseGenModel.set_generation_params, duration=10.0, extend_stride=2.0
    )
