"""Choosing audio: a clip shipped with mgkit, an upload, a file on the kernel's machine, or a recording.

Written to the API of ipywidgets 7.7, which Colab has; version 8 supports it too.
"""

import html
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import traitlets
from ipywidgets import HTML, Dropdown, FileUpload, HBox, Layout, Text, VBox
from torch import Tensor

from mgkit import audio, hub
from mgkit.lab import figures
from mgkit.lab.player import Recorder
from mgkit.lab.takes import Sound

# Seconds of the chosen audio in its player, and of a recording: the longest context of any model.
PREVIEW = 30.0

UPLOAD, PATH, RECORD = "upload a file …", "a file on the kernel's machine …", "record …"
UPLOAD_HINT = (
    "WAV, MP3, OGG or FLAC (with PyAV also m4a, AAC and WebM), up to 10 MB (1 MB on Colab). Open larger "
    "files by their path."
)


def clips(folder: str) -> dict[str, Path]:
    """Title → file of the clips shipped with mgkit in `folder`, `melodies` or `recordings`."""
    paths = sorted((hub.embedded().parent / folder).glob("*.*"))
    return {path.stem.replace("_", " "): path for path in paths if path.suffix.lower() in audio.READABLE}


def parse_path(text: str) -> Path:
    """The path in a text as file managers copy it: with quotes, `~` or `file://`; empty for an empty text.

    >>> parse_path('"/music/my tune.wav" '), parse_path("file:///music/my%20tune.wav")
    (PosixPath('/music/my tune.wav'), PosixPath('/music/my tune.wav'))
    """
    text = text.strip()
    if os.path.lexists(text):
        return Path(text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    if text.lower().startswith("file:"):
        text = url2pathname(urlsplit(text).path)
    return Path(os.path.expanduser(text))


class Source(VBox):
    """A choice of audio: `sound` is the chosen `Sound` or None, `problem` the reason in the latter case.

    In code: `choose("scarborough fair")`, `choose("my.wav")`, `choose((wave, rate))`, `upload(name,
    content)`.
    """

    sound = traitlets.Instance(Sound, allow_none=True)

    def __init__(self, *folders: str):
        """Clips from these folders of the shipped data are offered first."""
        self.clips = {title: path for folder in folders for title, path in clips(folder).items()}
        self.choice = Dropdown(options=[*self.clips, UPLOAD, PATH, RECORD], layout=Layout(width="300px"))
        self.uploader = FileUpload(accept="audio/*,.wav,.mp3,.ogg,.flac", multiple=False)
        self.path = Text(placeholder="folder/file.wav", continuous_update=False, layout=Layout(width="300px"))
        self.recorder = Recorder(seconds=PREVIEW)
        self.problem = ""
        self.view, self._message = HTML(), HTML()
        self._row = HBox([self.choice])
        super().__init__([self._row, self._message, self.view])
        self.choice.observe(lambda _: self._on_choice(), "value")
        self.uploader.observe(lambda _: self._on_upload(), "value")
        self.recorder.observe(lambda _: self._on_recording(), "wave")
        self.path.observe(lambda _: self._on_path(), "value")
        self._on_choice()

    def choose(self, source: "str | os.PathLike | tuple[Tensor, int]") -> None:
        """Choose a clip by title, a file by path, or a (wave, rate). Raises: ValueError if unreadable."""
        if isinstance(source, tuple):
            self._read("a wave", lambda: (audio.as_wave(source[0]), source[1]))
        elif source in self.clips:
            self.choice.value = source
        else:
            self.choice.value, self.path.value = PATH, ""
            self.path.value = os.fspath(source)
        if self.sound is None:
            raise ValueError(self.problem)

    def upload(self, name: str, content: bytes) -> None:
        """Choose the uploaded file `name`; if it is not audio, a message below the control reports it."""
        self._read(name, lambda: audio.decode(content, name))

    def _on_choice(self) -> None:
        extra = {UPLOAD: self.uploader, PATH: self.path, RECORD: self.recorder}.get(self.choice.value)
        self._row.children = (self.choice, extra) if extra else (self.choice,)
        self.sound = None
        self.view.value = ""
        self._show_message("")
        if path := self.clips.get(self.choice.value):
            self._read(self.choice.value, lambda: audio.read(path))
        elif self.choice.value == UPLOAD:
            self._show_message(UPLOAD_HINT)

    def _on_upload(self) -> None:
        """Read the last upload: ipywidgets 8 gives a tuple of files, version 7 a dict by name."""
        value = self.uploader.value
        if isinstance(value, dict):
            files = [(name, file["content"]) for name, file in value.items()]
        else:
            files = [(file["name"], file["content"]) for file in value]
        if files:
            self.upload(files[-1][0], bytes(files[-1][1]))

    def _on_recording(self) -> None:
        wave, rate = self.recorder.wave, self.recorder.rate
        self._read("a recording", lambda: (audio.as_wave(wave, "the recording"), rate))

    def _on_path(self) -> None:
        path = parse_path(self.path.value)
        self._read(path.name, lambda: audio.read(path))

    def _read(self, name: str, read: Callable[[], tuple[Tensor, int]]) -> None:
        self.sound = None
        self._show_message("")
        self.view.value = ""
        if not name:
            return
        try:
            wave, rate = read()
            wave = audio.as_wave(wave, repr(name), audio.CHANNELS)
            # surround sound: all channels, because the melody may be in any
            wave = audio.to_channels(wave, 1) if len(wave) > 2 else wave
            preview = figures.player(wave[:, : int(PREVIEW * audio.parse_rate(rate))], rate, name)
        except (ValueError, OSError) as error:
            self._show_message(str(error), "mgkit-problem")
        else:
            self.view.value = preview.html
            self.sound = Sound(name, wave, rate)

    def _show_message(self, message: str, style: str = "mgkit-quiet") -> None:
        self.problem = message
        role = ' role="alert"' if style == "mgkit-problem" else ""
        text = f'<div class="{style}"{role}>{html.escape(message)}</div>'
        self._message.value = text if message else ""
