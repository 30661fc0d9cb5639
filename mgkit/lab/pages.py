"""Players and pages as HTML: they work in a saved page and in an untrusted notebook, without a kernel.

Axes: C channels, N samples.

    player, players     waveform thumbnail and audio element, at the original level
    bare_player         player without a waveform, for blind tests
    player_table        rows × columns of players with mel spectrograms
    page                texts, players and figures in one self-contained HTML file

Audio and images are embedded as `data:` URIs, so a page fetches nothing. Where scripts run, `player.js` gives
each player a cursor, seeking, a loop button and a named download, and lets one sound at a time; where they do
not, the browser's own player remains.
"""

import base64
import html
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mgkit import audio
from mgkit.lab.drawing import (
    FLOOR,
    PICTURE_STYLE,
    data_uri,
    image,
    mel_power,
    mel_thumbnail,
    one_seam_each,
    png,
    to_samples,
    wave_thumbnail,
)

# Enhances the players of its page, when it is run as a module.
SCRIPT = Path(__file__).with_name("player.js").read_text(encoding="utf-8")
PAGE_SCRIPT = f'<script type="module">{SCRIPT}\nenhanceAll();</script>'
FIGURE_STYLE = (
    "display: inline-block; width: 400px; max-width: 100%; margin: 0px 16px 12px 0px; vertical-align: top"
)
# In place of a waveform, which would show what a listener should hear.
FLAT_LINE = b"""<svg xmlns="http://www.w3.org/2000/svg" width="400" height="32">
<rect y="15" width="400" height="2" fill="#8a8f98"/></svg>"""
# The root has a colour of its own for pictures to blend with.
STYLE = """:root { color-scheme: light dark; background: Canvas }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 920px; margin: 2em auto; padding: 0 1em }
figure { max-width: 100% } img, audio { max-width: 100% }
table { font-size: 14px }"""


@dataclass(frozen=True)
class Player:
    """HTML with embedded audio, and what notebooks show of it: the same with the script for its players."""

    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html + PAGE_SCRIPT if "mgkit-player" in self.html else self.html


def file_name(title: str, extension: str = ".flac") -> str:
    """File name made of the letters and digits of a title.

    >>> file_name("Calm piano, slow!"), file_name("…")
    ('calm-piano-slow.flac', 'mgkit.flac')
    """
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in title.lower()).split()
    return ("-".join(words)[:60].strip("-") or "mgkit") + extension


@dataclass(frozen=True)
class Table:
    """HTML of a table, shown by notebooks as it is."""

    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


def shaded_table(
    cells: Sequence[Sequence[str]],
    shares: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
) -> Table:
    """Table of texts `cells[row][column]`, each on a blue as strong as its share, from 0 to 1."""
    right = "text-align: right; white-space: nowrap; padding: 3px 10px"
    head = "".join(f'<th scope="col" style="{right}">{html.escape(name)}</th>' for name in columns)
    body = []
    for name, texts, strengths in zip(rows, cells, shares, strict=True):
        body.append(f'<tr><th scope="row" style="text-align: left">{html.escape(name)}</th>')
        for text, share in zip(texts, strengths, strict=True):
            # Weak blues leave the page's text colour, light or dark.
            ink = "; color: #fff" if share > 0.5 else ""
            back = f"rgba(31, 104, 163, {0.05 + 0.95 * share:.2f})"
            body.append(f'<td style="{right}; background: {back}{ink}">{html.escape(text)}</td>')
        body.append("</tr>")
    caption = f'<caption style="text-align: left">{html.escape(title)}</caption>' if title else ""
    return Table(
        f'<div style="overflow-x: auto"><table style="border-collapse: collapse">{caption}'
        f"<tr><th></th>{head}</tr>{''.join(body)}</table></div>"
    )


def player(
    wave: Tensor | np.ndarray,
    rate: int,
    title: str = "",
    seam: float | None = None,
    level: float | None = None,
    loop: bool = False,
    manifest: dict | None = None,
) -> Player:
    """Player of one wave [C, N] or [N] at `rate` Hz, nominally in [-1, 1], not normalised.

    The audio is 16-bit FLAC: lossless, half the size of WAV, supported by all browsers since 2017. Samples
    beyond ±1 clip, and the caption reports it. `seam` (seconds) marks the end of an audio prompt in the
    thumbnail. `level` is the amplitude that fills the thumbnail's height (default: the wave's peak). `title`
    is escaped, and names the file of the download. `loop` repeats playback. A `manifest` is embedded in the
    file for `audio.read_manifest`.

    Raises: ValueError for another shape, no samples, NaN or infinity (see `audio.as_wave`).
    """
    samples = to_samples(wave)
    peak = float(np.abs(samples).max())
    facts = [f"{samples.shape[1] / rate:.2f} s"]
    if len(samples) == 2:
        facts.append("stereo")
    facts.append(f"peak {20 * np.log10(peak):.1f} dBFS" if peak > 0 else "silent")
    if peak > 1:
        facts.append("clipped")
    if seam is not None:
        facts.append(f"new after {seam:.2f} s")
    name = html.escape(title)
    thumbnail = data_uri(wave_thumbnail(samples, rate, seam, level or peak or 1), "image/png")
    return Player(
        f'<figure class="mgkit-player" data-file="{file_name(title)}" style="{FIGURE_STYLE}">'
        f"<figcaption><b>{name}</b><br><small>{' · '.join(facts)}</small></figcaption>"
        f'<img alt="waveform of {name or "the audio"}" width="400" height="48" src="{thumbnail}">'
        f'<audio controls{" loop" if loop else ""} style="width: 400px" '
        f'src="{data_uri(_flac(samples, rate, manifest), "audio/flac")}"></audio></figure>'
    )


def players(
    items: Iterable[tuple[str, Tensor | np.ndarray]],
    rate: int,
    seam: float | Sequence[float | None] | None = None,
) -> Player:
    """Players of (title, wave [C, N]) side by side, thumbnails on one level scale.

    Nothing is normalised, so differences in loudness can be seen and heard. `seam` is one value for all waves
    or one for each. Raises: as `player`, and ValueError for a wrong number of seams.
    """
    pairs = [(title, to_samples(wave)) for title, wave in items]
    level = max((float(np.abs(samples).max()) for _, samples in pairs), default=0.0)
    each = [
        player(samples, rate, title, at, level).html
        for (title, samples), at in zip(pairs, one_seam_each(seam, len(pairs)), strict=True)
    ]
    return Player(f"<div>{''.join(each)}</div>")


def bare_player(wave: Tensor | np.ndarray, rate: int, title: str, name: str = "") -> Player:
    """Player of one wave [C, N] with its title only: a flat line, no waveform, level, length or download.

    With a `name`, `Players` reports each play under it. Raises: as `player`.
    """
    source, label = data_uri(_flac(to_samples(wave), rate), "audio/flac"), html.escape(title)
    counted = f' data-plays="{html.escape(name)}"' if name else ""
    return Player(
        f'<figure class="mgkit-player"{counted} style="{FIGURE_STYLE}">'
        f"<figcaption><b>{label}</b></figcaption>"
        f'<img alt="{label}" width="400" height="32" src="{data_uri(FLAT_LINE, "image/svg+xml")}">'
        f'<audio controls style="width: 400px" src="{source}"></audio></figure>'
    )


def player_table(
    cells: Sequence[Sequence[Tensor | np.ndarray]], rate: int, rows: Sequence[str], columns: Sequence[str]
) -> Player:
    """Table of waves `cells[row][column]` [C, N], each with a mel spectrogram and a player.

    All spectrograms share one dB scale, relative to the maximum over the table; nothing is normalised.
    Raises: as `player`, and ValueError if the headings do not match the cells.
    """
    if len(cells) != len(rows) or any(len(row) != len(columns) for row in cells) or not rows or not columns:
        raise ValueError(
            f"expected one row of cells for each of {list(rows)} and one wave for each of {list(columns)}; "
            f"got rows of {[len(row) for row in cells]} cells"
        )
    waves = [[to_samples(wave) for wave in row] for row in cells]
    powers = [[mel_power(samples, rate) for samples in row] for row in waves]
    top = max(float(power.max()) for row in powers for power in row) or 1.0
    wide = 'style="width: 190px; height: 36px; display: block"'
    head = "".join(f'<th style="text-align: left">{html.escape(name)}</th>' for name in ("", *columns))
    body = []
    for name, row_waves, row_powers in zip(rows, waves, powers, strict=True):
        body.append(f"<tr><th>{html.escape(name)}</th>")
        for column, samples, power in zip(columns, row_waves, row_powers, strict=True):
            alt = html.escape(f"mel spectrogram of {name}, {column}")
            picture = data_uri(mel_thumbnail(power / top), "image/png")
            sound = data_uri(_flac(samples, rate), "audio/flac")
            file = file_name(f"{name} {column}")
            body.append(f'<td class="mgkit-player" data-file="{file}" style="text-align: left">')
            body.append(f'<img class="mgkit-picture" alt="{alt}" width="190" height="64" src="{picture}">')
            body.append(f'<audio controls {wide} src="{sound}"></audio></td>')
        body.append("</tr>")
    longest = max(samples.shape[1] for row in waves for samples in row) / rate
    caption = (
        f"Mel spectrograms: time from 0 to {longest:.1f} s at most, frequency from 0 to {rate / 2000:g} kHz, "
        f"darker is louder (on a dark page, brighter), over {FLOOR:.0f} dB."
    )
    note = f'<caption style="caption-side: bottom; text-align: left"><small>{caption}</small></caption>'
    return Player(f"{PICTURE_STYLE}<table>{note}<tr>{head}</tr>{''.join(body)}</table>")


def page(items: Iterable[str | Player | Table | Figure], path: str | os.PathLike, title: str) -> Path:
    """Self-contained HTML file at `path`: strings become paragraphs, players and figures are embedded.

    Strings and `title` are escaped. Parent folders are created. An existing file is replaced only once the
    new one is complete. Raises: TypeError for an item of another type; OSError if the disk is full or
    read-only, with the existing file intact.
    """
    path = Path(path)
    body = []
    for item in items:
        if isinstance(item, str):
            body.append(f"<p>{html.escape(item)}</p>")
        elif isinstance(item, Player | Table):
            body.append(item.html)
        elif isinstance(item, Figure):
            body.append(image(base64.b64encode(png(item)).decode(), getattr(item, "alt", "picture")))
        else:
            raise TypeError(f"expected a string, a player, a table or a figure, got {type(item).__name__}")
    name = html.escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>'
    styles = f"<style>{STYLE}</style>{PICTURE_STYLE}"
    text = f'<!doctype html><html lang="en"><head>{head}{styles}</head><body><h1>{name}</h1>\n'
    text += "\n".join(body) + f"\n{PAGE_SCRIPT}\n</body></html>\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    return audio.replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def _flac(samples: np.ndarray, rate: int, manifest: dict | None = None) -> bytes:
    """16-bit FLAC of `samples` [C, N], with the manifest in the tags read by `audio.read_manifest`."""
    stored = manifest and {**manifest, "strategy": "clip"}
    return audio.encode(torch.from_numpy(samples), int(rate), ".flac", stored)
