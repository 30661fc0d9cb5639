"""Without an optional package or the network, its users raise one clear sentence and the rest works.

Each case is a process in which the package cannot be found, as if it had never been installed, or no socket
connects. It runs some code and reports each result.
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

class Hiding:  # a finder that skips the hidden packages
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

class Breaking:  # torchaudio is installed but fails to load, as with another version of torch
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
for name, code in {actions!r}.items():
    try:
        exec(code, {{"main": main}})
        results[name] = "works"
    except BaseException as error:
        results[name] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with a tiny model, a melody and an empty cache."""
    folder = tmp_path_factory.mktemp("degrade")
    tiny(melody=True).save_pretrained(str(folder / "model"))
    audio.write(folder / "tune.wav", tune(1), 32000)
    return folder


def run(folder, actions, hidden=(), offline=False, broken=""):
    """Result of each action (name: code), "works" or the error, and stderr of their process."""
    code = PRELUDE.format(hidden=tuple(hidden), offline=offline, broken=broken, actions=actions)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def is_one_sentence(error, *words):
    """Whether the error is one line with all `words`, and not just `No module named`."""
    return "\n" not in error and all(word in error for word in words) and len(error) < 600


LOAD = """from mgkit import MusicGen
model = MusicGen.get_pretrained('model')
model.set_generation_params(duration=0.2)"""
GENERATE = f"{LOAD}\nassert model.generate(['calm piano'], seed=1).shape == (1, 1, 6400)"
WITH_MELODY = f"""{LOAD}
from mgkit import audio
assert model.generate_with_chroma(['calm piano'], *audio.read('tune.wav'), seed=1).shape == (1, 1, 6400)"""
PLAYER = """
from mgkit import audio
from mgkit.lab import figures
assert '<audio' in figures.player(*audio.read('tune.wav')).html
"""
TEST = """
from mgkit import audio
from mgkit.lab import blind_test, preferences
wave, rate = audio.read('tune.wav')
pair = blind_test.Pair('better?', 'tune', {'a': wave, 'b': -wave})
test = blind_test.BlindTest([pair], rate, 'answers.csv', 'Ada')
"""
WAVE = "import numpy as np; wave = np.ones(32000, 'f4')"
CLI = "assert main({argv!r}) == 2"
SEPARATE = ["generate", "x", "--model", "model", "--duration", "0.2", "--melody", "tune.wav", "--separate"]


def command(*argv):
    """Action that runs the command line and expects exit status 2."""
    return CLI.format(argv=list(argv))


def command_line_errors(stderr):
    return [line for line in stderr.splitlines() if line.startswith("mgkit: ")]


@pytest.mark.parametrize(
    "how",
    [{"hidden": ["torchaudio"]}, {"broken": "OSError('libcudart.so.13: cannot open shared object file')"}],
)
def test_without_torchaudio_everything_but_stem_separation_works(folder, how):
    actions = {
        "generate": GENERATE,
        "melody": WITH_MELODY,
        "demucs": "from mgkit import melody; melody.demucs()",
        "command": command(*SEPARATE),
    }
    results, stderr = run(folder, actions, **how)
    assert results["generate"] == results["melody"] == results["command"] == "works"
    assert is_one_sentence(results["demucs"], "RuntimeError", "stem separation needs torchaudio", "as it is")
    [error] = command_line_errors(stderr)
    assert "stem separation needs torchaudio" in error
    assert "Traceback" not in stderr


def test_without_ipywidgets_everything_but_the_widgets_works(folder):
    actions = {
        "generate": GENERATE,
        "player": PLAYER,
        "blind test": f"{TEST}\ntest.answer('A')\nassert len(preferences.read('answers.csv')) == 1",
        "its panel": "from mgkit.lab import blind_panel",
        "live player": "from mgkit.lab import player",
        "studio": "from mgkit.lab import studio",
    }
    results, stderr = run(folder, actions, hidden=["ipywidgets", "anywidget"])
    assert results["generate"] == results["player"] == results["blind test"] == "works"
    for name, module in {"its panel": "blind_panel", "live player": "player", "studio": "studio"}.items():
        assert is_one_sentence(
            results[name], "ImportError", f"mgkit.lab.{module} needs", "pip install ipywidgets"
        )
    assert "Traceback" not in stderr


def test_without_anywidget_the_studio_and_the_players_are_plain_html(folder):
    actions = {
        "player": """
from mgkit import audio
from mgkit.lab import player
assert '<audio' in player.Player(*audio.read('tune.wav')).value
""",
        "live player": "from mgkit.lab import player; assert player.NEEDS in player.LivePlayer(32000).value",
        "recorder": "from mgkit.lab import player; assert player.NEEDS in player.Recorder(32000).value",
        "studio": "from mgkit.lab import studio; studio.Studio('model')",
        "blind test": f"{TEST}\nfrom mgkit.lab import blind_panel\nblind_panel.BlindPanel(test)",
    }
    results, stderr = run(folder, actions, hidden=["anywidget"])
    assert set(results.values()) == {"works"}, results
    assert "Traceback" not in stderr


def test_without_a_synthesizer_rendering_is_refused_before_any_work(soundfont, folder):
    actions = {
        "compose": "from mgkit.band.compose import compose; assert compose(1).tracks",
        "render": "from mgkit.band import compose, synth; synth.render(compose.compose(1))",
        "command": command("train", "data", "--out", "data", "--clips", "1"),
    }
    results, stderr = run(folder, actions, hidden=["tinysoundfont"])
    assert results["compose"] == results["command"] == "works"
    assert is_one_sentence(results["render"], "ImportError", "pip install --no-deps tinysoundfont")
    [error] = command_line_errors(stderr)
    assert "tinysoundfont" in error
    assert "Traceback" not in stderr
    assert not any((folder / "data").glob("*.json"))


def test_without_onnxruntime_transcription_names_the_package_and_other_metrics_work(folder):
    actions = {
        "tempo": f"{WAVE}; from mgkit.evals import metrics; metrics.tempo(wave, 32000)",
        "notes": f"{WAVE}; from mgkit.evals import metrics; metrics.transcribe(wave, 32000)",
        "command": command("measure", "model", "--count", "2", "--out", "scores"),
    }
    results, stderr = run(folder, actions, hidden=["onnxruntime"])
    assert results["tempo"] == results["command"] == "works"
    assert is_one_sentence(results["notes"], "RuntimeError", "pip install onnxruntime")
    [error] = command_line_errors(stderr)
    assert "pip install onnxruntime" in error and "Traceback" not in stderr


def test_without_nbconvert_the_gallery_names_the_package(folder):
    (folder / "01_x.ipynb").write_text("{}", encoding="utf-8")
    results, stderr = run(folder, {"command": command("gallery", "01_x.ipynb")}, hidden=["nbconvert"])
    assert results == {"command": "works"}
    [error] = command_line_errors(stderr)
    assert "pip install nbconvert" in error and "Traceback" not in stderr


def test_without_a_network_the_small_model_works_and_others_name_the_download_command(folder):
    actions = {
        "small model": "import mgkit; assert mgkit.MusicGen.get_pretrained('nano').name == 'nano'",
        "a folder": GENERATE,
        "published": "from mgkit import MusicGen; MusicGen.get_pretrained('small')",
        "no such name": "from mgkit import MusicGen; MusicGen.get_pretrained('smal')",
        "fetch": command("fetch", "small", "--dest", "models/small"),
        "generate": command("generate", "calm piano", "--model", "melody"),
    }
    results, stderr = run(folder, actions, offline=True)
    worked = ("small model", "a folder", "fetch", "generate")
    assert {results[name] for name in worked} == {"works"}, results
    advice = "python -m mgkit fetch facebook/musicgen-small --dest models/musicgen-small"
    assert is_one_sentence(results["published"], "FileNotFoundError", "could not be downloaded", advice)
    assert is_one_sentence(results["no such name"], "ValueError", "did you mean 'small'?")
    fetch, generate = command_line_errors(stderr)
    assert "could not be downloaded" in fetch and "facebook/musicgen-melody" in generate
    assert "Traceback" not in stderr


def test_a_shared_cache_is_enough_without_a_network(folder):
    """As README says, a shared folder may be a Hugging Face cache (HF_HOME) or a model folder."""
    snapshot = folder / "cache" / "hub" / "models--facebook--musicgen-large" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder / "model", target_is_directory=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    actions = {
        "by name": """
from mgkit import MusicGen
assert MusicGen.get_pretrained('large').licence.startswith('CC-BY-NC')
""",
        "by path": f"import mgkit; mgkit.MusicGen.get_pretrained({str(folder / 'model')!r})",
    }
    results, _ = run(folder, actions, offline=True)
    assert results == {"by name": "works", "by path": "works"}
