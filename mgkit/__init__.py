"""mgkit: MusicGen to learn from, teach with and study. Start at `mgkit.MusicGen`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgkit import audio
    from mgkit.lab.sweeps import sweep
    from mgkit.musicgen import MusicGen

__version__ = "0.1.0"
__all__ = ["MusicGen", "audio", "sweep"]

# Names beside the modules, and where they are.
PLACES = {"MusicGen": "mgkit.musicgen", "sweep": "mgkit.lab.sweeps"}
OPTIONAL = ("ipywidgets", "pandas")


def __getattr__(name: str) -> Any:
    """Import a name of `PLACES` or a module of mgkit on first use; `import mgkit` alone loads nothing."""
    try:
        if name in PLACES:
            return getattr(import_module(PLACES[name]), name)
        return import_module(f"mgkit.{name}")
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            message = f"mgkit.{name} needs the package {error.name}: pip install {error.name}"
            raise ImportError(message) from None
        if error.name != f"mgkit.{name}":
            raise
        raise AttributeError(f"module 'mgkit' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    """Names for completion, including those not imported yet."""
    return sorted({*globals(), *__all__, *PLACES})
