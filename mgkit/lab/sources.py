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
from mgkit.lab import pages
from mgkit.lab.pickers import Trimmer, Uploader
from mgkit.lab.player import LIVE, Players, Recorder
from mgkit.lab.takes import Sound

# Seconds of a recording, and of a chosen melody in its player: the longest context of any model.
PREVIEW = 30.0
# Seconds of the end of a recording that may be continued.
TRIMMED = 120.0

PATH, OWN = "a file on the kernel's machine …", "my own"


def clips(folder: str) -> dict[str, Path]:
    """Title → file of the clips shipped with mgkit in `folder`, `melodies` or `recordings`."""
    paths = sorted(hub.shipped(folder).glob("*.*"))
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
    problem = traitlets.Unicode()

    def __init__(
        self,
        *folders: str,
        chosen: str | None = None,
        trim: bool = False,
        paths: bool = True,
        own_message: bool = True,
    ):
        """Clips from these folders of the shipped data are offered first; `chosen` is the one at the start.

        With `trim`, `trimmer` chooses the part to continue; without `paths`, no files of the kernel's machine
        are offered; without `own_message`, the owner shows `problem`.
        """
        self.clips = {title: path for folder in folders for title, path in clips(folder).items()}
        options = [*self.clips, *[PATH] * paths, OWN]
        chosen = options[0] if chosen is None else chosen
        self.choice = Dropdown(
            options=options, value=chosen, description="clip", layout=Layout(width="260px")
        )
        self.uploader = Uploader(self._on_upload, self._fail) if LIVE else FileUpload(multiple=False)
        self.path = Text(placeholder="folder/file.wav", continuous_update=False, layout=Layout(width="300px"))
        self.recorder = Recorder(seconds=PREVIEW)
        self.view, self._message = Players(), HTML()
        self.trimmer = Trimmer() if trim and LIVE else None
        self._row = HBox([self.choice], layout=Layout(flex_flow="row wrap"))
        own = [self.recorder, self.uploader]
        super().__init__([*own, self._row, self._message, self.trimmer or self.view])
        self.add_class("mgkit-source")
        self._own_message = own_message
        self.choice.observe(lambda _: self._on_choice(), "value")
        if not LIVE:
            self.uploader.observe(lambda _: self._on_plain_upload(), "value")
        self.recorder.observe(lambda _: self._on_recording(), "wave")
        self.path.observe(lambda _: self._on_path(), "value")
        self._on_choice()

    def choose(self, source: "str | os.PathLike | tuple[Tensor, int] | Sound") -> None:
        """Choose a clip by title, a file by path, a (wave, rate) or a `Sound`.

        Raises: ValueError if unreadable.
        """
        if isinstance(source, tuple):
            name, wave, rate = source if isinstance(source, Sound) else ("a wave", *source)
            self._read_own(name, lambda: (audio.as_wave(wave), rate))
        elif source in self.clips:
            if self.choice.value == source:
                self._on_choice()
            self.choice.value = source
        else:
            path = parse_path(os.fspath(source))
            self._read_own(path.name, lambda: audio.read(path))
        if self.sound is None:
            raise ValueError(self.problem or "there is no file '': give the path of an audio file")

    def upload(self, name: str, content: bytes) -> None:
        """Choose the uploaded file `name`; `problem` reports it if it is not audio."""
        self._read_own(name, lambda: audio.decode(content, name))

    # --- what was chosen -----------------------------------------------------------------------------------

    def _on_choice(self) -> None:
        self._row.children = (self.choice, self.path) if self.choice.value == PATH else (self.choice,)
        if self.choice.value == OWN:
            return
        self._clear()
        if path := self.clips.get(self.choice.value):
            self._read(self.choice.value, lambda: audio.read(path))

    def _on_upload(self, name: str, content: bytes) -> bool:
        """Whether the kernel can read the upload; if not, the browser may."""
        try:
            sound = audio.decode(content, name)
        except ValueError as error:
            self._fail(str(error))
            return False
        self._read_own(name, lambda: sound)
        return True

    def _on_plain_upload(self) -> None:
        """Read the last upload of a FileUpload: ipywidgets 8 gives a tuple of files, version 7 a dict."""
        value = self.uploader.value
        if isinstance(value, dict):
            files = [(name, file["content"]) for name, file in value.items()]
        else:
            files = [(file["name"], file["content"]) for file in value]
        if files:
            self.upload(files[-1][0], bytes(files[-1][1]))

    def _on_recording(self) -> None:
        wave, rate = self.recorder.wave, self.recorder.rate
        self._read_own("a recording", lambda: (audio.as_wave(wave, "the recording"), rate))

    def _on_path(self) -> None:
        path = parse_path(self.path.value)
        if path.name:
            self._read(path.name, lambda: audio.read(path))

    # --- reading -------------------------------------------------------------------------------------------

    def _read_own(self, name: str, read: Callable[[], tuple[Tensor, int]]) -> None:
        """Read audio that is not one of the menu's."""
        self.choice.value = OWN
        self._read(name, read)

    def _clear(self) -> None:
        self.sound = None
        self._show_problem("")
        self.view.html = ""
        if self.trimmer:
            self.trimmer.clear()

    def _read(self, name: str, read: Callable[[], tuple[Tensor, int]]) -> None:
        self._clear()
        if not name:
            return
        try:
            wave, rate = read()
            wave = audio.as_wave(wave, repr(name), audio.CHANNELS)
            # surround sound: all channels, because the melody may be in any
            wave = audio.to_channels(wave, 1) if len(wave) > 2 else wave
            audio.parse_rate(rate)
        except (ValueError, OSError) as error:
            self._fail(str(error))
            return
        if self.trimmer:
            wave = wave[:, -int(TRIMMED * rate) :]
            self.trimmer.show(name, wave, int(rate), given=2.0)
        else:
            self.view.html = pages.player(wave[:, : int(PREVIEW * rate)], rate, name).html
        self.sound = Sound(name, wave, rate)

    def _fail(self, message: str) -> None:
        self._clear()
        self._show_problem(message)

    def _show_problem(self, message: str) -> None:
        self.problem = message
        text = f'<div class="mgkit-problem" role="alert">{html.escape(message)}</div>'
        self._message.value = text if message and self._own_message else ""
