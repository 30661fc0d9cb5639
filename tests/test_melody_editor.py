"""The melody grid: what a hand does, plain calls do, and the other way round."""

import sys

import ipywidgets
import pytest
import torch
from tiny import RATE

from mgkit import melody
from mgkit.lab import melody_editor

TOLD = torch.tensor([0, 0, 4, 4, 7, 7, 7, 7, 11, 11])


def parts(widget: object, kind: type) -> list:
    """All widgets of a kind in a box, in order."""
    inside = [part for child in getattr(widget, "children", ()) for part in parts(child, kind)]
    return [widget, *inside] if isinstance(widget, kind) else inside


def canvas(widget: ipywidgets.VBox) -> ipywidgets.DOMWidget:
    return widget.children[0]


def test_what_is_drawn_is_what_the_editor_holds():
    editor = melody_editor.GridEditor(TOLD, RATE)
    drawn = canvas(editor.widget())
    assert drawn.values == drawn.heard == TOLD.tolist()
    drawn.values = [5] * len(TOLD)
    assert editor.classes.tolist() == [5] * len(TOLD)
    assert editor.classes.dtype == torch.int64
    assert editor.heard.equal(TOLD)


def test_a_plain_edit_is_drawn_in_every_view():
    editor = melody_editor.GridEditor(TOLD, RATE)
    views = [canvas(editor.widget()), canvas(editor.widget())]
    editor.edit("F♯", 0.2, 0.5)
    assert editor.classes.equal(melody.edit(TOLD, "F♯", 0.2, 0.5, RATE))
    assert not editor.classes.equal(TOLD)
    assert all(view.values == editor.classes.tolist() for view in views)


def test_as_it_was_undoes_every_edit_and_leaves_the_tensor_that_was_given():
    told = TOLD.clone()
    editor = melody_editor.GridEditor(told, RATE)
    widget = editor.widget()
    editor.edit("D", 0, 9)
    _, reset = parts(widget, ipywidgets.Button)
    reset.click()
    assert editor.classes.equal(TOLD)
    assert told.equal(TOLD)
    assert canvas(widget).values == TOLD.tolist()


def test_play_plays_the_grid_as_it_is_now():
    editor = melody_editor.GridEditor(TOLD, RATE)
    widget = editor.widget()
    play, _ = parts(widget, ipywidgets.Button)
    play.click()
    before = widget.children[-1].value
    editor.edit("D", 0, 9)
    play.click()
    assert before != widget.children[-1].value == editor.player().html
    assert "<audio" in before


@pytest.mark.parametrize("missing", ["anywidget", "ipywidgets"])
def test_without_a_library_the_grid_says_so_in_a_sentence_and_the_calls_go_on(missing, monkeypatch):
    melody_editor._canvas_class.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    editor = melody_editor.GridEditor(TOLD, RATE)
    assert missing in editor.widget().html
    editor.edit("D", 0, 9)
    assert editor.classes.tolist() == [2] * len(TOLD)
