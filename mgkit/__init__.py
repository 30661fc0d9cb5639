"""mgkit: MusicGen to learn from, teach with and study. Start at `mgkit.MusicGen`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgkit import audio
    from mgkit.musicgen import MusicGen

__version__ = "0.1.0"
__all__ = ["MusicGen", "audio"]


def __getattr__(name: str) -> Any:
    """Import `MusicGen`, or a module of mgkit, on first use; `import mgkit` alone loads nothing else."""
    if name == "MusicGen":
        return import_module("mgkit.musicgen").MusicGen
    try:
        return import_module(f"mgkit.{name}")
    except ModuleNotFoundError as error:
        if error.name == "ipywidgets":
            raise ImportError(f"mgkit.{name} needs the package ipywidgets: pip install ipywidgets") from None
        if error.name != f"mgkit.{name}":
            raise
        raise AttributeError(f"module 'mgkit' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    """Names for completion, including those not imported yet."""
    return sorted({*globals(), *__all__})
