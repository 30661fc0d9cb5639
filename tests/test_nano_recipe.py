"""The recipe of the small model: its plan, interruptions, what it carries; and, slow, all of it."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from tiny_runs import clips, codec_run

from mgkit.devices import best_device
from mgkit.train import loop, nano, pack
from mgkit.train.clips import Clips
from mgkit.train.codec import CodecLearner
from mgkit.train.nano import SHARES, Progress, Recipe

CPU = Recipe(600, "cpu", 2)
GPU = Recipe(9, "cuda", 16)


def steps(recipe: Recipe) -> list[tuple[str, str, dict[str, str]]]:
    """(stage, command, options) of a recipe's steps, when every stage keeps to its time."""
    found, left = [], recipe.budget
    for stage in recipe.stages():
        minutes = left * recipe.share(stage)
        for command, arguments in recipe.steps(stage, minutes, Path("out")):
            found.append((stage, command, dict(argument.partition("=")[::2] for argument in arguments)))
        left -= minutes
    assert abs(left) < 1e-6 * recipe.budget
    return found


@pytest.mark.parametrize("recipe", [CPU, GPU, Recipe(1, "cpu", 2), Recipe(9, "cuda", 16, until="decoder")])
def test_stages_share_the_whole_budget(recipe):
    total = sum(SHARES[stage] for stage in recipe.stages())
    minutes = {stage: float(given["--minutes"]) for stage, _, given in steps(recipe) if "--minutes" in given}
    expected = {stage: recipe.budget * SHARES[stage] / total for stage in minutes}
    assert minutes == pytest.approx(expected, rel=1e-4)
    assert sum(SHARES.values()) == pytest.approx(1)


def test_a_recipe_until_a_stage_ends_with_it():
    stages = [stage for stage, *_ in steps(Recipe(9, "cuda", 16, until="decoder"))]
    assert list(dict.fromkeys(stages)) == ["data", "codec", "decoder"]


def test_clips_grow_with_budget_and_cores_within_limits():
    assert Recipe(0.01, "cpu", 2).clips() == nano.CLIPS[0]
    assert Recipe(1, "cpu", 2).clips() < Recipe(10, "cpu", 2).clips() < Recipe(10, "cpu", 8).clips()
    assert Recipe(1200, "cpu", 2).clips() == nano.CLIPS[1]
    assert 10_000 < GPU.clips() <= nano.CLIPS[1]


def test_a_given_codec_replaces_its_stages():
    recipe = Recipe(9, "cuda", 16, codec="old")
    planned = steps(recipe)
    assert {stage for stage, *_ in planned} == {"data", "tokens", "lm", "reinforce"}
    assert {given["--codec"] for stage, _, given in planned if stage == "tokens"} == {"old"}
    assert not any("--stems" in given for *_, given in planned)


@pytest.mark.parametrize("recipe", [CPU, GPU])
def test_every_step_finds_the_folders_it_needs(recipe):
    # rendered meanwhile on a GPU
    made = {"out/band"} if recipe.renders_meanwhile else set()
    for _, _, given in steps(recipe):
        inputs = ("--data", "--valid", "--tokens", "--valid-tokens", "--start", "--codec")
        assert {path for name, path in given.items() if name in inputs} <= made
        made.add(given.get("--out", given.get("--data")))


def test_clips_of_the_language_model_are_rendered_by_another_process(tmp_path, soundfont, monkeypatch):
    monkeypatch.setattr(Recipe, "clips", lambda self: 3)
    with nano.Rendering(Recipe(9, "cuda", 3, seconds=1.0), tmp_path) as rendering:
        rendering.wait()
    assert Clips(tmp_path / "band", 32000).mix.shape == (3, 32000)


def test_a_failed_rendering_is_reported_and_an_unneeded_one_not_begun(tmp_path):
    rendering = nano.Rendering(GPU, tmp_path)
    rendering.command = [sys.executable, "-c", "raise SystemExit(3)"]
    with rendering, pytest.raises(RuntimeError, match="rendering failed"):
        rendering.wait()
    with nano.Rendering(CPU, tmp_path) as unneeded:
        assert unneeded.process is None
        unneeded.wait()


def test_finished_steps_are_not_repeated_and_another_recipe_is_refused(tmp_path):
    calls = []
    progress = Progress(tmp_path, CPU)
    progress.begin("data")
    progress.run("data", "train data", lambda: calls.append(1))
    Progress(tmp_path, CPU).run("data", "train data", lambda: calls.append(2))
    assert calls == [1]
    with pytest.raises(ValueError, match="give the same options"):
        Progress(tmp_path, GPU)


def test_later_stages_make_up_for_lost_time_and_keep_their_minutes(tmp_path):
    progress = Progress(tmp_path, CPU)
    planned = progress.begin("codec")
    progress.done["a slow step"] = 300 * 60
    assert progress.begin("codec") == planned
    assert progress.begin("lm") == pytest.approx(300 * 0.25 / 0.38)
    assert Progress(tmp_path, CPU).begin("lm") == progress.begin("lm")
    progress.done["another"] = 10**6
    assert progress.begin("reinforce") > 0


def test_an_interrupted_run_is_not_finished(tmp_path):
    progress = Progress(tmp_path, CPU)
    settings = codec_run(steps=None, minutes=progress.begin("codec"))

    def interrupted() -> None:
        learner = CodecLearner(settings, clips(), clips())
        loop.claim(tmp_path / "codec", settings)
        loop.Loop(settings, tmp_path / "codec", learner, 1e-3).save()

    with pytest.raises(KeyboardInterrupt):
        progress.run("codec", "train codec", interrupted)
    assert json.loads((tmp_path / "nano.json").read_text(encoding="utf-8"))["done"] == {}


def test_parts_join_to_what_was_split(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(range(256)) * 40)
    parts = pack.split([tmp_path / "model"], tmp_path, tmp_path / "parts", size=5000)
    assert len(parts) > 2
    assert {part.stat().st_size <= 5000 for part in parts} == {True}
    (tmp_path / "joined.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(tmp_path / "joined.tar") as archive:
        assert archive.extractfile("model/weights").read() == bytes(range(256)) * 40


def test_pack_holds_soundfont_wheels_and_script(tmp_path, soundfont, monkeypatch, capsys):
    asked = []

    def download(command, **_):
        asked.extend(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setattr(pack.metadata, "version", lambda name: "1.0")
    pack.write(tmp_path)
    assert (tmp_path / soundfont.name).stat().st_size == soundfont.stat().st_size
    assert "tinysoundfont==1.0" in asked
    assert "MGKIT_SOUNDFONTS" in (tmp_path / "run.sh").read_text(encoding="utf-8")
    assert "MiB" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_recipe_makes_a_model_that_generates(tmp_path, soundfont):
    from mgkit import MusicGen

    threads = torch.get_num_threads()
    try:
        nano.main([f"--out={tmp_path}", "--budget=0.2", "--seconds=2", f"--parts={tmp_path / 'parts'}"])
    finally:
        torch.set_num_threads(threads)
    model = MusicGen.get_pretrained(str(tmp_path / "model"))
    model.set_generation_params(duration=1)
    wave = model.generate(["calm piano"], seed=0)
    assert wave.shape == (1, 1, 32000)
    assert wave.isfinite().all()
    assert (tmp_path / "parts" / "nano.tar.00").is_file()
    finished = (tmp_path / "nano.json").read_text(encoding="utf-8")
    assert len(json.loads(finished)["done"]) == 9
    nano.follow(Recipe(0.2, best_device().type, os.cpu_count(), 2.0), tmp_path)
    assert (tmp_path / "nano.json").read_text(encoding="utf-8") == finished
