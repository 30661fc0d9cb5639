"""The studio's inputs: how each is built, shown, set by code, and read into a `TakeRequest`.

prompt, duration, seed, model, negative, and the other fields of `generate.Settings`
melody, separate                                           with "text + melody"
audio_prompt, audio_prompt_seconds, audio_prompt_end       with "text + audio"
"""

import os
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from ipywidgets import (
    HTML,
    Accordion,
    Checkbox,
    Dropdown,
    FloatText,
    HBox,
    Text,
    Textarea,
    ToggleButtons,
    VBox,
    Widget,
)

from mgkit import audio, hub
from mgkit.lab.example_chips import ExampleChips
from mgkit.lab.melody_editor import MelodyEditor, detect
from mgkit.lab.pickers import audible
from mgkit.lab.player import LIVE
from mgkit.lab.seed_input import SeedInput
from mgkit.lab.settings_form import SettingsForm, explain, label
from mgkit.lab.sources import PREVIEW, Source
from mgkit.lab.takes import Sound, TakeRequest
from mgkit.request import parse_seeds
from mgkit.settings import Settings

# The conditions of a run.
TEXT, MELODY, AUDIO = "text", "text + melody", "text + audio"
START_TOOLTIPS = [
    "music for the prompt alone",
    "music that follows a tune: hum it, or upload it",
    "music that continues a recording",
]
OTHER = "other: folder or hub id …"
# The recording that is continued at first: the loudest at its end, where others have faded away.
RECORDING = "loop mika"
# Sampling rate of the melody editor's frames: that of every melody model.
RATE = 32000


class Controls:
    """All inputs of the studio: `controls["seed"]` is one, `set` assigns values, `request` reads them.

    `top` (prompt, conditions), `numbers` (seconds, seed), `advanced` and `model_row` are the parts that a
    panel shows. `on_change` is called after each change by the reader or in code.
    """

    def __init__(self, model: str, on_change: Callable[[], None], paths: bool = True):
        """Without `paths`, no files or models of the kernel's machine are offered."""
        models = [*hub.NAMES, *([] if model in hub.NAMES else [model]), *[OTHER] * paths]
        self._on_change = on_change
        self.form = SettingsForm()
        self.editor: MelodyEditor | None = None
        self.seed = SeedInput()
        self.named: dict[str, Widget] = {
            **_main_inputs(models, model, paths),
            "seed": self.seed.field,
            **self.form.named,
        }
        self.other_model = Text(
            placeholder="models/small, or facebook/musicgen-small", continuous_update=False
        )
        self.start_from = ToggleButtons(
            options=[TEXT, MELODY, AUDIO], description="Start from", tooltips=START_TOOLTIPS
        )
        self.start_from.add_class("mgkit-start-from")
        explain(self.start_from, "what the music starts from")
        self.chips = ExampleChips(lambda prompt: setattr(self["prompt"], "value", prompt))
        # Whether a change comes from the trimmer's handles.
        self._following = False
        self._shown: Sound | None = None
        self._chord_problem = ""
        self.total = HTML()
        self._other_model, self.conditions, self._editor_box = HBox(), VBox(), VBox()
        self.top = VBox([self["prompt"], self.chips, self.start_from, self.conditions])
        self.numbers = HBox([self["duration"], self.seed])
        self.numbers.add_class("mgkit-numbers")
        self.advanced = folded("Advanced", self.form)
        self.model_row = HBox([self["model"], self._other_model])
        self._on_audio_prompt()
        self._observe()
        self._show_conditions()

    def _observe(self) -> None:
        """React to the reader's choices and to assignments alike."""
        self.start_from.observe(lambda _: self._show_conditions(), "value")
        self["model"].observe(lambda _: self._show_model(), "value")
        self["melody"].observe(lambda _: self._on_melody(), "sound")
        self["separate"].observe(lambda _: self._show_editor(), "value")
        self["audio_prompt"].observe(lambda _: self._on_audio_prompt(), "sound")
        trimmer = self["audio_prompt"].trimmer
        if trimmer:
            trimmer.observe(lambda _: self._on_trimmer(), ["given", "end"])
        for name in ("duration", "audio_prompt_seconds", "audio_prompt_end"):
            self[name].observe(lambda _: self._show_total(), "value")
        changes = [
            *(self[name] for name in ("prompt", "model", "duration", "seed", "separate")),
            self.other_model,
        ]
        for control in (*changes, self.start_from, *self.form.named.values()):
            control.observe(lambda _: self._on_change(), "value")
        for name in ("melody", "audio_prompt"):
            self[name].observe(lambda _: self._on_change(), ["sound", "problem"])

    def __getitem__(self, name: str) -> Any:
        return self.named[name]

    @property
    def model_name(self) -> str:
        """The chosen model: a name, a folder or a hub id."""
        name = self["model"].value
        return self.other_model.value.strip() if name == OTHER else name

    @property
    def problem(self) -> str:
        """Why the chosen audio cannot be used; may be empty."""
        name = {MELODY: "melody", AUDIO: "audio_prompt"}.get(self.start_from.value)
        return self[name].problem or (self._chord_problem if name == "melody" else "") if name else ""

    def set(self, **values: Any) -> None:
        """Assign values to controls by name; nothing changes if one of the settings is invalid.

        `seed=None` draws a new seed for every run. Raises: ValueError with the control's name.
        """
        if unknown := set(values) - set(self.named):
            raise ValueError(f"there is no control {unknown.pop()!r}; choose from {', '.join(self.named)}")
        if values.get("melody") is not None and values.get("audio_prompt") is not None:
            raise ValueError("melody and audio_prompt cannot be combined; give one of them")
        Settings(**{name: value for name, value in values.items() if name in Settings.__dataclass_fields__})
        for name, value in values.items():
            self.form.check(name, value)
        if values.get("seed") is not None:
            parse_seeds(values["seed"], 1)
        # Audio sets the seconds, unless they are given too.
        for name in sorted(values, key=lambda name: name not in ("melody", "audio_prompt")):
            self._assign(name, values[name])

    def request(self) -> TakeRequest:
        """The take described by the controls, with a new seed unless it is kept.

        Raises: ValueError for a missing model or audio, or an invalid setting.
        """
        if not self.model_name:
            raise ValueError("give the folder of a model or its hub id")
        values = {"duration": self["duration"].value, **self.form.read()}
        settings = Settings(**{field.name: _number(values[field.name]) for field in fields(Settings)})
        melody, audio_prompt = self._sound("melody", MELODY), self._sound("audio_prompt", AUDIO)
        chroma = self.editor.condition if melody and self.editor and not self["separate"].value else None
        if melody and self._chord_problem:
            raise ValueError(self._chord_problem)
        if audio_prompt:
            audio_prompt = self._trimmed(audio_prompt)
        return TakeRequest(
            model=self.model_name,
            prompt=self["prompt"].value,
            negative=self["negative"].value,
            seed=self.seed.next(),
            settings=settings,
            melody=melody,
            chroma=chroma,
            edited=bool(self.editor and self.editor.edited),
            audio_prompt=audio_prompt,
            separate=self["separate"].value,
        )

    def offer_melody(self, offered: bool) -> None:
        """Offer the conditions that the model has: not all have melodies."""
        options = (TEXT, MELODY, AUDIO) if offered else (TEXT, AUDIO)
        if tuple(self.start_from.options) != options:
            value = self.start_from.value
            self.start_from.options = options
            self.start_from.value = value if value in options else TEXT

    # --- assignments ---------------------------------------------------------------------------------------

    def _assign(self, name: str, value: Any) -> None:
        control = self[name]
        if name == "model" and value not in control.options:
            if OTHER not in control.options:
                control.options = [*control.options, value]
                control.value = value
            else:
                control.value, self.other_model.value = OTHER, os.fspath(value)
        elif name == "seed":
            self.seed.release() if value is None else self.seed.keep(value)
        elif isinstance(control, Source):
            start = {"melody": MELODY, "audio_prompt": AUDIO}[name]
            if value is not None:
                control.choose(value)
                self.start_from.value = start
            elif self.start_from.value == start:
                self.start_from.value = TEXT
        elif name in self.form.named:
            self.form.assign(name, value)
        elif name == "audio_prompt_end":
            sound = self["audio_prompt"].sound
            control.value = audible(sound.wave, sound.rate) if value is None and sound else value
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

    def _trimmed(self, sound: Sound) -> Sound:
        """The part of the audio prompt that is given to the model."""
        given, end = self["audio_prompt_seconds"].value, self["audio_prompt_end"].value
        end = min(round(end * sound.rate), sound.wave.shape[-1])
        start = max(0, end - round(given * sound.rate))
        if given <= 0 or start >= end:
            raise ValueError(f"audio_prompt_seconds is {given:g}; it must be greater than 0")
        return sound._replace(wave=sound.wave[:, start:end])

    # --- display -------------------------------------------------------------------------------------------

    def _show_conditions(self) -> None:
        start = self.start_from.value
        if start == MELODY:
            separate = [self["separate"]] if find_spec("torchaudio") else []
            self.conditions.children = (self["melody"], *separate, self._editor_box)
            self._on_melody()
        elif start == AUDIO:
            # The trimmer's handles set both.
            names = () if self["audio_prompt"].trimmer else ("audio_prompt_seconds", "audio_prompt_end")
            own = [self[name] for name in names]
            self.conditions.children = (self["audio_prompt"], *own, self.total)
        else:
            self.conditions.children = ()
        self.form.offer("cfg_coef_beta", start == MELODY)
        if start != MELODY:
            self.form.assign("cfg_coef_beta", None)
        self._show_total()

    def _on_melody(self) -> None:
        """Show what is detected in the melody, and let the seconds follow it."""
        sound = self["melody"].sound
        if self.start_from.value != MELODY:
            return
        if sound is None:
            self._editor_box.children = ()
            self._shown = None
        elif sound is not self._shown:
            self._shown = sound
            wave = audio.resample(sound.wave[:, : int(PREVIEW * sound.rate)], sound.rate, RATE)
            classes = detect(wave, RATE)
            if self.editor is None:
                self.editor = MelodyEditor(classes, RATE)
                self._editor = self.editor.widget(self._on_chords) if LIVE else HTML()
            else:
                self.editor.show(classes, RATE)
            self["duration"].value = max(1.0, round(wave.shape[-1] / RATE, 1))
        self._show_editor()

    def _on_chords(self, problem: str) -> None:
        self._chord_problem = problem
        self._on_change()

    def _show_editor(self) -> None:
        shown = self["melody"].sound is not None and not self["separate"].value
        self._editor_box.children = (self._editor,) if shown and self.editor else ()

    def _on_audio_prompt(self) -> None:
        """Give the end of a new recording."""
        if sound := self["audio_prompt"].sound:
            end = audible(sound.wave, sound.rate)
            self["audio_prompt_end"].value = end
            self["audio_prompt_seconds"].value = min(self["audio_prompt_seconds"].value, end)
        self._show_total()

    def _on_trimmer(self) -> None:
        trimmer = self["audio_prompt"].trimmer
        self._following = True
        self["audio_prompt_end"].value, self["audio_prompt_seconds"].value = trimmer.end, trimmer.given
        self._following = False
        self._show_total()

    def _show_total(self) -> None:
        given, total = self["audio_prompt_seconds"].value, self["duration"].value
        trimmer = self["audio_prompt"].trimmer
        if trimmer and trimmer.wave and not self._following:
            trimmer.given, trimmer.end = given, self["audio_prompt_end"].value
        new = total - given
        text = f"{given:.1f} s given + {new:.1f} s new = {total:.1f} s".replace(".0 s", " s")
        if new <= 0:
            text = f"{given:.1f} s given, and no more than {total:g} s in all: set more seconds"
        self.total.value = f'<span class="mgkit-quiet">{text}</span>'

    def _show_model(self) -> None:
        self._other_model.children = (self.other_model,) if self["model"].value == OTHER else ()


def folded(title: str, content: Widget) -> Accordion:
    """Closed accordion with one section."""
    accordion = Accordion([content], selected_index=None)
    # Version 8 has `titles` too, version 7 only this.
    accordion.set_title(0, title)
    return accordion


def _number(value: Any) -> Any:
    """A text as a number, None if empty; text that is no number stays, for `Settings` to reject."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if value.strip() else None
    except ValueError:
        return value


def _main_inputs(models: list[str], model: str, paths: bool) -> dict[str, Widget]:
    inputs: dict[str, Widget] = {
        "prompt": Textarea(
            description=label("prompt"),
            placeholder="Describe the music: instruments, mood, style, key, tempo. Or leave it empty.",
            rows=2,
        ),
        "duration": FloatText(8.0, description=label("duration"), step=1),
        "model": Dropdown(options=models, value=model, description=label("model")),
        "melody": Source("melodies", "recordings", paths=paths, own_message=False),
        "separate": Checkbox(False, description="remove drums and bass first (HDemucs)", indent=False),
        "audio_prompt": Source(
            "recordings", "melodies", chosen=RECORDING, trim=True, paths=paths, own_message=False
        ),
        "audio_prompt_seconds": FloatText(2.0, description=label("audio_prompt_seconds"), step=0.5),
        "audio_prompt_end": FloatText(2.0, description=label("audio_prompt_end"), step=0.5),
    }
    inputs["prompt"].add_class("mgkit-prompt")
    tooltips = {
        "prompt": "what the music should sound like",
        "duration": "length of the music, with what it continues",
        "model": "nano ships with mgkit; the others download gigabytes on first use",
        "separate": "for a melody with accompaniment; downloads 330 MB on first use",
        "audio_prompt_seconds": "seconds of the recording that the model receives",
        "audio_prompt_end": "second of the recording from which the music continues",
    }
    for name, text in tooltips.items():
        explain(inputs[name], text)
    return inputs
