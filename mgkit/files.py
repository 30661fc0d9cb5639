"""Whole files: written completely or not at all, one or several at once, even if the process is killed.

write -> folder/.draft-x7f2/{a.json, b.bin}      an interruption leaves the earlier files
rename   folder/.complete-x7f2/{a.json, b.bin}   the one step that decides
move  -> folder/{a.json, b.bin}                  an interruption is made good by `finish`
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_file(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Write the file at `path` completely or not at all, and return its path.

    `write` receives the path of a draft, which is renamed once it is complete: `replace_files` for one file.
    """
    path = Path(path)
    replace_files(path.parent, lambda drafts: write(drafts / path.name), path)
    return path


def replace_files(
    folder: str | os.PathLike,
    write: Callable[[Path], object],
    subject: str | os.PathLike | None = None,
) -> None:
    """Write several files of `folder`, replacing the earlier versions of all of them or of none.

    `write` receives a folder for drafts. After a failure, Ctrl-C included, the earlier versions are unchanged
    and the drafts are gone. Drafts have the final file names, because some writers choose the format by the
    extension; the umask applies, and a file that is replaced keeps its mode.

    Raises: OSError about `subject` (default: `folder`) if the disk is full or read-only.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".draft-") as drafts:
            write(Path(drafts))
            for draft in Path(drafts).iterdir():
                _keep_mode(draft, Path(folder, draft.name))
            if len(written := list(Path(drafts).iterdir())) == 1:
                os.replace(written[0], Path(folder, written[0].name))
            elif written:
                finish(folder)
                os.rename(drafts, drafts.replace(".draft-", ".complete-"))
                finish(folder)
    # torch.save reports a full disk as a RuntimeError
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OSError(
            f"could not write {subject or folder} ({reason}); "
            "an earlier version, if there is one, is unchanged"
        ) from error


def finish(folder: str | os.PathLike) -> None:
    """Move files to `folder` that `replace_files` had completed when the process was killed.

    Raises: OSError if the folder is read-only.
    """
    for complete in sorted(Path(folder).glob(".complete-*")):
        for file in sorted(complete.iterdir()):
            os.replace(file, Path(folder, file.name))
        complete.rmdir()


def _keep_mode(draft: Path, earlier: Path) -> None:
    """Give a draft the mode of the file that it replaces; a link counts as its target."""
    if draft.is_file() and earlier.is_file():
        draft.chmod(earlier.stat().st_mode & 0o777)
