"""The studio's input controls: how each is built, shown, set by code, and read into a `TakeRequest`.

model, prompt, negative, seed, duration, and the other fields of `settings.Settings`
melody, separate                         with "text + melody"
audio_prompt, audio_prompt_seconds       with "text + audio"
"""

import html
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from ipywidgets import (
    HTML,
    Accordion,
    Checkbox,
    Dropdown,
    FloatText,
    HBox,
    IntText,
    Label,
    Layout,
    Text,
    Textarea,
    ToggleButtons,
    VBox,
    Widget,
)

from mgkit import hub
from mgkit.lab.sources import Source
from mgkit.lab.takes import Sound, TakeRequest
from mgkit.request import parse_seeds
from mgkit.settings import SETTINGS_HELP, Settings

# The conditions of a run.
TEXT, MELODY, AUDIO = "text", "text + melody", "text + audio"
OTHER = "other: folder or hub id …"
EXAMPLES = "example prompts …"

LABELS = {"description_width": "80px"}
SHORT, LONG, FULL = {"width": "180px"}, {"width": "392px"}, {"width": "auto"}
BESIDE = {"width": "200px", "flex": "0 0 auto"}


class Controls(VBox):
    """All inputs of the studio: `controls["seed"]` is one, `set` assigns values, `request` reads them.

    `on_change` is called after a change of the model or the duration.
    """

    def __init__(self, model: str, on_change: Callable[[], None]):
        models = [*hub.NAMES, *([] if model in hub.NAMES else [model])]
        self.named: dict[str, Widget] = {**_main_inputs(models, model), **_advanced_inputs()}
        self.other_model = Text(
            placeholder="models/small, or facebook/musicgen-small", continuous_update=False
        )
        self.examples = Dropdown(
            options=[EXAMPLES, *example_prompts()], description=" ", style=LABELS, layout=Layout(**LONG)
        )
        self.keep_seed = Checkbox(False, indent=False, description="keep", layout=Layout(width="80px"))
        self.start_from = ToggleButtons(options=[TEXT, MELODY, AUDIO], style={"button_width": "130px"})
        self._other_model, self._conditions = HBox(), VBox()
        super().__init__(
            [
                HBox([self["model"], self._other_model]),
                self["prompt"],
                self.examples,
                _aside("start from", self.start_from),
                self._conditions,
                HBox([self["duration"], self["seed"], self.keep_seed]),
                folded("settings", [_row(name, self[name], text) for name, text in _help().items()]),
            ]
        )
        self.examples.observe(lambda _: self._on_example(), "value")
        self.start_from.observe(lambda _: self._show_conditions(), "value")
        self["model"].observe(lambda _: self._show_other_model(), "value")
        for changed in (self["model"], self.other_model, self["duration"]):
            changed.observe(lambda _: on_change(), "value")
        self._show_conditions()
        self._show_other_model()

    def __getitem__(self, name: str) -> Widget:
        return self.named[name]

    @property
    def model_name(self) -> str:
        """The chosen model: a name, a folder or a hub id."""
        name = self["model"].value
        return self.other_model.value.strip() if name == OTHER else name

    def set(self, **values: Any) -> None:
        """Assign values to controls by name; nothing changes if one of the settings is invalid.

        `seed=None` draws a new seed for every run. Raises: ValueError with the control's name.
        """
        if unknown := set(values) - set(self.named):
            raise ValueError(f"there is no control {unknown.pop()!r}; choose from {', '.join(self.named)}")
        if values.get("melody") is not None and values.get("audio_prompt") is not None:
            raise ValueError("melody and audio_prompt cannot be combined; give one of them")
        Settings(**{name: value for name, value in values.items() if name in Settings.__dataclass_fields__})
        if values.get("seed") is not None:
            parse_seeds(values["seed"], 1)
        for name, value in values.items():
            self._assign(name, value)

    def request(self) -> TakeRequest:
        """The take described by the controls, with a new seed unless it is kept.

        Raises: ValueError for a missing model or audio, or an invalid setting.
        """
        if not self.model_name:
            raise ValueError("give the folder of a model or its hub id")
        settings = Settings(**{field.name: read_value(self[field.name]) for field in fields(Settings)})
        melody, audio_prompt = self._sound("melody", MELODY), self._sound("audio_prompt", AUDIO)
        if audio_prompt:
            seconds = self["audio_prompt_seconds"].value
            samples = int(seconds * audio_prompt.rate)
            if samples < 1:
                raise ValueError(f"audio_prompt_seconds is {seconds:g}; it must be greater than 0")
            audio_prompt = audio_prompt._replace(wave=audio_prompt.wave[:, :samples])
        if not self.keep_seed.value:
            self["seed"].value = random.SystemRandom().randrange(1_000_000)
        return TakeRequest(
            model=self.model_name,
            prompt=self["prompt"].value,
            negative=self["negative"].value,
            seed=self["seed"].value,
            settings=settings,
            melody=melody,
            audio_prompt=audio_prompt,
            separate=self["separate"].value,
        )

    def _assign(self, name: str, value: Any) -> None:
        control = self[name]
        if name == "model" and value not in control.options:
            control.value, self.other_model.value = OTHER, os.fspath(value)
        elif name == "seed":
            self.keep_seed.value = value is not None
            control.value = control.value if value is None else value
        elif isinstance(control, Source):
            start = {"melody": MELODY, "audio_prompt": AUDIO}[name]
            if value is not None:
                self.start_from.value = start
                control.choose(value)
            elif self.start_from.value == start:
                self.start_from.value = TEXT
        elif isinstance(control, Text | Textarea):
            control.value = "" if value is None else str(value)
        else:
            control.value = value

    def _sound(self, name: str, start: str) -> Sound | None:
        """The audio chosen in control `name`; None unless the chosen conditions are `start`."""
        if self.start_from.value != start:
            return None
        source = self[name]
        if source.sound is None:
            raise ValueError(source.problem or f"choose audio first: {start} needs some")
        return source.sound

    def _show_conditions(self) -> None:
        inputs = {MELODY: ("melody", "separate"), AUDIO: ("audio_prompt", "audio_prompt_seconds")}
        shown = inputs.get(self.start_from.value, ())
        self._conditions.children = tuple(self[name] for name in shown)
        self._conditions.layout.margin = "4px 0 0 88px" if shown else "0"

    def _show_other_model(self) -> None:
        self._other_model.children = (self.other_model,) if self["model"].value == OTHER else ()

    def _on_example(self) -> None:
        if self.examples.value != EXAMPLES:
            self["prompt"].value, self.examples.value = self.examples.value, EXAMPLES


def example_prompts() -> list[str]:
    """Example prompts shipped with mgkit, in the vocabulary of nano."""
    path = hub.embedded().parent / "prompts.txt"
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else ["calm piano in C major"]


def read_value(control: Widget) -> Any:
    """Value of an input; for an optional number, None if empty.

    Text other than a number is returned unchanged, for `Settings` to reject.
    """
    if not isinstance(control, Text):
        return control.value
    try:
        return float(control.value) if control.value.strip() else None
    except ValueError:
        return control.value


def folded(title: str, children: Sequence[VBox | HBox | HTML]) -> Accordion:
    """Closed accordion with one section."""
    accordion = Accordion([VBox(children)], selected_index=None, layout=Layout(margin="8px 0"))
    # Version 8 has `titles` too, version 7 only this.
    accordion.set_title(0, title)
    return accordion


def _main_inputs(models: Sequence[str], model: str) -> dict[str, Widget]:
    free = {"description_width": "initial"}
    return {
        "model": Dropdown(
            options=[*models, OTHER], value=model, description="model", style=LABELS, layout=Layout(**LONG)
        ),
        "prompt": Textarea(
            description="prompt",
            placeholder="describe the music; leave empty for unconditional generation",
            rows=2,
            style=LABELS,
            layout=Layout(**FULL),
        ),
        "duration": FloatText(8.0, description="seconds", step=1, style=LABELS, layout=Layout(**SHORT)),
        "seed": IntText(1, description="seed", style=LABELS, layout=Layout(**SHORT)),
        "melody": Source("melodies", "recordings"),
        "separate": Checkbox(
            False, description="remove drums and bass first (HDemucs)", indent=False, layout=Layout(**FULL)
        ),
        "audio_prompt": Source("recordings", "melodies"),
        "audio_prompt_seconds": FloatText(
            2.0, description="seconds of audio", step=0.5, style=free, layout=Layout(**SHORT)
        ),
    }


def _advanced_inputs() -> dict[str, Widget]:
    """Negative prompt and every setting but the duration."""
    defaults = {name: value for name, value in asdict(Settings()).items() if name != "duration"}
    inputs = {name: _setting_input(value) for name, value in defaults.items()}
    return {"negative": Text("", layout=Layout(**BESIDE)), **inputs}


def _setting_input(default: bool | int | float | None) -> Widget:
    """Input for a setting with this default; an optional number is a text, empty for None."""
    layout = Layout(**BESIDE)
    if default is None:
        return Text("", placeholder="default", layout=layout)
    if isinstance(default, bool):
        return Checkbox(default, indent=False, layout=layout)
    return IntText(default, layout=layout) if isinstance(default, int) else FloatText(default, layout=layout)


def _help() -> dict[str, str]:
    """One line of help per advanced input."""
    settings = {name: text for name, text in SETTINGS_HELP.items() if name != "duration"}
    return {"negative": "negative prompt: what the music should not sound like", **settings}


def _row(name: str, control: Widget, text: str) -> HBox:
    quiet = HTML(f'<span class="mgkit-quiet">{html.escape(text)}</span>')
    return HBox([Label(name, layout=Layout(width="110px", flex="0 0 auto")), control, quiet])


def _aside(name: str, control: ToggleButtons) -> HBox:
    label = Label(name, layout=Layout(width="80px", margin="2px 8px 2px 2px", justify_content="flex-end"))
    return HBox([label, control], layout=Layout(align_items="center", margin="12px 0 6px 0"))
