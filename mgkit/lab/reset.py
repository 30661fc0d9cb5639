"""`python -m mgkit reset`: a classroom's computer back to the start, for the next group.

    outputs/*, and files of notebooks/ that were changed or added  ->  outputs/earlier/2026-11-27_213000/
    notebooks/                                                     <-  the files as git has them

Nothing is deleted: `python -m mgkit reset --undo` moves the last group's files back. Without git, changed
notebooks cannot be known: all keep their cells, and lose their outputs.
"""

import argparse
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

# Folder of what was set aside.
EARLIER = "earlier"


def new_folder(parent: Path) -> Path:
    """A new folder in `parent`, named by the time. Raises: OSError if it cannot be made."""
    name, count = time.strftime("%Y-%m-%d_%H%M%S"), 1
    path = parent / name
    while path.exists():
        count += 1
        path = parent / f"{name}-{count}"
    path.mkdir(parents=True)
    return path


def changed(root: Path) -> list[Path]:
    """What `reset` would set aside, relative to `root`: outputs, and files changed or added in notebooks."""
    outputs = root / "outputs"
    made = [path for path in sorted(outputs.glob("*")) if path.name != EARLIER]
    return [*(path.relative_to(root) for path in made), *_notebooks(root)]


def reset(root: Path) -> Path:
    """Set the `changed` files of `root` aside, restore the notebooks, and return the new folder.

    Raises: ValueError if nothing was changed; OSError if a file cannot be moved.
    """
    paths = changed(root)
    if not paths:
        raise ValueError("nothing to set aside: no outputs, and the notebooks are as they were")
    aside = new_folder(root / "outputs" / EARLIER)
    for path in paths:
        (aside / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / path, aside / path)
        if path.parts[0] == "notebooks":
            _restore(root, path, aside)
    return aside


def undo(root: Path) -> Path:
    """Move what was set aside last back to its place, and return its former folder.

    What is in its place is set aside first. Raises: ValueError if nothing was set aside.
    """
    folders = sorted((root / "outputs" / EARLIER).glob("*"))
    if not folders:
        raise ValueError(f"nothing was set aside in {root / 'outputs' / EARLIER}")
    last = folders[-1]
    if changed(root):
        reset(root)
    for path in [path for path in last.rglob("*") if path.is_file()]:
        place = root / path.relative_to(last)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    shutil.rmtree(last)
    return last


def _git(root: Path, *arguments: str) -> bytes | None:
    """Output of a git command in `root`; None without git, or outside a repository."""
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _notebooks(root: Path) -> Iterator[Path]:
    """Files of notebooks/ that differ from git's, new ones included; without git, those with outputs."""
    if not (root / "notebooks").is_dir():
        return
    edited = _git(
        root, "diff", "--name-only", "--diff-filter=d", "--relative", "-z", "HEAD", "--", "notebooks"
    )
    added = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", "notebooks")
    if edited is not None and added is not None:
        yield from (Path(name) for name in sorted((edited + added).decode().split("\0")) if name)
        return
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        if _stripped(path) is not None:
            yield path.relative_to(root)


def _restore(root: Path, path: Path, aside: Path) -> None:
    """Write the notebook `path` as git has it; without git, the one set aside without outputs."""
    original = _git(root, "show", f"HEAD:./{path.as_posix()}")
    if original is not None:
        (root / path).write_bytes(original)
    elif _git(root, "rev-parse", "HEAD") is None and (text := _stripped(aside / path)) is not None:
        (root / path).write_text(text, encoding="utf-8")


def _stripped(path: Path) -> str | None:
    """Text of the notebook without its outputs; None if it has none."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not any(cell.outputs or cell.execution_count for cell in cells):
        return None
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    return nbformat.writes(notebook)


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit reset`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit reset",
        description="Set takes, outputs and changed notebooks aside, in outputs/earlier, for the next group. "
        "Stop JupyterLab or the app first.",
    )
    parser.add_argument("--undo", action="store_true", help="move what was set aside last back")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args(argv)
    root = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
    if arguments.undo:
        print(f"moved back from {undo(root)}")
        return
    paths = changed(root)
    for path in paths:
        print(f"  {path}")
    if paths and not arguments.yes and not _confirmed():
        print("nothing was changed")
        return
    print(f"set aside in {reset(root)}; python -m mgkit reset --undo moves it back")


def _confirmed() -> bool:
    try:
        return input("Set these aside? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
