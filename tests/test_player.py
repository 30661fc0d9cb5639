"""The kernel side of the players and the recorder; the browser side is tested in browser/test_player.py."""

import ast
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mgkit.lab import figures, player

PACKAGE = Path(player.__file__).parent
RATE = 32000
WAVE = 0.5 * torch.sin(torch.arange(RATE) / 20)[None]


class Page:
    """Stand-in for a browser: records the messages of a widget."""

    def __init__(self, widget: player.LivePlayer):
        self.widget, self.received = widget, []
        widget.send = lambda content, buffers=None: self.received.append((content, buffers))

    def send(self, **content) -> None:
        self.widget._on_browser(self.widget, content, [])

    def chunks(self) -> list[tuple[int, int, torch.Tensor]]:
        """Piece number, start and samples of each chunk."""
        return [
            (head["piece"], head["start"], torch.frombuffer(bytearray(buffers[0]), dtype=torch.int16))
            for head, buffers in self.received
            if head["kind"] == "chunk"
        ]


def test_a_player_is_self_contained_and_holds_the_static_player():
    made = player.Player(WAVE, RATE, "<b>bold</b> & loud", seam=0.5, loop=True)
    page = made._repr_mimebundle_()["text/html"]
    assert figures.player(WAVE, RATE, "<b>bold</b> & loud", seam=0.5, loop=True).html in page
    assert "<b>bold</b> &" not in page
    assert re.search(r"<audio controls loop ", page)
    assert not re.search(r"""https?://|(?:src|href)=["'](?!data:)|@import|url\(""", page)
    assert page.count("</script>") == 1


def test_chunks_from_many_threads_join_without_gaps_or_overlap():
    live = player.LivePlayer(RATE, 2)
    page = Page(live)
    parts = [WAVE[:, : 1000 + i].repeat(2, 1) for i in range(16)]
    threads = [threading.Thread(target=live.push, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end = 0
    for _, start, samples in page.chunks():
        assert start == end
        end += len(samples) // 2
    assert end == sum(part.shape[-1] for part in parts) == live.wave.shape[-1]
    assert live.pushed == end / RATE


def test_samples_are_sent_as_16_bit_and_clip():
    live = player.LivePlayer(RATE)
    page = Page(live)
    live.push(torch.tensor([[0.0, 0.5, 1.0, 7.0, -7.0]]))
    assert page.chunks()[0][2].tolist() == [0, 16384, 32767, 32767, -32768]
    assert live.wave.abs().max() <= 1


def test_a_page_opened_late_receives_the_chunks_not_yet_played():
    live = player.LivePlayer(RATE)
    for _ in range(4):
        live.push(WAVE)
    live.finish()
    page = Page(live)
    live.played = 1.5
    page.send(kind="ready")
    kinds = [head["kind"] for head, _ in page.received]
    assert kinds == ["from", "chunk", "chunk", "chunk", "finish"]
    assert page.received[0][0]["start"] == page.chunks()[0][1] == RATE


def test_history_is_bounded(monkeypatch):
    monkeypatch.setattr(player, "HISTORY", 3.0)
    live = player.LivePlayer(RATE)
    for _ in range(10):
        live.push(WAVE)
    assert live.pushed == 10
    assert live.wave.shape == (1, 3 * RATE)


def test_speed_is_music_over_work_without_waiting(monkeypatch):
    clock = SimpleNamespace(now=1.0)
    monkeypatch.setattr(player, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    live = player.LivePlayer(RATE)
    assert live.speed == 0
    live.push(WAVE)
    # the start of the work on the first chunk is unknown
    assert live.speed == 0
    for _ in range(5):
        clock.now += 0.25
        live.push(WAVE)
        clock.now += 100
        live.pace(1)
    assert live.speed == pytest.approx(4)


def test_play_starts_a_piece_in_a_thread_and_replaces_the_last_one():
    first = threading.Event()

    def source(stop):
        yield WAVE
        first.set()
        yield from (WAVE for _ in iter(lambda: stop.wait(0.01), True))

    live = player.LivePlayer(RATE, source=source)
    page = Page(live)
    old = live.play()
    assert first.wait(30)
    old_stop = live.stop
    new = live.play()
    old.join(30)
    assert old_stop.is_set() and not old.is_alive()
    assert new.is_alive() and not live.stop.is_set()
    page.send(kind="stop", piece=live._piece)
    new.join(30)
    assert not new.is_alive()
    pieces = [piece for piece, _, _ in page.chunks()]
    assert pieces == sorted(pieces)
    assert {1, 2} == set(pieces)


def test_a_failing_source_is_reported_in_the_widget_and_ends_the_piece():
    def source(stop):
        yield WAVE
        raise ValueError("there is no melody here")

    live = player.LivePlayer(RATE, source=source)
    page = Page(live)
    live.play().join(30)
    assert "there is no melody here" in live.message
    assert page.received[-1][0]["kind"] == "finish"


def test_pace_returns_immediately_without_a_browser():
    live = player.LivePlayer(RATE)
    for _ in range(5):
        live.push(WAVE)
    # otherwise this test would never end
    live.pace(0)
    assert live.ahead == 5


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: player.LivePlayer(RATE, 3), "channels"),
        (lambda: player.LivePlayer(0), "rate"),
        (lambda: player.LivePlayer(RATE, 2).push(WAVE), "channels"),
        (lambda: player.LivePlayer(RATE).push(WAVE[None]), "shape"),
        (lambda: player.LivePlayer(RATE).play(), "source"),
        (lambda: player.Recorder(seconds=0), "seconds"),
        (lambda: player.Player(WAVE[None], RATE), "shape"),
    ],
)
def test_invalid_arguments_are_rejected_by_name(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_a_recording_becomes_a_wave_and_notifies_observers():
    recorder, observed = player.Recorder(RATE), []
    recorder.observe(lambda change: observed.append(change.new), "wave")
    assert recorder.wave is None
    for samples in ([0, 16384, -32768], [1] * 5):
        recorder._on_browser(
            recorder, {"kind": "recorded"}, [memoryview(torch.tensor(samples).short().numpy().tobytes())]
        )
    assert torch.equal(observed[0], torch.tensor([[0, 0.5, -1]]))
    assert observed[1] is recorder.wave
    assert recorder.wave.shape == (1, 5)


def test_without_anywidget_each_is_html_naming_the_missing_package():
    code = """
import sys
sys.modules["anywidget"] = None
import torch, ipywidgets
from mgkit.lab import player
wave = torch.zeros(1, 3200)
made = player.Player(wave, 32000), player.LivePlayer(32000, source=lambda stop: [wave]), player.Recorder()
assert all(isinstance(widget, ipywidgets.HTML) for widget in made)
ipywidgets.VBox(made)
assert "<audio" in made[0].value and "<script" in made[0]._repr_mimebundle_()["text/html"]
assert "pip install anywidget" in made[1].value and "pip install anywidget" in made[2].value
made[1].play().join()
assert "<audio" in made[1].value
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Names in ipywidgets 7.7.1, Colab's version; one only in version 8 would fail there.
SEVEN = set(
    re.findall(
        r"\w+",
        """Widget DOMWidget HTML HTMLMath Label VBox HBox Box GridBox Accordion Tab Output Layout Button
    ToggleButton ToggleButtons Checkbox Dropdown Select SelectMultiple RadioButtons Text Textarea
    IntText FloatText BoundedIntText BoundedFloatText IntSlider FloatSlider FloatLogSlider
    IntRangeSlider FloatRangeSlider SelectionSlider IntProgress FloatProgress FileUpload Image Audio
    Play Valid Combobox interact interact_manual interactive interactive_output fixed link jslink
    dlink jsdlink widgets""",
    )
)


def test_only_widgets_that_ipywidgets_7_has_are_used():
    seen = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                seen |= {node.attr} if node.value.id in ("ipywidgets", "widgets") else set()
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ipywidgets"):
                seen |= {alias.name for alias in node.names}
    assert "HTML" in seen
    assert seen <= SEVEN, f"not in ipywidgets 7.7.1, as far as known: {seen - SEVEN}"
