"""Figures, players, the studio, listening tests, exercises and the gallery, for notebooks and the app."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Load a module on first use; if ipywidgets is missing, the error says how to install it."""
    try:
        return import_module(f"mgkit.lab.{name}")
    except ModuleNotFoundError as error:
        if error.name == "ipywidgets":
            message = f"mgkit.lab.{name} needs the package ipywidgets: pip install ipywidgets"
            raise ImportError(message) from None
        if error.name != f"mgkit.lab.{name}":
            raise
        raise AttributeError(f"module 'mgkit.lab' has no attribute {name!r}") from None
