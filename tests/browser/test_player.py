"""Players and recorder in a real JupyterLab: the right length, no gap, no click, no way out, words for what cannot be."""

import io
import json

import nbformat
import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect

RATE = 32000
SETUP = "import torch, time\nfrom mgkit import player, show\nsine = 0.3 * torch.sin(torch.arange(5 * 32000) * 440 * 2 * torch.pi / 32000)[None]"
# Hands the tests every sample that a page gives to the sound card, from before its own scripts run.
TAP = """
window.heard = [];
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...rest) {
    if (to === this.context.destination && !(this.context instanceof OfflineAudioContext)) {
        const tap = (this.context.tap ||= this.context.createScriptProcessor(4096, 1, 1));
        tap.onaudioprocess = event => {
            const samples = event.inputBuffer.getChannelData(0);
            window.heard.push(Array.from(samples));
            event.outputBuffer.getChannelData(0).set(samples);
        };
        connect.call(tap, to);
        return connect.call(this, tap);
    }
    return connect.call(this, to, ...rest);
};
"""


def play_some(page, sound) -> None:
    """Plays an <audio> until its time has moved by half a second; fails where it does not."""
    before = sound.evaluate("a => a.currentTime")
    sound.evaluate("a => a.play()")
    page.wait_for_function("([a, t]) => a.currentTime > t + 0.5", arg=[sound.element_handle(), before])
    sound.evaluate("a => a.pause()")


def duration(page, sound) -> float:
    page.wait_for_function("a => a.duration > 0", arg=sound.element_handle())
    return sound.evaluate("a => a.duration")


@pytest.mark.parametrize("kind", ["show.player", "player.Player"])
def test_player_has_the_length_of_the_wave_and_plays_and_needs_nothing_from_outside(lab, page, refused, kind):
    lab.open(page, lab.write("player.ipynb", [f"{SETUP}\n{kind}(sine, 32000, 'a sine', seam=2)"]))
    lab.run_all(page)
    sound = lab.output(page, 0).locator("audio")
    assert abs(duration(page, sound) - 5) < 0.02
    play_some(page, sound)
    assert refused == []
