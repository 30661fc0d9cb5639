"""LoRA adapters: exchanged with transformers and PEFT, mixed, merged, recorded and refused."""

import copy
import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copytree

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_finetune import examples_of, plan, recordings
from tiny import RATE, noise, oracle_run, tiny, tune
from torch import Tensor, nn
from transformers import (
    MusicgenForConditionalGeneration,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedModel,
)

from mgkit import MusicGen, audio
from mgkit.__main__ import main
from mgkit.manifest import fingerprint
from mgkit.train.finetune import TuneLearner, TuneRun
from mgkit.train.finetune import tune as fine_tune

TEXTS = ["calm piano", "happy guitar"]  # of one length: transformers does not mask padding of a prefix
FRAMES = 40
LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
# As in public scripts for MusicGen: projections, heads and embeddings too; and T5's attention.
EVERYTHING = [*LAYERS, "enc_to_dec_proj", "audio_enc_to_dec_proj", "lm_heads.0", "embed_tokens.1", "q", "v"]
Base = Callable[..., Path]
KINDS = {"text": (False, 1), "melody": (True, 1), "stereo": (False, 2)}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's page, whose samples take most of its time, has none."""
    monkeypatch.setattr("mgkit.train.finetune.sample", lambda *_: [])


def greedy(model: MusicGen) -> MusicGen:
    model.set_generation_params(use_sampling=False, duration=FRAMES / 50, cfg_coef=3.0)
    return model


def tokens(model: MusicGen, seed: int = 0) -> Tensor:
    return model.generate(TEXTS, return_tokens=True, seed=seed)[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Folder of a saved tiny model of this kind."""

    @cache
    def saved(kind: str = "text") -> Path:
        folder = tmp_path_factory.mktemp("base") / "base"
        tiny(*KINDS[kind]).save_pretrained(str(folder))
        return folder

    return saved


@pytest.fixture(scope="module")
def made(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the text model, not to be changed."""
    return foreign(base(), tmp_path_factory.mktemp("made") / "mine")


def transformers_model(folder: Path) -> PreTrainedModel:
    melody = "melody" in json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    loader = MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration
    return loader.from_pretrained(folder, dtype=torch.float32).eval()


def shuffled(model: nn.Module, seed: int = 1, size: float = 0.15) -> nn.Module:
    """The model with all LoRA matrices drawn at random, as if trained."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = size * torch.randn(parameter.shape, generator=draw)
    return model


def foreign(folder: Path, out: Path, seed: int = 1, **changed: object) -> Path:
    """An adapter that PEFT saved from transformers' model in `folder`."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LAYERS, **changed}
    shuffled(get_peft_model(transformers_model(folder), LoraConfig(**settings)), seed).save_pretrained(out)
    return out


def loaded(folder: Path, *adapters: Path | tuple[Path, float]) -> MusicGen:
    model = greedy(MusicGen.get_pretrained(str(folder)))
    for adapter in adapters:
        model.load_adapter(*(adapter if isinstance(adapter, tuple) else (adapter,)))
    return model


# --- both ways ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"target_modules": LAYERS},
        {"target_modules": EVERYTHING, "use_rslora": True},
        {"target_modules": LAYERS, "rank_pattern": {"fc1": 2, "layers.1.self_attn.q_proj": 3}},
        {"target_modules": LAYERS, "alpha_pattern": {"fc2": 32}, "layers_to_transform": [1]},
        {"target_modules": r".*self_attn\.(q|v)_proj"},
    ],
    ids=["layers", "everything", "ranks", "alphas", "expression"],
)
def test_adapters_trained_on_transformers_load_here(
    tmp_path: Path, base: Base, kind: str, changed: dict
) -> None:
    folder = base(kind)
    oracle = transformers_model(folder)
    adapted = shuffled(get_peft_model(oracle, LoraConfig(r=4, lora_alpha=8, **changed)))
    adapted.save_pretrained(tmp_path / "adapter")
    ours = loaded(folder, tmp_path / "adapter")
    inputs = ours.conditioner.text.tokenizer(TEXTS, return_tensors="pt", padding=True)
    theirs = oracle_run(oracle, FRAMES, guidance_scale=3.0, **inputs)
    wave, codes = ours.generate(TEXTS, return_tokens=True)
    assert torch.equal(codes, theirs[1])
    assert not torch.equal(codes, tokens(loaded(folder)))
    assert torch.allclose(wave, theirs[0], atol=1e-5)


@pytest.mark.parametrize("part", ["decoder", "decoder.model", "decoder.model.decoder"])
def test_an_adapter_of_a_part_of_transformers_model_loads(tmp_path: Path, base: Base, part: str) -> None:
    folder = base()
    whole = foreign(folder, tmp_path / "whole")
    adapted = get_peft_model(
        transformers_model(folder).get_submodule(part),
        LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS),
    )
    values = {
        name.replace(f"{part}.", "", 1): x
        for name, x in load_file(whole / "adapter_model.safetensors").items()
    }
    adapted.save_pretrained(tmp_path / "part")
    assert load_file(tmp_path / "part/adapter_model.safetensors").keys() == values.keys()
    save_file(values, tmp_path / "part/adapter_model.safetensors")
    assert torch.equal(tokens(loaded(folder, tmp_path / "part")), tokens(loaded(folder, whole)))


def test_an_adapter_that_peft_saved_from_our_model_loads(tmp_path: Path, base: Base) -> None:
    folder, model = base(), tiny()
    config = LoraConfig(r=4, target_modules=["q_proj", "linear1", "heads.2"])
    shuffled(get_peft_model(model.lm, config)).save_pretrained(tmp_path / "ours")
    assert torch.equal(tokens(loaded(folder, tmp_path / "ours")), tokens(greedy(model)))


def test_a_bin_file_loads_as_safetensors_do(tmp_path: Path, base: Base, made: Path) -> None:
    folder = base()
    adapter = Path(copytree(made, tmp_path / "adapter"))
    expected = tokens(loaded(folder, adapter))
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    assert torch.equal(tokens(loaded(folder, adapter)), expected)


@pytest.mark.parametrize("kind, layers", [("text", None), ("text", 1), ("melody", None), ("stereo", None)])
def test_our_adapters_load_in_transformers(tmp_path: Path, base: Base, kind: str, layers: int | None) -> None:
    folder = base(kind)
    run = plan(recordings(tmp_path / "own"), str(folder), lora=4, layers=layers, steps=6, lr=0.03)
    tuned, before, after = fine_tune(run, tmp_path / "out")
    assert after["valid_text"] < before["valid_text"]
    oracle = transformers_model(folder)
    PeftModel.from_pretrained(oracle, tmp_path / "out/adapter").eval()
    inputs = tuned.conditioner.text.tokenizer(TEXTS, return_tensors="pt", padding=True)
    ours = tokens(greedy(tuned))
    assert torch.equal(ours, oracle_run(oracle, FRAMES, guidance_scale=3.0, **inputs)[1])
    assert not torch.equal(ours, tokens(loaded(folder)))


# --- properties ---------------------------------------------------------------------------------------------


def test_strength_zero_and_new_matrices_change_no_token(tmp_path: Path, base: Base, kind: str) -> None:
    folder = base(kind)
    plain = tokens(loaded(folder))
    adapter = foreign(folder, tmp_path / "adapter")
    assert torch.equal(tokens(loaded(folder, (adapter, 0))), plain)
    removed = loaded(folder, adapter)
    assert not torch.equal(tokens(removed), plain)
    removed.load_adapter(adapter, 0)
    assert torch.equal(tokens(removed), plain)
    plain_type = type(loaded(folder).lm.layers[0].attention.q_proj)
    assert type(removed.lm.layers[0].attention.q_proj) is plain_type and removed.model.adapters == ()
    new = loaded(folder)
    TuneLearner(TuneRun("", lora=4, seconds=1.0, batch=2), new, [], [])
    assert torch.equal(tokens(new), plain)


def test_a_merged_model_is_an_ordinary_one_with_the_same_music(tmp_path: Path, base: Base, kind: str) -> None:
    folder = base(kind)
    one = foreign(folder, tmp_path / "one", target_modules=EVERYTHING)
    two = foreign(folder, tmp_path / "two", seed=2, r=2)
    model = loaded(folder)
    places = {name: p.data_ptr() for name, p in model.lm.named_parameters()}
    model.load_adapter(one, 0.5)
    model.load_adapter(two, -0.7)
    steps = torch.randint(32, (1, model.lm.config.codebooks, 9), generator=torch.Generator().manual_seed(0))
    expected, unmerged = tokens(model), model.lm(steps)
    model.merge()
    assert torch.equal(tokens(model), expected)
    assert torch.allclose(model.lm(steps), unmerged, atol=1e-4)
    # Fast steps rely on weights that are adjacent in memory.
    assert {name: p.data_ptr() for name, p in model.lm.named_parameters()} == places
    assert {type(module) for module in model.lm.modules()} == {type(m) for m in loaded(folder).lm.modules()}
    model.save_pretrained(str(tmp_path / "merged"))
    assert torch.equal(tokens(loaded(tmp_path / "merged")), expected)
    with pytest.raises(ValueError, match="merged into the model already"):
        model.load_adapter(one)
    with pytest.raises(ValueError, match="no adapters to merge"):
        model.merge()


def test_adapters_add_up_and_a_second_load_sets_the_strength(tmp_path: Path, base: Base) -> None:
    folder = base()
    one, two = (foreign(folder, tmp_path / str(i), seed=i) for i in (1, 2))
    steps = torch.randint(32, (1, 4, 9), generator=torch.Generator().manual_seed(0))

    def weights(*adapters: tuple[Path, float]) -> Tensor:
        model = loaded(folder, *adapters)
        if adapters:
            model.merge()
        return model.lm.layers[0].attention.q_proj.weight

    plain = weights()
    both = plain + 0.5 * (weights((one, 1.0)) - plain) + 2 * (weights((two, 1.0)) - plain)
    assert torch.allclose(weights((one, 0.5), (two, 2.0)), both, atol=1e-5)
    changed = loaded(folder, one, (two, 2.0), (one, 0.5))
    assert [adapter.strength for adapter in changed.model.adapters] == [0.5, 2.0]
    same = loaded(folder, (one, 0.5), (two, 2.0))
    assert torch.equal(changed.lm(steps), same.lm(steps))


def test_models_with_adapters_are_copied_and_pickled(tmp_path: Path, base: Base, made: Path) -> None:
    folder = base()
    model = loaded(folder, made)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(tokens(copied), tokens(model))
        copied.merge()
        assert torch.equal(tokens(copied), tokens(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
def test_adapters_work_on_a_model_in_fewer_bits(base: Base, made: Path, dtype: torch.dtype) -> None:
    model = MusicGen.get_pretrained(str(base()), dtype=dtype)
    steps = torch.randint(32, (1, 4, 9), generator=torch.Generator().manual_seed(0))
    plain = model.lm(steps)
    model.load_adapter(made, 0.5)
    adapted = model.lm(steps)
    model.merge()
    types = {name: type(p) for name, p in model.lm.named_parameters()}
    unadapted = MusicGen.get_pretrained(str(base()), dtype=dtype).lm
    assert types == {name: type(p) for name, p in unadapted.named_parameters()}
    change = (adapted - plain).norm()
    assert (model.lm(steps) - adapted).norm() < 0.4 * change
    assert (adapted - loaded(base(), (made, 0.5)).lm(steps)).norm() < 0.4 * change


def test_loading_an_adapter_draws_no_random_numbers(tmp_path: Path, base: Base, made: Path) -> None:
    folder = base()
    model = loaded(folder)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    model.load_adapter(made)
    assert torch.equal(torch.rand(1), expected)


def test_a_model_with_adapters_is_not_saved_without_them(tmp_path: Path, base: Base, made: Path) -> None:
    folder = base()
    model = loaded(folder, made)
    with pytest.raises(ValueError, match=r"merge\(\) them first"):
        model.save_pretrained(str(tmp_path / "out"))
    own = tiny()
    get_peft_model(own.lm, LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"merge\(\) them first"):
        own.save_pretrained(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- manifests ----------------------------------------------------------------------------------------------


def test_manifests_record_adapters_and_replay_needs_them(tmp_path: Path, base: Base, made: Path) -> None:
    folder = base()
    model = loaded(folder, (made, 0.5))
    _, codes, [manifest, _] = model.generate(TEXTS, return_tokens=True, return_manifests=True, seed=1)
    [entry] = manifest["adapters"]
    assert (entry["name"], entry["strength"], entry["merged"]) == ("mine", 0.5, False)
    assert manifest["weights"] == fingerprint(loaded(folder).model)
    manifest = json.loads(json.dumps(manifest))
    assert torch.equal(loaded(folder, (made, 0.5)).replay(manifest)[1], codes[:1])
    for other in (loaded(folder), loaded(folder, made)):
        with pytest.raises(ValueError, match=r"made with the adapters 'mine' at 0\.5, and this model has"):
            other.replay(manifest)
    plain = loaded(folder).generate(TEXTS, return_manifests=True)[1][0]
    assert "adapters" not in plain
    with pytest.raises(ValueError, match="made with no adapters, and this model has 1"):
        model.replay(plain)


def test_a_merged_model_replays_its_music_also_once_it_is_saved(
    tmp_path: Path, base: Base, made: Path
) -> None:
    folder = base()
    model = loaded(folder, made)
    model.merge()
    _, codes, [manifest, _] = model.generate(TEXTS, return_tokens=True, return_manifests=True, seed=1)
    model.save_pretrained(str(tmp_path / "merged"))
    assert torch.equal(model.replay(manifest)[1], codes[:1])
    assert torch.equal(loaded(tmp_path / "merged").replay(manifest)[1], codes[:1])
    with pytest.raises(ValueError, match=r"load and merge its adapters: 'mine' at 1 \(merged\)"):
        loaded(folder).replay(manifest)


def test_music_during_which_adapters_changed_is_not_replayable(
    tmp_path: Path, base: Base, made: Path
) -> None:
    folder = base()
    model = loaded(folder)
    stream = model.stream(TEXTS, chunk_seconds=0.2)
    next(stream)
    model.load_adapter(made)
    list(stream)
    [manifest, _] = stream.manifests
    with pytest.raises(ValueError, match="adapters were changed while the music was made"):
        model.replay(manifest)


@pytest.mark.parametrize("entries", [[{}], [1], "adapter", [{"name": 1, "digest": 2, "strength": "x"}]])
def test_changed_entries_of_a_manifest_are_refused_in_a_sentence(entries: object) -> None:
    model = greedy(tiny())
    [manifest, _] = model.generate(TEXTS, return_manifests=True)[1]
    with pytest.raises(ValueError, match="cannot be replayed") as error:
        model.replay(manifest | {"adapters": entries})
    assert len(str(error.value).splitlines()) == 1


# --- refusals -----------------------------------------------------------------------------------------------


def edited(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        change(config)
        file.write_text(json.dumps(config), encoding="utf-8")

    return edit


def retensored(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def edit(adapter: Path) -> None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, adapter / "adapter_model.safetensors")

    return edit


FC1 = "base_model.model.decoder.model.decoder.layers.0.fc1.lora_A.weight"
FAULTS = {
    "another kind": (
        edited(lambda c: c.update(peft_type="IA3")),
        "peft_type is 'IA3'; mgkit loads LORA only",
    ),
    "dora": (edited(lambda c: c.update(use_dora=True)), "use_dora' is True; mgkit loads plain LoRA"),
    "biases": (edited(lambda c: c.update(bias="all")), "bias' is 'all'"),
    "saved modules": (edited(lambda c: c.update(modules_to_save=["norm"])), "modules_to_save"),
    "unknown field": (edited(lambda c: c.update(warp=3)), "'warp' is 3; mgkit loads plain LoRA"),
    "pissa": (edited(lambda c: c.update(init_lora_weights="pissa")), "also changes the base model"),
    "rank": (edited(lambda c: c.update(r=8)), r"is \[4, 128\]; the rank .* ask for \[8, 128\]"),
    "no rank": (edited(lambda c: c.pop("r")), "r, the rank, is None"),
    "alpha": (edited(lambda c: c.update(lora_alpha="x")), "lora_alpha is 'x'; expected a number"),
    "alpha nan": (edited(lambda c: c.update(lora_alpha=float("nan"))), "lora_alpha is nan"),
    "expression": (edited(lambda c: c.update(rank_pattern={"(a+)+$": 2})), "plain names of modules"),
    "a target more": (edited(lambda c: c["target_modules"].append("lm_heads.1")), "its tensors lack"),
    "missing matrix": (retensored(lambda t: t.pop(FC1)), "has the matrices B; expected A and B"),
    "shape": (retensored(lambda t: t.update({FC1: torch.zeros(4, 64)})), r"is \[4, 64\]"),
    "nan": (retensored(lambda t: t[FC1].fill_(torch.nan)), "holds NaN"),
    "integers": (retensored(lambda t: t.update({FC1: torch.ones(4, 128, dtype=torch.int8)})), "integers"),
    "a layer more": (
        retensored(lambda t: t.update({FC1.replace("layers.0", "layers.7"): t[FC1].clone()})),
        r"layers\.7\.fc1', which this model lacks",
    ),
    "the codec": (
        retensored(lambda t: t.update({"base_model.model.audio_encoder.x.lora_A.weight": torch.ones(4, 2)})),
        "audio_encoder.x', which this model lacks",
    ),
    "another tensor": (retensored(lambda t: t.update({"x.weight": torch.ones(1)})), "not a matrix of a LoRA"),
    "empty": (retensored(lambda t: t.clear()), "is empty"),
    "cut": (lambda a: (a / "adapter_model.safetensors").write_bytes(b"\0" * 9), "cannot be read"),
    "not json": (lambda a: (a / "adapter_config.json").write_text("{", encoding="utf-8"), "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_adapter_gets_a_sentence_and_changes_nothing(
    tmp_path: Path, base: Base, fault: str, made: Path
) -> None:
    folder = base()
    adapter = Path(copytree(made, tmp_path / "adapter"))
    spoil, message = FAULTS[fault]
    model = loaded(folder)
    plain = tokens(model)
    spoil(adapter)
    with pytest.raises(ValueError, match=message) as error:
        model.load_adapter(adapter)
    assert len(str(error.value).splitlines()) == 1 and str(adapter) in str(error.value)
    assert torch.equal(tokens(model), plain) and model.model.tuner is None


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, base: Base) -> None:
    melody, text = base("melody"), base()
    with pytest.raises(ValueError, match=r"encoder_attn.* this model lacks"):
        loaded(melody, foreign(text, tmp_path / "of text"))
    with pytest.raises(ValueError, match=r"encoder_attn.* its tensors lack: load the model"):
        loaded(text, foreign(melody, tmp_path / "of melody"))
    stereo = foreign(base("stereo"), tmp_path / "of stereo", target_modules=["lm_heads.7"])
    with pytest.raises(ValueError, match=r"lm_heads\.7', which this model lacks"):
        loaded(text, stereo)
    named = foreign(text, tmp_path / "named")
    edited(lambda c: c.update(base_model_name_or_path="facebook/musicgen-small"))(named)
    model = loaded(text)
    model.model.name = "stereo-small"
    with pytest.raises(ValueError, match="trained on 'facebook/musicgen-small', and this is 'stereo-small'"):
        model.load_adapter(named)
    model.model.name = "small"
    model.load_adapter(named)


def test_our_adapters_recognize_the_weights_they_were_trained_on(tmp_path: Path, base: Base) -> None:
    folder = base()
    run = plan(recordings(tmp_path / "own"), str(folder), lora=2, steps=1)
    fine_tune(run, tmp_path / "out")
    half = MusicGen.get_pretrained(str(folder), dtype=torch.bfloat16)
    half.load_adapter(tmp_path / "out/adapter")
    other = loaded(folder)
    other.lm.layers[1].feed_forward.linear1.weight.mul_(1.01)
    with pytest.raises(ValueError, match=r"on other weights than those of .* the norm of lm\.layers\.1"):
        other.load_adapter(tmp_path / "out/adapter")


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "1", None, torch.ones(2)])
def test_a_strength_is_a_number(tmp_path: Path, strength: object) -> None:
    with pytest.raises(ValueError, match="the strength is .* it must be a number"):
        tiny().load_adapter(tmp_path, strength)


def test_a_folder_without_an_adapter_and_an_adapter_as_a_model(
    tmp_path: Path, base: Base, made: Path
) -> None:
    folder = base()
    with pytest.raises(FileNotFoundError, match="holds no adapter: expected adapter_config.json"):
        loaded(folder, folder)
    with pytest.raises(ValueError, match="there is no folder"):
        loaded(folder, tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(ValueError, match=r"holds an adapter for .*base.*load_adapter") as error:
        MusicGen.get_pretrained(str(made))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("rank", [0, 129, 2.5])
def test_a_rank_out_of_range_is_refused_before_the_work(tmp_path: Path, base: Base, rank: int) -> None:
    run = plan(recordings(tmp_path / "own"), str(base()), lora=rank)
    with pytest.raises(ValueError, match=f"the rank of the adapter is {rank}; give an integer from 1 to 128"):
        fine_tune(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_peft_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mgkit.adapters.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install peft"):
        tiny().load_adapter(tmp_path)


# --- training -----------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_as_an_unbroken_one_and_its_state_is_small(base: Base) -> None:
    def learner() -> TuneLearner:
        model = loaded(base())
        run = TuneRun("", lora=4, seconds=1.0, batch=2, bf16=False)
        data = examples_of(model, (100, 200))
        return TuneLearner(run, model, data, data)

    whole, first, second = learner(), learner(), learner()
    for step in range(4):
        whole.step(step, 1e-2)
    for step in range(2):
        first.step(step, 1e-2)
    state = first.state_dict()
    second.load_state_dict(state)
    for step in range(2, 4):
        second.step(step, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))
    size = sum(p.numel() for p in tiny().lm.parameters())
    assert sum(p.numel() for p in state["parameters"].values()) < size / 8


def test_the_command_line_trains_mixes_and_replays(
    tmp_path: Path, base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base()
    own, out = recordings(tmp_path / "own"), tmp_path / "out"
    command = ["train", "tune", str(own), "--model", str(folder), "--seconds", "1", "--steps", "2"]
    assert main([*command, "--batch", "1", "--lora", "2", "--out", str(out)]) == 0
    adapter = str(out / "adapter")
    assert f"model.load_adapter({adapter!r})" in capsys.readouterr().out
    song = str(tmp_path / "song.wav")
    make = ["generate", "calm piano", "-o", song, "--model", str(folder), "--duration", "0.4"]
    assert main([*make, "--adapter", f"{adapter}=0.5"]) == 0
    [entry] = audio.read_manifest(song)["adapters"]
    assert (entry["strength"], entry["merged"]) == (0.5, True)
    assert main(["replay", song, "--model", str(folder), "--adapter", f"{adapter}=0.5"]) == 0
    assert "identical" in capsys.readouterr().out
    assert main([*make, "--adapter", str(folder)]) == 2
    assert "holds no adapter" in capsys.readouterr().err


def test_a_melody_reaches_an_adapted_model(tmp_path: Path, base: Base) -> None:
    folder = base("melody")
    oracle = transformers_model(folder)
    adapted = shuffled(get_peft_model(oracle, LoraConfig(r=4, target_modules=["audio_enc_to_dec_proj"])))
    adapted.save_pretrained(tmp_path / "adapter")
    tunes = [tune(3.0), noise(1, 2 * RATE)]
    with_it = loaded(folder, tmp_path / "adapter").generate_with_chroma(TEXTS, tunes, RATE)
    assert not torch.equal(with_it, loaded(folder).generate_with_chroma(TEXTS, tunes, RATE))
