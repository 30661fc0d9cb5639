"""`python -m mgkit reset`: nothing is lost, the notebooks are as they were, and undo brings the rest back."""

import subprocess

import nbformat
import pytest

from mgkit.lab import reset


def notebook(text: str, output: str = "") -> str:
    cell = nbformat.v4.new_code_cell(text, id="cell")
    if output:
        cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text=output)], 1
    return nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))


def files(root) -> dict[str, str]:
    """Contents of the files in `root` by name, without git's and with the dates left out."""
    found = (path for path in root.rglob("*") if path.is_file() and ".git" not in path.parts)
    names = {path: path.relative_to(root).parts for path in found}
    return {
        "/".join("DATE" if "earlier" in parts[i - 1 : i] else part for i, part in enumerate(parts)): (
            path.read_text(encoding="utf-8")
        )
        for path, parts in names.items()
    }


@pytest.fixture(params=["git", "no git"])
def root(tmp_path, request):
    """A classroom's folder after a group: a take, an executed notebook, and with git a new one."""
    root = tmp_path / "class"
    (root / "notebooks").mkdir(parents=True)
    (root / "notebooks" / "01.ipynb").write_text(notebook("1 + 1"), encoding="utf-8")
    (root / "notebooks" / "02.ipynb").write_text(notebook("2 + 2"), encoding="utf-8")
    if request.param == "git":
        (root / ".gitignore").write_text("outputs\n", encoding="utf-8")
        commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "start"]
        for command in (["init", "-q"], ["add", "-A"], commit):
            subprocess.run(["git", *command], cwd=root, check=True)
        (root / "notebooks" / "mine.ipynb").write_text(notebook("mine"), encoding="utf-8")
    else:
        # not even above it
        (root / ".git").write_text("gitdir: nowhere", encoding="utf-8")
    return root


def use(root) -> None:
    (root / "outputs" / "takes").mkdir(parents=True, exist_ok=True)
    (root / "outputs" / "takes" / "take-001.flac").write_text("music", encoding="utf-8")
    (root / "notebooks" / "01.ipynb").write_text(notebook("1 + 1", "2"), encoding="utf-8")


def test_reset_moves_everything_aside_and_undo_brings_it_back(root):
    start = files(root)
    use(root)
    before = files(root)
    aside = reset.reset(root)
    assert aside.parent == root / "outputs" / "earlier"
    after = files(root)
    kept = {
        name.removeprefix("outputs/earlier/DATE/"): text for name, text in after.items() if "DATE" in name
    }
    assert kept["outputs/takes/take-001.flac"] == "music"
    assert kept["notebooks/01.ipynb"] == before["notebooks/01.ipynb"]
    here = {name: text for name, text in after.items() if "DATE" not in name}
    mine = {"notebooks/mine.ipynb"}
    assert here == {name: text for name, text in start.items() if name not in mine}
    assert reset.undo(root) == aside
    assert files(root) == before


def test_undo_sets_the_next_group_s_files_aside_first(root):
    use(root)
    first = files(root)
    reset.reset(root)
    (root / "outputs" / "takes").mkdir(parents=True)
    (root / "outputs" / "takes" / "take-001.flac").write_text("other music", encoding="utf-8")
    reset.undo(root)
    now = files(root)
    assert now.pop("outputs/earlier/DATE/outputs/takes/take-001.flac") == "other music"
    assert now == first


def test_two_resets_within_a_second_have_two_folders(root):
    folders = []
    for _ in range(2):
        use(root)
        folders.append(reset.reset(root))
    assert folders[0] != folders[1] and all(folder.is_dir() for folder in folders)
    # the last one comes back first
    assert reset.undo(root) == folders[1]


def test_the_command_asks_and_without_an_answer_changes_nothing(root, monkeypatch, capsys):
    use(root)
    monkeypatch.chdir(root / "notebooks")
    before = files(root)

    def no_answer(question: str) -> str:
        raise EOFError

    for answer in (no_answer, lambda question: "n"):
        monkeypatch.setattr("builtins.input", answer)
        reset.main([])
        assert files(root) == before
    assert "outputs/takes" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda question: "y")
    reset.main([])
    assert files(root) != before
    reset.main(["--undo"])
    assert files(root) == before


def test_nothing_to_set_aside_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="nothing to set aside"):
        reset.reset(tmp_path)
    with pytest.raises(ValueError, match="nothing was set aside"):
        reset.undo(tmp_path)
