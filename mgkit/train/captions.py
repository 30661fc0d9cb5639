"""Captions of a folder's recordings, from text files beside them or from tables.

    rain.wav  rain.txt                 a caption beside each file, or
    captions.csv                       a table with the columns file and caption, or
    metadata.csv, metadata.jsonl       as datasets on the Hugging Face hub: file_name, and text or caption

A table lists files of its own folder and of the folders below. Names are compared in Unicode's form NFC:
macOS stores `é` as two characters.
"""

import csv
import io
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from unicodedata import normalize

TABLES = ("captions.csv", "metadata.csv", "captions.jsonl", "metadata.jsonl")
FILE, CAPTION = ("file", "file_name"), ("caption", "text")
SEPARATORS = ",;\t"


def visible(path: Path, folder: Path) -> bool:
    """Whether a path is a file of the user's: not hidden, not macOS's own (`._rain.wav`, `__MACOSX`)."""
    parts = path.relative_to(folder).parts
    return path.is_file() and not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def name_in(path: Path, folder: Path) -> str:
    """Name of a file within the folder, in NFC: `sub/rain.wav`."""
    return normalize("NFC", path.relative_to(folder).as_posix())


def read_tables(files: Sequence[Path], folder: Path) -> dict[str, str]:
    """Captions by file name, from the first of TABLES in each folder.

    Raises: ValueError for a malformed table.
    """
    captions: dict[str, str] = {}
    for parent in sorted({path.parent for path in files if path.name in TABLES}):
        path = next(parent / name for name in TABLES if (parent / name) in files)
        within = PurePosixPath(name_in(parent, folder))
        captions |= {str(within / name): caption for name, caption in read_table(path).items()}
    return captions


def read_texts(files: Sequence[Path], folder: Path, names: Collection[str]) -> dict[str, str]:
    """Captions in the text files with these `names`, without suffix: `rain` for rain.txt.

    Raises: ValueError for a file that is not UTF-8 text.
    """
    texts = {name_in(path.with_suffix(""), folder): path for path in files if path.suffix.lower() == ".txt"}
    return {name: " ".join(read_text(texts[name]).split()) for name in names if name in texts}


def read_table(path: Path) -> dict[str, str]:
    """Captions by file name in one table.

    Raises: ValueError for a malformed table, with the line.
    """
    captions: dict[str, str] = {}
    for line, row in _rows_of_csv(path) if path.suffix == ".csv" else _rows_of_jsonl(path):
        file, caption = (next((row[key] for key in keys if row.get(key)), None) for keys in (FILE, CAPTION))
        if not isinstance(file, str) or not isinstance(caption, str):
            raise ValueError(
                f"{path} needs a file and a caption in every line; line {line} has {ascii(row)[:80]}"
            )
        name = normalize("NFC", str(PurePosixPath(file.strip().replace("\\", "/"))))
        caption = " ".join(caption.split())
        if captions.setdefault(name, caption) != caption:
            raise ValueError(f"{path} has two captions for {name}, the second in line {line}; keep one")
    return captions


def _rows_of_csv(path: Path) -> Iterable[tuple[int, dict]]:
    text = read_text(path)
    header = text.partition("\n")[0]
    separator = max(SEPARATORS, key=header.count)
    # newline="": line feeds within quotes belong to the caption
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if not (set(names) & set(FILE) and set(names) & set(CAPTION)):
            raise ValueError(
                f"{path} needs a file and a caption in every line: its first line must name the columns, "
                f"file,caption; it is {header.strip()[:60]!r}"
            )
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise ValueError(
                    f"{path} needs a file and a caption in every line; line {reader.line_num} has "
                    f"{len(cells)} cells for {len(names)} columns: put quotes around a caption that "
                    f"contains {separator!r}"
                )
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{path} is not a table of comma-separated values: {error} in line {reader.line_num}; "
            "check the quotes there"
        ) from None


def _rows_of_jsonl(path: Path) -> Iterable[tuple[int, dict]]:
    # not splitlines(), which also splits at U+2028 and U+0085 within a caption
    for line, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path} needs a file and a caption in every line; line {line} is {text.strip()[:60]!r}, "
                "which is not a JSON object"
            )
        yield line, row


def read_text(path: Path) -> str:
    """The text of a file.

    Raises: ValueError if it is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save it in that encoding") from None


def abbreviate(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
