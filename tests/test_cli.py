"""The command line: its files, its output, and its one-line error messages."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tiny import RATE, tiny, tune

import mgkit
from mgkit import audio
from mgkit.__main__ import COMMANDS, TRAIN, main
from mgkit.manifest import unpack_chroma
from mgkit.settings import SETTINGS_HELP, Settings

DATA = Path(__file__).parent.parent / "data"
TUNE = DATA / "melodies" / "ode_to_joy.ogg"
RECORDING = DATA / "recordings" / "loop_tabla.flac"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny(melody=True).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def textual(tmp_path_factory):
    path = tmp_path_factory.mktemp("textual")
    tiny().save_pretrained(path)
    return str(path)


@pytest.fixture
def recording(folder, tmp_path):
    """A file written by `generate`."""
    run(
        "generate",
        "calm piano",
        "--model",
        folder,
        "--duration",
        "0.3",
        "--seed",
        "7",
        "-o",
        tmp_path / "recording.wav",
    )
    return tmp_path / "recording.wav"


@pytest.fixture
def no_work(monkeypatch):
    """Fail the test if a model is loaded."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded before the error was reported")

    monkeypatch.setattr(mgkit.MusicGen, "get_pretrained", staticmethod(refuse))


@pytest.fixture
def no_steps(monkeypatch):
    """Fail the test if generation begins."""

    def refuse(*args, **kwargs):
        raise AssertionError("generation began before the error was reported")

    monkeypatch.setattr("mgkit.perform.frames", refuse)


def run(*argv):
    assert main([str(word) for word in argv]) == 0


def error_of(capsys, *argv):
    """The error message of a command: one line, with exit status 2."""
    capsys.readouterr()
    try:
        status = main([str(word) for word in argv])
    except SystemExit as end:  # argparse exits after printing the usage
        lines = capsys.readouterr().err.splitlines()
        assert end.code == 2 and lines[0].startswith("usage:")
        return lines[-1]
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("mgkit: "), shown.err
    assert shown.out == ""
    return lines[0]


def environment(**changes):
    """Environment of a subprocess that imports the same mgkit as this process."""
    here = os.pathsep.join([str(Path(mgkit.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": here, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | changes


# --- generate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", list(audio.FORMATS))
def test_generate_writes_a_file_of_the_requested_length_with_its_manifest(folder, tmp_path, capsys, ending):
    out = tmp_path / f"a{ending}"
    run("generate", "calm piano", "--model", folder, "--duration", "0.3", "--seed", "7", "-o", out)
    wave, rate = audio.read(out)
    assert rate == RATE and wave.shape == (1, round(0.3 * RATE))
    manifest = audio.read_manifest(out)
    assert (manifest["text"], manifest["seed"], manifest["frames"]) == ("calm piano", 7, 15)
    shown = capsys.readouterr().out
    assert str(out) in shown and "0.3 s" in shown and "seed 7" in shown


def test_the_same_seed_gives_the_same_tokens_and_another_seed_does_not(folder, tmp_path):
    tokens = []
    for i, seed in enumerate((7, 7, 8)):
        out = tmp_path / f"{i}.wav"
        run("generate", "calm", "--model", folder, "--duration", "0.3", "--seed", seed, "-o", out)
        tokens.append(audio.read_manifest(out)["tokens"])
    assert tokens[0] == tokens[1] != tokens[2]


def test_a_temperature_near_zero_is_greedy(folder, tmp_path):
    tokens = []
    for i, options in enumerate((["--temperature", "1e-38"], ["--temperature", "0"], ["--no-use-sampling"])):
        out = tmp_path / f"{i}.wav"
        run("generate", "calm", "--model", folder, "--duration", "0.1", "-o", out, *options)
        tokens.append(audio.read_manifest(out)["tokens"])
    assert len(set(tokens)) == 1


def test_without_a_seed_a_random_one_is_printed(folder, tmp_path, capsys):
    run("generate", "calm", "--model", folder, "--duration", "0.1", "-o", tmp_path / "a.wav")
    seed = audio.read_manifest(tmp_path / "a.wav")["seed"]
    assert f"seed {seed}" in capsys.readouterr().out


def test_every_setting_is_an_option_with_help_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main(["generate", "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for setting in fields(Settings):
        assert f"--{setting.name.replace('_', '-')}" in shown
        assert " ".join(SETTINGS_HELP[setting.name].split()) in shown
        if setting.name != "duration" and setting.default is not None:
            assert f"{SETTINGS_HELP[setting.name]} (default: {setting.default})" in shown


def test_every_option_reaches_the_settings(folder, tmp_path):
    chosen = {
        "use_sampling": False,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "temperature": 0.7,
        "duration": 0.3,
        "cfg_coef": 2.0,
        "cfg_coef_beta": 4.0,
        "two_step_cfg": True,
        "extend_stride": 5.0,
    }
    assert chosen.keys() == {setting.name for setting in fields(Settings)}
    argv = []
    for name, value in chosen.items():
        option = name.replace("_", "-")
        argv += [
            f"--no-{option}" if value is False else f"--{option}",
            *([] if isinstance(value, bool) else [value]),
        ]
    run("generate", "calm", "--model", folder, "--melody", TUNE, "-o", tmp_path / "a.wav", *argv)
    assert audio.read_manifest(tmp_path / "a.wav")["settings"] == chosen


def test_omitted_options_take_the_defaults_with_at_most_a_window_of_music(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        mgkit.MusicGen, "generate", lambda model, texts, **rest: pytest.fail(str(model.settings))
    )
    with pytest.raises(pytest.fail.Exception) as caught:
        main(["generate", "calm", "--model", folder, "-o", str(tmp_path / "a.wav")])
    assert str(caught.value) == str(Settings(duration=10.0))


def test_a_melody_is_followed(folder, tmp_path):
    common = ("generate", "calm", "--model", folder, "--duration", "0.3", "--seed", "7")
    run(*common, "-o", tmp_path / "without.wav")
    run(*common, "-o", tmp_path / "with.wav", "--melody", TUNE)
    bare, tuned = (audio.read_manifest(tmp_path / f"{name}.wav") for name in ("without", "with"))
    assert tuned["melody"] and not bare["melody"]
    assert tuned["tokens"] != bare["tokens"]


def test_chords_and_midi_are_followed(folder, tmp_path):
    """C and G, half a second each, as names, and as a MIDI file of mido's default 120 bpm."""
    mido = pytest.importorskip("mido")
    track = mido.MidiTrack()
    for chord in (60, 64, 67), (67, 71, 74):
        for kind, ticks in ("note_on", 0), ("note_off", 480):
            first, *others = (mido.Message(kind, note=note) for note in chord)
            track += [first.copy(time=ticks), *others]
    mido.MidiFile(tracks=[track]).save(tmp_path / "a.mid")
    common = ("generate", "calm", "--model", folder, "--duration", "0.3", "--seed", "7")
    run(*common, "-o", tmp_path / "names.wav", "--chords", "C G", "--bpm", "120", "--beats", "1")
    run(*common, "-o", tmp_path / "midi.wav", "--melody", tmp_path / "a.mid")
    named, played = (
        unpack_chroma(audio.read_manifest(tmp_path / f"{name}.wav"))[0] for name in ("names", "midi")
    )
    assert named[0, :8].equal(played[0, :8]) and named[0, 0].nonzero().flatten().tolist() == [0, 4, 7]
    run("replay", tmp_path / "names.wav", "--model", folder)


def test_an_audio_prompt_is_continued(folder, tmp_path):
    prompt = audio.write(tmp_path / "prompt.flac", audio.read(RECORDING)[0][:, :8820], 44100)  # 0.2 s
    run(
        "generate",
        "",
        "--model",
        folder,
        "--duration",
        "0.5",
        "--prompt-audio",
        prompt,
        "-o",
        tmp_path / "a.wav",
    )
    manifest = audio.read_manifest(tmp_path / "a.wav")
    assert manifest["frames"] == 25 and manifest["prompt"]
    assert audio.read(tmp_path / "a.wav")[0].shape[-1] == RATE // 2


def test_the_strategy_sets_the_level(folder, tmp_path):
    for strategy, level in (("peak", 10 ** (-1 / 20)), ("rms", None)):
        run(
            "generate",
            "",
            "--model",
            folder,
            "--duration",
            "0.3",
            "--strategy",
            strategy,
            "-o",
            tmp_path / "a.wav",
        )
        wave, _ = audio.read(tmp_path / "a.wav")
        if level:
            assert wave.abs().max() == pytest.approx(level, abs=1e-3)
        else:
            assert wave.pow(2).mean().sqrt() == pytest.approx(10 ** (-18 / 20), rel=0.1)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == mgkit.__version__


# --- replay -----------------------------------------------------------------------------------------------


def test_replay_writes_an_identical_file(recording, folder, tmp_path, capsys):
    run("replay", recording, "--model", folder, "-o", tmp_path / "again.wav")
    assert "15 frames" in capsys.readouterr().out
    assert torch.equal(audio.read(tmp_path / "again.wav")[0], audio.read(recording)[0])
    assert audio.read_manifest(tmp_path / "again.wav") == audio.read_manifest(recording)


@pytest.mark.parametrize("option", ["--melody", "--prompt-audio"])
def test_replay_needs_neither_melody_nor_audio_prompt(folder, tmp_path, capsys, option):
    source = audio.write(tmp_path / "source.wav", tune(0.2), RATE)
    argv = ("--duration", "0.4", "--negative", "sad drums", "--top-k", "9", option, source)
    run("generate", "calm", "--model", folder, "-o", tmp_path / "a.flac", *argv)
    source.unlink()
    run("replay", tmp_path / "a.flac", "--model", folder)
    assert "20 frames" in capsys.readouterr().out


def test_replay_finds_weights_in_a_new_folder(recording, folder, tmp_path, capsys):
    moved = tmp_path / "moved"
    moved.symlink_to(folder)
    run("replay", recording, "--model", moved)
    assert "15 frames" in capsys.readouterr().out


def test_replay_of_a_file_without_a_manifest_is_one_line(capsys):
    for foreign in (RECORDING, TUNE):
        line = error_of(capsys, "replay", foreign)
        assert foreign.name in line and "how it was made" in line


@pytest.mark.parametrize(
    "name",
    ["FOLDER", "evil/musicgen", "google-t5/t5-base", "https://x.org/a", "\\\\host\\share", "..", "", 5, None],
)
def test_replay_opens_no_model_that_only_the_file_names(folder, no_work, tmp_path, capsys, name):
    name = folder if name == "FOLDER" else name
    file = audio.write(tmp_path / "a.wav", tune(0.1), RATE, manifest={"mgkit": "9.9", "model": name})
    line = error_of(capsys, "replay", file)
    assert "--model" in line and repr(name)[:200] in line


@pytest.mark.parametrize("name", ["nano", "stereo-melody", "facebook/musicgen-small"])
def test_replay_opens_published_models_by_name(monkeypatch, tmp_path, name):
    opened = []
    monkeypatch.setattr(mgkit.MusicGen, "get_pretrained", lambda *words: opened.append(words) or 1 / 0)
    file = audio.write(tmp_path / "a.wav", tune(0.1), RATE, manifest={"mgkit": "9.9", "model": name})
    main(["replay", str(file)])
    assert opened == [(name, None)]


def test_replay_with_other_weights_is_one_line(recording, textual, capsys):
    assert "weights" in error_of(capsys, "replay", recording, "--model", textual)


@pytest.mark.parametrize("content", ["missing", "empty", "broken manifest"])
def test_replay_of_an_unreadable_file_is_one_line(tmp_path, capsys, content):
    file = tmp_path / "a.wav"
    if content == "empty":
        file.write_bytes(b"")
    elif content == "broken manifest":
        audio.write(file, tune(0.1), RATE, manifest={"mgkit": "9.9", "licence": "?", "model": 5})
    assert len(error_of(capsys, "replay", file)) > 20


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["a.aac", "a", "no/such/folder/a.wav", "folder.wav", "."])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    no_work, tmp_path, monkeypatch, capsys, out
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.wav").mkdir()
    assert (out.removesuffix("/a.wav") if "/" in out else out) in error_of(
        capsys, "generate", "calm", "-o", out
    )
    assert os.listdir(tmp_path) == ["folder.wav"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--strategy", "loud"], "loud"),
        (["--duration", "-1"], "duration"),
        (["--duration", "nan"], "duration"),
        (["--duration", "long"], "duration"),
        (["--top-k", "2.5"], "top-k"),
        (["--top-p", "2"], "top_p"),
        (["--temperature", "inf"], "temperature"),
        (["--cfg-coef", "1e300"], "cfg_coef"),
        (["--duration", "1e300"], "duration"),
        (["--top-k", "-1"], "top_k"),
        (["--seed", "1.5"], "seed"),
        (["--melody", TUNE, "--prompt-audio", RECORDING], "--melody"),
        (["--melody", TUNE, "--chords", "C"], "--melody and --chords"),
        (["--chords", "C Am"], "chord 2 of 2: 'Am'"),
        (["--chords", ""], "no chords"),
        (["--chords", "C", "--bpm", "0"], "bpm"),
    ],
)
def test_an_invalid_option_is_refused_before_any_work(no_work, tmp_path, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(capsys, "generate", "calm", *argv)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--melody", "no.wav"], "no.wav"),
        (["--melody", "no.mid"], "no.mid"),
        (["--prompt-audio", "no.wav"], "no.wav"),
        (["--melody", __file__], "test_cli.py"),
        (["--prompt-audio", TUNE, "--duration", "0.5"], "duration"),
        (["--seed", 2**70], "seed"),
        (["--seed", "-1"], "seed"),
        (["--cfg-coef-beta", "3"], "cfg_coef_beta"),
        (["--duration", "12", "--extend-stride", "11"], "extend_stride"),
        (["--negative", "sad " * 999], "tokens"),
        (["--device", "gpu"], "'gpu'; it must be cuda, mps or cpu"),
        (["--device", "meta"], "meta"),
    ],
)
def test_an_invalid_request_is_one_line_before_any_step(
    folder, no_steps, tmp_path, monkeypatch, capsys, argv, expected
):
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(capsys, "generate", "calm", "--model", folder, *argv)
    assert not os.listdir(tmp_path)


def test_a_melody_for_a_text_model_is_one_line(textual, no_steps, capsys):
    assert "melody" in error_of(capsys, "generate", "calm", "--model", textual, "--melody", TUNE)


def test_an_unknown_model_suggests_the_nearest(capsys):
    assert "'melody'" in error_of(capsys, "generate", "calm", "--model", "meldy")


@pytest.mark.parametrize("command", [["generate", "calm", "--model"], ["fetch"]])
@pytest.mark.parametrize("name", ["small", "facebook/musicgen-small"])
def test_without_a_network_the_command_to_run_is_named(command, name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    line = error_of(capsys, *command, name)
    assert "python -m mgkit fetch facebook/musicgen-small --dest" in line


def test_fetch_of_an_unknown_name_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert "'melody'" in error_of(capsys, "fetch", "meldy")
    assert "nano" in error_of(capsys, "fetch", "nano")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "not enough memory"),
        (MemoryError("Unable to allocate 9 TiB"), "not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 5 bytes\nat"),
            "not enough memory",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (FloatingPointError("the loss is NaN"), "mgkit: the loss is NaN"),
        (ValueError("first\nsecond"), "mgkit: first"),
        (ValueError(""), "internal error (ValueError"),
        (OverflowError("int too large"), "internal error (OverflowError: int too large)"),
        (ZeroDivisionError("division by zero"), "internal error (ZeroDivisionError"),
        (IndexError("list index out of range"), "internal error (IndexError"),
        (KeyError("name"), "internal error (KeyError"),
        (AssertionError(), "internal error (AssertionError"),
    ],
)
@pytest.mark.parametrize("argv", [["generate", "calm"], ["bench"]])
def test_no_error_reaches_the_user_as_a_traceback(monkeypatch, tmp_path, capsys, argv, error, expected):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mgkit.MusicGen, "get_pretrained", fail)
    monkeypatch.setattr("mgkit.bench.command.bench", fail)
    assert expected in error_of(capsys, *argv)
    monkeypatch.setenv("MGKIT_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(argv)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_name_that_the_console_cannot_show_does_not_fail_the_command(folder, tmp_path, encoding):
    out = tmp_path / "caf\u00e9 \u97f3.wav"
    argv = ["generate", "caf\u00e9 \u97f3", "--model", folder, "--duration", "0.1", "-o", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "mgkit", *argv],
        env=environment(PYTHONIOENCODING=encoding, PYTHONUTF8="0"),
        capture_output=True,
    )
    assert done.returncode == 0 and out.exists(), done.stderr
    shown = str(out) if encoding == "utf-8" else "caf"
    assert shown in done.stdout.decode(encoding) and b"seed" in done.stdout


@pytest.mark.parametrize("argv", [*([name] for name in COMMANDS), *(["train", name] for name in TRAIN)])
def test_every_command_has_help_under_its_own_name(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main([*argv, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m mgkit {' '.join(argv)} ")


def test_the_list_of_commands_names_each_with_a_line(capsys):
    for argv, names in ([], ["generate", "replay", "fetch", "train", *COMMANDS]), (["train"], [*TRAIN]):
        with pytest.raises(SystemExit):
            main([*argv, "--help"])
        shown = capsys.readouterr().out
        for name in names:
            assert re.search(rf"^    {name}\s+\w", shown, re.MULTILINE), name


@pytest.mark.parametrize("argv", [[], ["sing"], ["generate", "calm", "--loud"], ["train", "drums"]])
def test_an_unknown_command_shows_the_usage(capsys, argv):
    assert "error:" in error_of(capsys, *argv)


def test_a_full_disk_is_one_line_and_the_earlier_file_is_unchanged(recording, folder, monkeypatch, capsys):
    before = recording.read_bytes()

    def replace(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    argv = ("generate", "sad", "--model", folder, "--duration", "0.1", "-o", recording)
    assert main([str(word) for word in argv]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and re.fullmatch(
        r"mgkit: .*recording\.wav.*No space.*", shown.splitlines()[-1]
    )
    assert recording.read_bytes() == before and os.listdir(recording.parent) == [recording.name]


# --- Ctrl-C -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["mgkit.MusicGen.get_pretrained", "mgkit.audio.write"])
def test_ctrl_c_outside_generation_is_one_line_with_status_130(folder, tmp_path, monkeypatch, capsys, where):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    out = tmp_path / "a.wav"
    assert main(["generate", "calm", "--model", folder, "--duration", "0.1", "-o", str(out)]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("mgkit: stopped")
    assert not out.exists()


def test_ctrl_c_before_the_first_frame_writes_nothing_and_reports_it(folder, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("mgkit.lm.LM.hidden", interrupt)
    out = tmp_path / "a.wav"
    assert main(["generate", "calm", "--model", folder, "--duration", "0.1", "-o", str(out)]) != 0
    assert "stopped" in capsys.readouterr().err and not out.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to a child alone")
def test_ctrl_c_during_generation_writes_the_music_so_far(folder, tmp_path):
    """A subprocess, interrupted after its first steps."""
    out = tmp_path / "a.wav"
    argv = ["generate", "calm", "--model", folder, "--duration", "3000", "--seed", "7", "-o", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mgkit", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore SIGINT
    )
    try:
        shown, deadline = b"", time.monotonic() + 120
        while not re.search(rb" [1-9]\d+/\d+ ", shown):  # at least ten steps on the progress bar
            assert time.monotonic() < deadline and process.poll() is None, shown.decode()
            if select.select([process.stderr], [], [], 1)[0]:
                shown += os.read(process.stderr.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        output, rest = process.communicate(timeout=120)
    finally:
        process.kill()
    error = (shown + rest).decode()
    assert "Traceback" not in error and "stopped" in error
    assert process.returncode in (0, 130) and str(out) in output.decode()
    frames = audio.read_manifest(out)["frames"]
    assert 0 < frames < 150000
    assert audio.read(out)[0].shape == (1, frames * 640)
