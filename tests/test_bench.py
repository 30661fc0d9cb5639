"""`bench`: the same weights in all libraries, a table that names its conditions, an end in time."""

import json
import os
import signal
import sys

import pytest
import torch
from golden import filling
from tiny import tiny

from mgkit import MusicGen, hub, steps
from mgkit.__main__ import main
from mgkit.bench import command, reference, shapes, stopwatch, timings
from mgkit.bench.timings import Row
from mgkit.formats import audiocraft_loader
from mgkit.formats.audiocraft_files import AudiocraftFile
from mgkit.formats.layouts import NOT_WEIGHTS

CPU = torch.device("cpu")
ROWS = [
    Row(
        "nano",
        "mgkit float32",
        1,
        5.0,
        {"1": 1.0, "10": 2.0},
        {"1": [4.0, 5.0, 6.0], "10": [8.0]},
        [2.0, 2.5],
    ),
    Row("nano", "transformers float32", 1, 5.0, {"1": 1.0, "10": 2.0}, {"1": [15.0]}, [4.0, 10.0]),
    Row("nano", "mgkit float32", 8, 5.0, {"1": 3.0}, {"1": [6.0], "10": [7.0]}),
    Row("nano", "transformers float32", 8, 5.0, {"1": 3.0}, {"1": [18.0], "10": [28.0]}),
]


@pytest.fixture
def small(monkeypatch):
    """A `random-small` of two narrow layers, measured in few steps, with neither int8 nor audiocraft."""
    load = shapes.load

    def load_all_but_int8(name: str, device: torch.device, dtype: torch.dtype) -> MusicGen:
        if dtype == torch.int8:
            raise ValueError("this machine cannot multiply in int8")
        return load(name, device, dtype)

    monkeypatch.setattr(shapes, "load", load_all_but_int8)
    monkeypatch.setitem(sys.modules, "audiocraft", None)
    monkeypatch.setitem(hub.SHAPES, "small", (2, 128))
    monkeypatch.setattr(stopwatch, "TIMED", stopwatch.SKIPPED + 4)
    types = (torch.float32, False), (torch.float32, True), (torch.int8, True)
    monkeypatch.setattr(command, "TYPES", {"cpu": types})
    monkeypatch.setattr(command, "BATCHES", {"cpu": (1, 2)})
    monkeypatch.setattr(command, "peak_memory", lambda name, dtype, compiled: 1.5)


def test_transformers_gets_the_same_weights(small):
    model = shapes.random("small", CPU, torch.float32)
    theirs = shapes.in_transformers(model)
    tokens = torch.randint(2048, (1, 4, 5))
    text = model.conditioner.text.tokenizer(["calm piano"], return_tensors="pt")
    with torch.no_grad():
        condition = model.conditioner(model.conditioner.encode(["calm piano"]))
        given = {"input_ids": text.input_ids, "attention_mask": text.attention_mask}
        logits = theirs(**given, decoder_input_ids=tokens[0]).logits
        torch.testing.assert_close(logits, model.lm(tokens, condition)[0], rtol=1e-3, atol=1e-4)


def test_a_step_reads_the_weights_it_uses_once_and_the_cache():
    lm = tiny().model.lm.half()
    unused = sum(p.numel() for name, p in lm.named_parameters() if "embeddings" in name)
    unused += 2 * 2 * 128 * 128  # keys and values of the text, in two layers
    weights = 2 * (sum(p.numel() for p in lm.parameters()) - unused)
    assert shapes.bytes_of_a_step(lm, 2, 0) == weights
    assert shapes.bytes_of_a_step(lm, 2, 100) - weights == 2 * 2 * 2 * 100 * 128 * 2


@pytest.mark.parametrize("melody", [False, True])
@pytest.mark.parametrize("devices", [set(), {"cpu"}], ids=["ordinary", "static"])
def test_late_steps_are_timed_on_a_full_cache(monkeypatch, melody, devices):
    monkeypatch.setattr(steps, "STATIC_ON", devices)
    model = tiny(melody=melody, window=2.0)
    seen: list[int] = []
    fill = steps.Steps.fill

    def note(self: steps.Steps, column: int, noise: object) -> None:
        fill(self, column, noise)
        seen.append(self.runs[0].cache[0].length - self.conditions[0].prefix_length)

    monkeypatch.setattr(steps.Steps, "fill", note)
    times = stopwatch.Mgkit(model, "").steps(70, 2)
    assert seen == [1, *range(71, 71 + stopwatch.TIMED + 1)]
    assert len(times) == stopwatch.TIMED - stopwatch.SKIPPED and min(times) > 0


@pytest.mark.slow
def test_the_table_has_both_libraries_positions_and_the_floor(small, tmp_path, capsys):
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "png", "md")}
    files["md"].write_text("a\n<!-- bench -->\nold\n<!-- end of bench -->\nb\n", encoding="utf-8")
    argv = ["bench", "--model", "random-small", "--device", "cpu", "--duration", "0.2", "--pairs", "2"]
    written = [
        "--json",
        files["json"],
        "--plot",
        files["png"],
        "--readme",
        files["md"],
        "--beside",
        "1",
        "--memory",
    ]
    assert main([*argv, *map(str, written)]) == 0
    result = json.loads(files["json"].read_text(encoding="utf-8"))
    assert result["bandwidth"] > 1e8 and "load" in result["machine"]
    assert list(result["failed"]) == ["random-small, mgkit int8", "random-small, audiocraft float32"]
    rows = {(row["way"], row["batch"]): row for row in result["rows"]}
    both = {(way, n) for way in ("mgkit float32", "transformers float32") for n in (1, 2)}
    assert set(rows) == both | {("mgkit float32 compiled", 1)}
    for row in rows.values():
        assert set(row["steps"]) == set(row["floor"]) == {"1", "10", "30"}
        assert len(row["pieces"]) == 2 * len(row["beside"]) == (2 if row["batch"] == 1 else 0)
    out, text = capsys.readouterr().out, files["md"].read_text(encoding="utf-8")
    assert "memory bandwidth" in out and "int8: not measured" in out
    assert "audiocraft float32: not measured: " in out and "for how to install audiocraft" in out
    assert text.startswith("a\n") and text.endswith("\nb\n") and "old" not in text
    assert text.count("\n| random-small |") == 5
    assert files["png"].read_bytes()[:4] == b"\x89PNG"


def test_nothing_new_is_measured_after_the_limit(small, capsys):
    main(["bench", "--model", "random-small", "--device", "cpu", "--duration", "0.1", "--limit", "1e-9"])
    assert "ms a step" not in capsys.readouterr().out


def test_the_ratio_is_that_of_paired_pieces_or_else_of_steps():
    assert timings.ratios(ROWS[0], ROWS) == [3.0]  # the median of 2 and 4
    assert timings.ratios(ROWS[2], ROWS) == [3.0, 4.0]
    assert timings.ratios(ROWS[1], ROWS) == []


def test_a_readme_without_the_marks_is_refused(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the marks"):
        timings.insert(file, timings.table(ROWS))
    assert file.read_text(encoding="utf-8") == "no marks"


def test_busy_processes_end_with_the_block():
    with pytest.raises(RuntimeError), command.busy(2) as processes:
        assert all(process.poll() is None for process in processes)
        raise RuntimeError
    assert all(process.returncode == -signal.SIGKILL for process in processes)
    assert os.getpid()


# --- audiocraft -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", filling.KINDS)
def test_weights_get_back_the_names_and_shapes_they_have_in_audiocraft(kind, tmp_path):
    model = MusicGen.get_pretrained(str(filling.audiocraft_folder(tmp_path, kind)), "cpu").model
    named = reference.tensors(model)
    state = filling.state(filling.golden()[1]["shapes"][kind])
    weights = {name: value for name, value in state.items() if not NOT_WEIGHTS.fullmatch(name)}
    assert weights.keys() == {name for name in named if not name.startswith(("encoder", "decoder", "quant"))}
    for name, value in weights.items():
        assert torch.equal(named[name], value), name


@pytest.mark.parametrize("kind", filling.KINDS)
def test_settings_are_those_of_a_checkpoint_of_audiocraft(kind, tmp_path):
    model = MusicGen.get_pretrained(str(filling.audiocraft_folder(tmp_path, kind)), "cpu").model
    file = AudiocraftFile(tmp_path, reference.tensors(model), reference.config(model))
    assert audiocraft_loader.lm_config(file) == model.lm.config
    assert audiocraft_loader.codec_config(file) == model.codec.config
    assert audiocraft_loader.window(file) == model.window
    melody = audiocraft_loader.has_melody(file, model.lm.config.cross_attention)
    assert melody == (model.conditioner.melody_frames is not None)
    if melody:
        audiocraft_loader.require_chroma(file, model.sample_rate)


@pytest.fixture
def both():
    """A function to a tiny model in mgkit and in audiocraft, which each generate a second greedily."""
    pytest.importorskip("audiocraft", reason="needs audiocraft", exc_type=ImportError)

    def make(**named: object) -> stopwatch.Way:
        way = reference.Audiocraft(tiny(**named), "audiocraft")
        for model in (way.model, way.theirs):
            model.set_generation_params(use_sampling=False, duration=1.0)
        return way

    return make


@pytest.mark.reference
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("melody", [False, True])
def test_audiocraft_gets_the_same_weights(both, melody, channels):
    way = both(melody=melody, channels=channels)
    wave, tokens = way.model.generate(["calm piano"], return_tokens=True)
    their_wave, their_tokens = way.theirs.generate(["calm piano"], return_tokens=True)
    assert torch.equal(tokens, their_tokens)
    torch.testing.assert_close(wave, their_wave, rtol=0, atol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize("melody", [False, True])
def test_late_steps_of_audiocraft_are_timed_on_a_full_cache(both, melody):
    way, seen = both(melody=melody), []
    prefix = 0 if not melody else way.model.conditioner.melody_frames + 1 + len(stopwatch.TEXT.split())

    def note(lm: torch.nn.Module, *_: object) -> None:
        state = lm.get_streaming_state()
        length = state["transformer.layers.1.self_attn.past_keys"].shape[2]
        assert state["transformer.offsets"].tolist() == [length] * 4
        seen.append(length - prefix)

    way.theirs.lm.register_forward_hook(note)
    times = way.steps(70, 2)
    assert seen == [1, *range(71, 71 + stopwatch.TIMED)]
    assert len(times) == stopwatch.TIMED - stopwatch.SKIPPED - 1 and min(times) > 0


@pytest.mark.reference
def test_audiocraft_is_not_timed_with_other_weights(both, monkeypatch):
    load = reference.load

    def shuffled(module: torch.nn.Module, named: dict[str, torch.Tensor]) -> None:
        load(module, named | {"linears.1.weight": named["linears.0.weight"]})

    monkeypatch.setattr(reference, "load", shuffled)
    with pytest.raises(RuntimeError, match="its logits differ from mgkit's"):
        both()


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["--model", "random-tiny"], "random-small"), (["--device", "cuda"], "no CUDA device")],
)
def test_what_is_not_there_is_refused(capsys, argv, words):
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["bench", *argv]) == 2
    assert words in capsys.readouterr().err
