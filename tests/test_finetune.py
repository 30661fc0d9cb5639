"""Fine-tuning: folders are validated, every kind of model trains, and frozen parts stay as they were."""

import doctest
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny
from tiny import tune as melody_of

from mgkit import MusicGen, audio, hub
from mgkit.__main__ import main
from mgkit.train import finetune as tuning
from mgkit.train import folder as folders
from mgkit.train.finetune import TuneLearner, TuneRun, tune
from mgkit.train.folder import Example

KINDS = [(False, 1), (True, 1), (False, 2), (True, 2)]
each_kind = pytest.mark.parametrize(
    "melody, channels", KINDS, ids=["text", "melody", "stereo", "stereo melody"]
)
NOTES = ((60, 64, 67), (72, 71, 69, 67), (48, 55))


def recordings(folder: Path, seconds: float = 3.0, rate: int = 32000) -> Path:
    """A folder of three recordings with captions beside them."""
    folder.mkdir()
    for i, notes in enumerate(NOTES):
        soundfile.write(folder / f"{i}.wav", melody_of(seconds, notes)[0, :: 32000 // rate].numpy(), rate)
        (folder / f"{i}.txt").write_text(f"calm {('piano', 'flute', 'bass')[i]}\n", encoding="utf-8")
    return folder


def plan(folder: Path, model: str, **changed) -> TuneRun:
    settings = TuneRun(str(folder), model, steps=4, minutes=None, batch=2, seconds=1.0, lr=1e-3, bf16=False)
    return replace(settings, **changed)


# -- the folder --------------------------------------------------------------------------------------------


def test_captions_stand_beside_their_files_or_in_a_table(tmp_path):
    folder = recordings(tmp_path / "own")
    beside = folders.find(folder)
    assert [(s.file.name, s.caption) for s in beside][0] == ("0.wav", "calm piano")
    for file in folder.glob("*.txt"):
        file.unlink()
    rows = [(s.file.name, s.caption) for s in beside]
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f, "text": c}) + "\n" for f, c in rows),
        encoding="utf-8",
    )
    assert folders.find(folder) == beside
    (folder / "captions.csv").write_text(
        "file,caption\n" + "".join(f'{f},"{c}, alone"\n' for f, c in rows), encoding="utf-8"
    )
    assert [s.caption for s in folders.find(folder)] == [f"{s.caption}, alone" for s in beside]


def test_a_folder_without_captioned_recordings_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        folders.find(tmp_path / "nowhere")
    (tmp_path / "notes.md").write_text("no sound", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no audio files: put \.wav"):
        folders.find(tmp_path)
    folder = recordings(tmp_path / "own")
    (folder / "1.txt").unlink()
    (folder / "2.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"2 of 3 files .* have no caption: 1\.wav, 2\.wav; .* 1\.txt"):
        folders.find(folder)
    (folder / "captions.csv").write_text(
        "file,caption\n1.wav,a flute\n2.wav,a bass\n9.wav,nothing\n", encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"name files that do not exist: 9\.wav"):
        folders.find(folder)
    for wrong in ("name,words\n1.wav,a flute\n", "file\n1.wav\n"):
        (folder / "captions.csv").write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=r"captions\.csv needs a file and a caption in every line"):
            folders.find(folder)
    (folder / "captions.csv").unlink()
    for wrong in ("{not json\n", "[1]\n"):
        (folder / "metadata.jsonl").write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=r"metadata\.jsonl needs a file and a caption"):
            folders.find(folder)
    (folder / "0.txt").write_bytes(b"\xff\xfe\xfa")
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"0\.txt is not UTF-8 text"):
        folders.find(folder)


@pytest.mark.parametrize("extension", audio.READABLE)
def test_every_extension_that_is_read_is_found(tmp_path, extension):
    (tmp_path / f"a{extension.upper()}").write_bytes(b"")
    (tmp_path / "a.txt").write_text("calm piano", encoding="utf-8")
    [found] = folders.find(tmp_path)
    assert found.file.name == f"a{extension.upper()}"


def test_what_is_found_is_read(tmp_path):
    wave = melody_of(2.0)[0].numpy()
    kinds = {".aiff": "AIFF", ".au": "AU", ".caf": "CAF", ".w64": "W64", ".rf64": "RF64", ".oga": "OGG"}
    for extension, format in kinds.items():
        soundfile.write(tmp_path / f"a{extension}", wave, 32000, format=format)
    (tmp_path / "captions.csv").write_text(
        "file,caption\n" + "".join(f"a{extension},piano\n" for extension in kinds), encoding="utf-8"
    )
    found = folders.find(tmp_path)
    assert len(found) == len(kinds)
    assert all(folders.read(recording, 32000, 1)[0].shape == (1, 64000) for recording in found)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.full(64000, np.nan, np.float32), "contains NaN or infinity"),
        (np.zeros(8000, np.float32), "lasts 0.25 s; give at least 1 s"),
        (np.zeros((64000, 6), np.float32), "1 or 2 channels"),
        (None, "is not audio that can be read"),
    ],
    ids=["nan", "short", "six channels", "no audio"],
)
def test_a_bad_file_is_named_before_training_starts(tmp_path, wrong, message):
    folder, model = recordings(tmp_path / "own"), tiny()
    if wrong is None:
        (folder / "1.wav").write_text("words", encoding="utf-8")
    else:
        soundfile.write(folder / "1.wav", wrong, 32000, subtype="FLOAT")
    with pytest.raises(ValueError, match=message) as error:
        folders.tokenize(model, folders.find(folder), tmp_path / "tokens.safetensors")
    assert str(folder / "1.wav") in str(error.value)
    assert not (tmp_path / "tokens.safetensors").exists()


def test_other_rates_and_short_files_are_accepted_with_one_note_each(tmp_path, capsys):
    folder, model = recordings(tmp_path / "own"), tiny()
    soundfile.write(folder / "1.wav", melody_of(3.0)[0, ::2].numpy(), 16000)
    soundfile.write(folder / "2.wav", melody_of(12.0)[0, ::4].numpy(), 8000)
    examples = folders.tokenize(model, folders.find(folder), tmp_path / "tokens.safetensors")
    notes = capsys.readouterr().err
    assert notes.count("resampled files at 8000, 16000 Hz to the model's 32000 Hz") == 1
    assert notes.count("2 of 3 files are shorter than the model's window of 10 s") == 1
    assert [example.codes.shape[-1] for example in examples] == [150, 150, 600]


@each_kind
def test_recordings_become_tokens_of_the_models_codec_and_are_cached(tmp_path, melody, channels, monkeypatch):
    folder, model = recordings(tmp_path / "own"), tiny(melody, channels)
    found = folders.find(folder)
    examples = folders.tokenize(model, found, tmp_path / "tokens.safetensors")
    wave = folders.read(found[1], 32000, channels)[0]
    assert torch.equal(examples[1].codes.long(), model.codec.encode(wave[None])[0])
    assert examples[1].melody.max() < 12 and len(examples[1].melody) == 1 + wave.shape[-1] // 4096

    def never(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(folders, "encode", never)
    again = folders.tokenize(model, found, tmp_path / "tokens.safetensors")
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(examples, again, strict=True))
    (folder / "1.txt").write_text("loud drums", encoding="utf-8")
    with pytest.raises(AssertionError, match="encoded again"):
        folders.tokenize(model, folders.find(folder), tmp_path / "tokens.safetensors")


# -- the loss ----------------------------------------------------------------------------------------------


@each_kind
def test_padding_after_a_recording_changes_no_loss(melody, channels):
    model = tiny(melody, channels)
    learner = TuneLearner(TuneRun("", seconds=1.0, bf16=False), model, examples_of(model, (20, 90)), [])
    codes, pitch = learner.crops(learner.data, np.random.default_rng(0))
    assert codes.shape == (2, 4 * channels, 50) and (codes[0, :, 20:] == model.lm.config.special).all()
    yes = torch.tensor([True, True])
    both = learner.loss(learner.data, codes, pitch, yes, yes)
    # The first recording has 20 frames, and 3 more for the delay to run out.
    alone = [
        learner.loss([one], codes[i : i + 1, :, :length], pitch[i : i + 1], yes[:1], yes[:1])
        for i, (one, length) in enumerate(zip(learner.data, (23, 50), strict=True))
    ]
    assert torch.allclose(both, torch.stack(alone).mean(dim=0), atol=1e-5)


def examples_of(model: MusicGen, frames: tuple[int, ...]) -> list[Example]:
    rng = torch.Generator().manual_seed(0)
    books, size = model.lm.config.codebooks, model.lm.config.codebook_size
    return [
        Example(
            "calm piano",
            torch.randint(size, (books, n), generator=rng).short(),
            torch.randint(12, (1 + n * 5 // 32,), generator=rng).to(torch.int8),
        )
        for n in frames
    ]


def test_crops_carry_the_melody_that_sounds_in_them():
    model = tiny(melody=True)
    learner = TuneLearner(TuneRun("", seconds=1.0, bf16=False), model, examples_of(model, (400,)), [])
    [one], rng = learner.data, np.random.default_rng(0)
    starts = set()
    for _ in range(20):
        codes, pitch = learner.crops([one], rng)
        [start] = [s for s in range(11) if torch.equal(codes[0], one.codes[:, 32 * s : 32 * s + 50].long())]
        assert torch.equal(pitch[0, :10], one.melody.long()[5 * start : 5 * start + 10])
        starts.add(start)
    assert len(starts) > 3


# -- the run -----------------------------------------------------------------------------------------------


@each_kind
def test_any_model_learns_its_folder_and_keeps_codec_and_text_encoder(tmp_path, melody, channels):
    from transformers import MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration

    start = tiny(melody, channels, window=4.0)
    start.model.licence = hub.CC_BY_NC
    start.save_pretrained(str(tmp_path / "start"))
    folder = recordings(tmp_path / "own")
    tuned, before, after = tune(plan(folder, str(tmp_path / "start"), steps=12), tmp_path / "out")
    assert after["valid_text"] < before["valid_text"]
    card = (tmp_path / "out/model/README.md").read_text(encoding="utf-8")
    assert tuned.licence == hub.CC_BY_NC and "cc-by-nc-4.0" in card
    assert "Before and after" in (tmp_path / "out/index.html").read_text(encoding="utf-8")
    loader = MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration
    theirs = loader.from_pretrained(tmp_path / "out/model", dtype=torch.float32)
    assert torch.equal(theirs.decoder.lm_heads[0].weight, tuned.lm.heads[0].weight)
    for ours, former in ((tuned.codec, start.codec), (tuned.conditioner.text.t5, start.conditioner.text.t5)):
        for new, old in zip(ours.parameters(), former.parameters(), strict=True):
            # The result is stored in float16, and the codec's weight norm is folded.
            assert torch.allclose(new, old, rtol=2e-3, atol=1e-6)
    assert not torch.equal(tuned.lm.embeddings[0].weight, start.lm.embeddings[0].weight.half().float())
    assert not torch.equal(
        tuned.conditioner.text_proj.weight, start.conditioner.text_proj.weight.half().float()
    )


def test_only_the_chosen_layers_are_trained(tmp_path):
    start = tiny(layers=3)
    start.save_pretrained(str(tmp_path / "start"))
    tuned, _, _ = tune(
        plan(recordings(tmp_path / "own"), str(tmp_path / "start"), layers=1), tmp_path / "out"
    )
    changed = [
        not torch.equal(new.feed_forward.linear1.weight, old.feed_forward.linear1.weight.half().float())
        for new, old in zip(tuned.lm.layers, start.lm.layers, strict=True)
    ]
    assert changed == [False, False, True]
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"layers is {wrong}; this model has 3"):
            tuning.trainable_parameters(start, wrong)


def test_stopped_and_resumed_fine_tuning_ends_as_an_unbroken_one(tmp_path):
    tiny().save_pretrained(str(tmp_path / "start"))
    folder = recordings(tmp_path / "own")
    model, data = MusicGen.get_pretrained(str(tmp_path / "start")), None
    data = folders.tokenize(model, folders.find(folder), tmp_path / "tokens.safetensors")
    settings = plan(folder, str(tmp_path / "start"))

    def learner() -> TuneLearner:
        return TuneLearner(settings, MusicGen.get_pretrained(str(tmp_path / "start")), data, data)

    whole, first = learner(), learner()
    for step in range(4):
        whole.step(step, 1e-3)
    for step in range(2):
        first.step(step, 1e-3)
    second = learner()
    second.load_state_dict(first.state_dict())
    for step in range(2, 4):
        second.step(step, 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))
    assert whole.measure() == second.measure()


def test_a_folder_that_has_changed_is_another_run(tmp_path):
    tiny().save_pretrained(str(tmp_path / "start"))
    folder = recordings(tmp_path / "own")
    settings = plan(folder, str(tmp_path / "start"), steps=1)
    tune(settings, tmp_path / "out")
    (folder / "0.txt").write_text("loud drums", encoding="utf-8")
    with pytest.raises(ValueError, match="holds another run: recordings"):
        tune(settings, tmp_path / "out")


def test_held_out_examples_are_not_trained_on():
    model = tiny()
    few, many = examples_of(model, (100, 200)), examples_of(model, (60,) * 25)
    data, valid = tuning.split(few, 0)
    for whole, kept, held in zip(few, data, valid, strict=True):
        assert torch.equal(torch.cat([kept.codes, held.codes], dim=-1), whole.codes)
        assert torch.equal(torch.cat([kept.melody, held.melody]), whole.melody)
    data, valid = tuning.split(many, 0)
    assert len(valid) == 2 and {id(one) for one in data + valid} == {id(one) for one in many}
    assert len(data) == 23


def tune_command(folder: Path, *options: str) -> list[str]:
    """Arguments that fine-tune the model in `folder`/start on the recordings in `folder`/own."""
    return ["train", "tune", str(folder / "own"), "--model", str(folder / "start"), *options]


def test_command_line_tunes_and_reports_errors_in_one_line(tmp_path, capsys):
    tiny().save_pretrained(str(tmp_path / "start"))
    recordings(tmp_path / "own")
    out = str(tmp_path / "out")
    command = tune_command(tmp_path, "--out", out, "--seconds", "1")
    assert main([*command, "--steps", "2", "--batch", "1"]) == 0
    assert f"load it with  MusicGen.get_pretrained('{out}/model')" in capsys.readouterr().out
    assert main([*command, "--steps", "3", "--batch", "1"]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"mgkit: {out} holds another run: steps 2 (now 3)")
    )
    assert main(["train", "tune", str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err.startswith("mgkit: there is no folder")


def test_a_caption_too_long_for_the_text_encoder_is_refused(tmp_path):
    tiny().save_pretrained(str(tmp_path / "start"))
    folder = recordings(tmp_path / "own")
    (folder / "0.txt").write_text("calm piano " * 400, encoding="utf-8")
    with pytest.raises(ValueError, match="shorten it to at most 512"):
        tune(plan(folder, str(tmp_path / "start")), tmp_path / "out")


@pytest.mark.parametrize("module", [folders, tuning])
def test_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0
