"""Inputs for the settings of `generate.Settings`: named sliders with a line of help each.

Written to the API of ipywidgets 7.7, which Colab has; version 8 supports it too.
"""

import html
import re
from dataclasses import asdict
from numbers import Real
from typing import Any

import traitlets
from ipywidgets import (
    HTML,
    Checkbox,
    DOMWidget,
    FloatSlider,
    FloatText,
    HBox,
    IntSlider,
    IntText,
    Label,
    Layout,
    Text,
    VBox,
)

from mgkit.brief import brief
from mgkit.settings import SETTINGS_HELP, Settings

# Names in the field's words.
LABELS = {
    "prompt": "Prompt",
    "negative": "Negative prompt",
    "duration": "Seconds",
    "seed": "Seed",
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p (nucleus)",
    "min_p": "Min-p",
    "cfg_coef": "Guidance (CFG)",
    "cfg_coef_beta": "Double guidance β",
    "use_sampling": "Sampling",
    "two_step_cfg": "Two-step guidance",
    "extend_stride": "Window stride",
    "audio_prompt_seconds": "Seconds of audio",
    "audio_prompt_end": "Continue from",
    "model": "Model",
}
# Smallest and largest value of a slider, and its step; a value beyond them set in code widens it.
RANGES = {
    "temperature": (0.0, 2.0, 0.05),
    "top_k": (0, 1000, 1),
    "top_p": (0.0, 1.0, 0.01),
    "min_p": (0.0, 1.0, 0.01),
    "cfg_coef": (0.0, 10.0, 0.1),
    "cfg_coef_beta": (0.0, 10.0, 0.1),
    "extend_stride": (0.5, 30.0, 0.5),
}
# Values that a slider shows before it is switched on.
STARTS = {"cfg_coef_beta": 5.0, "extend_stride": 18.0}
SETTINGS = [name for name in SETTINGS_HELP if name != "duration"]
# As people look for them; settings that are not named here come last.
ORDER = [
    "cfg_coef",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "cfg_coef_beta",
    "use_sampling",
    "two_step_cfg",
]
HELP = {"negative": "what the music should not sound like", **SETTINGS_HELP}


def explain(widget: DOMWidget, text: str) -> None:
    """Give a widget its tooltip, by whichever name its version of ipywidgets has for it."""
    names = ("tooltip", "description_tooltip")
    setattr(widget, next(name for name in names if widget.has_trait(name)), text)


def label(name: str) -> str:
    """Name of a control in the panel."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


def in_words(message: str) -> str:
    """An error message with its parameter named as in the panel.

    >>> in_words("top_k is -1; it must be an integer of at least 0")
    'Top-k is -1; it must be an integer of at least 0'
    """
    return re.sub(r"^(the )?(\w+)(?= (is|weighs|needs)\b)", lambda m: LABELS.get(m[2], m[0]), message)


class OptionalSlider(HBox):
    """Slider with a switch: `value` is a number, or None while it is off."""

    value = traitlets.Any(None, allow_none=True)

    def __init__(self, name: str):
        low, high, step = RANGES[name]
        self.switch = Checkbox(False, indent=False, layout=Layout(width="28px", flex="0 0 auto"))
        self.slider = FloatSlider(STARTS[name], min=low, max=high, step=step, disabled=True)
        explain(self.switch, f"{label(name)}: the model's default, or the slider's value")
        super().__init__([self.switch, self.slider])
        self.switch.observe(lambda _: self._read(), "value")
        self.slider.observe(lambda _: self._read(), "value")
        self.observe(lambda _: self._write(), "value")

    def _read(self) -> None:
        self.slider.disabled = not self.switch.value
        self.value = self.slider.value if self.switch.value else None

    def _write(self) -> None:
        """Follow a value assigned in code; one that is no number stays, for `Settings` to reject."""
        value = self.value
        if isinstance(value, int | float):
            _widen(self.slider, value)
            self.slider.value = value
        if value is None or isinstance(value, int | float):
            self.switch.value = value is not None


class SettingsForm(VBox):
    """Negative prompt and every setting but the duration, as rows of name, input and help.

    `named` holds the inputs by name; `read()` returns their values.
    """

    def __init__(self) -> None:
        defaults = asdict(Settings())
        names = sorted(SETTINGS, key=lambda name: (ORDER + SETTINGS).index(name))
        self.named: dict[str, Any] = {"negative": Text("", placeholder="drums, noise")}
        self.named |= {name: _input(name, defaults[name]) for name in names}
        self.rows = {name: _row(name, control) for name, control in self.named.items()}
        super().__init__(list(self.rows.values()))

    def check(self, name: str, value: Any) -> None:
        """Raises: ValueError for a value that the input cannot show, such as a schedule."""
        if isinstance(self.named.get(name), IntSlider | FloatSlider) and not isinstance(value, Real):
            raise ValueError(
                f"{name} is {brief(value)}; the panel takes a number, model.generate a schedule too"
            )

    def assign(self, name: str, value: Any) -> None:
        """Set an input; a slider is widened for a value beyond its ends."""
        control = self.named[name]
        if isinstance(control, IntSlider | FloatSlider):
            _widen(control, value)
        control.value = "" if isinstance(control, Text) and value is None else value

    def read(self) -> dict[str, Any]:
        """The settings by name, the negative prompt left out."""
        return {name: control.value for name, control in self.named.items() if name != "negative"}

    def offer(self, name: str, shown: bool) -> None:
        """Show or hide the row of a setting."""
        self.rows[name].layout.display = "" if shown else "none"


def _input(name: str, default: bool | int | float | None) -> Any:
    """Input for a setting with this default: a slider if its range is known."""
    if isinstance(default, bool):
        return Checkbox(default, indent=False)
    if default is None:
        return OptionalSlider(name) if name in STARTS else Text("", placeholder="default")
    if name in RANGES:
        low, high, step = RANGES[name]
        kind = IntSlider if isinstance(default, int) else FloatSlider
        return kind(default, min=low, max=high, step=step)
    return IntText(default) if isinstance(default, int) else FloatText(default)


def _widen(slider: IntSlider | FloatSlider, value: float) -> None:
    slider.min, slider.max = min(slider.min, value), max(slider.max, value)


def _row(name: str, control: DOMWidget) -> HBox:
    text = html.escape(HELP[name])
    # A box has no tooltip of its own.
    explain(control.slider if isinstance(control, OptionalSlider) else control, HELP[name])
    title = Label(label(name), layout=Layout(width="130px", flex="0 0 auto"))
    explain(title, HELP[name])
    row = HBox([title, control, HTML(f'<span class="mgkit-quiet">{text}</span>')])
    row.add_class("mgkit-setting")
    return row
