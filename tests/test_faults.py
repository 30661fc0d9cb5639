"""Faults that are planted into a clean sound are found, and only those."""

import html

import numpy as np
import pytest

from mgkit.evals.faults import NAMES, faults, table

RATE = 32000


def notes(pitches: list[float], seconds: float = 0.413) -> np.ndarray:
    """Decaying notes with a rest after each, float32 [N]; their length is not one of whole frames."""
    time = np.arange(round(seconds * RATE)) / RATE
    envelope = np.exp(-8 * time) * (time < 0.8 * seconds)
    return np.concatenate([0.3 * envelope * np.sin(2 * np.pi * f * time) for f in pitches]).astype(np.float32)


SCALE = [261.63, 293.66, 329.63, 349.23, 392.0, 440.0]
CLEAN = notes(SCALE)


def rise(name: str, wave: np.ndarray) -> float:
    """How much a fault has grown from the clean sound."""
    return faults(wave.astype(np.float32), RATE)[name] - faults(CLEAN, RATE)[name]


def test_hiss_is_heard_in_the_rests():
    hiss = 0.01 * np.random.default_rng(0).standard_normal(len(CLEAN))
    assert faults(CLEAN, RATE)["rests"] < -90
    assert abs(faults((CLEAN + hiss).astype(np.float32), RATE)["rests"] + 40) < 2


def test_steps_between_frames_are_clicks_and_steps_elsewhere_are_not():
    steps = 0.02 * np.random.default_rng(0).standard_normal(len(CLEAN) // 640 + 2)
    at_frames, elsewhere = (np.repeat(steps, 640)[shift:][: len(CLEAN)] for shift in (0, 300))
    assert abs(faults(CLEAN, RATE)["clicks"]) < 3
    assert rise("clicks", CLEAN + at_frames) > 10
    assert rise("clicks", CLEAN + elsewhere) < 3


def test_offset_and_clipping_are_measured():
    assert abs(faults(CLEAN + np.float32(0.1), RATE)["offset"] + 20) < 0.5
    loud = np.clip(8 * CLEAN, -1, 1)
    assert rise("clipped", loud) > 20
    assert faults(CLEAN, RATE)["clipped"] == 0


def test_a_note_that_does_not_end_is_long():
    stuck = notes(SCALE[:2] + [440.0] * 6)
    assert 0.3 < faults(CLEAN, RATE)["longest"] < 1.1
    assert 2.5 < faults(stuck, RATE)["longest"] < 4.1


def test_the_table_has_a_row_for_each_fault():
    found = [faults(CLEAN, RATE)] * 3
    page = table({"clean": found, "again": found}).html
    assert all(html.escape(name) in page for name in NAMES.values())
    assert page.count("clean") == 1
    assert page.count(f"{found[0]['rests']:.1f} (") == 2


def test_too_short_a_wave_is_refused():
    with pytest.raises(ValueError, match="a second or more"):
        faults(CLEAN[:1000], RATE)
