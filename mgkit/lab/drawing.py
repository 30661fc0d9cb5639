"""Shared parts of figures and players: colours, PNG and data URIs, envelopes, mel spectrograms, cells.

Axes: C channels, N samples, K codebooks, T frames, S delayed steps.

Figures are created without pyplot, so any thread may draw them and no backend shows them twice.
"""

import base64
import io
import textwrap
from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imsave
from matplotlib.patches import Rectangle
from torch import Tensor

from mgkit import audio, spectra
from mgkit.delay import delay, delays

# Before and after a seam; both have enough contrast on white and on black.
GIVEN, NEW = "#8a8f98", "#2a7fbf"
# Markers, and the second of two options that are compared.
ACCENT, OTHER = "#c2410c", "#d97706"
# Lines of a plot, told apart by more than their colour; the colours are legible on white and on black.
LINES = ("-", "--", ":", "-.")
COLORS = (NEW, ACCENT, "#3d8b4f", "#8a55d7")
# More is darker, in every picture.
LOUD, MORE = "magma_r", "Blues"
# Ties, unused stretches, special tokens.
PALE = "#d9dce1"
# Dynamic range of mel spectrograms, in dB below the maximum.
FLOOR = 80.0
# Of mel spectrograms: samples in a window, samples between windows, mel bands.
N_FFT, MEL_HOP, BANDS = 2048, 512, 96


# Colours of a dark page: lightness is inverted, hues stay. Its paper takes the page's colour in both.
DARK = "filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen"
PICTURE_STYLE = f"""<style>
.mgkit-picture {{ display: block; max-width: 100%; margin: 0; color: #000; mix-blend-mode: multiply }}
img.mgkit-picture {{ height: auto }}
body[data-jp-theme-light="false"] .mgkit-picture {{ {DARK} }}
@media (prefers-color-scheme: dark) {{ body:not([data-jp-theme-light]) .mgkit-picture {{ {DARK} }} }}
</style>"""


class Picture(Figure):
    """A matplotlib figure that notebooks show in the colours of their theme, whatever the backend.

    It is a PNG with alternative text, on white where style sheets are blocked.
    """

    alt = "picture"

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        data = base64.b64encode(png(self)).decode()
        html = PICTURE_STYLE + image(data, self.alt)
        return {"text/html": html, "image/png": data}, {"image/png": {"alt": self.alt}}


def image(data: str, alt: str) -> str:
    """HTML of a PNG in base64, for pages with PICTURE_STYLE."""
    return f'<img class="mgkit-picture" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def new_picture(height: float, alt: str, title: str = "") -> Picture:
    """Empty picture, 7.5 inches wide and `height` inches high; its text is legible on 700 pixels."""
    figure = Picture(figsize=(7.5, height), layout="constrained")
    figure.alt = alt
    if title:
        figure.suptitle(textwrap.shorten(title, 95, placeholder=" …"), fontsize=10, parse_math=False)
    return figure


def set_title(axes: Axes, title: str) -> None:
    """Left-aligned title of one panel, shortened to fit."""
    axes.set_title(textwrap.shorten(title, 95, placeholder=" …"), fontsize=9, loc="left", parse_math=False)


def set_legend(axes: Axes) -> None:
    """Legend to the right of a panel, where it covers no data."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def png(figure: Figure) -> bytes:
    """PNG of a figure at 132 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=132)
    return buffer.getvalue()


def data_uri(data: bytes, mime: str) -> str:
    """`data:` URI of a file's content."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def to_samples(wave: Tensor | np.ndarray) -> np.ndarray:
    """Samples [C, N] float32 of a wave [C, N] or [N]. Raises: as `audio.as_wave`."""
    return audio.as_wave(torch.as_tensor(wave)).detach().cpu().numpy()


def one_seam_each(seam: float | Sequence[float | None] | None, count: int) -> list[float | None]:
    """One seam for each of `count` waves; a single value applies to all of them."""
    seams = list(seam) if isinstance(seam, Sequence) else [seam] * count
    if len(seams) != count:
        raise ValueError(f"got {len(seams)} seams for {count} waves; pass one for all, or one for each")
    return seams


# --- waveforms --------------------------------------------------------------------------------------------


def envelope(channel: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum of `channel` [N] in each of `columns` equal stretches."""
    edges = np.linspace(0, len(channel), columns + 1).astype(int)
    parts = [channel[a : max(a + 1, b)] for a, b in zip(edges, edges[1:])]
    return np.array([part.min() for part in parts]), np.array([part.max() for part in parts])


def draw_wave(axes: Axes, channel: np.ndarray, rate: int, seam: float | None) -> None:
    """Envelope of `channel` [N] over seconds, coloured by the side of the seam."""
    columns = 1000
    low, high = envelope(channel, columns)
    seconds = (np.arange(columns) + 0.5) / columns * len(channel) / rate
    cut = 0 if seam is None else int(np.searchsorted(seconds, seam))
    for part, color in ((slice(0, cut + 1), GIVEN), (slice(cut, None), NEW)):
        axes.fill_between(seconds[part], low[part], high[part], color=color, linewidth=0.5)
    if seam is not None:
        axes.axvline(seam, color="black", linestyle="--", linewidth=1)
    axes.set_ylim(-1.02, 1.02)
    axes.set_ylabel("amplitude")
    axes.set_xlim(0, len(channel) / rate)


def wave_thumbnail(samples: np.ndarray, rate: int, seam: float | None, level: float) -> bytes:
    """Transparent PNG (800 × 96) of the envelope of `samples` [C, N]; `level` fills the height."""
    width, height = 800, 96
    low, high = envelope(samples.mean(axis=0), width)
    amplitude = np.linspace(level, -level, height)[:, None]
    inside = (amplitude <= high + level / height) & (amplitude >= low - level / height)
    cut = 0 if seam is None else round(width * seam * rate / samples.shape[1])
    pixels = np.zeros((height, width, 4))
    pixels[..., :3] = np.where(np.arange(width)[:, None] < cut, to_rgb(GIVEN), to_rgb(NEW))
    pixels[..., 3] = inside
    if 0 < cut < width:
        pixels[:, cut - 1 : cut + 1] = (*to_rgb(NEW), 1)
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return buffer.getvalue()


# --- mel spectrograms -------------------------------------------------------------------------------------


def mel_power(samples: np.ndarray, rate: int) -> Tensor:
    """Mel power spectrogram [BANDS, T] of samples [C, N], channels averaged, T = 1 + N // MEL_HOP."""
    return spectra.mel_power(torch.from_numpy(samples).mean(dim=0), rate, N_FFT, MEL_HOP, BANDS)


def mel_thumbnail(power: Tensor) -> bytes:
    """PNG of mel power [BANDS, T] relative to 0 dB = 1: one pixel per band, at most 190 over time."""
    small = torch.nn.functional.adaptive_avg_pool1d(power[None], min(190, power.shape[1]))[0]
    decibels = 10 * torch.log10(small.clamp(min=1e-12))
    buffer = io.BytesIO()
    imsave(buffer, decibels.numpy(), vmin=-FLOOR, vmax=0, cmap=LOUD, origin="lower", format="png")
    return buffer.getvalue()


# --- codes ------------------------------------------------------------------------------------------------


def draw_cells(axes: Axes, values: Tensor, size: int, colormap: str) -> AxesImage:
    """Image of values 0 … size - 1 [K, T], one row per codebook; -1 is grey, NaN is blank."""
    colors = colormaps[colormap].with_extremes(under=PALE, bad="white")
    image = axes.imshow(values.numpy(), aspect="auto", interpolation="nearest", cmap=colors)
    image.set_clim(0, max(1, size - 1))
    axes.set_yticks(range(len(values)), [f"codebook {k}" for k in range(len(values))], fontsize=8)
    return image


def draw_frames(above: Axes, below: Axes, codes: Tensor, channels: int, step: int | None = None) -> None:
    """Codes [K, T] above and their delay pattern [K, S] below, coloured by frame.

    With `step`, tokens generated after it are blank and the step is outlined.
    """
    shifts, count = delays(len(codes), channels), codes.shape[1]
    frames = torch.arange(count).expand(codes.shape)
    # The step at which each token is generated, before and after the delay.
    written = frames + 1 + torch.tensor(shifts)[:, None]
    columns = torch.arange(count + 1 + max(shifts)).expand(len(codes), -1)
    delayed_codes, delayed_frames = (delay(x[None], shifts, -1)[0] for x in (codes, frames))
    for axes, values, colors, when, title in (
        (above, codes, frames, written, "frames: the codec decodes one column at a time"),
        (
            below,
            delayed_codes,
            delayed_frames,
            columns,
            "steps: the transformer generates one column at a time",
        ),
    ):
        shown = when <= (when.max() if step is None else step)
        draw_cells(axes, colors.float().masked_fill(~shown, torch.nan), count, "Wistia")
        set_title(axes, title)
        for (k, i), token in np.ndenumerate(values.numpy()):
            if shown[k, i]:
                axes.text(i, k, "–" if token < 0 else token, ha="center", va="center", fontsize=6.5)
        axes.set_xticks(range(values.shape[1]))
    if step is not None:
        below.add_patch(Rectangle((step - 0.5, -0.5), 1, len(codes), fill=False, edgecolor=NEW, linewidth=3))
