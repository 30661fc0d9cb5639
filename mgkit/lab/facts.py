"""Facts about the next run: time, memory, licence of the weights, and whether the model takes melodies."""

import html
import math

import psutil
from ipywidgets import HTML

from mgkit import MusicGen, hub
from mgkit.threads import counted


class Facts(HTML):
    """Two quiet lines about the next run."""

    def show(self, name: str, seconds: float, model: MusicGen | None, pace: float | None) -> None:
        """Describe `seconds` of music by `name`; `model` if loaded, `pace` in seconds per step if known."""
        frames = seconds * (model.frame_rate if model else 50)
        time = f"about {format_seconds(max(0, frames) * pace)}" if pace else "unknown until the first run"
        self.value = (
            f'<div class="mgkit-quiet">time: {time} · memory: {_memory(name, seconds, model)}<br>'
            f"licence of the weights: {html.escape(_licence(name, model))}</div>"
        )


def has_melody(name: str, model: MusicGen | None) -> bool:
    """Whether the model takes melodies; of an unknown one, it is assumed."""
    if model:
        return model.conditioner.melody_frames is not None
    return name not in hub.PRESETS or "melody" in name


def _memory(name: str, seconds: float, model: MusicGen | None) -> str:
    """Memory needed and available, in words."""
    need = model.model.memory(seconds) if model else hub.memory(name, seconds)
    available = available_memory()
    text = f"about {format_bytes(need)}" if need else "unknown until the model is loaded"
    if need and need > 1e9 and not model:
        text += " (briefly twice as much while loading)"
    if available:
        text += f", {format_bytes(available)} available"
    if need and available and need > available and not model:
        text += "; <b>more than is available</b>"
    return text


def _licence(name: str, model: MusicGen | None) -> str:
    return model.licence if model else hub.licence(name) or "known once the model is loaded"


def format_seconds(seconds: float) -> str:
    """Duration in seconds, or in minutes and seconds.

    >>> format_seconds(8.2), format_seconds(200)
    ('9 s', '3 min 20 s')
    """
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_bytes(count: float) -> str:
    """Size in MB or GB.

    >>> format_bytes(49e6), format_bytes(2.5e9)
    ('49 MB', '2.5 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def available_memory() -> float | None:
    """Bytes of available memory, or None where the system does not say."""
    return counted(lambda: float(psutil.virtual_memory().available), None)
