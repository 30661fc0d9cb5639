"""Arbitrary input: every call returns, or raises a ValueError or an OSError of one line.

Hypothesis draws the input, the same at every run. The quick tests draw some; `-m slow` many.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from refusals import GOOD
from test_stopping import StopAfter
from tiny import RATE, tiny, tune

from mgkit import MusicGen, audio
from mgkit.__main__ import main
from mgkit.settings import Settings
from mgkit.train import folder as folders
from mgkit.train import storage

each = pytest.mark.parametrize("share", [1, pytest.param(16, marks=pytest.mark.slow)], ids=["some", "many"])


def fuzz(examples: int, values: st.SearchStrategy, action: Callable[[Any], object]) -> None:
    """Call `action` on `examples` of the values; it may refuse each in one sentence."""

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def attempt(value: Any) -> None:
        try:
            action(value)
        except (ValueError, OSError) as error:
            sentence = str(error)
            assert len(sentence.splitlines()) == 1 and 15 < len(sentence) < 1000, sentence

    attempt()


# --- what Python and JSON can hold --------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.0, -0.0, 1e-320, 1e-38, 1e38, 1e300]),
    st.integers(-3, 300),
    st.floats(-2, 3),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.booleans(),
)
# Surrogates appear in names of files that are not UTF-8.
TEXTS = st.one_of(
    st.sampled_from(["", "calm piano", " ", "calm " * 600]), st.text(st.characters(), max_size=20)
)
LEAVES = st.one_of(st.none(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
TENSORS = st.builds(torch.zeros, st.lists(st.integers(0, 3), max_size=3).map(tuple))
ODD = st.one_of(VALUES, TENSORS, st.binary(max_size=8), st.builds(object), st.just(1j))

SETTINGS = {
    "use_sampling": st.one_of(st.booleans(), ODD),
    "top_k": st.one_of(st.integers(0, 3000), ODD),
    "top_p": st.one_of(st.floats(0, 1), ODD),
    "temperature": st.one_of(st.floats(0, 1e3), st.sampled_from([1e-38, 5e-324, 1e38]), ODD),
    "duration": st.one_of(st.floats(0, 0.3), ODD),
    "cfg_coef": st.one_of(st.floats(-20, 20), ODD),
    "cfg_coef_beta": st.one_of(st.none(), st.floats(-20, 20), ODD),
    "two_step_cfg": st.one_of(st.booleans(), ODD),
    "extend_stride": st.one_of(st.none(), st.floats(0.02, 20), ODD),
}


@each
def test_settings(text: MusicGen, share: int) -> None:
    def generate(chosen: dict) -> None:
        text.set_generation_params(**{"duration": 0.1} | chosen)
        text.generate(["calm"], seed=1, stop=StopAfter(9))

    fuzz(100 * share, st.fixed_dictionaries({}, optional=SETTINGS), generate)


# A timeline changes many times, a mix holds several prompts, and a batch several of either.
WEIGHTS = st.one_of(st.floats(-1, 2), NUMBERS)
MIXES = st.one_of(TEXTS, st.dictionaries(TEXTS, WEIGHTS, max_size=3))
TIMES = st.one_of(st.floats(-0.1, 0.3), NUMBERS)
PROMPTS = st.one_of(MIXES, st.lists(st.tuples(TIMES, MIXES), max_size=3), ODD)


@each
def test_descriptions(text: MusicGen, share: int) -> None:
    def generate(words: tuple) -> None:
        descriptions, negative, seed = words
        text.generate(descriptions, negative=negative, seed=seed, stop=StopAfter(9))

    batches = st.one_of(st.lists(PROMPTS, max_size=3), PROMPTS)
    seeds = st.one_of(st.none(), st.integers(0, 2**63 - 1), ODD)
    fuzz(80 * share, st.tuples(batches, st.one_of(st.none(), TEXTS, ODD), seeds), generate)


SHAPES = st.one_of(
    st.tuples(st.integers(0, 2), st.integers(0, 4000)),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9),
)
DTYPES = st.sampled_from(["float32", "float64", "float16", "int16", "int64", "uint8", "bool", "complex64"])


@st.composite
def waves(draw: st.DrawFn) -> np.ndarray | torch.Tensor:
    wave = np.zeros(draw(SHAPES), draw(DTYPES))
    values = st.one_of(st.integers(-9, 99), st.sampled_from([1e38, float("nan"), float("inf")]))
    if wave.dtype.kind == "f":
        with np.errstate(all="ignore"):
            wave += np.float64(draw(values))
    return torch.from_numpy(wave) if draw(st.booleans()) else wave


RATES = st.one_of(st.sampled_from([RATE, 44100, 8000, 1000, 999, 48000.5]), NUMBERS)


@each
def test_waves(melody: MusicGen, tmp_path: Path, share: int) -> None:
    def use(words: tuple) -> None:
        wave, rate, ending, strategy = words
        with pytest.MonkeyPatch.context():
            for call in (
                lambda: audio.write(tmp_path / f"a{ending}", wave, rate, strategy),
                lambda: melody.generate_with_chroma(["calm"], wave, rate, stop=StopAfter(5)),
                lambda: melody.generate_continuation(wave, rate, ["calm"], stop=StopAfter(5)),
            ):
                try:
                    call()
                except (ValueError, OSError) as error:
                    assert len(str(error).splitlines()) == 1

    kinds = st.sampled_from([*audio.FORMATS, ".aac", ""]), st.sampled_from(["loudness", "peak", "rms", "x"])
    fuzz(30 * share, st.tuples(st.one_of(waves(), ODD), RATES, *kinds), use)


@each
def test_manifests(melody: MusicGen, share: int) -> None:
    melody.set_generation_params(duration=0.1)
    _, [manifest] = melody.generate_with_chroma(["calm"], tune(0.2), RATE, seed=3, return_manifests=True)
    _, [prompted] = melody.generate_continuation(
        GOOD[:, :1000], RATE, [[(0, "calm"), (0.05, "sad")]], seed=3, return_manifests=True
    )

    @st.composite
    def changed(draw: st.DrawFn) -> dict:
        broken = dict(draw(st.sampled_from([manifest, prompted])))
        for key in draw(st.lists(st.sampled_from(sorted(broken)), min_size=1, max_size=2)):
            value = broken[key]
            if isinstance(value, dict) and value and draw(st.booleans()):
                broken[key] = value | {draw(st.sampled_from(sorted(value))): draw(VALUES)}
            elif isinstance(value, str) and value and draw(st.booleans()):
                place = draw(st.integers(0, len(value) - 1))
                broken[key] = value[:place] + draw(st.text(max_size=2)) + value[place + 1 :]
            else:
                broken[key] = draw(VALUES)
        if isinstance(settings := broken["settings"], dict) and "duration" in settings:
            # A day of music is a valid wish, and not made within this test.
            long = isinstance(settings["duration"], int | float) and settings["duration"] > 1
            broken["settings"] = settings | ({"duration": 0.1} if long else {})
        return broken

    fuzz(80 * share, changed(), melody.replay)


@each
def test_files_with_changed_bytes(melody: MusicGen, tmp_path: Path, share: int) -> None:
    melody.set_generation_params(duration=0.1)
    wave, [manifest] = melody.generate(["calm"], seed=3, return_manifests=True)
    whole = {
        ending: audio.write(tmp_path / f"whole{ending}", wave[0], RATE, manifest=manifest).read_bytes()
        for ending in (".wav", ".flac")
    }
    change = st.tuples(st.sampled_from(sorted(whole)), st.floats(0, 1), st.binary(max_size=6), st.booleans())

    def read(words: tuple) -> None:
        ending, share, replacement, cut = words
        content = whole[ending]
        place = int(share * len(content))
        path = tmp_path / f"a{ending}"
        path.write_bytes(
            content[:place] + replacement + (b"" if cut else content[place + len(replacement) :])
        )
        for call in (audio.read, audio.read_manifest):
            try:
                call(path)
            except (ValueError, OSError) as error:
                assert len(str(error).splitlines()) == 1 and str(path) in str(error)

    fuzz(80 * share, change, read)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    tiny(melody=True).save_pretrained(str(folder))
    return folder


@each
def test_configs(stored: Path, tmp_path: Path, share: int) -> None:
    folder = shutil.copytree(stored, tmp_path / "model")
    configs = {
        name: json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("config.json", "generation_config.json")
    }

    def places(config: dict, path: tuple = ()) -> list[tuple]:
        found = [(*path, key) for key in config]
        return found + [
            p for key, v in config.items() if isinstance(v, dict) for p in places(v, (*path, key))
        ]

    where = [(name, p) for name, config in configs.items() for p in places(config)]

    def load(words: tuple) -> None:
        (name, path), value = words
        config = json.loads(json.dumps(configs[name]))
        inner = config
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (folder / name).write_text(json.dumps(config), encoding="utf-8")
        try:
            MusicGen.get_pretrained(str(folder), "cpu")
        finally:
            (folder / name).write_text(json.dumps(configs[name]), encoding="utf-8")

    # Sizes stay small: the memory for a model of the stated size is a valid wish.
    small = VALUES.filter(
        lambda value: not isinstance(value, int | float) or abs(value) < 1000 or value != value
    )
    fuzz(25 * share, st.tuples(st.sampled_from(where), small), load)


@each
def test_tables_of_captions(tmp_path: Path, share: int) -> None:
    for name in ("a.wav", "b.wav"):
        audio.write(tmp_path / name, GOOD, RATE)
    cells = st.one_of(
        st.sampled_from(
            ["file", "caption", "file_name", "text", "a.wav", "b.wav", '"', "{", "\r\n", "\n", ","]
        ),
        st.sampled_from(['{"file": "a.wav", "caption": "x"}', "\ufeff", "\u2028", "\0", '"calm, sad"']),
        TEXTS,
    )
    tables = st.one_of(
        st.lists(cells, max_size=12).map(lambda row: "".join(row).encode("utf-8", "surrogatepass")),
        st.lists(cells, max_size=12).map(lambda row: ",".join(row).encode("utf-8", "replace")),
        st.binary(max_size=20),
    )

    def find(words: tuple) -> None:
        name, content = words
        (tmp_path / name).write_bytes(content)
        try:
            for recording in folders.find(tmp_path):
                assert recording.caption == " ".join(recording.caption.split()) != ""
        finally:
            (tmp_path / name).unlink()

    names = st.sampled_from(["captions.csv", "metadata.csv", "metadata.jsonl", "a.txt"])
    fuzz(150 * share, st.tuples(names, tables), find)


@each
def test_files_of_a_run(tmp_path: Path, share: int) -> None:
    path = tmp_path / "checkpoint.pt"
    storage.save(path, {"learner": {"a": torch.zeros(3)}, "step": 1})
    whole = path.read_bytes()
    change = st.tuples(st.floats(0, 1), st.binary(max_size=6), st.booleans())

    def load(words: tuple) -> None:
        place = int(words[0] * len(whole))
        rest = b"" if words[2] else whole[place + len(words[1]) :]
        path.write_bytes(whole[:place] + words[1] + rest)
        assert isinstance(storage.load(path), dict)

    fuzz(100 * share, change, load)
    fuzz(
        100 * share,
        st.binary(max_size=40),
        lambda content: storage.load(path) if path.write_bytes(content) else 0,
    )


@each
def test_the_command_line(tmp_path: Path, share: int, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def refuse(*words: object) -> None:
        raise ValueError("this test loads no model")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MusicGen, "get_pretrained", staticmethod(refuse))
    options = [f"--{name.replace('_', '-')}" for name in Settings.__dataclass_fields__]
    option = st.tuples(st.sampled_from([*options, "--seed", "--model", "-o", "--strategy"]), LEAVES.map(str))
    words = st.lists(option, max_size=3).map(lambda pairs: [f"{a}={b}" for a, b in pairs])
    commands = st.sampled_from(
        [["generate", "calm"], ["replay", "x"], ["fetch", ""], ["train", "tune", "own"]]
    )

    def call(argv: list[str]) -> None:
        try:
            status = main(argv)
        except SystemExit as end:
            status = end.code
        shown = capsys.readouterr().err
        assert status == 2 and "Traceback" not in shown and "internal error" not in shown, shown
        # not splitlines(): argparse quotes the arguments as they are
        assert shown.rstrip("\n").split("\n")[-1].strip()

    fuzz(60 * share, st.tuples(commands, words).map(lambda pair: pair[0] + pair[1]), call)
