"""A full or read-only disk leaves the earlier recording and the earlier weights."""

import errno
import os
import shutil
import signal
import tempfile
from contextlib import contextmanager

import pytest
import safetensors.torch
from refusals import refusal
from tiny import RATE, noise, tune

from mgkit import MusicGen, audio
from mgkit.__main__ import main

resource = pytest.importorskip(
    "resource", reason="a limit on file sizes, which is POSIX, stands for a full disk"
)


def load(folder):
    return MusicGen.get_pretrained(str(folder), device="cpu")


def contents(folder):
    """Content of each file in the folder by name, hidden files included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def full_disk(free):
    """No file can grow past `free` bytes: the system refuses the write, as with a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def read_only(monkeypatch):
    """Nothing can be created, as on a disk mounted read-only; file permissions would not stop root."""
    real_open, real_mkdir = os.open, os.mkdir

    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))

    monkeypatch.setattr(
        os, "open", lambda p, f, *a, **k: refuse(p) if f & os.O_CREAT else real_open(p, f, *a, **k)
    )
    monkeypatch.setattr(os, "mkdir", lambda p, *a, **k: refuse(p))
    yield
    monkeypatch.setattr(os, "mkdir", real_mkdir)


FIRST = {"mgkit": "0.1.0", "licence": "MIT", "text": "first"}


@pytest.fixture(params=list(audio.FORMATS))
def recording(request, tmp_path):
    """A file to preserve."""
    return audio.write(tmp_path / f"a{request.param}", tune(0.1), RATE, manifest=FIRST)


@pytest.mark.parametrize(("seconds", "free"), [(0.1, 0), (0.1, 500), (1, 3000), (1, 7000), (5, 20000)])
def test_a_full_disk_leaves_the_earlier_recording(recording, seconds, free):
    before, wave = contents(recording.parent), noise(2, round(seconds * RATE))
    with full_disk(free):
        refusal(lambda: audio.write(recording, wave, RATE), recording.name, kinds=OSError)
    assert contents(recording.parent) == before
    assert audio.read_manifest(recording)["text"] == "first"


def test_a_disk_too_full_for_the_manifest_leaves_the_earlier_recording(recording):
    before = contents(recording.parent)
    with full_disk(20000):
        refusal(
            lambda: audio.write(recording, tune(0.1), RATE, manifest=FIRST | {"prompt": "Ab+/" * 9999}),
            recording.name,
            kinds=OSError,
        )
    assert contents(recording.parent) == before


def test_a_read_only_disk_leaves_the_earlier_recording(recording, read_only):
    before = contents(recording.parent)
    refusal(lambda: audio.write(recording, noise(2, RATE), RATE), "ead-only", kinds=OSError)
    assert contents(recording.parent) == before


def test_a_disk_that_fills_at_the_last_moment_leaves_the_earlier_recording(recording, monkeypatch):
    before = contents(recording.parent)

    def replace(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    monkeypatch.setattr(os, "replace", replace)
    refusal(lambda: audio.write(recording, noise(2, RATE), RATE), recording.name, kinds=OSError)
    assert contents(recording.parent) == before


# --- checks before the work, and rescue after it ------------------------------------------------------------


@pytest.fixture
def no_steps(monkeypatch):
    """Any step of generation fails the test."""

    def fail(*args, **kwargs):
        pytest.fail("a step was run before the output was checked")

    monkeypatch.setattr("mgkit.perform.frames", fail)


def generate(folder, out, *options):
    return main(["generate", "calm", "--model", str(folder), "--duration", "0.1", "-o", str(out), *options])


@pytest.mark.parametrize("length", [246, 250, 255])
def test_long_names_are_written(folder, tmp_path, length):
    out = tmp_path / f"{'n' * (length - 4)}.wav"
    assert generate(folder, out) == 0 and audio.read_manifest(out)["text"] == "calm"


@pytest.mark.parametrize("name", ["n" * 252 + ".wav", "ü" * 130 + ".flac"])
def test_too_long_a_name_is_refused_before_the_first_step(folder, tmp_path, no_steps, capsys, name):
    assert generate(folder, tmp_path / name) == 2
    assert "(File name too long); choose another name" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["model"]


def test_a_read_only_folder_is_refused_before_the_first_step(folder, tmp_path, no_steps, capsys, read_only):
    assert generate(folder, tmp_path / "a.wav") == 2
    assert "ead-only" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pipe.wav", "null.wav"])
def test_a_pipe_or_device_is_refused_before_the_first_step(folder, tmp_path, no_steps, capsys, name):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "null.wav").symlink_to("/dev/null")
    assert generate(folder, tmp_path / name) == 2
    assert "a device, a pipe or a socket" in capsys.readouterr().err


def test_too_small_a_disk_is_refused_before_the_first_step(folder, tmp_path, no_steps, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert generate(folder, tmp_path / "a.wav") == 2
    sentence = capsys.readouterr().err
    assert "a.wav needs" in sentence and "free some space" in sentence


def test_a_replay_checks_its_output_before_the_first_step(recording, no_steps, capsys):
    assert main(["replay", str(recording), "-o", str(recording.parent / "no/a.wav")]) == 2
    assert "does not exist; create it first" in capsys.readouterr().err


def test_music_that_cannot_be_written_goes_to_another_file(folder, tmp_path, capsys, monkeypatch):
    """Such as a folder removed, or a disk filled, while the steps ran."""
    out, spare = tmp_path / "gone" / "a.flac", tmp_path / "spare"
    out.parent.mkdir(), spare.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spare))
    real = MusicGen.generate

    def generate_and_remove(*args, **kwargs):
        out.parent.rmdir()
        return real(*args, **kwargs)

    monkeypatch.setattr(MusicGen, "generate", generate_and_remove)
    assert generate(folder, out, "--seed", "7") == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    [rescued] = spare.glob("mgkit-*/music.wav")
    assert str(out.parent) in sentence and f"the music is in {rescued}" in sentence
    assert audio.read_manifest(rescued)["seed"] == 7
    assert audio.read(rescued)[0].shape[-1] == RATE // 10


def test_music_goes_beside_an_output_whose_name_is_too_long(tmp_path):
    with pytest.raises(OSError, match=r"File name too long.*; the music is in ") as caught:
        audio.write_or_rescue(tmp_path / f"{'n' * 300}.wav", tune(0.1), RATE)
    [rescued] = tmp_path.glob("mgkit-*/music.wav")
    assert str(rescued) in str(caught.value)


def test_without_any_place_to_write_the_first_reason_is_given(recording, read_only):
    before = contents(recording.parent)
    sentence = refusal(
        lambda: audio.write_or_rescue(recording, tune(0.1), RATE), recording.name, "ead-only", kinds=OSError
    )
    assert "the music is in" not in sentence and contents(recording.parent) == before


# --- links and permissions ----------------------------------------------------------------------------------


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "music").mkdir()
    target, link = tmp_path / "music" / "data", tmp_path / "a.wav"
    link.symlink_to(target)
    for seconds in (0.1, 0.2):
        audio.check_output(link, RATE, 1, seconds)
        assert audio.write(link, tune(seconds), RATE) == link
        assert link.is_symlink() and target.is_file()
        assert audio.read(link)[0].shape[-1] == seconds * RATE
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "music"] and os.listdir(tmp_path / "music") == ["data"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_replaced_recording_keeps_its_permissions(recording, mode):
    recording.chmod(mode)
    audio.write(recording, tune(0.1), RATE)
    assert recording.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_a_new_recording_respects_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = audio.write(tmp_path / "a.wav", tune(0.1), RATE)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_names_cannot_control_the_terminal(folder, tmp_path, capsys):
    out = tmp_path / "a\x1b[2Jb\x07.wav"
    assert generate(folder, out) == 0 and out.exists()
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and r"a\x1b[2Jb\x07.wav" in shown
    assert main(["replay", str(tmp_path / "no\x1b[2J.wav")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_the_licence_in_a_file_cannot_control_the_terminal(models, tmp_path, monkeypatch, capsys):
    model = models["text"]
    monkeypatch.setattr(model.model, "licence", "see \x1b[2J")
    model.save_pretrained(str(tmp_path / "weights"))
    assert load(tmp_path / "weights").licence == r"see \x1b[2J"
    assert "\x1b" not in capsys.readouterr().err


# --- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [0, 500, 20000])
def test_a_full_disk_leaves_the_earlier_weights(models, folder, free):
    before = contents(folder)
    with full_disk(free):
        refusal(lambda: models["melody"].save_pretrained(folder), str(folder), kinds=OSError)
    assert contents(folder) == before
    load(folder)


def test_a_read_only_disk_leaves_the_earlier_weights(models, folder, read_only):
    before = contents(folder)
    refusal(lambda: models["melody"].save_pretrained(folder), str(folder), kinds=OSError)
    assert contents(folder) == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_an_interrupted_save_leaves_the_earlier_weights(models, folder, monkeypatch, part, error):
    before, model = contents(folder), models["melody"]

    def fail(*args, **kwargs):
        raise error

    if part == "weights":
        monkeypatch.setattr(safetensors.torch, "save_file", fail)
    else:
        monkeypatch.setattr(model.conditioner.text.tokenizer, "save_pretrained", fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        model.save_pretrained(folder)
    assert contents(folder) == before


def test_a_new_model_replaces_an_old_one_completely(models, folder):
    models["melody"].save_pretrained(folder)
    assert load(folder).conditioner.melody_frames
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
