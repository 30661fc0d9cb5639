"""Files that other programs wrote: torch's .bin, shards, checkpoints of a training, a cache of the hub."""

import copy
import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from golden import filling
from refusals import refusal
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgkit import MusicGen, hub
from mgkit.formats.readers import WeightsError

LM, CODEC = "state_dict.bin", "compression_state_dict.bin"


def load(folder: Path, **more: object) -> MusicGen:
    return MusicGen.get_pretrained(str(folder), "cpu", **more)


def weights(model: MusicGen) -> dict[str, Tensor]:
    return dict(model.model.named_parameters())


def same(ours: MusicGen, theirs: MusicGen) -> bool:
    there = weights(theirs)
    return weights(ours).keys() == there.keys() and all(
        torch.equal(tensor, there[name]) for name, tensor in weights(ours).items()
    )


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in audiocraft's layout; read-only."""
    return filling.audiocraft_folder(tmp_path_factory.mktemp("original"), "small")


@pytest.fixture
def audiocraft(original: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to change."""
    return shutil.copytree(original, tmp_path / "audiocraft")


# --- shapes, before any arithmetic --------------------------------------------------------------------------

GAIN = "audio_encoder.encoder.layers.0.conv.parametrizations.weight.original0"
DIRECTION = GAIN.replace("original0", "original1")
FC1 = "decoder.model.decoder.layers.0.fc1.weight"


@pytest.fixture
def no_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("weight norm was computed before all shapes were compared")

    monkeypatch.setattr(torch, "_weight_norm", fail)


@pytest.mark.parametrize("name", [GAIN, DIRECTION, FC1])
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (4,), (3, 1, 1), (4, 1, 2), (8, 1, 1), (4, 1, 7, 1), (1 << 16, 1, 1)], ids=str
)
def test_a_tensor_of_another_shape_never_reaches_arithmetic(
    name: str, shape: tuple[int, ...], folder: Path, no_arithmetic: None
) -> None:
    """torch's weight norm reads beyond the end of a gain that is too short."""
    save_file(state(folder) | {name: torch.ones(shape)}, folder / "model.safetensors")
    old = name.replace("parametrizations.weight.original0", "weight_g")
    old = old.replace("parametrizations.weight.original1", "weight_v")
    refusal(lambda: load(folder), f"{old!r} is {list(shape)}; the config asks for", kinds=WeightsError)


@pytest.mark.parametrize("name", [GAIN, DIRECTION])
def test_half_of_weight_norm_is_refused(name: str, folder: Path, no_arithmetic: None) -> None:
    tensors = state(folder)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    refusal(lambda: load(folder), "lacks the tensor", "encoder.layers.0.conv.weight", kinds=WeightsError)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.int8])
def test_integers_and_scaled_numbers_are_no_weights(dtype: torch.dtype, folder: Path) -> None:
    tensors = state(folder)
    save_file(tensors | {FC1: tensors[FC1].to(dtype)}, folder / "model.safetensors")
    refusal(lambda: load(folder), FC1, "floats")


@pytest.mark.parametrize(
    "name", ["encoder.model.0.conv.conv.weight_g", "decoder.model.3.convtr.convtr.weight_v"]
)
def test_weight_norm_of_another_shape_is_refused_in_audiocraft_s_layout(
    name: str, audiocraft: Path, no_arithmetic: None
) -> None:
    content = torch.load(audiocraft / CODEC, weights_only=True)
    assert name in content["best_state"]
    for tensor in (torch.ones(1), torch.ones(9, 9), content["best_state"][name].to_sparse()):
        changed = content["best_state"] | {name: tensor}
        torch.save(content | {"best_state": changed}, audiocraft / CODEC)
        refusal(lambda: load(audiocraft), name.split(".")[-1], kinds=WeightsError)


@pytest.mark.parametrize(
    "name",
    ["emb.0.weight", "transformer.layers.0.linear1.weight", "transformer.layers.0.self_attn.in_proj_weight"],
)
def test_a_tensor_of_audiocraft_with_other_axes_is_refused(name: str, audiocraft: Path) -> None:
    content = torch.load(audiocraft / LM, weights_only=True)
    for tensor in (torch.tensor(1.0), torch.ones(3), torch.ones(2, 2, 2)):
        torch.save(content | {"best_state": content["best_state"] | {name: tensor}}, audiocraft / LM)
        refusal(lambda: load(audiocraft), name, kinds=WeightsError)


def test_a_tensor_under_both_spellings_is_refused(folder: Path) -> None:
    tensors = state(folder)
    old = GAIN.replace("parametrizations.weight.original0", "weight_g")
    save_file(tensors | {old: tensors[GAIN] * 2}, folder / "model.safetensors")
    refusal(lambda: load(folder), "twice")


# --- torch's .bin and shards --------------------------------------------------------------------------------


def as_bin(folder: Path, **more: object) -> dict[str, Tensor]:
    """Rewrite the folder's weights as pytorch_model.bin."""
    tensors = state(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", **more)
    return tensors


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_model_bin_loads(zipped: bool, folder: Path, saved: Path) -> None:
    as_bin(folder, _use_new_zipfile_serialization=zipped)
    assert same(load(folder), load(saved / "text"))


def shards(folder: Path, ending: str, index: bool = True) -> list[str]:
    """Rewrite the folder's weights in three shards."""
    tensors = state(folder)
    (folder / "model.safetensors").unlink()
    stem, whole = (
        ("model", "model.safetensors") if ending == "safetensors" else ("pytorch_model", "pytorch_model.bin")
    )
    names, weight_map = [f"{stem}-{i:05}-of-00003.{ending}" for i in (1, 2, 3)], {}
    for i, file in enumerate(names):
        part = dict(list(tensors.items())[i::3])
        weight_map |= dict.fromkeys(part, file)
        save_file(part, folder / file) if ending == "safetensors" else torch.save(part, folder / file)
    if index:
        (folder / f"{whole}.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return names


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_shards_load_and_a_missing_one_is_named(ending: str, index: bool, folder: Path, saved: Path) -> None:
    names = shards(folder, ending, index)
    assert same(load(folder), load(saved / "text"))
    (folder / names[1]).unlink()
    refusal(lambda: load(folder), names[1], "missing", kinds=FileNotFoundError)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_stale_shard_beside_the_index_is_not_read(ending: str, folder: Path, saved: Path) -> None:
    names = shards(folder, ending)
    shutil.copy(folder / names[0], folder / names[0].replace("00003", "00009"))
    assert same(load(folder), load(saved / "text"))


def test_weights_of_two_models_in_one_folder_are_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    names = shards(folder, "safetensors")
    (folder / "model.safetensors").write_bytes(whole)
    refusal(lambda: load(folder), "delete the older")
    (folder / "model.safetensors.index.json").unlink()
    refusal(lambda: load(folder), "two files", names[0][:5])


@pytest.mark.parametrize("map", [None, {}, {"x": "../elsewhere.safetensors"}, {"x": "/etc/passwd"}, [1]])
def test_an_index_that_leaves_the_folder_is_refused(map: object, folder: Path) -> None:
    shards(folder, "safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": map}), encoding="utf-8")
    refusal(lambda: load(folder), "model.safetensors.index.json")


def test_an_adapter_is_named(folder: Path) -> None:
    adapter = folder.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "facebook/musicgen-small"}', encoding="utf-8"
    )
    save_file({"base_model.x.lora_A.weight": torch.zeros(2, 2)}, adapter / "adapter_model.safetensors")
    refusal(lambda: load(adapter), "adapter", "musicgen-small", "load_adapter")


# --- audiocraft's trainings ---------------------------------------------------------------------------------


def omegaconf(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Classes with the names of omegaconf's, whose pickles have the same form: attributes of a node."""
    classes = {}
    for module, names in (
        ("dictconfig", ["DictConfig"]),
        ("listconfig", ["ListConfig"]),
        ("nodes", ["AnyNode"]),
    ):
        made = ModuleType(f"omegaconf.{module}")
        for name in names:
            classes[name] = type(name, (), {"__module__": made.__name__})
            setattr(made, name, classes[name])
        monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
    return classes


def as_node(value: object, classes: dict[str, type]) -> object:
    if isinstance(value, dict):
        node = classes["DictConfig"]()
        node._content = {key: as_node(inner, classes) for key, inner in value.items()}
    elif isinstance(value, list):
        node = classes["ListConfig"]()
        node._content = [as_node(inner, classes) for inner in value]
    else:
        node = classes["AnyNode"]()
        node._val = value
    node._metadata, node._parent = {"ref_type": int, "object_type": dict}, None
    return node


def wrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as FSDP leaves them."""
    return {
        "_fsdp_wrapped_module." + name.replace("transformer.", "transformer._fsdp_wrapped_module."): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("kind", ["best", "fsdp", "ema", "last", "ddp", "best and ema"])
def test_a_checkpoint_of_a_training_loads_its_best_weights(
    kind: str, audiocraft: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(audiocraft / LM, weights_only=True)
    (audiocraft / LM).unlink()
    good, config = content["best_state"], yaml.safe_load(content["xp.cfg"])
    other = {name: tensor + 1 for name, tensor in good.items()}
    ema = {"state": defaultdict(dict, {"model": good}), "count": 3}
    states = {
        "best": {"best_state": {"model": good}, "model": other},
        "fsdp": {"fsdp_best_state": {"model": wrapped(good)}, "best_state": {"model": other}, "model": {}},
        "ema": {"best_state": {}, "ema": ema, "model": other},
        "last": {"best_state": {}, "fsdp_best_state": {}, "model": good},
        "ddp": {"model": {f"module._orig_mod.{name}": tensor for name, tensor in good.items()}},
        "best and ema": {"best_state": {"model": good}, "ema": {"state": {"model": other}, "count": 1}},
    }
    node = as_node(config, omegaconf(monkeypatch))
    training = {
        "xp.cfg": node,
        "xp.sig": "a1b2",
        "history": [{"train": {"ce": 3.0}}],
        "optimizer": {"state": {}},
    }
    torch.save(training | states[kind], audiocraft / "checkpoint.th")
    monkeypatch.undo()
    assert same(load(audiocraft), load(original))


@pytest.mark.parametrize(
    "others, taken",
    [
        (["checkpoint_best.th"], "checkpoint_best.th"),
        (["checkpoint_9.th", "checkpoint_10.th"], "checkpoint_10.th"),
        (["checkpoint_best.th", "checkpoint_10.th"], "checkpoint_best.th"),
        (["checkpoint.th", "checkpoint_best.th"], "checkpoint.th"),
    ],
)
def test_other_checkpoints_of_a_training_are_found(
    others: list[str], taken: str, audiocraft: Path, original: Path
) -> None:
    content = torch.load(audiocraft / LM, weights_only=True)
    (audiocraft / LM).unlink()
    for name in others:
        shift = 0 if name == taken else 1
        state = {key: tensor + shift for key, tensor in content["best_state"].items()}
        torch.save({"best_state": {"model": state}, "xp.cfg": content["xp.cfg"]}, audiocraft / name)
    assert same(load(audiocraft), load(original))
    assert hub._has_weights(audiocraft)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_memory_counts_the_values_of_bin_files_whatever_their_type(
    dtype: torch.dtype, folder: Path, original: Path
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in state(folder).items()}
    expected = hub.memory(str(folder))
    torch.save(tensors, folder / "pytorch_model.bin")
    assert hub.memory(str(folder)) == expected, "the same weights in two forms count once"
    (folder / "model.safetensors").unlink()
    assert hub.memory(str(folder)) == expected
    exported = torch.load(original / LM, weights_only=True)["best_state"]
    values = sum(tensor.numel() for tensor in exported.values())
    (folder / "pytorch_model.bin").unlink()
    torch.save({"best_state": exported | {"tied": next(iter(exported.values()))}}, folder / LM)
    assert hub.memory(str(folder)) == 4 * values


def test_memory_of_a_damaged_bin_file_is_estimated_from_its_size(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(996))
    assert hub.memory(str(folder)) == 1000


# --- normalized prompts -------------------------------------------------------------------------------------


@dataclass
class Word:
    """A word as spaCy returns it."""

    text: str

    @property
    def is_stop(self) -> bool:
        return self.text.lower() in ("the", "a", "with")

    @property
    def lemma_(self) -> str:
        return self.text.lower().removesuffix("s")


def pipeline(text: str) -> list[Word]:
    return [Word(part) for part in re.findall(r"\w+|[^\w\s]", text)]


def load_pipeline(name: str) -> Callable[[str], list[Word]]:
    assert name == "en_core_web_sm"
    return pipeline


def number_in_words(number: int) -> str:
    return f"number{number}"


def normalizing(audiocraft: Path) -> Path:
    """The folder, of a model trained with `normalize_text`."""
    content = torch.load(audiocraft / LM, weights_only=True)
    config = yaml.safe_load(content["xp.cfg"])
    config["conditioners"]["description"]["t5"]["normalize_text"] = True
    torch.save(content | {"xp.cfg": yaml.safe_dump(config)}, audiocraft / LM)
    return audiocraft


def test_prompts_are_normalized_if_the_model_was_trained_so(
    audiocraft: Path, original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load_pipeline))
    monkeypatch.setitem(sys.modules, "num2words", SimpleNamespace(num2words=number_in_words))
    text, rewritten = "The calm pianos, with 2 drums: slow!", "calm piano number2 drum slow"
    ours, plain = load(normalizing(audiocraft)), load(original)
    assert ours.conditioner.text.normalizer(text) == rewritten
    ours.save_pretrained(str(audiocraft.parent / "again"))
    assert "transformers does not know" in capsys.readouterr().err
    for model in (ours, load(audiocraft.parent / "again"), copy.deepcopy(ours)):
        made = model.conditioner.encode([text, "the", ""])
        expected = plain.conditioner.encode([rewritten, "", ""])
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize("missing", ["spacy", "num2words", "model"])
def test_a_model_that_normalizes_prompts_names_what_it_takes(
    missing: str, audiocraft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise OSError(f"[E050] Can't find model {name!r}.\nIt doesn't seem to be a package.")

    modules = {
        "spacy": SimpleNamespace(load=absent if missing == "model" else load_pipeline),
        "num2words": SimpleNamespace(num2words=number_in_words),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, None if name == missing else module)
    words = ("normalize_text is True", "pip install spacy num2words", "spacy download en_core_web_sm")
    refusal(lambda: load(normalizing(audiocraft)), *words, kinds=ImportError)


# --- FSDP and a missing codec -------------------------------------------------------------------------------


def test_a_shard_of_fsdp_is_named(audiocraft: Path) -> None:
    content = torch.load(audiocraft / LM, weights_only=True)
    (audiocraft / LM).unlink()
    flat = {"model": {"_fsdp_wrapped_module._flat_param": torch.zeros(9)}}
    torch.save(flat | {"xp.cfg": content["xp.cfg"]}, audiocraft / "checkpoint.th")
    refusal(lambda: load(audiocraft), "FSDP", "export_lm")


def test_a_checkpoint_without_a_codec_takes_the_published_one(
    audiocraft: Path, original: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (audiocraft / LM).rename(audiocraft / "checkpoint.th")
    (audiocraft / CODEC).unlink()
    refusal(lambda: load(audiocraft), "facebook/encodec_32khz", "fetch", kinds=FileNotFoundError)
    codec = {
        n.removeprefix("audio_encoder."): t for n, t in state(saved / "text").items() if "audio_encoder" in n
    }
    published = audiocraft.parent / "encodec"
    published.mkdir()
    save_file(codec, published / "model.safetensors")
    config = json.loads((saved / "text/config.json").read_text(encoding="utf-8"))["audio_encoder"]
    (published / "config.json").write_text(json.dumps(config), encoding="utf-8")
    find = hub.find
    monkeypatch.setattr(
        hub, "find", lambda name: published if name == "facebook/encodec_32khz" else find(name)
    )
    model = load(audiocraft)
    assert torch.equal(model.lm.heads[0].weight, load(original).lm.heads[0].weight)
    assert torch.equal(model.codec.quantizer.codebooks[0], load(saved / "text").codec.quantizer.codebooks[0])


def test_state_dict_bin_alone_names_the_missing_file(audiocraft: Path) -> None:
    (audiocraft / CODEC).unlink()
    shutil.rmtree(audiocraft / "t5-base")
    refusal(lambda: load(audiocraft), CODEC, "missing", kinds=FileNotFoundError)


def test_the_codec_alone_names_the_missing_file(audiocraft: Path) -> None:
    (audiocraft / LM).unlink()
    refusal(lambda: load(audiocraft), LM, kinds=FileNotFoundError)


# --- the state dict of a language model ---------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bare", "of a wrapper", "in a section", "half", "old", "safetensors"])
def test_the_state_dict_of_audiocraft_s_language_model_replaces_the_weights(
    form: str, audiocraft: Path, original: Path, tmp_path: Path
) -> None:
    tuned = {name: tensor + 0.25 for name, tensor in torch.load(original / LM)["best_state"].items()}
    file = tmp_path / ("lm.safetensors" if form == "safetensors" else "lm_final.pt")
    if form == "safetensors":
        save_file(tuned, file)
    elif form == "of a wrapper":
        torch.save({f"module.{name}": tensor for name, tensor in tuned.items()}, file)
    elif form == "in a section":
        torch.save({"state_dict": tuned, "epoch": 3}, file)
    elif form == "half":
        torch.save({name: tensor.half() for name, tensor in tuned.items()}, file)
    else:
        torch.save(tuned, file, _use_new_zipfile_serialization=form != "old")
    ours, before = load(original, lm=file), load(original)
    assert ours.lm.dtype == torch.float32
    for name, tensor in weights(ours).items():
        change = 0.25 if name.startswith(("lm.", "conditioner.text_proj")) else 0
        assert torch.allclose(tensor, weights(before)[name] + change, atol=2e-3), name


def test_the_state_dict_of_mgkit_s_language_model_replaces_the_weights(folder: Path, tmp_path: Path) -> None:
    before = load(folder)
    torch.save({name: tensor + 1 for name, tensor in before.lm.state_dict().items()}, tmp_path / "lm.pt")
    ours = load(folder, lm=tmp_path / "lm.pt")
    for name, tensor in weights(ours).items():
        assert torch.equal(tensor, weights(before)[name] + (1 if name.startswith("lm.") else 0)), name


@pytest.mark.parametrize("content", ["another size", "another model", "nothing", "a list", "no file"])
def test_another_file_is_no_language_model(content: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "lm.pt"
    tensors = {name: tensor[:1] for name, tensor in load(folder).lm.state_dict().items()}
    values = {
        "another size": tensors,
        "another model": {"bert.x": torch.zeros(1)},
        "nothing": {},
        "a list": [1],
    }
    if content in values:
        torch.save(values[content], file)
    refusal(lambda: load(folder, lm=file), "lm.pt", kinds=(WeightsError, FileNotFoundError))


def test_a_bare_state_dict_in_place_of_a_checkpoint_says_how_to_load_it(audiocraft: Path) -> None:
    torch.save(torch.load(audiocraft / LM)["best_state"], audiocraft / LM)
    refusal(lambda: load(audiocraft), "get_pretrained('small', lm=")


# --- caches and encodings -----------------------------------------------------------------------------------


@pytest.fixture
def cache(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with `owner/name`, filled by another tool."""
    from huggingface_hub import constants

    root, revision = tmp_path / "hub", "0" * 40
    model = root / "models--owner--name"
    shutil.copytree(saved / "text", model / "snapshots" / revision)
    (model / "refs").mkdir()
    (model / "refs/main").write_text(revision, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return root


def list_files(cache: Path, *absent: str) -> None:
    """Store the listing of the repository, with the `absent` files in it."""
    tree = pytest.importorskip("huggingface_hub._tree_cache", reason="needs huggingface_hub 1.22 or later")
    model = cache / "models--owner--name"
    names = [*(file.name for file in (model / "snapshots" / ("0" * 40)).iterdir()), *absent]
    tree.write_tree_cache(str(model), "0" * 40, {name: tree.TreeCacheEntry(1, "a") for name in names})


@pytest.mark.parametrize("absent", [[], ["README.md"], ["extra.json", "README.md"]])
def test_an_incomplete_cache_serves_if_the_model_is_there(
    absent: list[str], cache: Path, saved: Path
) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError

    list_files(cache, *absent)
    if absent:
        with pytest.raises(IncompleteSnapshotError):
            snapshot_download("owner/name", allow_patterns=["*.json", "README.md"])
    assert same(load("owner/name"), load(saved / "text"))


def test_a_cache_without_weights_names_the_command(cache: Path) -> None:
    (cache / "models--owner--name/snapshots" / ("0" * 40) / "model.safetensors").unlink()
    refusal(lambda: load("owner/name"), "python -m mgkit fetch owner/name", kinds=FileNotFoundError)


def test_a_folder_of_the_cache_loads(cache: Path, saved: Path) -> None:
    model = cache / "models--owner--name"
    assert same(load(model), load(saved / "text"))
    (model / "refs/main").unlink()
    assert same(load(model), load(saved / "text"))
    (model / "snapshots/1").mkdir()
    refusal(lambda: load(model), "2 versions")
    refusal(lambda: load(cache), "owner/name")
    refusal(lambda: load(cache.parent), "owner/name")


def test_a_download_folder_loads(folder: Path, saved: Path) -> None:
    """`hf download --local-dir` leaves its notes in .cache."""
    notes = folder / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    (notes / "model.safetensors.metadata").write_text("abc", encoding="utf-8")
    (notes / "model.safetensors.lock").touch()
    assert same(load(folder), load(saved / "text"))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_a_byte_order_mark_does_not_matter(name: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "melody", tmp_path / "model")
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    ours, theirs = load(folder), load(saved / "melody")
    assert same(ours, theirs)
    tokens = [model.conditioner.text.tokens(["calm piano"])[0] for model in (ours, theirs)]
    assert torch.equal(*tokens)


def test_a_sentencepiece_file_alone_names_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    monkeypatch.setattr("mgkit.formats.readers.find_spec", lambda name: None)
    sentence = refusal(lambda: load(folder), "spiece.model", "sentencepiece", "tokenizer.json")
    assert "tiktoken" not in sentence


def test_code_of_a_tokenizer_is_never_asked_for(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | {
        "auto_map": {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}
    }
    content["tokenizer_class"] = "EvilTokenizer"
    file.write_text(json.dumps(content), encoding="utf-8")
    ran = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    try:
        load(folder)
    except WeightsError as error:
        assert len(str(error).splitlines()) == 1
    assert not ran.exists()
