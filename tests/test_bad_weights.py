"""Damaged or foreign weights are refused in one clear sentence, and code in them never runs."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from golden import filling
from refusals import SECONDS, refusal

from mgkit import MusicGen


def load(folder):
    return MusicGen.get_pretrained(str(folder), device="cpu")


def edit(file, **changes):
    """Change values of a JSON file; `a__b` is the key b of a, and ... deletes a key."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for name, value in changes.items():
        *path, last = name.split("__")
        inner = content
        for key in path:
            inner = inner[key]
        inner[last] = value
        if value is ...:
            del inner[last]
    file.write_text(json.dumps(content), encoding="utf-8")


def test_a_valid_folder_loads_by_string_and_by_path(folder):
    for name in (str(folder), folder):
        model = MusicGen.get_pretrained(name)
        model.set_generation_params(duration=SECONDS)
        _, manifests = model.generate(["calm"], return_manifests=True)
        assert json.loads(json.dumps(manifests[0]))["model"] == str(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_safetensors_file_is_refused(folder, keep):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else keep])
    refusal(lambda: load(folder), "model.safetensors", "again")


@pytest.mark.parametrize("other", ["melody", "bert", "nothing", "garbage"])
def test_the_safetensors_of_another_model_are_refused(saved, folder, other):
    file = folder / "model.safetensors"
    if other == "melody":
        shutil.copy(saved / "melody" / file.name, file)
    elif other == "garbage":
        file.write_bytes(b"<html>not found</html>" * 999)
    else:
        safetensors.torch.save_file({"bert.x": torch.zeros(3)} if other == "bert" else {}, file)
    refusal(lambda: load(folder), str(folder))


def test_an_unexpected_tensor_is_refused_by_name(folder):
    safetensors.torch.save_file({"stowaway": torch.zeros(3)}, folder / "more.safetensors")
    refusal(lambda: load(folder), "stowaway")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"decoder__hidden_size": 64}, "128"),
        ({"decoder__hidden_size": "wide"}, "config"),
        ({"decoder__num_hidden_layers": 1}, "layers.1"),
        ({"decoder__num_hidden_layers": 3}, "layers.2"),
        ({"decoder__num_attention_heads": 3}, "heads"),
        ({"decoder__ffn_dim": 128}, "fc1"),
        ({"decoder__num_codebooks": 8}, "codebook"),
        ({"decoder__vocab_size": 64}, "embed_tokens"),
        ({"decoder__audio_channels": 2}, ""),
        ({"decoder__audio_channels": 3}, "channels"),
        ({"decoder": ...}, ""),
        ({"text_encoder__d_model": 32}, "48"),
        ({"text_encoder__num_layers": 1}, "block.1"),
        ({"text_encoder": None}, ""),
        ({"audio_encoder__codebook_size": 64}, "codebook"),
        ({"audio_encoder__upsampling_ratios": [8, 5, 4, 2]}, "audio_encoder"),
        ({"audio_encoder__sampling_rate": 0}, ""),
        ({"model_type": "musicgen_melody"}, ""),
    ],
)
def test_a_config_that_disagrees_with_its_weights_is_refused(folder, change, word):
    edit(folder / "config.json", **change)
    refusal(lambda: load(folder), word)


@pytest.mark.parametrize(
    "change",
    [
        {"audio_encoder__num_lstm_layers": 1},
        {"audio_encoder__use_causal_conv": True},
        {"audio_encoder__audio_channels": 2},
        {"audio_encoder__norm_type": "time_group_norm"},
        {"audio_encoder__model_type": "dac"},
    ],
)
def test_a_codec_of_another_architecture_is_refused(folder, change):
    edit(folder / "config.json", **change)
    refusal(lambda: load(folder), "codec", str(*change.values()))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", "null", "{}", '{"a": 1} x', '{"model_type": 5}', "\x00\x01"]
)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_broken_json_file_is_refused_or_does_not_matter(folder, name, content):
    (folder / name).write_text(content, encoding="utf-8")
    if name == "generation_config.json" and content in ("{}", '{"model_type": 5}'):
        # no required value was in it
        load(folder)
    else:
        refusal(lambda: load(folder), str(folder))


def test_an_invalid_window_length_is_refused(folder):
    for length in (-1, "long", [5]):
        edit(folder / "generation_config.json", max_length=length)
        refusal(lambda: load(folder), str(folder))


@pytest.mark.parametrize("kind", ["bert", "encodec", "t5", "llama", "no-such-type"])
def test_a_model_of_another_type_is_refused_by_type(folder, kind):
    edit(folder / "config.json", model_type=kind)
    refusal(lambda: load(folder), kind, "musicgen")


@pytest.mark.parametrize(
    "missing", [["config.json"], ["model.safetensors"], ["tokenizer.json", "tokenizer_config.json"]]
)
def test_an_incomplete_folder_is_refused(folder, missing):
    for name in missing:
        (folder / name).unlink()
    refusal(lambda: load(folder), str(folder), kinds=(ValueError, FileNotFoundError))


# --- audiocraft's layout ----------------------------------------------------------------------------------


class Payload:
    """A pickle that creates a file when loaded."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (Path.touch, (Path(self.file),))


def zipped(content, file):
    torch.save(content, file)


def legacy(content, file):
    torch.save(content, file, _use_new_zipfile_serialization=False)


def pickled(content, file):
    file.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [zipped, legacy, pickled])
@pytest.mark.parametrize("hidden", [False, True])
def test_code_in_a_bin_file_never_runs(tmp_path, write, hidden):
    ran = tmp_path / "ran"
    payload = Payload(ran)
    write(
        {"best_state": {"x": payload}, "xp.cfg": "a: 1"} if hidden else payload, tmp_path / "state_dict.bin"
    )
    sentence = refusal(lambda: load(tmp_path), "state_dict.bin")
    assert not ran.exists()
    assert "weights_only" not in sentence, "the message explains how to run the code after all"
    payload.__reduce__()[0](ran)
    assert ran.exists(), "the payload is harmless, so the test proves nothing"


@pytest.fixture
def audiocraft(tmp_path):
    """Folder with a minimal first file of audiocraft's layout."""
    torch.save({"best_state": {"x": torch.zeros(3)}, "xp.cfg": "a: 1"}, tmp_path / "state_dict.bin")
    return tmp_path


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_bin_file_is_refused(audiocraft, keep):
    file = audiocraft / "state_dict.bin"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else keep])
    refusal(lambda: load(audiocraft), "state_dict.bin")


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {},
        {"best_state": {}},
        {"best_state": [1], "xp.cfg": "a: 1"},
        {"best_state": {"x": 1}, "xp.cfg": None},
        {"best_state": {}, "xp.cfg": ""},
        {"best_state": {}, "xp.cfg": "- 1"},
        {"best_state": {}, "xp.cfg": "a: ["},
        {"best_state": {}, "xp.cfg": "a: 1"},
        {"best_state": {}, "xp.cfg": "!!python/object/apply:os.system ['true']"},
        {"best_state": {}, "xp.cfg": "conditioners: {description: {t5: {name: 5}}}"},
    ],
)
def test_a_bin_file_with_other_content_is_refused(audiocraft, content):
    torch.save(content, audiocraft / "state_dict.bin")
    refusal(lambda: load(audiocraft), str(audiocraft))


def test_a_text_encoder_with_other_weights_is_not_filled_with_random_numbers(saved, tmp_path, capfd):
    """transformers fills missing tensors with random numbers and prints a page of warnings."""
    filling.audiocraft_folder(tmp_path, "small")
    # the progress of writing the folder
    capfd.readouterr()
    shutil.rmtree(tmp_path / "t5-base")
    shutil.copytree(saved / "text", tmp_path / "t5-base")
    refusal(lambda: load(tmp_path), "t5-base", "'musicgen'", "expected t5")
    edit(tmp_path / "t5-base/config.json", **{"model_type": "t5", "d_model": 48})
    refusal(lambda: load(tmp_path), "t5-base", "lacks the tensor")
    assert len(capfd.readouterr().err.splitlines()) < 3


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("meldy", "'melody'"),
        ("melody-lrge", "'melody-large'"),
        ("Small", "'small'"),
        ("musicgen-small", "'small'"),
        ("stereo_medium", "'stereo-medium'"),
    ],
)
def test_an_unknown_name_suggests_the_nearest_known_one(name, nearest):
    refusal(lambda: MusicGen.get_pretrained(name), repr(name), nearest)


@pytest.mark.parametrize("name", ["", "   ", None, 5, b"nano", "xyzzy"])
def test_an_invalid_name_is_refused(name):
    refusal(lambda: MusicGen.get_pretrained(name), repr(name))


def test_a_file_in_place_of_a_folder_is_refused(folder):
    refusal(lambda: load(folder / "model.safetensors"), "model.safetensors", "folder")


def test_a_missing_folder_is_not_mistaken_for_a_hub_id(tmp_path):
    refusal(lambda: load(tmp_path / "nope"), "nope", "no folder", kinds=(ValueError, FileNotFoundError))


def test_an_empty_folder_is_refused_with_the_expected_files(tmp_path):
    refusal(lambda: load(tmp_path), "config.json", "state_dict.bin", kinds=FileNotFoundError)


@pytest.mark.parametrize("name", ["small", "facebook/musicgen-melody", "someone/something"])
def test_without_a_network_the_download_command_is_named(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    sentence = refusal(
        lambda: MusicGen.get_pretrained(name), "python -m mgkit fetch", kinds=FileNotFoundError
    )
    assert name.split("/")[-1] in sentence


def test_a_missing_device_is_refused(folder):
    kinds = (ValueError, RuntimeError, AssertionError)
    refusal(lambda: MusicGen.get_pretrained(str(folder), device="gpu"), "gpu", kinds=kinds)
    if not torch.cuda.is_available():
        refusal(lambda: MusicGen.get_pretrained(str(folder), device="cuda"), kinds=kinds)
