"""Checkpoints of other models, and of variants that mgkit does not run, are refused by field and value.

Their tensors have MusicGen's names and shapes, so without this they would play noise.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from golden import filling
from refusals import refusal

from mgkit import MusicGen
from mgkit.formats.readers import WeightsError

LM, CODEC = "state_dict.bin", "compression_state_dict.bin"
Edit = Callable[[str, str, object], Path]


def load(folder: Path) -> MusicGen:
    return MusicGen.get_pretrained(str(folder), "cpu")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in audiocraft's layout, by kind."""
    kinds = ("small", "melody", "stereo-small")
    return {kind: filling.audiocraft_folder(tmp_path_factory.mktemp(kind), kind) for kind in kinds}


@pytest.fixture
def edited(originals: dict[str, Path], tmp_path: Path) -> Edit:
    """A copy of a folder with one setting of one file changed; ... removes it, `a.b+` adds to a section."""

    def edit(where: str, path: str, value: object) -> Path:
        kind, _, file = where.partition("/")
        folder = tmp_path / kind
        if not folder.exists():
            shutil.copytree(originals[kind], folder)
        content = dict(torch.load(folder / (file or LM), weights_only=True))
        config = yaml.safe_load(content["xp.cfg"])
        *sections, field = path.split(".")
        inner = config
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[field] = value
        if value is ...:
            del inner[field]
        torch.save(content | {"xp.cfg": yaml.safe_dump(config)}, folder / (file or LM))
        return folder

    return edit


SMALL, MELODY, STEREO, BOX = "small", "melody", "stereo-small", f"small/{CODEC}"
CHROMA = "conditioners.self_wav.chroma_stem"
T5 = "conditioners.description.t5"
# The file, a setting, its value; the last is a word of the message beside both, or "" for none.
ODD = [
    (SMALL, "lm_model", "transformer_lm_magnet", "MAGNeT is another model; mgkit does not run it"),
    (SMALL, "lm_model", "flow_matching", "JASCO is another model; mgkit does not run it"),
    (SMALL, "lm_model", "mamba", "transformer_lm"),
    (SMALL, "solver", "magnet", "MAGNeT is another model"),
    (SMALL, "solver", "audio_magnet", "MAGNeT is another model"),
    (SMALL, "solver", "diffusion", "MultiBandDiffusion is another model"),
    (MELODY, "conditioners.self_wav.model", "style", "MusicGen-Style is another model"),
    (SMALL, "conditioners.description.model", "clap", "CLAP"),
    (SMALL, "conditioners.description.model", "lut", "another model"),
    (SMALL, "conditioners.genre", {"model": "lut"}, "genre"),
    (SMALL, "codebooks_pattern.modeling", "parallel", "delay"),
    (SMALL, "codebooks_pattern.modeling", "unroll", "delay"),
    (SMALL, "codebooks_pattern.modeling", "coarse_first", "delay"),
    (SMALL, "codebooks_pattern.modeling", "musiclm", "delay"),
    (SMALL, "codebooks_pattern.delay.delays", [0, 1, 2, 4], "[0, 1, 2, 3]"),
    (SMALL, "codebooks_pattern.delay.flatten_first", 2, "0"),
    (SMALL, "codebooks_pattern.delay.empty_initial", 1, "0"),
    (STEREO, "interleave_stereo_codebooks.per_timestep", True, "False"),
    (STEREO, "interleave_stereo_codebooks.use", False, ""),
    (SMALL, "transformer_lm.positional_embedding", "rope", "sin"),
    (SMALL, "transformer_lm.positional_embedding", "sin_rope", "sin"),
    (SMALL, "transformer_lm.positional_scale", 0.5, "1.0"),
    (SMALL, "transformer_lm.max_period", 500, "10000"),
    (SMALL, "transformer_lm.activation", "relu", "gelu"),
    (SMALL, "transformer_lm.norm_first", False, "True"),
    (SMALL, "transformer_lm.norm", "rms_norm", "layer_norm"),
    (SMALL, "transformer_lm.past_context", 100, "None"),
    (SMALL, "transformer_lm.causal", False, "True"),
    (SMALL, "transformer_lm.qk_layer_norm", True, "False"),
    (SMALL, "transformer_lm.layer_scale", 0.1, "None"),
    (SMALL, "transformer_lm.kv_repeat", 2, "1"),
    (SMALL, "transformer_lm.bias_ff", True, "False"),
    (SMALL, "transformer_lm.card", 64, "32"),
    (SMALL, "transformer_lm.n_q", 8, "4"),
    (SMALL, "transformer_lm.num_layers", 3, "2"),
    (SMALL, "transformer_lm.hidden_scale", 2, "4"),
    (SMALL, "transformer_lm.subcodes_context", 5, "does not know"),
    (SMALL, "fuser.sum", ["description"], "[]"),
    (SMALL, "fuser.input_interpolate", ["description"], "[]"),
    (SMALL, "fuser.prepend", ["description"], "[]"),
    (SMALL, "fuser.cross_attention_pos_emb", True, "False"),
    (SMALL, "fuser.film", ["description"], "does not know"),
    (MELODY, "fuser.cross", ["description"], "[]"),
    (MELODY, "fuser.prepend", ["self_wav"], "description"),
    (MELODY, "fuser.ignore", ["self_wav"], "[]"),
    (SMALL, f"{T5}.normalize_text", 1, "expected bool"),
    (SMALL, f"{T5}.name", "mt5-base", "t5-base"),
    (SMALL, f"{T5}.name", "../../t5-base", "t5-base"),
    (SMALL, f"{T5}.pooling", "mean", "does not know"),
    (MELODY, f"{CHROMA}.argmax", False, "True"),
    (MELODY, f"{CHROMA}.n_chroma", 24, "12"),
    (MELODY, f"{CHROMA}.radix2_exp", 12, "14"),
    (MELODY, f"{CHROMA}.winhop", 2048, "None"),
    (MELODY, f"{CHROMA}.norm", 2, "inf"),
    (MELODY, f"{CHROMA}.eval_wavs", "/data/eval.json", "None"),
    (MELODY, f"{CHROMA}.sample_rate", 16000, "32000"),
    (SMALL, "dataset.segment_duration", 0, "seconds"),
    (SMALL, "dataset.segment_duration", 1e9, "seconds"),
    (SMALL, "dataset.segment_duration", float("nan"), "seconds"),
    (SMALL, "compression_model_n_q", 8, "codebooks"),
    (BOX, "compression_model", "dac", "encodec"),
    (BOX, "encodec.quantizer", "no_quant", "rvq"),
    (BOX, "encodec.causal", True, "False"),
    (BOX, "encodec.renormalize", True, "False"),
    (BOX, "channels", 2, "1"),
    (BOX, "seanet.activation", "ReLU", "ELU"),
    (BOX, "seanet.activation_params", {"alpha": 0.5}, "1.0"),
    (BOX, "seanet.true_skip", False, "True"),
    (BOX, "seanet.lstm", 1, "2"),
    (BOX, "seanet.compress", 4, "2"),
    (BOX, "seanet.n_residual_layers", 3, "1"),
    (BOX, "seanet.pad_mode", "zeros", "reflect"),
    (BOX, "seanet.norm", "time_group_norm", "weight_norm"),
    (BOX, "seanet.decoder.trim_right_ratio", 0.5, "1.0"),
    (BOX, "seanet.decoder.final_activation", "Tanh", "None"),
    (BOX, "seanet.encoder.pad_mode", "constant", "reflect"),
    (BOX, "seanet.decoder.snake", True, "does not know"),
    (BOX, "rvq.codebook_dim", 8, "does not know"),
    (BOX, "rvq.n_q", 8, "4"),
    (BOX, "sample_rate", 32001, "32001"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "path", "value", "word"), ODD, ids=[f"{p}={v}" for _, p, v, _ in ODD])
def test_a_variant_of_audiocraft_is_refused_by_field_and_value(
    where: str, path: str, value: object, word: str, edited: Edit
) -> None:
    sentence = refusal(lambda: load(edited(where, path, value)), word, kinds=WeightsError)
    assert where.partition("/")[2] in sentence or LM in sentence
    if word and word != "codebooks":
        assert path.rpartition(".")[2] in sentence or path in (
            "conditioners.genre",
            "channels",
            "sample_rate",
        )


def test_at_least_37_odd_configs_are_tested() -> None:
    assert len({(where, path, str(value)) for where, path, value, _ in ODD}) >= 37


HARMLESS = [
    ("optim.lr", 5), ("autocast", False), ("slurm", {"gpus": 4}),
    ("logging.level", "DEBUG"), ("new_part", [1]),
    ("transformer_lm.dropout", 0.1), ("transformer_lm.memory_efficient", False),
    ("transformer_lm.xpos", True),
    ("transformer_lm.checkpointing", "none"), ("transformer_lm.weight_init", None), ("two_step_cfg", True),
    ("classifier_free_guidance.inference_coef", 1.5), ("channels", "${oc.env:CHANNELS}"),
    ("dtype", "bfloat16"),
    (f"{T5}.word_dropout", 0.9), ("conditioners.args.drop_desc_p", 0.9),
    (f"{CHROMA}.match_len_on_eval", True),
    (f"{CHROMA}.cache_path", None), ("fuser.cross_attention_pos_emb_scale", 3), ("dataset.batch_size", 1),
    # audiocraft puts the melody in front of the text in either order
    ("fuser.prepend", ["description", "self_wav"]),
]  # fmt: skip


def test_settings_that_change_no_number_are_ignored(edited: Edit, originals: dict[str, Path]) -> None:
    for path, value in HARMLESS:
        folder = edited(MELODY, path, value)
    for path, value in (("rvq.q_dropout", True), ("seanet.dilation_base", 3), ("losses.l1", 9)):
        edited(f"{MELODY}/{CODEC}", path, value)
    ours, theirs = load(folder), load(originals[MELODY])
    assert ours.lm.config == theirs.lm.config and ours.codec.config == theirs.codec.config
    assert torch.equal(ours.lm.heads[0].weight, theirs.lm.heads[0].weight)


@pytest.mark.parametrize("field", ["activation", "norm_first", "causal", "bias_ff"])
def test_an_absent_field_counts_as_the_reference_s_default(field: str, edited: Edit) -> None:
    refusal(lambda: load(edited(SMALL, f"transformer_lm.{field}", ...)), field, "absent")


def test_fields_that_older_checkpoints_lack_are_not_missed(edited: Edit) -> None:
    for field in ("max_period", "qk_layer_norm_cross", "kv_repeat", "two_step_cfg", "past_context", "norm"):
        folder = edited(SMALL, f"transformer_lm.{field}", None)
        folder = edited(SMALL, f"transformer_lm.{field}", ...)
    edited(SMALL, "codebooks_pattern.modeling", None)
    edited(SMALL, "codebooks_pattern.delay", ...)
    folder = edited(SMALL, "transformer_lm.q_modeling", "delay")
    assert load(folder).lm.config.codebooks == 4


@pytest.mark.parametrize("seconds", [10, 12.5])
def test_the_segment_duration_is_the_window(seconds: float, edited: Edit) -> None:
    assert load(edited(SMALL, "dataset.segment_duration", seconds)).max_duration == seconds
    melody = load(edited(MELODY, "dataset.segment_duration", seconds))
    assert melody.conditioner.melody_frames == 1 + int(seconds * 32000) // 4096


def test_the_padding_of_the_codec_is_read(edited: Edit) -> None:
    for mode in ("reflect", "constant"):
        folder = edited(BOX, "seanet.pad_mode", mode)
        assert load(folder).codec.config.pad_mode == mode


def test_a_text_encoder_with_a_slash_in_its_name_is_found(edited: Edit) -> None:
    folder = edited(SMALL, f"{T5}.name", "google/flan-t5-base")
    message = "python -m mgkit fetch google/flan-t5-base"
    refusal(lambda: load(folder), message, kinds=FileNotFoundError)
    (folder / "google").mkdir()
    shutil.move(folder / "t5-base", folder / "google/flan-t5-base")
    assert load(folder).conditioner.text.dim == 768


def test_a_fine_tuned_text_encoder_is_taken_from_the_checkpoint(edited: Edit) -> None:
    folder = edited(SMALL, f"{T5}.finetune", True)
    refusal(lambda: load(folder), "lacks the tensor")
    content = torch.load(folder / LM, weights_only=True)
    before = load_t5(folder)
    for name, tensor in before.items():
        content["best_state"][f"condition_provider.conditioners.description.t5.{name}"] = tensor + 1
    torch.save(content, folder / LM)
    after = load(folder).conditioner.text.t5.state_dict()
    assert all(torch.equal(after[name], before[name] + 1) for name in before)


def load_t5(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "t5-base" / "model.safetensors")


def test_the_files_of_a_codec_with_more_codebooks_serve_its_first_ones(edited: Edit) -> None:
    """As `compression_model_n_q` asks."""
    folder = edited(SMALL, "compression_model_n_q", 4)
    content = torch.load(folder / CODEC, weights_only=True)
    state = content["best_state"]
    for name in [name for name in state if name.startswith("quantizer.vq.layers.3.")]:
        state[name.replace(".3.", ".4.", 1)] = state[name] + 1
    torch.save(content | {"xp.cfg": content["xp.cfg"].replace("n_q: 4", "n_q: 5")}, folder / CODEC)
    assert load(folder).codec.config.codebooks == 4
    refusal(lambda: load(edited(SMALL, "compression_model_n_q", None)), "5", "codebooks")


def test_multibanddiffusion_is_named(tmp_path: Path) -> None:
    torch.save({"n_bands": 4, "sample_rate": 32000, 0: {}}, tmp_path / LM)
    torch.save({}, tmp_path / CODEC)
    refusal(lambda: load(tmp_path), "MultiBandDiffusion is another model; mgkit does not run it")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("facebook/magnet-small-10secs", "MAGNeT"),
        ("facebook/audio-magnet-medium", "MAGNeT"),
        ("facebook/jasco-chords-drums-400M", "JASCO"),
        ("facebook/musicgen-style", "MusicGen-Style"),
        ("style", "MusicGen-Style"),
        ("facebook/multiband-diffusion", "MultiBandDiffusion"),
        ("facebook/melodyflow-t24-30secs", "MelodyFlow"),
    ],
)
def test_another_model_of_the_hub_is_refused_before_it_is_downloaded(name: str, other: str) -> None:
    refusal(lambda: MusicGen.get_pretrained(name), f"{other} is another model; mgkit does not run it")


# --- hostile configurations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\nlm_model: *a",
        "a: " + "[" * 5000,
        "sample_rate: ${sample_rate}\nlm_model: ${lm_model}",
        "x: &x [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
            f"x{i}: &x{i} [{', '.join(['*x' + (str(i - 1) if i else '')] * 8)}]\n" for i in range(12)
        ) + "lm_model: *x11",
        "2001-99-99: 1",
    ],
    ids=["circle", "deep", "reference to itself", "a billion laughs", "no such day"],
)  # fmt: skip
def test_a_hostile_configuration_is_refused_in_one_sentence(text: str, edited: Edit) -> None:
    folder = edited(SMALL, "seed", 1)
    content = torch.load(folder / LM, weights_only=True)
    torch.save(content | {"xp.cfg": text}, folder / LM)
    refusal(lambda: load(folder), LM)


# --- Hugging Face -------------------------------------------------------------------------------------------

FOLDERS = [
    ("text", "config.json", "decoder.activation_function", "relu", "gelu"),
    ("text", "config.json", "decoder.activation_function", "gelu_new", "gelu"),
    ("text", "config.json", "decoder.scale_embedding", True, "False"),
    ("text", "config.json", "decoder.position_embedding_type", "rotary", "None"),
    ("text", "config.json", "decoder.rope_scaling", {"factor": 2}, "None"),
    ("text", "config.json", "decoder.num_key_value_heads", 1, "None"),
    ("text", "config.json", "decoder.layer_norm_eps", 0.1, "None"),
    ("text", "config.json", "audio_encoder.trim_right_ratio", 0.5, "1.0"),
    ("text", "config.json", "audio_encoder.codebook_dim", 8, "16"),
    ("text", "config.json", "audio_encoder.chunk_length_s", 1.0, "None"),
    ("text", "config.json", "audio_encoder.normalize", True, "False"),
    ("text", "config.json", "audio_encoder.use_conv_shortcut", True, "False"),
    ("text", "config.json", "audio_encoder.pad_mode", "zeros", "reflect"),
    ("text", "config.json", "audio_encoder.num_residual_layers", 2, "1"),
    ("melody", "config.json", "num_chroma", 24, "12"),
    ("melody", "config.json", "chroma_length", 0, "chroma_length"),
    ("melody", "config.json", "chroma_length", 10**9, "chroma_length"),
    ("melody", "config.json", "decoder.num_hidden_layers", 10**9, "512"),
    ("melody", "config.json", "decoder.hidden_size", 10**12, "1000000"),
    ("melody", "config.json", "text_encoder.num_layers", 10**9, "512"),
    ("melody", "preprocessor_config.json", "n_fft", 8192, "16384"),
    ("melody", "preprocessor_config.json", "hop_length", 2048, "4096"),
    ("melody", "preprocessor_config.json", "num_chroma", 24, "12"),
    ("melody", "preprocessor_config.json", "sampling_rate", 16000, "32000"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "file", "path", "value", "word"), FOLDERS, ids=[f"{r[2]}={r[3]}" for r in FOLDERS]
)
def test_a_variant_of_the_hugging_face_layout_is_refused_by_field_and_value(
    kind: str, file: str, path: str, value: object, word: str, saved: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved / kind, tmp_path / "model")
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    *sections, field = path.split(".")
    inner = content
    for section in sections:
        inner = inner[section]
    inner[field] = value
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    refusal(lambda: load(folder), word, str(folder))


def test_settings_equal_to_an_absent_field_are_ignored(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "text", tmp_path / "model")
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content["decoder"] |= {"layer_norm_eps": 1e-5, "position_embedding_type": "sinusoidal", "dropout": 0.3}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    assert load(folder).lm.config.layers == 2


# --- the window ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "melody"])
@pytest.mark.parametrize("frames", [20, 1, 10_000])
@pytest.mark.parametrize("own", [True, False])
def test_an_edited_max_length_does_not_become_the_window(
    kind: str, frames: int, own: bool, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """mgkit's own files store the window (10 s); without it, the chroma tells, or it is 30 s."""
    folder = shutil.copytree(saved / kind, tmp_path / "model")
    if not own:
        forget_metadata(folder)
    set_max_length(folder, frames)
    expected = 10 if own or kind == "melody" else 30
    assert load(folder).max_duration == expected
    said = capsys.readouterr().err
    assert f"max_length is {frames} frames" in said and f"the window is {expected} s" in said


@pytest.mark.parametrize(("frames", "seconds"), [(None, 30), (1500, 30), (500, 10), (50, 1), (2048, 40.96)])
def test_a_possible_max_length_is_the_window(
    frames: int | None, seconds: float, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = shutil.copytree(saved / "text", tmp_path / "model")
    forget_metadata(folder)
    set_max_length(folder, frames)
    assert load(folder).max_duration == seconds
    assert "max_length is" not in capsys.readouterr().err


def test_a_melody_model_without_max_length_has_the_window_of_its_chroma(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "melody", tmp_path / "model")
    forget_metadata(folder)
    set_max_length(folder, None)
    assert load(folder).max_duration == 10


def forget_metadata(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(
        load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"format": "pt"}
    )


def set_max_length(folder: Path, frames: int | None) -> None:
    file = folder / "generation_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | {"max_length": frames}), encoding="utf-8")
