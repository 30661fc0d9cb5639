"""Where a package or the network is absent, what needs it says so in one sentence, and the rest works.

Each case is a process of its own in which the package cannot be found, as if it had never been installed, or in which
no socket connects; it tries some verbs and says what came of each.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny, tune

from mgkit import audio

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

PRELUDE = """
import importlib.util, json, sys

HIDDEN, OFFLINE, BROKEN = {hidden!r}, {offline!r}, {broken!r}

class Hiding:  # a finder that does not find some packages
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

class Breaking:  # a package that is there and does not load, as torchaudio beside another torch
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "torchaudio" and BROKEN else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise eval(BROKEN)

sys.meta_path[:] = [Breaking(), *map(Hiding, sys.meta_path)]

if OFFLINE:
    import socket
    def refuse(*args, **named):
        raise OSError(101, "Network is unreachable")
    socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse

from mgkit.__main__ import main

results = {{}}
for name, code in {verbs!r}.items():
    try:
        exec(code, {{"main": main}})
        results[name] = "works"
    except BaseException as error:
        results[name] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, a melody and an empty cache to work with."""
    folder = tmp_path_factory.mktemp("degrade")
    tiny(melody=True).save_pretrained(str(folder / "model"))
    audio.write(folder / "tune.wav", tune(1), 32000)
    return folder


def tried(folder, verbs, hidden=(), offline=False, broken=""):
    """What came of each verb (name: code) in a process without the hidden packages, "works" or the error, and its stderr."""
    code = PRELUDE.format(hidden=tuple(hidden), offline=offline, broken=broken, verbs=verbs)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def is_one_sentence(said, *words):
    """Whether an error is one line that holds the words and is no bare `No module named`."""
    return "\n" not in said and all(word in said for word in words) and len(said) < 600


LOAD = "from mgkit import MusicGen; model = MusicGen.get_pretrained('model'); model.set_generation_params(duration=0.2)"
MAKE = f"{LOAD}; assert model.generate(['calm piano'], seed=1).shape == (1, 1, 6400)"
FOLLOW = f"""{LOAD}
from mgkit import audio
assert model.generate_with_chroma(['calm piano'], *audio.read('tune.wav'), seed=1).shape == (1, 1, 6400)"""
SHOW = "from mgkit import audio; from mgkit.lab import figures; assert '<audio' in figures.player(*audio.read('tune.wav')).html"
TEST = """
from mgkit import audio
from mgkit.lab import blind_test
wave, rate = audio.read('tune.wav')
test = blind_test.BlindTest([blind_test.Pair('better?', 'tune', {'a': wave, 'b': -wave})], rate, 'answers.csv', 'Ada')
"""
CLI = "assert main({argv!r}) == 2"
SEPARATE = ["generate", "x", "--model", "model", "--duration", "0.2", "--melody", "tune.wav", "--separate"]


def command(*argv):
    """A verb: the command line, which must end with status 2."""
    return CLI.format(argv=list(argv))


def said_by_the_command_line(stderr):
    return [line for line in stderr.splitlines() if line.startswith("mgkit: ")]


@pytest.mark.parametrize(
    "how",
    [{"hidden": ["torchaudio"]}, {"broken": "OSError('libcudart.so.13: cannot open shared object file')"}],
)
def test_without_torchaudio_only_the_separation_of_stems_is_gone(folder, how):
    verbs = {
        "generate": MAKE,
        "melody": FOLLOW,
        "demucs": "from mgkit import melody; melody.demucs()",
        "command": command(*SEPARATE),
    }
    found, stderr = tried(folder, verbs, **how)
    assert found["generate"] == found["melody"] == found["command"] == "works"
    assert is_one_sentence(found["demucs"], "RuntimeError", "stem separation needs torchaudio", "as it is")
    [said] = said_by_the_command_line(stderr)
    assert "stem separation needs torchaudio" in said
    assert "Traceback" not in stderr


def test_without_ipywidgets_everything_but_the_widgets_works(folder):
    verbs = {
        "generate": MAKE,
        "player": SHOW,
        "blind test": f"{TEST}\ntest.answer('A')\nassert len(blind_test.read('answers.csv')) == 1",
        "its panel": f"{TEST}\ntest.widget()",
        "live player": "from mgkit.lab import player",
        "studio": "from mgkit.lab import studio",
    }
    found, stderr = tried(folder, verbs, hidden=["ipywidgets", "anywidget"])
    assert found["generate"] == found["player"] == found["blind test"] == "works"
    assert is_one_sentence(found["its panel"], "RuntimeError", "needs ipywidgets", "answer('A')")
    for name, module in {"live player": "player", "studio": "studio"}.items():
        assert is_one_sentence(
            found[name], "ImportError", f"mgkit.lab.{module} needs", "pip install ipywidgets"
        )
    assert "Traceback" not in stderr


def test_without_anywidget_the_studio_and_the_players_are_plain(folder):
    verbs = {
        "player": "from mgkit import audio; from mgkit.lab import player; assert '<audio' in player.Player(*audio.read('tune.wav')).value",
        "live player": "from mgkit.lab import player; assert player.NEEDS in player.LivePlayer(32000).value",
        "recorder": "from mgkit.lab import player; assert player.NEEDS in player.Recorder(32000).value",
        "studio": "from mgkit.lab import studio; studio.Studio('model')",
        "blind test": f"{TEST}\ntest.widget()",
    }
    found, stderr = tried(folder, verbs, hidden=["anywidget"])
    assert set(found.values()) == {"works"}, found
    assert "Traceback" not in stderr


def test_without_a_synthesizer_training_data_is_refused_before_any_work(soundfont, folder):
    verbs = {
        "compose": "from mgkit.band.compose import compose; assert compose(1).tracks",
        "render": "from mgkit.band.compose import compose; from mgkit.band.synth import render; render(compose(1))",
        "command": command("train", "data", "--out", "data", "--clips", "1"),
    }
    found, stderr = tried(folder, verbs, hidden=["tinysoundfont"])
    assert found["compose"] == found["command"] == "works"
    assert is_one_sentence(found["render"], "ImportError", "pip install --no-deps tinysoundfont")
    [said] = said_by_the_command_line(stderr)
    assert "tinysoundfont" in said
    assert "Traceback" not in stderr
    assert not any((folder / "data").glob("*.json"))


def test_without_onnxruntime_the_judge_of_notes_says_what_to_install_and_the_others_judge(folder):
    verbs = {
        "tempo": "import numpy as np; from mgkit.evals import metrics; metrics.tempo(np.ones(32000, 'f4'), 32000)",
        "notes": "import numpy as np; from mgkit.evals import metrics; metrics.transcribe(np.ones(32000, 'f4'), 32000)",
        "command": command("train", "measure", "model", "--count", "2", "--out", "scores"),
    }
    found, stderr = tried(folder, verbs, hidden=["onnxruntime"])
    assert found["tempo"] == found["command"] == "works"
    assert is_one_sentence(found["notes"], "RuntimeError", "pip install onnxruntime")
    [said] = said_by_the_command_line(stderr)
    assert "pip install onnxruntime" in said and "Traceback" not in stderr


def test_without_nbconvert_the_gallery_says_what_to_install(folder):
    (folder / "01_x.ipynb").write_text("{}")
    found, stderr = tried(folder, {"command": command("gallery", "01_x.ipynb")}, hidden=["nbconvert"])
    assert found == {"command": "works"}
    [said] = said_by_the_command_line(stderr)
    assert "pip install nbconvert" in said and "Traceback" not in stderr


def test_without_a_network_a_published_model_names_the_command_to_run_and_the_small_one_works(folder):
    verbs = {
        "the small one": "import mgkit; assert mgkit.MusicGen.get_pretrained('nano').name == 'nano'",
        "a folder": MAKE,
        "published": "from mgkit import MusicGen; MusicGen.get_pretrained('small')",
        "no such name": "from mgkit import MusicGen; MusicGen.get_pretrained('smal')",
        "fetch": command("fetch", "small", "--dest", "models/small"),
        "generate": command("generate", "calm piano", "--model", "melody"),
    }
    found, stderr = tried(folder, verbs, offline=True)
    worked = ("the small one", "a folder", "fetch", "generate")
    assert {found[name] for name in worked} == {"works"}, found
    advice = "python -m mgkit fetch facebook/musicgen-small --dest models/musicgen-small"
    assert is_one_sentence(found["published"], "FileNotFoundError", "could not be downloaded", advice)
    assert is_one_sentence(found["no such name"], "ValueError", "did you mean 'small'?")
    fetch, generate = said_by_the_command_line(stderr)
    assert "could not be downloaded" in fetch and "facebook/musicgen-melody" in generate
    assert "Traceback" not in stderr


def test_a_cache_that_others_filled_is_enough_without_a_network(folder):
    """What the README promises of a shared folder: HF_HOME with the hub's layout, or a folder by its path."""
    snapshot = folder / "cache" / "hub" / "models--facebook--musicgen-large" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder / "model", target_is_directory=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    verbs = {
        "by name": "import mgkit; assert mgkit.MusicGen.get_pretrained('large').licence.startswith('CC-BY-NC')",
        "by path": f"import mgkit; mgkit.MusicGen.get_pretrained({str(folder / 'model')!r})",
    }
    found, _ = tried(folder, verbs, offline=True)
    assert found == {"by name": "works", "by path": "works"}
