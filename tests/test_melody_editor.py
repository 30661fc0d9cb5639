"""The melody editor: drawing and calls in code have the same effect."""

import sys

import ipywidgets
import pytest
import torch
from tiny import RATE

from mgkit import melody
from mgkit.lab import melody_editor

CLASSES = torch.tensor([0, 0, 4, 4, 7, 7, 7, 7, 11, 11])


def parts(widget: object, kind: type) -> list:
    """All widgets of this type inside a box, in order."""
    inside = [part for child in getattr(widget, "children", ()) for part in parts(child, kind)]
    return [widget, *inside] if isinstance(widget, kind) else inside


def canvas(widget: ipywidgets.VBox) -> ipywidgets.DOMWidget:
    return widget.children[0]


def test_a_drawing_reaches_the_editor():
    editor = melody_editor.MelodyEditor(CLASSES, RATE)
    drawn = canvas(editor.widget())
    assert drawn.values == drawn.detected == CLASSES.tolist()
    drawn.values = [5] * len(CLASSES)
    assert editor.classes.tolist() == [5] * len(CLASSES)
    assert editor.classes.dtype == torch.int64
    assert editor.detected.equal(CLASSES)


def test_an_edit_in_code_is_drawn_in_every_view():
    editor = melody_editor.MelodyEditor(CLASSES, RATE)
    views = [canvas(editor.widget()), canvas(editor.widget())]
    editor.edit("F♯", 0.2, 0.5)
    assert editor.classes.equal(melody.edit(CLASSES, "F♯", 0.2, 0.5, RATE))
    assert not editor.classes.equal(CLASSES)
    assert all(view.values == editor.classes.tolist() for view in views)


def test_reset_undoes_all_edits_and_leaves_the_callers_tensor_alone():
    classes = CLASSES.clone()
    editor = melody_editor.MelodyEditor(classes, RATE)
    widget = editor.widget()
    editor.edit("D", 0, 9)
    _, reset = parts(widget, ipywidgets.Button)
    reset.click()
    assert editor.classes.equal(CLASSES)
    assert classes.equal(CLASSES)
    assert canvas(widget).values == CLASSES.tolist()


def test_play_plays_the_current_pitch_classes():
    editor = melody_editor.MelodyEditor(CLASSES, RATE)
    widget = editor.widget()
    play, _ = parts(widget, ipywidgets.Button)
    play.click()
    before = widget.children[-1].value
    editor.edit("D", 0, 9)
    play.click()
    assert before != widget.children[-1].value == editor.player().html
    assert "<audio" in before


@pytest.mark.parametrize("missing", ["anywidget", "ipywidgets"])
def test_without_a_library_the_widget_names_it_and_calls_in_code_work(missing, monkeypatch):
    melody_editor._canvas_class.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    editor = melody_editor.MelodyEditor(CLASSES, RATE)
    assert missing in editor.widget().html
    editor.edit("D", 0, 9)
    assert editor.classes.tolist() == [2] * len(CLASSES)
