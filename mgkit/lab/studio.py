"""The panel: all that the command line can ask for, with buttons, in a notebook or as an app.

Letters: C channels, N samples.

    controls -> Request -> worker thread: load the model, stream the music -> Take -> gallery
       Stop, an interrupt: the take is what was made so far

Everything works without a browser as well: `Studio().generate(prompt="calm piano")` does what the button does and
returns the take. Written to the API of ipywidgets 7.7, which Colab has; it is the same on 8.
"""

import base64
import html
import json
import math
import os
import random
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets
import torch
import traitlets
from IPython import get_ipython
from ipywidgets import (
    HTML,
    Accordion,
    Button,
    Checkbox,
    Dropdown,
    FloatProgress,
    FloatText,
    HBox,
    IntText,
    Label,
    Layout,
    Text,
    Textarea,
    ToggleButtons,
    VBox,
)
from torch import Tensor

from mgkit import MusicGen, audio, hub, job
from mgkit.generate import Settings, Stop
from mgkit.lab import figures
from mgkit.lab.player import Recorder
from mgkit.lm import LM, LMConfig
from mgkit.melody import demucs

CHUNK = 2.0  # seconds that are decoded at a time while the music is made: after Stop, no more than this is left to do
PREVIEW = 30.0  # seconds of a chosen sound that can be listened to: no model hears more of it at once
TICK = 0.1  # seconds from one look at the progress to the next

SHAPES = {
    "small": (1024, 24),
    "medium": (1536, 48),
    "large": (2048, 48),
    "melody": (1536, 48),
}  # width, layers
T5_AND_CODEC = (
    169e6  # parameters of T5-base's encoder and of the 32 kHz EnCodec, which all published models share
)

ALONE, MELODY, START = "a sentence alone", "a melody to follow", "a recording to go on from"
UPLOAD, PATH, RECORD = "upload a file …", "a file where the notebook runs …", "record …"
OTHER = "a folder or hub id …"
PICK = "examples …"

STYLE = """<style>
.mgkit-studio { max-width: 920px; padding: 4px 8px }
.mgkit-studio .mgkit-quiet { color: var(--jp-ui-font-color2, #70757d); font-size: 12px; line-height: 1.5 }
.mgkit-studio .mgkit-problem { border-left: 3px solid #c2410c; padding: 4px 10px; line-height: 1.5 }
.mgkit-studio figure { font-size: 13px; line-height: 1.5; margin-top: 0 }
.mgkit-studio .mgkit-take { display: flex; flex-wrap: wrap; border-top: 1px solid var(--jp-border-color2, #d0d4da); padding-top: 12px }
.mgkit-studio .mgkit-take > div { flex: 1; min-width: 260px; font-size: 13px; line-height: 1.7 }
.mgkit-studio .mgkit-take a { color: var(--jp-content-link-color, #2a7fbf) }
</style>"""

# Both players keep their place in the music: the one that starts takes over where the other one is.
SWITCH = (
    "const [a, b] = this.parentNode.querySelectorAll('audio'); const [on, off] = a.paused ? [b, a] : [a, b]; "
    "off.currentTime = on.currentTime; on.pause(); off.play()"
)

running: "weakref.WeakSet[Studio]" = weakref.WeakSet()  # the panels that an interrupt of the kernel stops


class Sound(NamedTuple):
    """A wave [C, N] at `rate` Hz, and what to call it."""

    name: str
    wave: Tensor
    rate: int


@dataclass(frozen=True)
class Request:
    """What one take is asked to be."""

    model: str
    prompt: str
    negative: str
    seed: int
    settings: Settings
    melody: Sound | None
    start: Sound | None
    separate: bool


@dataclass(frozen=True)
class Take:
    """What came of a request: wave [C, N] at `rate` Hz, its manifest, and how it was made."""

    number: int
    wave: Tensor
    rate: int
    manifest: dict
    seam: float | None  # seconds of a given start
    given: str  # the sound that it was given, in words; or empty
    work: float  # seconds that making it took

    @property
    def title(self) -> str:
        """Its number and its sentence."""
        return f"{self.number} · {self.manifest['text'] or 'no description'}"

    @property
    def file_name(self) -> str:
        """A name of its own among the takes of a panel."""
        return f"take-{self.number:03d}-seed-{self.manifest['seed']}.wav"

    @property
    def stopped(self) -> bool:
        """Whether it is shorter than was asked for."""
        return (
            self.wave.shape[-1] < round(self.manifest["settings"]["duration"] * self.rate) - self.rate // 10
        )

    def player(self, level: float | None = None) -> figures.Player:
        """Its static player; `level` as in `figures.player`."""
        return figures.player(self.wave, self.rate, self.title, self.seam, level)

    def save(self, path: str | os.PathLike, strategy: audio.Strategy = "loudness") -> Path:
        """Writes it with its manifest; returns the path. Errors: those of `audio.write`."""
        return audio.write(path, self.wave, self.rate, strategy, self.manifest)

    def _repr_html_(self) -> str:
        return self.player().html


def make(
    model: MusicGen,
    request: Request,
    number: int = 1,
    on_step: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
) -> Take:
    """The take that `model` makes of `request`; once `stop` is set, what there is by then.

    Errors: ValueError in one sentence for what cannot be generated from, or stopped before there was anything.
    """
    began = time.perf_counter()
    model.settings = request.settings
    given: dict[str, Any] = {}
    if request.melody:
        wave = request.melody.wave
        given["melody_wavs"] = demucs()(wave, request.melody.rate) if request.separate else wave
        given["melody_sample_rate"] = request.melody.rate
    if request.start:
        given["prompt"], given["prompt_sample_rate"] = request.start.wave, request.start.rate
    common = {"negative": request.negative or None, "seed": request.seed, "on_step": on_step, "stop": stop}
    chunks = list(model.stream([request.prompt], chunk_seconds=CHUNK, **given, **common))
    if not chunks:
        raise ValueError("stopped before anything was made")
    [manifest] = model.manifests
    known = len(job.unpack(manifest["prompt"])) / model.lm.config.codebooks / model.frame_rate
    wave = torch.cat(chunks, dim=-1)[0]
    given_words = f"follows {request.melody.name}" if request.melody else ""
    given_words = f"goes on from {request.start.name}" if request.start else given_words
    work = time.perf_counter() - began
    return Take(number, wave, model.sample_rate, manifest, known or None, given_words, work)


# --- what ships, and how much it takes ----------------------------------------------------------------------------


def examples() -> list[str]:
    """The sentences that ship, in words that nano knows."""
    path = hub.embedded().parent / "prompts.txt"
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else ["calm piano in C major"]


def clips(folder: str) -> dict[str, Path]:
    """Titles and files of the sounds that ship in `folder`, `melodies` or `recordings`."""
    paths = sorted((hub.embedded().parent / folder).glob("*.*"))
    return {path.stem.replace("_", " "): path for path in paths if path.suffix in audio.FORMATS}


def memory(name: str, seconds: float, model: MusicGen | None = None) -> float | None:
    """Bytes, about, that the weights of the model `name` and `seconds` of music take on a CPU; None where nothing tells.

    `model` is that model, where it is loaded. Where it is not: the shapes of the published ones are known, and a folder
    says how many numbers its files hold. What Python and its libraries take, half a gigabyte or so, is not in it.
    """
    if model:
        parts = (model.codec, model.lm, model.conditioner)
        held = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
        return held + _cache(model.lm.config, min(seconds, model.max_duration) * model.frame_rate)
    if name == "nano" or (name and Path(name).is_dir()):
        return _numbers(hub.find(name)) or None
    short = name.removeprefix("facebook/musicgen-").removeprefix("stereo-")
    if short not in hub.SIZES:
        return None
    width, layers = SHAPES[short.removeprefix("melody-")]
    books, crossed = 8 if "stereo" in name else 4, "melody" not in name
    shape = LMConfig(width, layers, width // 64, 4 * width, codebooks=books, cross_attention=crossed)
    with torch.device("meta"):  # counted, not made
        count = sum(parameter.numel() for parameter in LM(shape).parameters())
    return 4 * (count + T5_AND_CODEC) + _cache(shape, min(seconds, 30) * 50)


def _cache(shape: LMConfig, steps: float) -> float:
    """Bytes of keys and values that the two streams of guidance keep for so many steps, in float32."""
    return 2 * 2 * 4 * shape.layers * shape.dim * max(steps, 0)


def _numbers(folder: Path) -> float:
    """Bytes, in float32, of the numbers in a model's files; audiocraft's are stored in half of that."""
    total = 2.0 * sum(file.stat().st_size for file in folder.glob("*.bin"))
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        total += 4 * sum(math.prod(tensor.get("shape", [0])) for tensor in header.values())
    return total


def _clock(seconds: float) -> str:
    """A time for people.

    >>> _clock(8.2), _clock(200)
    ('9 s', '3 min 20 s')
    """
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


# --- choosing a sound ---------------------------------------------------------------------------------------------


class Source(VBox):
    """A choice of a sound: one that ships, an upload, a file or a recording; `sound` is the one chosen, or None.

    `problem` is the sentence that says why there is none.
    By plain call: `choose("scarborough fair")`, `choose("my.wav")`, `choose((wave, rate))`, `upload(name, content)`.
    """

    sound = traitlets.Instance(Sound, allow_none=True)

    def __init__(self, *folders: str):
        """The clips of `folders` of data/ are offered first."""
        self.clips = {title: path for folder in folders for title, path in clips(folder).items()}
        self.choice = Dropdown(options=[*self.clips, UPLOAD, PATH, RECORD], layout=Layout(width="300px"))
        self.uploader = ipywidgets.FileUpload(accept="audio/*,.wav,.mp3,.ogg,.flac", multiple=False)
        self.path = Text(placeholder="folder/file.wav", continuous_update=False, layout=Layout(width="300px"))
        self.recorder = Recorder(seconds=PREVIEW)
        self.problem = ""
        self.view, self._sentence = HTML(), HTML()
        self._row = HBox([self.choice])
        super().__init__([self._row, self._sentence, self.view])
        self.choice.observe(lambda _: self._chosen(), "value")
        self.uploader.observe(lambda _: self._uploaded(), "value")
        self.recorder.observe(lambda _: self._recorded(), "wave")
        self.path.observe(lambda _: self._located(), "value")
        self._chosen()

    def choose(self, what: "str | os.PathLike | tuple[Tensor, int]") -> None:
        """Chooses a clip by its title, a file by its path, or a wave with its rate. Errors: ValueError for no sound."""
        if isinstance(what, tuple):
            self._read("a wave", lambda: (audio.check(what[0]), what[1]))
        elif what in self.clips:
            self.choice.value = what
        else:
            self.choice.value, self.path.value = PATH, ""
            self.path.value = os.fspath(what)
        if self.sound is None:
            raise ValueError(self.problem)

    def upload(self, name: str, content: bytes) -> None:
        """Takes a file's `content`; what is no audio is refused in a sentence below."""
        self._read(name, lambda: audio.decode(content, name))

    def _chosen(self) -> None:
        extra = {UPLOAD: self.uploader, PATH: self.path, RECORD: self.recorder}
        more = extra.get(self.choice.value)
        self._row.children = (self.choice, more) if more else (self.choice,)
        self.sound = None
        self._say("")
        if path := self.clips.get(self.choice.value):
            self._read(self.choice.value, lambda: audio.read(path))
        elif self.choice.value == UPLOAD:
            self._say("WAV, MP3, OGG or FLAC up to 10 MB (1 MB on Colab); larger ones go by their path.")
        self._show()

    def _uploaded(self) -> None:
        """Version 8 gives a tuple of files, version 7 a dict of them by name."""
        value = self.uploader.value
        if isinstance(value, dict):
            files = [(name, file["content"]) for name, file in value.items()]
        else:
            files = [(file["name"], file["content"]) for file in value]
        if files:
            self.upload(files[-1][0], bytes(files[-1][1]))

    def _recorded(self) -> None:
        self._read(
            "a recording", lambda: (audio.check(self.recorder.wave, "the recording"), self.recorder.rate)
        )

    def _located(self) -> None:
        path = self.path.value.strip()
        self._read(Path(path).name, lambda: audio.read(path))

    def _read(self, name: str, read: Callable[[], tuple[Tensor, int]]) -> None:
        self.sound = None
        self._say("")
        try:
            if name:
                self.sound = Sound(name, *read())
        except (ValueError, OSError) as error:
            self._say(str(error))
        self._show()

    def _show(self) -> None:
        self.view.value = ""
        if self.sound:
            name, wave, rate = self.sound
            self.view.value = figures.player(wave[:, : int(PREVIEW * rate)], rate, name).html

    def _say(self, sentence: str) -> None:
        self.problem = sentence
        self._sentence.value = f'<div class="mgkit-quiet">{html.escape(sentence)}</div>' if sentence else ""


# --- the panel ----------------------------------------------------------------------------------------------------


class Studio(VBox):
    """The panel. `takes` holds all that it made; no take replaces another.

    Each control has a name: model, prompt, duration, seed, melody, start, start_seconds, separate, negative and the
    names of `Settings`. `set(seed=3)` sets it; `generate(prompt="calm piano", seed=3)` sets and presses the button.
    """

    def __init__(self, model: str | MusicGen = "nano"):
        """Nothing is loaded before it is needed. A model that is loaded already is shared, its settings are not."""
        self.takes: list[Take] = []
        self.error: Exception | None = None  # why the last run made nothing
        self._model: MusicGen | None = None
        self._loaded = ""  # the name in the panel of the model that is loaded
        self._pace: dict[str, float] = {}  # by such names, seconds that a step took in the last run
        self._stop, self._idle = threading.Event(), threading.Event()

        if isinstance(model, MusicGen):
            self._model, self._loaded = MusicGen(model.model), model.name
            model = model.name
        names = [*hub.NAMES, *([] if model in hub.NAMES else [model])]
        wide = {"description_width": "80px"}
        aside = Layout(width="80px", margin="2px 8px 2px 2px", justify_content="flex-end")
        short, long, full = Layout(width="180px"), Layout(width="392px"), Layout(width="auto")
        self.controls: dict[str, Any] = {
            "model": Dropdown(
                options=[*names, OTHER], value=model, description="model", style=wide, layout=long
            ),
            "prompt": Textarea(description="prompt", rows=2, style=wide, layout=full),
            "duration": FloatText(8.0, description="seconds", step=1, style=wide, layout=short),
            "seed": IntText(1, description="seed", style=wide, layout=short),
            "melody": Source("melodies", "recordings"),
            "start": Source("recordings", "melodies"),
            "start_seconds": FloatText(
                2.0,
                description="seconds of it",
                step=0.5,
                style={"description_width": "initial"},
                layout=short,
            ),
            "separate": Checkbox(
                False, description="take drums and bass out first (HDemucs)", indent=False, layout=full
            ),
            "negative": Text("", layout=Layout(width="200px", flex="0 0 auto")),
        }
        advanced = {field.name: field for field in fields(Settings) if field.name != "duration"}
        self.controls |= {name: _control(field) for name, field in advanced.items()}
        self.controls["prompt"].placeholder = "what to play; left empty, whatever comes to its mind"

        self.other = Text(placeholder="models/small, or facebook/musicgen-small", continuous_update=False)
        self.examples = Dropdown(options=[PICK, *examples()], description=" ", style=wide, layout=long)
        self.keep = Checkbox(False, indent=False, description="keep", layout=Layout(width="80px"))
        self.way = ToggleButtons(options=[ALONE, MELODY, START], style={"button_width": "190px"})
        self.go, self.halt = (
            Button(description="Generate", button_style="primary"),
            Button(description="Stop"),
        )
        self.bar = FloatProgress(0, min=0, max=1, layout=Layout(width="200px"))
        self.status, self.message, self.facts = Label(), HTML(), HTML()
        self.pair = [Dropdown(description=letter, style={"description_width": "20px"}) for letter in "AB"]
        self.both, self.gallery = HTML(), VBox()

        words = {"negative": "what to keep away from"} | {n: f.metadata["help"] for n, f in advanced.items()}
        self.settings = _folded(
            "settings", [_row(name, self.controls[name], help) for name, help in words.items()]
        )
        self.compare = _folded("compare two takes", [HBox(self.pair), self.both])
        self.compare.layout.display = "none"
        control, self._other, self._given = self.controls, HBox(), VBox()
        super().__init__(
            [
                HTML(STYLE),
                HBox([control["model"], self._other]),
                control["prompt"],
                self.examples,
                HBox(
                    [Label("from", layout=aside), self.way],
                    layout=Layout(align_items="center", margin="12px 0 6px 0"),
                ),
                self._given,
                HBox([control["duration"], control["seed"], self.keep]),
                self.settings,
                HBox([self.go, self.halt, self.bar, self.status]),
                self.message,
                self.facts,
                self.compare,
                self.gallery,
            ]
        )
        self.add_class("mgkit-studio")
        self.go.on_click(lambda _: self.start())
        self.halt.on_click(lambda _: self.stop())
        self.examples.observe(lambda _: self._pick(), "value")
        self.way.observe(lambda _: self._lay_out(), "value")
        control["model"].observe(lambda _: self._lay_out(), "value")
        for changed in (self.other, control["duration"]):
            changed.observe(lambda _: self._tell(), "value")
        for changed in (*self.pair, self.compare):
            changed.observe(lambda _: self._side_by_side(), ["value", "selected_index"])
        self._lay_out()
        self._set_busy(False)

    def __repr__(self) -> str:
        """What a page without a kernel shows in its place."""
        return "Studio: the panel, which works where the kernel runs"

    # --- what buttons do --------------------------------------------------------------------------------------------

    def set(self, **values: Any) -> None:
        """Sets controls by their names. Errors: ValueError that names what cannot be."""
        if unknown := set(values) - set(self.controls):
            raise ValueError(f"there is no control {unknown.pop()!r}; there are {', '.join(self.controls)}")
        if None not in (values.get("melody"), values.get("start")):
            raise ValueError("melody and start are two ways to begin; give one of them")
        Settings(**{name: value for name, value in values.items() if name in Settings.__dataclass_fields__})
        if values.get("seed") is not None:
            job.check_seeds(values["seed"], 1)
        for name, value in values.items():
            control = self.controls[name]
            if name == "model" and value not in control.options:
                control.value, self.other.value = OTHER, os.fspath(value)
            elif name == "seed":
                self.keep.value, control.value = value is not None, control.value if value is None else value
            elif isinstance(control, Source):
                way = {"melody": MELODY, "start": START}[name]
                if value is not None:
                    self.way.value = way
                    control.choose(value)
                elif self.way.value == way:
                    self.way.value = ALONE
            elif isinstance(control, Text | Textarea):
                control.value = "" if value is None else str(value)
            else:
                control.value = value

    def start(self) -> bool:
        """Starts a run of what the controls say, in a thread of its own; False where one is going, or it cannot be."""
        if self.busy:
            return False
        self.message.value, self.error = "", None
        try:
            request = self._request()
        except ValueError as error:
            self._fail(error)
            return False
        self._stop.clear()
        self._set_busy(True)
        running.add(self)
        _catch_interrupts()
        threading.Thread(target=self._work, args=(request,), daemon=True).start()
        return True

    def stop(self) -> None:
        """Ends the run after the step that it is at; what was made becomes a take."""
        if self.busy and not self._stop.is_set():
            self.halt.disabled = True
            self.status.value = "stopping …"
            self._stop.set()  # last: the worker has the last word

    def wait(self) -> None:
        """Returns when no run is going. Ctrl-C, or an interrupt of the kernel, stops the run; a second one the wait."""
        while not self._idle.is_set():
            try:
                self._idle.wait(
                    TICK
                )  # and not the thread: an interrupted join takes it for dead (Python 3.11)
            except KeyboardInterrupt:
                if self._stop.is_set():
                    raise
                self.stop()

    def generate(self, **values: Any) -> Take:
        """The take that the controls, with these `values`, ask for. Errors: what the panel would say."""
        self.set(**values)
        if self.busy:
            raise ValueError("a run is going; wait() for it, or stop() it")
        self.start()
        self.wait()
        if self.error:
            raise self.error
        return self.takes[-1]

    # --- a run ------------------------------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """The model that is chosen: a name, a folder or a hub id."""
        name = self.controls["model"].value
        return self.other.value.strip() if name == OTHER else name

    def _request(self) -> Request:
        if not self.model_name:
            raise ValueError("give the folder of a model, or its hub id")
        control, sounds = self.controls, {}
        for name, way in (("melody", MELODY), ("start", START)):
            sounds[name] = control[name].sound if self.way.value == way else None
            if self.way.value == way and sounds[name] is None:
                raise ValueError(control[name].problem or f"choose {way} first")
        if start := sounds["start"]:
            samples = int(control["start_seconds"].value * start.rate)
            if samples < 1:
                raise ValueError(f"seconds of it is {control['start_seconds'].value:g}; it must be over 0")
            sounds["start"] = start._replace(wave=start.wave[:, :samples])
        settings = Settings(**{field.name: _value(field, control[field.name]) for field in fields(Settings)})
        if not self.keep.value:
            control["seed"].value = random.SystemRandom().randrange(1_000_000)
        return Request(
            self.model_name,
            control["prompt"].value,
            control["negative"].value,
            control["seed"].value,
            settings,
            separate=control["separate"].value,
            **sounds,
        )

    def _work(self, request: Request) -> None:
        """Makes the take. Runs in the worker: it changes traits, which may be done from there, and prints nothing."""
        try:
            if self._loaded != request.model or self._model is None:
                self._model = None  # before the next one takes its memory
                self.status.value = f"loading {request.model} …"
                self._model = MusicGen.get_pretrained(request.model)
                self._loaded = request.model
            self.status.value = "stopping …" if self._stop.is_set() else "starting …"
            on_step = self._progress(request, self._model.frame_rate)
            take = make(self._model, request, len(self.takes) + 1, on_step, self._stop)
            self.takes.append(take)
            self._show(take)
            made = take.wave.shape[-1] / take.rate
            self.status.value = f"stopped; {made:.1f} s are kept" if take.stopped else f"{made:g} s"
        except Exception as error:  # whatever it is, the panel says it and goes on
            self._fail(error)
        finally:
            running.discard(self)
            self._set_busy(False)

    def _progress(self, request: Request, frame_rate: int) -> Callable[[int, int], None]:
        """A callback that moves the bar and says how long it takes."""
        first = last = 0.0

        def on_step(done: int, total: int) -> None:
            nonlocal first, last
            now = time.perf_counter()
            if done == 1:
                first = now
            elif now - last >= TICK or done == total:
                pace = (now - first) / (done - 1)  # the first step also reads the prompt
                self._pace[request.model] = pace
                self.bar.value, last = done / total, now
                if not self._stop.is_set():
                    left = _clock((total - done) * pace)
                    self.status.value = f"{done / frame_rate:.1f} s made · {1 / pace / frame_rate:.1f} × real time · {left} left"

        return on_step

    def _fail(self, error: Exception) -> None:
        self.error = error
        known = isinstance(
            error, ValueError | OSError | RuntimeError
        )  # said in one sentence where it was raised
        sentence = str(error).split("\n")[0] if known else f"{type(error).__name__}: {error}"
        self.status.value = ""
        self.message.value = f'<div class="mgkit-problem" role="alert">{html.escape(sentence)}</div>'

    @property
    def busy(self) -> bool:
        """Whether a run is going."""
        return not self._idle.is_set()

    def _set_busy(self, busy: bool) -> None:
        if busy:
            self._idle.clear()
            self.bar.value = 0
        self.go.disabled, self.halt.disabled = busy, not busy
        self._tell()
        if not busy:  # last: whoever waited finds everything as it will stay
            self._idle.set()

    # --- what is shown ----------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        control = self.controls
        self._other.children = (self.other,) if control["model"].value == OTHER else ()
        more = {MELODY: ("melody", "separate"), START: ("start", "start_seconds")}.get(self.way.value, ())
        self._given.children = tuple(control[name] for name in more)
        self._given.layout.margin = "4px 0 0 88px" if more else "0"
        self._tell()

    def _pick(self) -> None:
        if self.examples.value != PICK:
            self.controls["prompt"].value, self.examples.value = self.examples.value, PICK

    def _tell(self) -> None:
        """What is known before a run: time, memory, licence."""
        name, seconds = self.model_name, self.controls["duration"].value
        loaded = self._model if name == self._loaded else None
        pace = self._pace.get(name)
        frame_rate = loaded.frame_rate if loaded else 50
        took = f"about {_clock(seconds * frame_rate * pace)}" if pace else "unknown until the first run"
        licence = hub.MIT if name == "nano" else hub.CC_BY_NC if name in hub.PRESETS else ""
        licence = loaded.licence if loaded else licence or "said once they are loaded"
        need = memory(name, seconds, loaded)
        room = f"about {_bytes(need)}" if need else "unknown until it is loaded"
        room += " (for a moment twice that, while it loads)" if need and need > 1e9 and not loaded else ""
        room += f", {_bytes(free)} are free" if (free := _free()) else ""
        warning = "; <b>more than there is</b>" if need and free and need > free and not loaded else ""
        self.facts.value = (
            f'<div class="mgkit-quiet">time: {took} · memory: {room}{warning}<br>'
            f"licence of the weights: {html.escape(licence)}</div>"
        )

    def _show(self, take: Take) -> None:
        """The take on top of the gallery, and in the comparison."""
        self.gallery.children = (HTML(_card(take)), *self.gallery.children)
        options = [(other.title, other.number) for other in self.takes]
        chosen = self.pair[0].value or 1, take.number
        for menu, number in zip(self.pair, chosen):
            menu.options = options
            menu.value = number
        self.compare.layout.display = "" if len(self.takes) > 1 else "none"

    def _side_by_side(self) -> None:
        if self.compare.selected_index is None or None in (self.pair[0].value, self.pair[1].value):
            self.both.value = ""
            return
        pair = [self.takes[menu.value - 1] for menu in self.pair]
        level = max(float(take.wave.abs().max()) for take in pair) or None
        button = f'<button class="jupyter-button" onclick="{html.escape(SWITCH)}">Switch, at the same place</button>'
        self.both.value = f"<div>{''.join(take.player(level).html for take in pair)}<br>{button}</div>"


# --- its parts ----------------------------------------------------------------------------------------------------


def _control(setting: Field) -> ipywidgets.Widget:
    """What to enter a setting with; one that may be left out is a text, empty for that."""
    layout = Layout(width="200px", flex="0 0 auto")
    if setting.default is None:
        return Text("", placeholder="left out", layout=layout)
    if setting.metadata["kind"] is bool:
        return Checkbox(setting.default, indent=False, layout=layout)
    return {int: IntText, float: FloatText}[setting.metadata["kind"]](setting.default, layout=layout)


def _value(setting: Field, control: Any) -> Any:
    """What was entered; words that are no number are left for `Settings` to refuse."""
    if not isinstance(control, Text):
        return control.value
    try:
        return float(control.value) if control.value.strip() else None
    except ValueError:
        return control.value


def _row(name: str, control: ipywidgets.Widget, help: str) -> HBox:
    words = HTML(f'<span class="mgkit-quiet">{html.escape(help)}</span>')
    return HBox([Label(name, layout=Layout(width="110px", flex="0 0 auto")), control, words])


def _folded(title: str, children: Sequence[ipywidgets.Widget]) -> Accordion:
    made = Accordion([VBox(children)], selected_index=None, layout=Layout(margin="8px 0"))
    made.set_title(0, title)  # version 8 has `titles` as well
    return made


def _card(take: Take) -> str:
    """HTML of a take: its player, how it was made, and the file that says so, to download."""
    with tempfile.TemporaryDirectory() as folder:
        data = take.save(Path(folder) / take.file_name).read_bytes()
    manifest, seconds = take.manifest, take.wave.shape[-1] / take.rate
    made = asdict(Settings())
    other = [
        f"{name} {value}"
        for name, value in manifest["settings"].items()
        if name != "duration" and value != made[name]
    ]
    negative = f"away from: {manifest['negative']}" if manifest["negative"] else ""
    lines = [
        f"{manifest['model']} · seed {manifest['seed']}{' · stopped' * take.stopped}",
        f"made in {take.work:.1f} s, {seconds / take.work:.1f} × real time",
        take.given,
        negative,
        ", ".join(other),
        f"weights: {manifest['licence']}",
    ]
    words = "<br>".join(html.escape(line) for line in lines if line)
    link = f'<a download="{take.file_name}" href="data:audio/wav;base64,{base64.b64encode(data).decode()}">Download {take.file_name}</a>'
    return f'<div class="mgkit-take">{take.player().html}<div>{words}<br>{link}</div></div>'


def _free() -> float | None:
    """Bytes of memory that are free here, where that can be known."""
    try:
        import psutil
    except ImportError:
        return None
    return float(psutil.virtual_memory().available)


def _catch_interrupts() -> None:
    """An idle kernel ignores an interrupt; from a moment after this on, one stops the panels that run.

    Only a moment after, because the kernel sets its own handler back when the message it works on is done.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return

    def install() -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupted)

    kernel.io_loop.call_later(TICK, install)


def _interrupted(*_: object) -> None:
    for panel in list(running):
        panel.stop()
