"""Several files are replaced together: whenever the process stops, all are old or all are new."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mgkit
from mgkit import MusicGen, files

MOVES = ("os.replace", "os.rename")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.is_file()}


def write(text: str, *names: str):
    """A writer of files that all hold `text`."""

    def writer(drafts: Path) -> None:
        for name in names:
            (drafts / name).write_text(text, encoding="utf-8")

    return writer


KILL = """
import os, sys
from pathlib import Path
from mgkit import files
left = int(sys.argv[2])

def counted(move):
    def moved(*args, **more):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return move(*args, **more)
    return moved

os.replace, os.rename = counted(os.replace), counted(os.rename)
files.replace_files(sys.argv[1], lambda drafts: [(drafts / name).write_text("new") for name in "abc"])
"""


@pytest.mark.parametrize("after", range(5))
def test_a_killed_process_leaves_all_old_or_all_new_files(after: int, tmp_path: Path) -> None:
    files.replace_files(tmp_path, write("old", "a", "b", "c", "d"))
    path = {"PYTHONPATH": str(Path(mgkit.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", KILL, str(tmp_path), str(after)], env=os.environ | path)
    assert done.returncode == (9 if after < 4 else 0)
    files.finish(tmp_path)
    expected = "old" if after == 0 else "new"
    assert contents(tmp_path) == {"a": expected, "b": expected, "c": expected, "d": "old"}
    files.replace_files(tmp_path, write("later", "a", "b"))
    assert contents(tmp_path) == {"a": "later", "b": "later", "c": expected, "d": "old"}
    assert not list(tmp_path.glob(".complete-*"))


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_killed_save_leaves_one_whole_model(
    after: int, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights beside the old config would play noise, or load as the wrong model."""
    folder = shutil.copytree(saved / "text", tmp_path / "model")
    melody, replace, left = MusicGen.get_pretrained(str(saved / "melody"), "cpu"), os.replace, after

    def stop(*args: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        melody.save_pretrained(str(folder))
    monkeypatch.setattr(os, "replace", replace)
    again = MusicGen.get_pretrained(str(folder), "cpu")
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "musicgen_melody"
    assert torch.equal(again.lm.heads[0].weight, melody.lm.heads[0].weight)


def test_an_unfinished_save_in_a_folder_that_cannot_be_written_is_named(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(saved / "text", tmp_path / "model")
    (folder / ".complete-x").mkdir()
    (folder / ".complete-x/config.json").write_text("{}", encoding="utf-8")

    def fail(*args: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ValueError, match="interrupted.*Read-only file system"):
        MusicGen.get_pretrained(str(folder), "cpu")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_replaced_file_keeps_its_mode_and_a_new_one_follows_the_umask(saved: Path, tmp_path: Path) -> None:
    model = MusicGen.get_pretrained(str(saved / "text"), "cpu")
    before = os.umask(0o077)
    try:
        model.save_pretrained(str(tmp_path / "model"))
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    finally:
        os.umask(before)
    assert modes == {0o600}
    (tmp_path / "model/config.json").chmod(0o640)
    model.save_pretrained(str(tmp_path / "model"))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes.pop("config.json") == 0o640 and set(modes.values()) == {0o600}
