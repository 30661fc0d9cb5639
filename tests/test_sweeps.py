"""Sweeps: all combinations, measured, as a DataFrame with players."""

import subprocess
import sys

import pytest
from tiny import tiny

from mgkit import audio

pandas = pytest.importorskip("pandas")

from mgkit.lab.sweeps import Sweep, sweep  # noqa: E402


@pytest.fixture(scope="module")
def model():
    model = tiny(melody=True)
    model.set_generation_params(duration=0.3, top_k=9)
    return model


def peak(sample):
    return float(sample.wave.abs().max())


def both(sample):
    return {"frames_made": sample.codes.shape[-1], "of": sample.manifest["tokens"]}


def test_every_combination_is_a_row_with_its_measurements(model, tmp_path, capsys):
    table = sweep(model, ["calm", "sad"], cfg_coef=[1, 3], seed=range(3), measure=[peak, both])
    assert list(zip(table.prompt, table.cfg_coef, table.seed, strict=True)) == [
        (prompt, coef, seed) for prompt in ("calm", "sad") for coef in (1, 3) for seed in range(3)
    ]
    assert set(table.top_k) == {9} and list(table.columns)[-3:] == ["peak", "frames_made", "of"]
    model.set_generation_params(duration=0.3, top_k=9, cfg_coef=1)
    _, [manifest] = model.generate(["sad"], seed=2, return_manifests=True)
    model.set_generation_params(duration=0.3, top_k=9)
    [row] = table.query("prompt == 'sad' and cfg_coef == 1 and seed == 2").to_dict("records")
    assert row["of"] == manifest["tokens"]
    table.to_csv(tmp_path / "a.csv", index=False)
    assert pandas.read_csv(tmp_path / "a.csv").peak.tolist() == pytest.approx(table.peak.tolist())
    assert "180/180" in capsys.readouterr().err


def test_the_grid_has_the_players_of_the_rows_selected(model):
    table = sweep(model, "calm", cfg_coef=[1, 3], top_k=[3, 9], seed=[1, 2], progress=False)
    whole = table.grid().html
    assert whole.count("<audio") == 8 and ">top_k 3<" in whole and ">cfg_coef 1, seed 2<" in whole
    part = table[table.cfg_coef == 3].sort_values("seed", ascending=False)
    assert isinstance(part, Sweep)
    shown = part.grid("seed").html
    assert shown.count("<audio") == 4 and "cfg_coef 1" not in shown
    assert shown.index(">seed 2<") < shown.index(">seed 1<")
    assert part[part.top_k == 3].grid("seed").html.count("<audio") == 2


def test_schedules_are_compared_like_numbers(model):
    table = sweep(model, "calm", cfg_coef=[1, [(0, 1), (0.1, 5)]], progress=False)
    assert table.grid().html.count("<audio") == 2 and table.varied == ["cfg_coef"]


def test_the_seed_is_0_and_a_single_value_needs_no_list(model):
    table = sweep(model, "calm", chords="C G", progress=False)
    assert len(table) == 1 and table.seed[0] == 0 and table.chords[0] == "C G"
    assert table.grid().html.count("<audio") == 1


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"cfg_ceof": [1]}, "did you mean cfg_coef"),
        ({"top_k": [1, -1]}, "top_k is -1"),
        ({"seed": []}, "empty"),
        ({"measure": [lambda sample: 1]}, "a name of its own"),
        ({"measure": [lambda sample: {"seed": 1}]}, "'seed'"),
    ],
)
def test_an_invalid_sweep_is_refused(model, columns, expected):
    with pytest.raises(ValueError, match=expected):
        sweep(model, "calm", progress=False, **columns)


def test_an_incomplete_or_endless_grid_is_refused(model):
    table = sweep(model, "calm", cfg_coef=[1, 3], seed=[1, 2], progress=False)
    with pytest.raises(ValueError, match="the row seed 2 has players for cfg_coef 1, the"):
        table.drop(index=3).grid()
    with pytest.raises(ValueError, match="no column 'loudness'"):
        table.grid("loudness")
    with pytest.raises(ValueError, match="has 0 players"):
        table[table.seed == 7].grid()


def test_a_sweep_equals_the_same_table_of_files(model, tmp_path):
    from mgkit.jobs import run_table

    table = sweep(model, ["calm"], seed=[1, 2], progress=False)
    run_table(model.model, [sample.job for sample in table.samples.values()], tmp_path)
    for sample, path in zip(table.samples.values(), sorted(tmp_path.glob("*.wav"))):
        assert sample.manifest.items() <= audio.read_manifest(path).items()


def test_without_pandas_the_command_to_install_it_is_named():
    code = "import sys; sys.modules['pandas'] = None; import mgkit; mgkit.sweep"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("mgkit.sweep needs the package pandas: pip install pandas")
