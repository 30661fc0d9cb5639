"""A full or read-only disk leaves the earlier recording and the earlier weights."""

import errno
import os
import signal
from contextlib import contextmanager

import pytest
import safetensors.torch
from refusals import refusal
from tiny import RATE, noise, tune

from mgkit import MusicGen, audio

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
