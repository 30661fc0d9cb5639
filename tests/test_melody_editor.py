"""The melody editor: drawing and calls in code have the same effect."""

import sys

import ipywidgets
import pytest
import torch
from tiny import RATE

from mgkit import melody
from mgkit.lab import melody_editor
from mgkit.lab.melody_editor import REST

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
    _, _, reset = parts(widget, ipywidgets.Button)
    reset.click()
    assert editor.classes.equal(CLASSES)
    assert classes.equal(CLASSES)
    assert canvas(widget).values == CLASSES.tolist()


def test_play_plays_the_current_pitch_classes():
    editor = melody_editor.MelodyEditor(CLASSES, RATE)
    widget = editor.widget()
    play, _, _ = parts(widget, ipywidgets.Button)
    play.click()
    before = widget.children[-1].html
    editor.edit("D", 0, 9)
    play.click()
    assert before != widget.children[-1].html == editor.player().html
    assert "<audio" in before


def test_undo_takes_back_strokes_edits_and_resets():
    editor = melody_editor.MelodyEditor(CLASSES, RATE)
    drawn = canvas(editor.widget())
    states = [editor.drawn]
    for change in (
        lambda: setattr(drawn, "values", [5] * len(CLASSES)),
        lambda: editor.edit("C", 0, 9),
        editor.reset,
    ):
        change()
        states.append(editor.drawn)
    for state in states[-2::-1]:
        editor.undo()
        assert editor.drawn.equal(state) and drawn.values == state.tolist()
    editor.undo()
    assert editor.drawn.equal(CLASSES)


def test_an_edit_in_code_leaves_what_a_hand_drew():
    editor = melody_editor.MelodyEditor(CLASSES, RATE)
    drawn = canvas(editor.widget())
    values = CLASSES.tolist()
    values[2:4] = [9, REST]
    drawn.values = values
    editor.edit("D", 0, 9)
    assert editor.drawn.tolist() == [2, 2, 9, REST, 2, 2, 2, 2, 2, 2]
    # the model has no rest: the note before it is held
    assert editor.classes.tolist() == [2, 2, 9, 9, 2, 2, 2, 2, 2, 2]


def test_silence_is_detected_as_a_rest_and_notes_as_their_class():
    notes = torch.tensor([9] * 16 + [4] * 16)
    wave = melody.tones(notes, RATE)
    third = wave.shape[-1] // 4
    wave[:, third : 2 * third] = 1e-5 * torch.randn(1, third)
    found = melody_editor.detect(wave, RATE)
    assert len(found) == 1 + wave.shape[-1] // melody.HOP
    assert found[2:5].tolist() == [9] * 3 and found[-6:-3].tolist() == [4] * 3
    assert found[10:14].tolist() == [REST] * 4
    assert set(melody_editor.hold(found).tolist()) == {9, 4}


def test_chords_replace_the_melody_and_an_invalid_one_is_a_message():
    editor = melody_editor.MelodyEditor(CLASSES, RATE)
    problems = []
    widget = editor.widget(problems.append)
    [field] = parts(widget, ipywidgets.Text)
    field.value = "C A:min"
    length = len(CLASSES) * melody.HOP / RATE
    expected = melody.chords([(0, "C"), (length / 2, "A:min")], seconds=length, rate=RATE)
    assert editor.condition.equal(expected) and editor.edited
    assert canvas(widget).chords[0] == [0, 4, 7] and canvas(widget).chords[-1] == [0, 4, 9]
    assert "<audio" in editor.player().html
    field.value = "C H:min"
    assert "H" in problems[-1]
    field.value = ""
    assert problems[-1] == "" and editor.condition.equal(CLASSES) and not editor.edited


@pytest.mark.parametrize("missing", ["anywidget", "ipywidgets"])
def test_without_a_library_the_widget_names_it_and_calls_in_code_work(missing, monkeypatch):
    melody_editor._canvas_class.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    editor = melody_editor.MelodyEditor(CLASSES, RATE)
    assert missing in editor.widget().html
    editor.edit("D", 0, 9)
    assert editor.classes.tolist() == [2] * len(CLASSES)
