"""Melodies by hand: what the widgets do, plain calls do, and the other way round."""

import sys
from datetime import datetime
from pathlib import Path

import ipywidgets
import pytest
import torch
from tiny import RATE, tune

from mgkit import audio, grid, melody

DATA = Path(__file__).parent.parent / "data"
TOLD = torch.tensor([0, 0, 4, 4, 7, 7, 7, 7, 11, 11])


@pytest.fixture
def picker() -> grid.MelodyPicker:
    return grid.MelodyPicker(DATA / "melodies")


def parts(widget: object, kind: type) -> list:
    """All widgets of a kind in a box, in order."""
    inside = [part for child in getattr(widget, "children", ()) for part in parts(child, kind)]
    return [widget, *inside] if isinstance(widget, kind) else inside


def put(upload: ipywidgets.FileUpload, name: str, content: bytes) -> None:
    """What a browser does when a file is chosen."""
    more = {"type": "", "size": len(content), "last_modified": datetime.now()}
    upload.value = ({"name": name, "content": memoryview(content), **more},)


# --- the picker -------------------------------------------------------------------------------------------------


def test_a_picked_melody_is_the_file(picker):
    for name, path in picker.shipped.items():
        picker.pick(name)
        assert picker.name == name
        assert picker.wave.equal(audio.read(path)[0])
    assert len(picker.shipped) >= 4


def test_the_list_and_the_plain_call_pick_the_same(picker):
    [shipped] = parts(picker.widget(), ipywidgets.Dropdown)
    assert shipped.value == picker.name
    shipped.value = "scarborough_fair"
    assert picker.name == "scarborough_fair"
    assert picker.wave.equal(audio.read(DATA / "melodies/scarborough_fair.ogg")[0])


@pytest.mark.parametrize("ending", audio.FORMATS)
def test_an_uploaded_file_becomes_the_melody_and_is_played(picker, ending, tmp_path):
    path = audio.write(tmp_path / f"mine{ending}", tune(1), RATE)
    widget = picker.widget()
    [upload] = parts(widget, ipywidgets.FileUpload)
    put(upload, path.name, path.read_bytes())
    assert picker.name == path.name
    assert picker.wave.equal(audio.read(path)[0])
    assert path.name in parts(widget, ipywidgets.HTML)[-1].value


def test_a_file_that_is_no_audio_is_named_and_changes_nothing(picker):
    widget, before = picker.widget(), picker.wave
    [upload] = parts(widget, ipywidgets.FileUpload)
    put(upload, "<i>.txt", b"la la")
    said = parts(widget, ipywidgets.HTML)[-1].value
    assert "&lt;i&gt;.txt" in said
    assert "is not audio" in said
    assert "<audio" in said
    assert picker.wave is before


def test_uploads_are_read_as_ipywidgets_7_and_8_give_them():
    seven = {"a.wav": {"metadata": {"name": "a.wav", "size": 3}, "content": b"abc"}}
    eight = ({"name": "a.wav", "size": 3, "content": memoryview(b"abc")},)
    assert grid._files(seven) == grid._files(eight) == [("a.wav", b"abc")]


def test_an_unknown_melody_and_an_empty_folder_are_refused_in_words(picker, tmp_path):
    with pytest.raises(ValueError, match="'yesterday'.*ode_to_joy"):
        picker.pick("yesterday")
    with pytest.raises(FileNotFoundError, match="no audio files"):
        grid.MelodyPicker(tmp_path)


# --- the editor -------------------------------------------------------------------------------------------------


def canvas(widget: ipywidgets.VBox) -> ipywidgets.DOMWidget:
    return widget.children[0]


def test_what_is_drawn_is_what_the_editor_holds():
    editor = grid.GridEditor(TOLD, RATE)
    drawn = canvas(editor.widget())
    assert drawn.values == drawn.heard == TOLD.tolist()
    drawn.values = [5] * len(TOLD)
    assert editor.classes.tolist() == [5] * len(TOLD)
    assert editor.classes.dtype == torch.int64
    assert editor.heard.equal(TOLD)


def test_a_plain_edit_is_drawn_in_every_view():
    editor = grid.GridEditor(TOLD, RATE)
    views = [canvas(editor.widget()), canvas(editor.widget())]
    editor.edit("F♯", 0.2, 0.5)
    assert editor.classes.equal(melody.edit(TOLD, "F♯", 0.2, 0.5, RATE))
    assert not editor.classes.equal(TOLD)
    assert all(view.values == editor.classes.tolist() for view in views)


def test_as_it_was_undoes_every_edit_and_leaves_the_tensor_that_was_given():
    told = TOLD.clone()
    editor = grid.GridEditor(told, RATE)
    widget = editor.widget()
    editor.edit("D", 0, 9)
    _, reset = parts(widget, ipywidgets.Button)
    reset.click()
    assert editor.classes.equal(TOLD)
    assert told.equal(TOLD)
    assert canvas(widget).values == TOLD.tolist()


def test_play_plays_the_grid_as_it_is_now():
    editor = grid.GridEditor(TOLD, RATE)
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
    grid._canvas_class.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    editor = grid.GridEditor(TOLD, RATE)
    assert missing in editor.widget().html
    editor.edit("D", 0, 9)
    assert editor.classes.tolist() == [2] * len(TOLD)


def test_without_ipywidgets_the_picker_says_so_in_a_sentence(picker, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert "ipywidgets" in picker.widget().html
