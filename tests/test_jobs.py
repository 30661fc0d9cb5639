"""Tables of experiments: rows to jobs, batches, files generated once, killed and resumed runs, shards."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_cli import environment, error_of, run
from tiny import RATE, tiny, tune

from mgkit import audio, jobs
from mgkit.__main__ import main
from mgkit.jobs import batch_size, batches, file_names, generate_batch, run_table
from mgkit.settings import Settings
from mgkit.table import Job, expand, read_jobs

SHORT = {"duration": 0.3}


@pytest.fixture(scope="module")
def model():
    return tiny(melody=True)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path)
    return path


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def contents(folder):
    """The names and bytes of all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder):
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- a table as jobs --------------------------------------------------------------------------------------


def test_a_row_with_lists_is_all_their_combinations(tmp_path):
    lines = ("prompt,cfg_coef,seed", 'calm,"[1, 3]","[7, 8]"', '"[""sad"", ""a, b""]",2,', "[intro] loud,,")
    made = read_jobs(table(tmp_path / "a.csv", *lines), SHORT | {"cfg_coef": 5, "seed": 100})
    seen = [(job.prompt, dict(job.settings)["cfg_coef"], job.seed) for job in made]
    assert seen == [
        *(("calm", coef, seed) for coef in (1, 3) for seed in (7, 8)),
        *(("sad", 2, 104), ("a, b", 2, 105), ("[intro] loud", 5, 106)),
    ]
    assert all(dict(job.settings)["duration"] == 0.3 for job in made)


def test_a_schedule_is_one_value_within_a_list(model, tmp_path):
    made = read_jobs(table(tmp_path / "a.csv", "cfg_coef", '"[3, [[0, 1], [0.1, 5]]]"'), SHORT)
    assert [dict(job.settings)["cfg_coef"] for job in made] == [3, ((0, 1), (0.1, 5))]
    run_table(model.model, made, tmp_path / "out")
    assert [row["cfg_coef"] for row in rows(tmp_path / "out")] == ["3.0", "[[0.0, 1.0], [0.1, 5.0]]"]


def test_files_are_relative_to_the_table(tmp_path):
    audio.write(tmp_path / "tune.wav", tune(0.2), RATE)
    [job] = read_jobs(table(tmp_path / "a.csv", "melody", "tune.wav"), {})
    assert job.melody == tmp_path / "tune.wav" and job.prompt == ""


@pytest.mark.parametrize(
    "text", ["prompt;top_k\ncalm, slow;3\n", '\ufeffprompt,top_k\r\n"calm, slow",3\r\n\r\n']
)
def test_tables_of_spreadsheets_are_read(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    [job] = read_jobs(tmp_path / "a.csv", {})
    assert job.prompt == "calm, slow" and dict(job.settings) == {"top_k": 3}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "no rows"),
        (["prompt"], "no rows"),
        (["promt", "calm"], "there is no column 'promt'; did you mean prompt"),
        (["prompt,prompt", "a,b"], "two columns"),
        (["prompt", "calm, slow"], "line 2 of a.csv has 2 cells for 1 columns"),
        (["prompt,top_k", "calm,5", "calm,many"], "line 3 of a.csv: top_k is 'many'"),
        (["top_k", "-1"], "line 2 of a.csv: top_k is -1"),
        (["top_k", "[]"], "empty list"),
        (["seed", "1.5"], "line 2 of a.csv: the seed"),
        (["seed", "[[1]]"], "line 2 of a.csv: the seed"),
        (["prompt", "[5]"], "prompt is 5; it must be a text"),
        (["chords", "C Am"], "line 2 of a.csv: chord 2 of 2"),
        (["chords,bpm", "C,fast"], "bpm is 'fast'"),
        (["chords,melody", "C,a.csv"], "melody and chords exclude"),
        (["melody", "no.wav"], "line 2 of a.csv: there is no file .*no.wav"),
        (["melody", "[1]"], "line 2 of a.csv: melody is 1"),
        (["duration", "1e300"], "duration"),
        (["prompt,seed", "calm,[1, 2]"], "3 cells for 2 columns"),
        (["seed,top_k", f'"{list(range(2000))}","{list(range(2000))}"'], "at most 1000000 pieces"),
    ],
)
def test_an_invalid_table_is_refused_with_the_line(tmp_path, lines, expected):
    with pytest.raises((ValueError, FileNotFoundError), match=expected) as caught:
        read_jobs(table(tmp_path / "a.csv", *lines), {})
    assert "\n" not in str(caught.value)


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt\ncaf\xe9\n")
    with pytest.raises(ValueError, match="UTF-8"):
        read_jobs(tmp_path / "a.csv", {})


def test_random_bytes_are_read_or_refused(tmp_path):
    draw, whole = random.Random(0), b'prompt,cfg_coef,seed\ncalm,"[1, 3]",\n"sad, slow",2,7\n'
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.choice(b'",[]{}\n\r0-;.\0\xff1e9')
        (tmp_path / "a.csv").write_bytes(data)
        try:
            assert read_jobs(tmp_path / "a.csv", {})
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error)


# --- batches ----------------------------------------------------------------------------------------------


def test_a_batch_has_one_set_of_settings_and_every_job_is_in_one(model):
    made = expand(
        {"prompt": ["calm", "sad"], "chords": ["", "C G"], "top_k": [1, 9], "seed": range(5)}, SHORT
    )
    parts = batches(model.model, made, 4)
    assert sorted(map(made.index, sum(parts, []))) == list(range(40))
    for part in parts:
        assert len(part) <= 4 and len({(job.settings, job.chords) for job in part}) == 1


def test_a_batch_fills_a_quarter_of_the_memory_at_most(model, monkeypatch):
    one = 2 * 2 * (15 + 79 + 64) * 2 * 128 * 4  # keys and values, streams, positions, layers, width, bytes
    for samples, expected in ((0.5, 1), (1, 1), (3, 3), (10**6, 32)):
        monkeypatch.setattr(jobs, "_memory", lambda device, size=int(4 * samples * one): size)
        assert batch_size(model.model, Settings(duration=0.3)) == expected


def test_a_batch_beyond_the_memory_is_divided(model, monkeypatch):
    batch = expand({"prompt": ["calm"], "seed": range(5)}, SHORT)
    expected, whole = generate_batch(model.model, batch), jobs.request_frames

    def small(model, request, *rest):
        if len(request.seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, request, *rest)

    monkeypatch.setattr(jobs, "request_frames", small)
    divided = generate_batch(model.model, batch)
    assert [sample.job.seed for sample in divided] == list(range(5))
    assert all(torch.equal(a.wave, b.wave) for a, b in zip(expected, divided))


def test_a_sample_is_that_of_the_door(model):
    [_, sample] = generate_batch(model.model, expand({"prompt": ["sad", "calm"], "seed": [3]}, SHORT))
    model.set_generation_params(duration=0.3)
    wave, codes, [manifest] = model.generate(["calm"], seed=3, return_tokens=True, return_manifests=True)
    assert torch.equal(sample.codes, codes[0]) and torch.equal(sample.wave, wave[0])
    assert sample.manifest == manifest


def test_an_error_of_a_batch_names_its_line(model, tmp_path):
    audio.write(tmp_path / "silent.wav", torch.zeros(1, 9000), RATE)
    made = read_jobs(table(tmp_path / "a.csv", "melody", "silent.wav"), SHORT)
    with pytest.raises(ValueError, match=r"line 2 of a\.csv: the melody is silent"):
        run_table(model.model, made, tmp_path / "out")
    chords = read_jobs(table(tmp_path / "a.csv", "prompt,chords", "calm,", "sad,C"), SHORT)
    with pytest.raises(ValueError, match=r"line 3 of a\.csv: the model 'tiny' takes no melody"):
        run_table(tiny().model, chords, tmp_path / "out")


# --- a folder of files ------------------------------------------------------------------------------------


def test_every_piece_has_a_file_a_row_and_a_line_and_replays(folder, tmp_path, model):
    audio.write(tmp_path / "start.wav", tune(0.1), RATE)
    lines = ("prompt,cfg_coef,chords,audio_prompt", 'calm,"[1, 3]",,', "sad,,C G,", "fast,,,start.wav")
    path, out = table(tmp_path / "a.csv", *lines), tmp_path / "runs" / "a"
    run("generate", "--csv", path, "--out", out, "--model", folder, "--duration", "0.3", "--top-k", "9")
    made = rows(out)
    assert [row["prompt"] for row in made] == ["calm", "calm", "sad", "fast"]
    assert [row["cfg_coef"] for row in made] == ["1.0", "3.0", "3.0", "3.0"]
    assert {row["top_k"] for row in made} == {"9"} and made[2]["chords"] == "C G"
    assert sorted(contents(out)) == sorted(["manifest.jsonl", "results.csv", *(row["file"] for row in made)])
    lines = (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    for row, line in zip(made, map(json.loads, lines), strict=True):
        name = line.pop("file")
        manifest = audio.read_manifest(out / name)
        assert name == row["file"] and line == manifest and manifest["tokens"] == row["tokens"]
        assert model.replay(manifest)[1].shape[-1] == int(row["frames"]) == 15


def test_a_file_that_is_there_is_not_generated_again(model, tmp_path, monkeypatch):
    made, generated = expand({"prompt": ["calm", "sad"], "seed": [1, 2]}, SHORT), []

    def count(*arguments):
        generated.append(arguments[1])
        return generate_batch(*arguments)

    monkeypatch.setattr(jobs, "generate_batch", count)
    first = run_table(model.model, made, tmp_path, 2)
    assert len(generated) == 2 and len(first) == 4
    assert run_table(model.model, [*made, *made], tmp_path, 2) == first and len(generated) == 2
    more = [*made, *expand({"prompt": ["fast"]}, SHORT)]
    assert len(run_table(model.model, more, tmp_path, 2)) == 5 and len(generated) == 3
    assert len(rows(tmp_path)) == 5


def test_a_name_depends_on_all_that_determines_the_file(model, tmp_path):
    for name, seconds in (("a.wav", 0.1), ("b.wav", 0.2)):
        audio.write(tmp_path / name, tune(seconds), RATE)
    a, b = tmp_path / "a.wav", tmp_path / "b.wav"
    changed = [
        *(Job(1), Job(2), Job(1, "calm"), Job(1, negative="calm"), Job(1, settings=(("top_k", 3),))),
        *(Job(1, chords="C"), Job(1, chords="G"), Job(1, chords="C", bpm=99), Job(1, melody=a)),
        *(Job(1, melody=b), Job(1, audio_prompt=a), Job(1, audio_prompt=b)),
    ]
    assert len(set(file_names(model.model, changed, "loudness"))) == len(changed)
    assert file_names(model.model, [Job(1)], "peak") != file_names(model.model, [Job(1)], "loudness")
    assert file_names(model.model, [Job(1)], "peak") != file_names(tiny().model, [Job(1)], "peak")
    before = file_names(model.model, [Job(1, melody=a)], "peak")
    assert file_names(model.model, [Job(1, melody=a.rename(tmp_path / "c.wav"))], "peak") == before


def test_shards_together_leave_the_files_of_one_run(model, tmp_path):
    made = expand({"prompt": ["calm", "sad", ""], "top_k": [5, 9], "seed": range(3)}, SHORT)
    run_table(model.model, made, tmp_path / "one", 2)
    for part in (2, 0, 1):
        run_table(model.model, made, tmp_path / "shards", 2, (part, 3))
        run_table(model.model, made, tmp_path / f"only {part}", 2, (part, 3))
    assert contents(tmp_path / "shards") == contents(tmp_path / "one")
    parts = [len(list((tmp_path / f"only {part}").glob("*.wav"))) for part in range(3)]
    assert sum(parts) == len(made) and max(parts) - min(parts) <= 2


def test_tables_that_were_lost_are_written_again(model, tmp_path):
    made = expand({"seed": [1, 2]}, SHORT)
    run_table(model.model, made, tmp_path)
    before = contents(tmp_path)
    (tmp_path / "results.csv").unlink()
    run_table(model.model, made, tmp_path)
    assert contents(tmp_path) == before


def test_the_tables_of_a_long_run_take_a_tenth_of_its_time(model, tmp_path, monkeypatch):
    """A batch takes a second and writing the tables two; they are complete at the end."""
    clock, written, write = [0.0], [], jobs.replace_file

    def slow(path, draft):
        clock[0] += 1
        written.append(clock[0])
        return write(path, draft)

    def generate(*arguments):
        clock[0] += 1
        return generate_batch(*arguments)

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(jobs, "replace_file", slow)
    monkeypatch.setattr(jobs, "generate_batch", generate)
    run_table(model.model, expand({"seed": range(60)}, {"duration": 0.02}), tmp_path, 1)
    assert 4 <= len(written) <= 12 and len(rows(tmp_path)) == 60


def test_a_folder_that_is_a_file_is_refused(model, tmp_path):
    (tmp_path / "a").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="a' is a file; choose a folder"):
        run_table(model.model, expand({"seed": [1]}, SHORT), tmp_path / "a")


def test_a_table_larger_than_the_disk_is_refused_before_any_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "generate_batch", lambda *_: 1 / 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 90_000}))
    with pytest.raises(OSError, match="needs 0 MB, and its disk has 0 MB"):
        run_table(model.model, expand({"seed": range(5)}, SHORT), tmp_path)


def test_progress_counts_the_missing_frames_and_a_stop_keeps_complete_pieces(model, tmp_path):
    made, seen = expand({"prompt": ["calm"], "seed": range(6)}, SHORT), []

    class Stop:
        def is_set(self):
            return bool(seen) and seen[-1][0] >= 40

    files = run_table(model.model, made, tmp_path, 2, on_frame=lambda *at: seen.append(at), stop=Stop())
    assert len(files) == len(rows(tmp_path)) == 2 and {total for _, total in seen} == {6 * 15}
    seen.clear()
    assert len(run_table(model.model, made, tmp_path, 2, on_frame=lambda *at: seen.append(at))) == 6
    assert seen == sorted(seen) and seen[-1] == (60, 60)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_run_resumed_leaves_the_files_of_an_unbroken_one(folder, tmp_path):
    path = table(tmp_path / "a.csv", "prompt,seed", f'"[""calm"", ""sad""]","{list(range(12))}"')
    argv = [
        "generate",
        "--csv",
        str(path),
        "--model",
        str(folder),
        "--duration",
        "2",
        "--batch",
        "3",
        "--out",
    ]
    run(*argv, tmp_path / "whole")
    broken, command = tmp_path / "broken", [sys.executable, "-m", "mgkit", *argv, str(tmp_path / "broken")]
    for files in (2, 7):
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(broken.glob("*.wav"))) < files:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 7 <= len(list(broken.glob("*.wav"))) < 24
    run(*argv, broken)
    drafts = [p for p in broken.iterdir() if p.name.startswith(".draft-")]  # of a file half written
    assert {p: data for p, data in contents(broken).items() if not any((d / p).exists() for d in drafts)} == (
        contents(tmp_path / "whole")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [["torch.distributed.run"], ["accelerate.commands.launch", "--multi_gpu"]]
)
def test_two_processes_share_a_table(folder, tmp_path, launcher):
    """As on two GPUs or machines; here both compute on the CPU."""
    path = table(tmp_path / "a.csv", "prompt,seed", f'calm,"{list(range(8))}"')
    argv = ["generate", "--csv", path, "--model", folder, "--duration", "0.3", "--batch", "2"]
    run(*argv, "--out", tmp_path / "one")
    count = "--nproc-per-node" if launcher[0].startswith("torch") else "--num_processes"
    command = [sys.executable, "-m", *launcher, count, "2", "-m", "mgkit", *argv, "--out", tmp_path / "two"]
    done = subprocess.run([str(word) for word in command], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("files, results.csv") == 2
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


# --- the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "give a prompt"),
        (["calm", "--csv", "a.csv"], "give a prompt"),
        (["--csv", "no.csv", "--out", "a"], "no.csv"),
        (["--csv", "a.csv"], "--out FOLDER"),
        (["--csv", "a.csv", "--out", "a", "--chords", "C"], "--chords cannot be combined"),
        (["--csv", "a.csv", "--out", "a", "--loop", "8"], "--loop cannot be combined"),
        (["--csv", "a.csv", "--out", "a", "--shard", "3/2"], "3/2"),
        (["--csv", "a.csv", "--out", "a", "--batch", "0"], "--batch"),
        (["--csv", "a.csv", "--out", "a", "--top-k", "-1"], "top_k"),
    ],
)
def test_an_invalid_command_is_refused_before_any_work(tmp_path, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "a.csv", "prompt", "calm")
    monkeypatch.setattr("mgkit.MusicGen.get_pretrained", lambda *_: 1 / 0)
    assert expected in error_of(capsys, "generate", *argv)
    assert os.listdir(tmp_path) == ["a.csv"]


def test_ctrl_c_ends_the_table_with_status_130_and_complete_files(folder, tmp_path, monkeypatch, capsys):
    path, write = table(tmp_path / "a.csv", "seed", '"[1, 2, 3]"'), audio.write

    def interrupt(*arguments):
        signal.raise_signal(signal.SIGINT)
        return write(*arguments)

    monkeypatch.setattr("mgkit.audio.write", interrupt)
    argv = [
        "generate",
        "--csv",
        path,
        "--out",
        tmp_path / "a",
        "--model",
        folder,
        "--duration",
        "0.3",
        "--batch",
        1,
    ]
    assert main([str(word) for word in argv]) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert len(rows(tmp_path / "a")) == 1
    assert Path(tmp_path / "a" / rows(tmp_path / "a")[0]["file"]).exists()
