"""Captions of recordings are read as they were written, or the table is refused with the line."""

import json
from unicodedata import normalize

import pytest
import soundfile
from refusals import refusal
from tiny import tune

from mgkit.train import storage
from mgkit.train.captions import read_table
from mgkit.train.folder import find

TEXTS = [
    "calm piano, soft strings",
    'a "quoted" word; and more',
    "two\nlines",
    "a line\u2028separator",
    "a next\u0085line",
    "tab\tin it",
    "caf\u00e9",
]


def sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tune(0.1)[0].numpy(), 32000)


@pytest.fixture
def folder(tmp_path):
    for i in range(len(TEXTS)):
        sound(tmp_path / f"{i}.wav")
    return tmp_path


def captions_of(folder):
    return {recording.file.name: recording.caption for recording in find(folder)}


EXPECTED = {f"{i}.wav": " ".join(text.split()) for i, text in enumerate(TEXTS)}


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize(
    ("name", "columns"), [("captions.csv", ("file", "caption")), ("metadata.csv", ("file_name", "text"))]
)
def test_quoted_captions_in_a_csv_are_read_whole(folder, name, columns, separator, end, mark):
    rows = [columns, *((f"{i}.wav", quoted(text)) for i, text in enumerate(TEXTS))]
    text = mark + "".join(separator.join(row) + end for row in rows)
    (folder / name).write_bytes(text.encode())
    assert captions_of(folder) == EXPECTED


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.jsonl"])
@pytest.mark.parametrize("columns", [("file_name", "text"), ("file_name", "caption"), ("file", "caption")])
def test_captions_in_json_lines_are_read_whole(folder, name, columns, ascii_only):
    rows = [dict(zip(columns, (f"{i}.wav", text), strict=True)) for i, text in enumerate(TEXTS)]
    lines = [json.dumps(row, ensure_ascii=ascii_only) + "\r\n" for row in rows]
    (folder / name).write_bytes("".join(lines).encode())
    assert captions_of(folder) == EXPECTED


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file,caption\n0.wav,calm piano, soft strings\n", ["line 2", "3 cells for 2 columns", "quotes"]),
        ("file,caption\n0.wav\n", ["line 2", "1 cells"]),
        ('file,caption\n0.wav,"calm\n', ["quotes"]),
        ("file,caption\n0.wav,\n", ["line 2"]),
        ("file,caption\n0.wav,a\n0.wav,b\n", ["two captions", "0.wav", "line 3"]),
        ("0.wav,calm piano\n", ["columns", "file,caption"]),
        ("", ["columns"]),
    ],
)
def test_a_csv_that_would_be_misread_is_refused_with_its_line(folder, content, words):
    (folder / "captions.csv").write_text(content, encoding="utf-8")
    refusal(lambda: read_table(folder / "captions.csv"), "captions.csv", *words)
    refusal(lambda: find(folder), "captions.csv")


@pytest.mark.parametrize(
    "line",
    ['{"file": "0.wav"}', '{"file": "0.wav", "caption": 5}', '{"file": "0.wav", "caption": null}', "[]", "{",
     "[" * 100_000],
)  # fmt: skip
def test_a_line_of_json_without_file_and_caption_is_refused_with_its_number(folder, line):
    (folder / "metadata.jsonl").write_text(
        '{"file": "1.wav", "caption": "calm"}\n\n' + line, encoding="utf-8"
    )
    refusal(lambda: read_table(folder / "metadata.jsonl"), "metadata.jsonl", "line 3")


def test_hidden_files_and_those_of_macos_are_no_recordings(folder):
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    for junk in ("._0.wav", "__MACOSX/0.wav", ".trash/1.wav", "._0.txt", "__MACOSX/metadata.csv"):
        (folder / junk).parent.mkdir(exist_ok=True)
        (folder / junk).write_bytes(b"\x00\x05\x16\x07\xff")
    (folder / "album.wav").mkdir()
    (folder / "LICENCE.txt").write_bytes(b"caf\xe9")
    assert captions_of(folder) == EXPECTED


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("where", ["beside", "table"])
def test_names_are_compared_in_one_form_of_unicode(tmp_path, form, where):
    other = "NFC" if form == "NFD" else "NFD"
    name = "caf\u00e9"
    sound(tmp_path / normalize(form, f"{name}.wav"))
    if where == "beside":
        (tmp_path / normalize(other, f"{name}.txt")).write_text("calm", encoding="utf-8")
    else:
        (tmp_path / "captions.csv").write_text(
            f"file,caption\n{normalize(other, name)}.wav,calm\n", encoding="utf-8"
        )
    assert [recording.caption for recording in find(tmp_path)] == ["calm"]


def test_a_table_in_a_subfolder_names_the_files_of_that_folder(tmp_path):
    sound(tmp_path / "train" / "a.wav")
    sound(tmp_path / "test" / "b" / "a.wav")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n./a.wav,calm\n", encoding="utf-8")
    (tmp_path / "test" / "metadata.csv").write_text("file_name,text\nb\\a.wav,fast\n", encoding="utf-8")
    assert [recording.caption for recording in find(tmp_path)] == ["fast", "calm"]


def test_a_table_may_not_leave_its_folder_or_name_other_formats(folder):
    (folder / "metadata.csv").write_text("file_name,text\n../secret.wav,calm\n", encoding="utf-8")
    for i in range(len(TEXTS)):
        (folder / f"{i}.txt").write_text("calm", encoding="utf-8")
    refusal(lambda: find(folder), "do not exist", "../secret.wav")
    (folder / "a.mid").write_bytes(b"")
    (folder / "metadata.csv").write_text("file_name,text\na.mid,calm\n", encoding="utf-8")
    refusal(lambda: find(folder), "a.mid", "convert")


def test_lines_of_json_end_at_line_feeds_only(tmp_path):
    rows = [{"text": text} for text in TEXTS]
    path = tmp_path / "pieces.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert storage.read_lines(path) == rows
    path.write_text('{"a": 1}\n{"a"\n', encoding="utf-8")
    refusal(lambda: storage.read_lines(path), "line 2", "pieces.jsonl")
