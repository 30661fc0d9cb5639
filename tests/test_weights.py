"""Loading and saving: round trips between layouts, strictness, memory, precision, licences and names."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import soundfile
import torch
from golden import filling
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import RATE, noise, oracle_run, tiny, tune
from torch import Tensor
from transformers import (
    EncodecModel,
    MusicgenForConditionalGeneration,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedModel,
)

import mgkit
from mgkit import MusicGen, audio, hub
from mgkit.lm import LMConfig

Save = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Folder of a tiny model, "text" or "melody", as mgkit saves it; read-only."""

    @cache
    def save(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        tiny(melody=kind == "melody").save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def audiocraft(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Folder of a tiny model of a kind in `filling.KINDS`, as audiocraft exports it; read-only."""
    return cache(lambda kind: filling.audiocraft_folder(tmp_path_factory.mktemp(kind), kind))


def load(folder: Path, **more: object) -> MusicGen:
    return MusicGen.get_pretrained(str(folder), "cpu", **more)


def oracle_of(folder: Path, melody: bool) -> PreTrainedModel:
    """The model in transformers, which must find every tensor it expects and no others."""
    kind = MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration
    oracle, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return oracle.eval()


def tensors(model: MusicGen) -> dict[str, Tensor]:
    """Every tensor of the model by name."""
    return {
        f"{part}.{name}": parameter
        for part in ("codec", "lm", "conditioner")
        for name, parameter in getattr(model, part).named_parameters()
    }


def difference(ours: MusicGen, theirs: MusicGen) -> float:
    """Largest difference between corresponding tensors, relative to the largest value of each."""
    there = tensors(theirs)
    assert tensors(ours).keys() == there.keys()
    return max(float((p - there[name]).abs().max() / p.abs().max()) for name, p in tensors(ours).items())


def copied(folder: Path, to: Path) -> Path:
    """A writable copy of the folder."""
    to.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.is_file():
            (to / file.name).write_bytes(file.read_bytes())
    return to


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The folder, with `change` applied to the tensors in its safetensors file."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


# --- round trips ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", filling.KINDS)
def test_audiocraft_to_mgkit_to_hugging_face_gives_the_same_tokens(
    kind: str, audiocraft: Save, tmp_path: Path
) -> None:
    first = load(audiocraft(kind))
    first.conditioner.text_proj.weight.mul_(0.2)  # a louder text would hide differences in the melody
    first.save_pretrained(tmp_path)
    second, melody = load(tmp_path), kind.endswith("melody")
    assert difference(first, second) < 1e-6  # weight norm is split and folded again
    assert (first.max_duration, first.audio_channels) == (second.max_duration, second.audio_channels)
    assert first.codec.config == second.codec.config and first.lm.config == second.lm.config

    texts, results = ["calm piano", "sad guitar"], []
    for model in (first, second):
        model.set_generation_params(use_sampling=False, duration=104 / 50)
        if melody:
            results.append(model.generate_with_chroma(texts, tune(3), RATE, return_tokens=True))
        else:
            results.append(model.generate(texts, return_tokens=True))
    ids, mask = second.conditioner.text.tokens(texts)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "guidance_scale": 3.0}
    if melody:
        from transformers import MusicgenMelodyFeatureExtractor

        extractor = MusicgenMelodyFeatureExtractor.from_pretrained(tmp_path)
        features = extractor(tune(3)[None].expand(2, -1, -1), sampling_rate=RATE, return_tensors="pt")
        inputs |= {"input_features": features.input_features}
    wave, tokens = oracle_run(oracle_of(tmp_path, melody), 104, **inputs)
    assert len(tokens.unique()) > 8
    for ours in results:
        assert torch.equal(ours[1], tokens)
        assert (ours[0] - wave).abs().max() < 1e-5


def test_hugging_face_to_mgkit_to_hugging_face_changes_nothing(saved: Save, tmp_path: Path) -> None:
    load(saved("melody")).save_pretrained(tmp_path)
    first, second = (load_file(folder / "model.safetensors") for folder in (saved("melody"), tmp_path))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], rtol=1e-6)
    for file in ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"):
        assert json.loads((saved("melody") / file).read_text(encoding="utf-8")) == json.loads(
            (tmp_path / file).read_text(encoding="utf-8")
        )


def test_a_model_saved_in_half_precision_loads_in_mgkit_and_transformers(saved: Save, tmp_path: Path) -> None:
    whole = load(saved("text"))
    whole.save_pretrained(tmp_path, torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    half = load(tmp_path)
    assert {parameter.dtype for parameter in tensors(half).values()} == {torch.float32}
    assert 1e-6 < difference(whole, half) < 2e-3
    half.set_generation_params(use_sampling=False, duration=104 / 50)
    ids, mask = half.conditioner.text.tokens(["calm piano"])
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "guidance_scale": 3.0}
    tokens = half.generate(["calm piano"], return_tokens=True)[1]
    assert torch.equal(tokens, oracle_run(oracle_of(tmp_path, melody=False), 104, **inputs)[1])


def test_audiocraft_files_in_half_precision_load(audiocraft: Save, tmp_path: Path) -> None:
    """The published files are in half precision."""
    half = load(filling.audiocraft_folder(tmp_path, "melody", half=True))
    assert {parameter.dtype for parameter in tensors(half).values()} == {torch.float32}
    whole = load(audiocraft("melody"))
    ours, theirs = tensors(half), tensors(whole)
    for name in ours:
        if "text.t5" not in name:
            assert (ours[name] - theirs[name]).abs().max() <= 1e-3 * theirs[name].abs().max()


def test_a_reference_to_a_published_codec_is_followed(
    audiocraft: Save, saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, codec_folder = oracle_of(saved("text"), melody=False), tmp_path / "encodec"
    oracle.audio_encoder.save_pretrained(codec_folder)
    asked, find = [], hub.find
    monkeypatch.setattr(
        hub,
        "find",
        lambda name: (
            asked.append(name) or (codec_folder if "/" in name and not Path(name).is_dir() else find(name))
        ),
    )
    model = load(filling.audiocraft_folder(tmp_path / "model", "small", pointer=True))
    assert "facebook/encodec_32khz" in asked
    wave = noise(2, 1, 9_000)
    with torch.no_grad():
        assert torch.equal(model.codec.encode(wave), load(saved("text")).codec.encode(wave))
        theirs = EncodecModel.from_pretrained(codec_folder).eval().encode(wave, bandwidth=1.0).audio_codes[0]
    assert torch.equal(model.codec.encode(wave), theirs)
    assert torch.equal(model.lm.heads[0].weight, load(audiocraft("small")).lm.heads[0].weight)


# --- variants of names and files --------------------------------------------------------------------------

OLD = ("weight_g", "weight_v")
NEW = ("parametrizations.weight.original0", "parametrizations.weight.original1")


def respelled(state: dict[str, Tensor], old: tuple[str, str], new: tuple[str, str]) -> dict[str, Tensor]:
    assert any(name.endswith(old) for name in state), f"nothing is spelled {old[0]}"
    for a, b in zip(old, new):
        state = {
            name.removesuffix(a) + b if name.endswith(a) else name: tensor for name, tensor in state.items()
        }
    return state


def test_weight_norm_in_the_hugging_face_layout_loads_under_its_older_names(
    saved: Save, tmp_path: Path
) -> None:
    folder = rewritten(copied(saved("text"), tmp_path), lambda state: respelled(state, NEW, OLD))
    assert difference(load(folder), load(saved("text"))) == 0


def test_weight_norm_in_audiocraft_layout_loads_under_its_newer_names(
    audiocraft: Save, tmp_path: Path
) -> None:
    folder = filling.audiocraft_folder(tmp_path, "small")
    file = folder / "compression_state_dict.bin"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["best_state"] = respelled(checkpoint["best_state"], OLD, NEW)
    torch.save(checkpoint, file)
    ours, theirs = tensors(load(folder)), tensors(load(audiocraft("small")))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "text.t5" not in name)


def test_sharded_weights_load(saved: Save, tmp_path: Path) -> None:
    oracle_of(saved("melody"), melody=True).save_pretrained(tmp_path, max_shard_size="400KB")
    for file in saved("melody").glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert difference(load(tmp_path), load(saved("melody"))) < 1e-6


def test_the_embedding_of_t5_loads_under_either_name(saved: Save, tmp_path: Path) -> None:
    """transformers writes one of them; published files have one or both."""
    shared, tied = "text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight"

    def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {tied if name == shared else name: tensor for name, tensor in state.items()}

    def both(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state | {tied: state[shared].clone()}

    for i, change in enumerate((other, both)):
        folder = rewritten(copied(saved("text"), tmp_path / str(i)), change)
        assert difference(load(folder), load(saved("text"))) == 0


# --- strictness -------------------------------------------------------------------------------------------

PARTS = (
    "decoder.model.decoder.layers.1.fc1.weight",
    "decoder.lm_heads.3.weight",
    "audio_encoder.encoder.layers.0.conv.bias",
    "audio_encoder.quantizer.layers.2.codebook.embed",
    "enc_to_dec_proj.bias",
    "text_encoder.encoder.final_layer_norm.weight",
)


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_tensor_is_named(name: str, saved: Save, tmp_path: Path) -> None:
    folder = rewritten(copied(saved("text"), tmp_path), lambda state: state.pop(name) is not None and state)
    with pytest.raises(ValueError, match=f"lacks the tensor '{name}'"):
        load(folder)


@pytest.mark.parametrize("name", PARTS)
def test_a_tensor_of_another_shape_is_named(name: str, saved: Save, tmp_path: Path) -> None:
    folder = rewritten(
        copied(saved("text"), tmp_path), lambda state: state | {name: state[name][:-1].clone()}
    )
    with pytest.raises(ValueError, match=f"'{name}' is .*; the config asks for"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["decoder.model.decoder.layers.2.fc1.weight", "decoder.lm_heads.4.weight", "extra"]
)
def test_an_unknown_tensor_is_named(name: str, saved: Save, tmp_path: Path) -> None:
    folder = rewritten(copied(saved("text"), tmp_path), lambda state: state | {name: torch.zeros(3)})
    with pytest.raises(ValueError, match=f"unknown to a MusicGen.*: '{name}'$"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("state_dict.bin", "transformer.layers.0.self_attn.in_proj_weight"),
        ("state_dict.bin", "condition_provider.conditioners.description.output_proj.bias"),
        ("state_dict.bin", "out_norm.weight"),
        ("compression_state_dict.bin", "encoder.model.0.conv.conv.bias"),
        ("compression_state_dict.bin", "decoder.model.1.lstm.weight_ih_l1"),
    ],
)
def test_a_missing_unknown_or_misshapen_tensor_of_audiocraft_is_named(
    file: str, name: str, tmp_path: Path
) -> None:
    folder = filling.audiocraft_folder(tmp_path, "small")
    checkpoint = torch.load(folder / file, weights_only=True)
    state, tensor = checkpoint["best_state"], checkpoint["best_state"].pop(name)
    for changed, message in (
        (state, f"lacks the tensor '{name}'"),
        (state | {name: tensor, "extra": torch.zeros(2)}, "unknown to a MusicGen.*: 'extra'$"),
        (state | {name: tensor[:-1].clone()}, f"'{name}' is .*; the config asks for"),
    ):
        torch.save({**checkpoint, "best_state": changed}, folder / file)
        with pytest.raises(ValueError, match=message):
            load(folder)


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("transformer_lm.num_heads", ("num_heads: 2", "heads: 2")),
        ("transformer_lm.num_heads", ("num_heads: 2", "num_heads: two")),
        ("heads", ("num_heads: 2", "num_heads: 0")),
        ("dataset.segment_duration", ("segment_duration: 30", "segment_duration: long")),
        ("conditioners.description.t5.name", ("name: t5-base", "name: 5")),
    ],
)
def test_a_missing_or_invalid_setting_of_audiocraft_is_named(
    setting: str, change: tuple[str, str], tmp_path: Path
) -> None:
    file = filling.audiocraft_folder(tmp_path, "small") / "state_dict.bin"
    checkpoint = torch.load(file, weights_only=True)
    assert change[0] in checkpoint["xp.cfg"]
    torch.save({**checkpoint, "xp.cfg": checkpoint["xp.cfg"].replace(*change)}, file)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{setting}"):
        load(tmp_path)


# --- bugs, and broken libraries ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mgkit.model.LM", "mgkit.model.fill", "mgkit.formats.audiocraft_loader.delays"]
)
@pytest.mark.parametrize("error", [TypeError("a bug"), KeyError("a bug"), RuntimeError("a bug")])
def test_a_bug_in_mgkit_is_not_reported_as_a_damaged_file(
    name: str, error: Exception, audiocraft: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(name, fail)
    with pytest.raises(type(error)) as caught:
        load(audiocraft("small"))
    assert caught.value is error


LOAD_AND_SAVE = """
import sys
from mgkit import MusicGen
model = MusicGen.get_pretrained(sys.argv[1], "cpu")
model.save_pretrained(sys.argv[2])
assert "torchaudio" not in sys.modules
try:
    import torchaudio
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("error", ["OSError", "RuntimeError", "ImportError"])
def test_a_broken_torchaudio_does_not_break_loading_and_still_reports_itself(
    error: str, saved: Save, tmp_path: Path
) -> None:
    """transformers imports torchaudio with any model."""
    (tmp_path / "path" / "torchaudio").mkdir(parents=True)
    broken = f"raise {error}('libcudart.so.13: cannot open shared object file')\n"
    (tmp_path / "path" / "torchaudio" / "__init__.py").write_text(broken, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path / "path"), str(Path(mgkit.__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_SAVE, str(saved("text")), str(tmp_path / "again")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{error} libcudart.so.13: cannot open shared object file"
    assert difference(load(tmp_path / "again"), load(saved("text"))) < 1e-6


# --- memory, precision and device -------------------------------------------------------------------------

MEASURE = """
import resource, sys, threading, torch
from mgkit import MusicGen

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024

MusicGen.get_pretrained(sys.argv[1], "cpu")  # the first load also imports modules
before, most, done = anonymous(), 0, threading.Event()

def watch():
    global most
    while not done.wait(0.001):
        most = max(most, anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
model = MusicGen.get_pretrained(sys.argv[2], "cpu", getattr(torch, sys.argv[3]))
most = max(most, anonymous())
done.set()
watcher.join()
parts = (model.codec, model.lm, model.conditioner)
size = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
print((most - before) / size, size)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the memory of the process from Linux"
)
@pytest.mark.parametrize("layout", ["hugging face", "audiocraft"])
def test_loading_takes_little_more_memory_than_one_copy(layout: str, saved: Save, tmp_path: Path) -> None:
    """Anonymous memory only: the kernel drops the pages of a mapped file when memory is short."""
    model = tiny(melody=True)
    config = LMConfig(dim=768, layers=6, heads=12, feed_forward=3072, codebook_size=32, cross_attention=False)
    with torch.device("meta"):
        lm = type(model.lm)(config)
    model.model.lm = lm.to_empty(device="cpu").requires_grad_(False)
    for parameter in model.model.lm.parameters():
        parameter.fill_(0.5)
    if layout == "hugging face":
        conditioner = model.model.conditioner
        conditioner.text_proj = torch.nn.Linear(conditioner.text.dim, config.dim)
        conditioner.melody_proj = torch.nn.Linear(12, config.dim)
        model.save_pretrained(tmp_path)
    else:
        folder = filling.audiocraft_folder(tmp_path, "melody")
        checkpoint = torch.load(folder / "state_dict.bin", weights_only=True)
        checkpoint["best_state"] = with_audiocraft_names(lm, checkpoint["best_state"])
        for old, new in (
            ("num_heads: 2", "num_heads: 12"),
            ("num_layers: 2", "num_layers: 6"),
            ("dim: 128", "dim: 768"),
        ):
            checkpoint["xp.cfg"] = checkpoint["xp.cfg"].replace(old, new)
        torch.save(checkpoint, folder / "state_dict.bin")
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(saved("melody")), str(tmp_path), "float32"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    copies, size = (float(word) for word in ran.stdout.split())
    print(f"{copies:.2f} copies of {size / 1e6:.0f} MB")
    assert size > 170e6
    assert 0.9 < copies < 1.3


def with_audiocraft_names(lm: torch.nn.Module, small: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `lm` under audiocraft's names, with zeros for the projections in `small`."""
    state = {f"emb.{k}.weight": table.weight for k, table in enumerate(lm.embeddings)}
    state |= {f"linears.{k}.weight": head.weight for k, head in enumerate(lm.heads)}
    state |= {f"out_norm.{name}": parameter for name, parameter in lm.norm.named_parameters()}
    for i, layer in enumerate(lm.layers):
        attention, at = layer.attention, f"transformer.layers.{i}"
        joint = [getattr(attention, f"{one}_proj").weight for one in "qkv"]
        state[f"{at}.self_attn.in_proj_weight"] = torch.cat(joint)
        state[f"{at}.self_attn.out_proj.weight"] = attention.out_proj.weight
        for part, prefix in ((layer.norm1, "norm1."), (layer.norm2, "norm2."), (layer.feed_forward, "")):
            state |= {f"{at}.{prefix}{name}": parameter for name, parameter in part.named_parameters()}
    for name, tensor in small.items():
        if "output_proj" in name:
            state[name] = tensor.new_zeros(lm.config.dim, *tensor.shape[1:])
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_the_precision_of_the_language_model_alone(dtype: torch.dtype, saved: Save) -> None:
    model = load(saved("melody"), dtype=dtype)
    assert {parameter.dtype for parameter in model.lm.parameters()} == {dtype}
    others = [*model.codec.parameters(), *model.conditioner.parameters()]
    assert {parameter.dtype for parameter in others} == {torch.float32}
    model.set_generation_params(duration=0.2)
    wave, tokens = model.generate_with_chroma(["calm piano"], tune(1), RATE, return_tokens=True, seed=1)
    assert wave.dtype == torch.float32 and wave.isfinite().all()
    assert tokens.dtype == torch.long


def test_on_a_cpu_the_model_is_in_single_precision_without_gradients(saved: Save) -> None:
    model = load(saved("text"))
    for part in (model.codec, model.lm, model.conditioner):
        assert not part.training
        for parameter in part.parameters():
            assert parameter.dtype == torch.float32 and parameter.device.type == "cpu"
            assert not parameter.requires_grad


@pytest.mark.gpu
def test_on_a_gpu_the_model_is_in_half_precision_with_logits_near_the_cpu_ones(saved: Save) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    model, here = MusicGen.get_pretrained(str(saved("text")), "cuda"), load(saved("text"))
    assert {parameter.dtype for parameter in model.lm.parameters()} == {torch.float16}
    assert model.lm.device.type == "cuda"
    steps = torch.randint(33, (2, 4, 30))
    with torch.no_grad():
        theirs, ours = here.lm(steps), model.lm(steps.cuda()).cpu()
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()
    model.set_generation_params(duration=0.5)
    wave, tokens = model.generate(["calm piano", ""], return_tokens=True, seed=1)
    assert wave.shape == (2, 1, 16_000) and wave.isfinite().all()
    assert torch.equal(model.generate(["calm piano", ""], return_tokens=True, seed=1)[1], tokens)


# --- licences and names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["small", "stereo-melody", "facebook/musicgen-large", "facebook/audiogen-medium"]
)
def test_the_licence_of_facebook_weights_is_printed_and_written_to_files(
    name: str, saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(hub, "find", lambda asked: saved("text"))
    model = MusicGen.get_pretrained(name, "cpu")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert name in printed.err and "CC-BY-NC 4.0" in printed.err
    assert model.licence == hub.CC_BY_NC
    model.set_generation_params(duration=0.1)
    _, [manifest] = model.generate(["calm piano"], return_manifests=True)
    assert manifest["licence"] == hub.CC_BY_NC
    for ending in audio.FORMATS:
        path = audio.write(tmp_path / f"a{ending}", noise(1, RATE), RATE, manifest=manifest)
        assert "CC-BY-NC" in audio.read_manifest(path)["licence"]
        if ending in (".flac", ".ogg"):  # formats with a tag for the licence
            assert "CC-BY-NC" in soundfile.SoundFile(path).license
    model.save_pretrained(tmp_path / "again")
    with safe_open(tmp_path / "again" / "model.safetensors", "pt") as file:
        assert "CC-BY-NC" in file.metadata()["licence"]
    monkeypatch.undo()
    assert load(tmp_path / "again").licence == hub.CC_BY_NC  # also under another name


def test_the_licence_of_mgkit_weights_is_not_printed(saved: Save, capsys: pytest.CaptureFixture) -> None:
    assert load(saved("text")).licence == hub.MIT
    assert capsys.readouterr() == ("", "")


def test_an_unknown_licence_is_printed_as_unknown(
    saved: Save, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = rewritten(copied(saved("text"), tmp_path), lambda state: state)  # without the metadata
    assert load(folder).licence.startswith("unknown")
    assert "unknown" in capsys.readouterr().err


@pytest.mark.parametrize(("field", "licence"), [("cc-by-nc-4.0", hub.CC_BY_NC), ("mit", "mit")])
def test_the_licence_is_read_from_a_model_card(field: str, licence: str, saved: Save, tmp_path: Path) -> None:
    folder = rewritten(copied(saved("text"), tmp_path), lambda state: state)
    (folder / "README.md").write_text(
        f"---\ntags:\n- musicgen\nlicense: {field}\n---\n# A model\n", encoding="utf-8"
    )
    assert load(folder).licence == licence


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("small", "facebook/musicgen-small"),
        ("melody-large", "facebook/musicgen-melody-large"),
        ("stereo-medium", "facebook/musicgen-stereo-medium"),
        ("facebook/musicgen-small", "facebook/musicgen-small"),
        ("someone/their-model", "someone/their-model"),
    ],
)
def test_without_a_network_one_sentence_names_the_command(
    name: str, hub_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError) as raised:
        MusicGen.get_pretrained(name, "cpu")
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert f"python -m mgkit fetch {hub_id} --dest models/{hub_id.split('/')[1]}" in message
    assert raised.value.__suppress_context__  # no traceback of the earlier error


def test_the_nearest_name_is_suggested() -> None:
    for name, near in (
        ("smal", "small"),
        ("steroe-melody", "stereo-melody"),
        ("mediun", "medium"),
        ("nanno", "nano"),
    ):
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            hub.find(name)


def test_a_folder_comes_before_a_preset_of_the_same_name(
    saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(saved("text"), tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    assert hub.find("small") == Path("small")
    assert MusicGen.get_pretrained("small", "cpu").lm.config.dim == 128
