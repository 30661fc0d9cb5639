"""Folders of recordings are measured: each file, the set, and its distance to others."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import RATE, tokenizer, tune
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from mgkit import audio
from mgkit.evals import distances, embeddings, measure, metrics, recordings


@pytest.fixture(scope="module")
def clap(tmp_path_factory) -> Path:
    """A tiny CLAP with random weights, in the files of a published one."""
    return write_clap(tmp_path_factory.mktemp("clap"))


def write_clap(folder: Path, fused: bool = False) -> Path:
    words = tokenizer()
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sound = {"hidden_size": 32, "depths": [1, 1], "num_hidden_layers": 2, "num_attention_heads": [2, 2]}
    size = {"spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 16, "window_size": 4}
    fusion = {"enable_fusion": True, "fusion_type": "aff_2d"} if fused else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClapModel(
            ClapConfig(
                text_config={"vocab_size": len(words), "max_position_embeddings": 32, **text},
                audio_config={**sound, **size, **fusion},
                projection_dim=16,
            )
        )
    extractor = ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16000,
        hop_length=640,
        max_length_s=4,
        frequency_max=8000,
        truncation="fusion" if fused else "rand_trunc",
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=30
    )
    for part in (model.eval(), extractor, fast):
        part.save_pretrained(folder)
    return folder


NOTES = ((60, 64, 67), (62, 65, 69, 72), (57, 60, 64, 67), (55, 59, 62), (65, 69, 72), (64, 68, 71, 76))


def write_tunes(folder: Path, count: int = 6, suffix: str = ".wav", transposed: int = 0) -> Path:
    folder.mkdir()
    for i in range(count):
        notes = tuple(note + transposed for note in NOTES[i % len(NOTES)])
        audio.write(folder / f"{i}{suffix}", tune(4.0, notes), RATE)
    return folder


def values(measured: recordings.Measured) -> dict[str, float]:
    return {each.name: each.estimate.value for each in measured.measures}


# -- CLAP --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_clap_embeddings_are_those_of_transformers(tmp_path, fused):
    folder = write_clap(tmp_path, fused)
    network, model = embeddings.ClapEmbedding(str(folder)), ClapModel.from_pretrained(folder)
    wave = tune(4.0)[0].numpy()[::2]
    inputs = network.extractor(wave, sampling_rate=16000, return_tensors="pt")
    inputs["is_longer"] = torch.tensor([[False]])
    with torch.no_grad():
        expected = model.get_audio_features(**inputs).pooler_output.numpy()
        words = network.tokenizer(["calm piano", "fast drums and bass"], padding=True, return_tensors="pt")
        texts = model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output.numpy()
    assert np.allclose(network(wave, 16000), expected, atol=1e-5)
    assert np.allclose(network.texts(["calm piano", "fast drums and bass"]), texts, atol=1e-5)
    # a prompt does not depend on the others
    assert np.allclose(network.texts(["calm piano"]), texts[:1], atol=1e-5)


def test_clap_embeds_every_window_and_the_same_wave_alike(clap):
    network = embeddings.ClapEmbedding(str(clap))
    for seconds, windows in ((1.0, 1), (4.0, 1), (5.0, 1), (6.0, 2), (41.0, 10)):
        wave = tune(seconds)[0].numpy()
        rows = network(wave, RATE)
        assert rows.shape == (windows, 16)
        assert np.array_equal(rows, network(wave, RATE))
    assert "windows of 4 s" in network.name and str(clap) in network.name


def test_other_models_and_incomplete_clap_checkpoints_are_refused(tmp_path, clap):
    with pytest.raises(ValueError, match="nano holds a model of type musicgen_melody; give a CLAP"):
        embeddings.load("nano")
    folder = write_clap(tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "audio_projection" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 tensors, such as {lost}; download it again"):
        embeddings.load(str(folder))
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="is not a whole CLAP checkpoint of transformers"):
        embeddings.load(str(folder))


# -- a folder ----------------------------------------------------------------------------------------------


def test_a_folder_is_measured_file_by_file_and_as_a_set(tmp_path):
    folder = write_tunes(tmp_path / "mine")
    measured = recordings.measure(folder)
    assert [row["file"] for row in measured.files] == [f"{i}.wav" for i in range(6)]
    wave, rate = audio.read(folder / "2.wav")
    row = measured.files[2]
    assert row["seconds"] == 4 and row["loudness"] == pytest.approx(audio.loudness(wave, rate), abs=0.01)
    tonic, mode = metrics.key(wave[0].numpy(), rate)
    assert row["key"] == f"{recordings.NOTES[tonic]} {mode}"
    found = values(measured)
    assert found["length, s"] == 4 and -16 < found["loudness, LUFS"] < -12
    assert found["share in major"] == np.mean([row["key"].endswith("major") for row in measured.files])


def test_distances_to_a_reference_are_those_of_the_embeddings(tmp_path):
    mine, other = write_tunes(tmp_path / "mine"), write_tunes(tmp_path / "other", 4, ".flac", transposed=3)
    found = recordings.measure(mine, reference=other)
    network = embeddings.MusicnnEmbedding()
    own, others = (
        [network(audio.read(path)[0][0].numpy(), RATE) for path in sorted(folder.iterdir())]
        for folder in (mine, other)
    )
    expected = distances.frechet(own, others).value, distances.kernel_distance(own, others).value
    assert values(found)["Fréchet distance"] == pytest.approx(expected[0], rel=1e-3)
    assert values(found)["KAD (100 × MMD²)"] == pytest.approx(expected[1], rel=1e-3)
    for each in found.measures:
        assert each.embedding == (network.name if each.name.startswith(("Fréchet", "KAD")) else "")
    # four pairs of one name, transposed
    assert values(found)["cosine similarity of chroma"] < 0.7 and values(found)["same key"] == 0
    assert "reference" in found.files[3] and "reference" not in found.files[4]


def test_a_set_is_like_itself(tmp_path):
    mine = write_tunes(tmp_path / "mine")
    found = values(recordings.measure(mine, reference=mine, training=mine))
    assert found["Fréchet distance"] == pytest.approx(0, abs=1e-3)
    assert -40 < found["KAD (100 × MMD²)"] <= 0
    assert found["cosine similarity of chroma"] == pytest.approx(1, abs=1e-4) and found["same key"] == 1
    assert found["cosine similarity to the nearest training recording"] == pytest.approx(1)


def test_a_copy_of_a_training_recording_is_named(tmp_path):
    mine, training = write_tunes(tmp_path / "mine"), write_tunes(tmp_path / "training", 3, transposed=1)
    (training / "copied.wav").write_bytes((mine / "4.wav").read_bytes())
    rows = recordings.measure(mine, training=training).files
    assert rows[4]["nearest training recording"] == "copied.wav" and rows[4]["similarity"] == 1
    assert rows[0]["similarity"] < 1


def test_text_adherence_compares_each_prompt_with_its_recording(tmp_path, clap):
    mine = write_tunes(tmp_path / "mine")
    prompts = tmp_path / "prompts.csv"
    texts = ["calm piano", "fast drums", "sad strings", "loud bass"]
    lines = [f"{i}.wav,{text}" for i, text in enumerate(texts)]
    prompts.write_text("\n".join(["file,caption", *lines]), encoding="utf-8")
    found = recordings.measure(mine, prompts=prompts, networks=["musicnn", str(clap)])
    network = embeddings.ClapEmbedding(str(clap))
    clip = network(audio.read(mine / "1.wav")[0][0].numpy(), RATE)[0]
    column = f"text adherence, {network.name}"
    assert found.files[1][column] == pytest.approx(network.texts(texts)[1] @ clip, abs=1e-3)
    assert column not in found.files[5]
    names = [each.name for each in found.measures if each.embedding == network.name]
    assert names == ["text adherence (cosine)", "text adherence, shuffled prompts"]


def test_prompts_are_read_from_files_that_mgkit_wrote(tmp_path, clap):
    mine = write_tunes(tmp_path / "mine", 3)
    audio.write(mine / "1.wav", tune(4.0), RATE, manifest={"mgkit": 1, "text": "calm piano"})
    [adherence] = [
        each
        for each in recordings.measure(mine, networks=[str(clap)]).measures
        if each.name.startswith("text adherence")
    ]
    assert adherence.basis == "1 recordings with prompts"


def test_silence_has_no_key_and_no_loudness(tmp_path):
    mine = write_tunes(tmp_path / "mine", 2)
    audio.write(mine / "silent.wav", torch.zeros(2, 4 * RATE), RATE)
    rows = recordings.measure(mine).files
    assert rows[2]["loudness"] == -np.inf and rows[2]["tempo"] == 0 and rows[2]["key"] == ""


# -- command line ------------------------------------------------------------------------------------------


def test_the_command_writes_a_table_of_files_and_the_measures(tmp_path, capsys):
    mine, out = write_tunes(tmp_path / "mine", 3), tmp_path / "out"
    measure.main([str(mine), "--reference", str(mine), "--out", str(out)])
    with open(out / "recordings.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["0.wav", "1.wav", "2.wav"] and float(rows[0]["seconds"]) == 4
    records = json.loads((out / "measures.json").read_text(encoding="utf-8"))
    kad = next(record for record in records if record["measure"].startswith("KAD"))
    assert kad["embedding"] == "musicnn (MTT), windows of 3 s" and kad["low"] <= kad["value"] <= kad["high"]
    table = (out / "measures.md").read_text(encoding="utf-8")
    assert table.strip() in capsys.readouterr().out
    assert {line.count("|") for line in table.splitlines() if "|" in line} == {5}
    assert table.endswith("biased upwards: compare only values from as many windows.\n")


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--count", "4"], "is a folder of audio files, and --count is for a model; leave it out"),
        (["--reference", "nowhere"], "there is no folder 'nowhere'"),
        (["--prompts", "x.csv"], "text adherence is measured with CLAP: name a checkpoint"),
        (["--prompts", "x.csv", "--embedding", "nano"], "there is no file 'x.csv'; give a table"),
        (["--embedding", "nowhere/at/all"], "there is no folder 'nowhere/at/all'"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_sentence(tmp_path, options, sentence):
    mine = write_tunes(tmp_path / "mine", 1)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        measure.main([str(mine), "--out", str(tmp_path / "out"), *options])
    assert not list((tmp_path / "out").glob("*"))


def test_recordings_that_cannot_be_measured_are_named(tmp_path):
    mine = write_tunes(tmp_path / "mine", 1)
    audio.write(mine / "short.wav", tune(1.0), RATE)
    with pytest.raises(ValueError, match="short.wav: the clip lasts 1.00 s; musicnn needs .*; remove it"):
        recordings.measure(mine)
    (mine / "short.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="short.wav"):
        recordings.measure(mine)
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("file,caption\n9.wav,calm\n", encoding="utf-8")
    with pytest.raises(ValueError, match="names files that are not among the recordings: 9.wav"):
        recordings.measure(mine, prompts=prompts, networks=["a/clap"])
    with pytest.raises(ValueError, match="nano is a model, and --training is for a folder of audio files"):
        measure.main(["nano", "--training", str(mine)])
