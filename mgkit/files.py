"""Whole files: checked before the work, written completely or not at all, even if the process is killed.

write -> folder/.draft-x7f2/{a.json, b.bin}      an interruption leaves the earlier files
rename   folder/.complete-x7f2/{a.json, b.bin}   the one step that decides
move  -> folder/{a.json, b.bin}                  an interruption is made good by `finish`
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Write the file at `path` completely or not at all, and return its path.

    `write` receives the path of a draft, which is renamed once it is complete; see `replace_files`. A link is
    followed: its target is replaced, and the link stays.

    Raises: ValueError if `path` is a device, a pipe or a socket; OSError as `replace_files`.
    """
    path = Path(path)
    target = _target(path)
    with _drafts(target.parent, path) as drafts:
        write(drafts / path.name)
        _keep_mode(drafts / path.name, target)
        os.replace(drafts / path.name, target)
    return path


def replace_files(folder: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Write several files of `folder`, replacing the earlier versions of all of them or of none.

    `write` receives a folder for drafts. After a failure, Ctrl-C included, the earlier versions are unchanged
    and the drafts are gone. Drafts have the final file names, because some writers choose the format by the
    extension; the umask applies, and a replaced file keeps its mode.

    Raises: OSError if the disk is full or read-only.
    """
    with _drafts(Path(folder), Path(folder)) as drafts:
        write(drafts)
        for draft in drafts.iterdir():
            _keep_mode(draft, Path(folder, draft.name))
        if len(written := list(drafts.iterdir())) == 1:
            os.replace(written[0], Path(folder, written[0].name))
        elif written:
            finish(folder)
            os.rename(drafts, Path(folder, drafts.name.replace(".draft-", ".complete-")))
            finish(folder)


def finish(folder: str | os.PathLike) -> None:
    """Move the files completed by `replace_files` to `folder`, if the process was killed before it did.

    Raises: OSError if the folder is read-only.
    """
    for complete in sorted(Path(folder).glob(".complete-*")):
        for file in sorted(complete.iterdir()):
            os.replace(file, Path(folder, file.name))
        complete.rmdir()


def check_output(path: str | os.PathLike, size: float = 0) -> None:
    """Check name, folder, rights and space for `size` bytes at `path`, before minutes of work.

    Raises: ValueError for a folder, a device, a pipe or a socket; OSError for the others.
    """
    path = Path(path)
    target = _target(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the output's folder {str(target.parent)!r} does not exist; create it first")
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise OSError(
            f"{path} needs {size / 1e6:.0f} MB, and its disk has {free / 1e6:.0f} MB left; free some space "
            "or choose another folder"
        )
    with _drafts(target.parent, path) as drafts:
        (drafts / path.name).touch()
        (drafts / target.name).touch()


def _target(path: Path) -> Path:
    """`path`, or the target of a link: a regular file, or none yet.

    Raises: ValueError for a folder, a device, a pipe or a socket; OSError for an impossible name.
    """
    try:
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        special = target.exists() and not target.is_file()
    except OSError as error:
        raise OSError(f"could not write {path} ({error.strerror}); choose another name or folder") from None
    if target.is_dir():
        raise ValueError(f"the output {str(path)!r} is a folder; give the name of a file")
    if special:
        raise ValueError(f"the output {str(path)!r} is a device, a pipe or a socket; give the name of a file")
    return target


@contextmanager
def _drafts(folder: Path, subject: Path) -> Iterator[Path]:
    """A private folder inside `folder`, removed at the end; failures become an OSError about `subject`."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".draft-") as drafts:
            yield Path(drafts)
    # torch.save reports a full disk as a RuntimeError
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OSError(
            f"could not write {subject} ({reason}); an earlier version, if there is one, is unchanged"
        ) from error


def _keep_mode(draft: Path, earlier: Path) -> None:
    """Give a draft the mode of the file it replaces; a link counts as its target."""
    if draft.is_file() and earlier.is_file():
        draft.chmod(earlier.stat().st_mode & 0o777)


def printable(text: object) -> str:
    r"""`text` for a terminal: control characters, which may move its cursor or recolor it, become escapes.

    >>> print(printable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
