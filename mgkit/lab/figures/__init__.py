"""Plots of audio, tokens, windows and traces, for notebooks and reports; players and pages.

Axes: C channels, N samples, K codebooks, T frames, S delayed steps, F chroma frames, V codebook size,
H heads, W words, R rows.

    waves   waveform, mel, chroma              audio
    codes   tokens, pattern, schedule, usage   codes, their delay pattern, and how often each token occurs
            overview                           the way from prompt to waveform in one picture
    runs    windows, real_time                 how long music is generated, and how fast
            bars, curves, attention, table     values of a trace: distribution, over time, attention, table

The players and pages of `pages.py` are available here too (`figures.player`, `figures.page`, …), so that a
notebook needs one import.
"""

from mgkit.lab.drawing import Picture
from mgkit.lab.figures.codes import overview, pattern, schedule, tokens, usage
from mgkit.lab.figures.runs import attention, bars, curves, real_time, table, windows
from mgkit.lab.figures.waves import chroma, mel, waveform
from mgkit.lab.pages import (
    Player,
    Table,
    bare_player,
    page,
    player,
    player_table,
    players,
    shaded_table,
)

__all__ = [
    "Picture",
    "Player",
    "Table",
    "attention",
    "bare_player",
    "bars",
    "chroma",
    "curves",
    "mel",
    "overview",
    "page",
    "pattern",
    "player",
    "player_table",
    "players",
    "real_time",
    "schedule",
    "shaded_table",
    "table",
    "tokens",
    "usage",
    "waveform",
    "windows",
]
