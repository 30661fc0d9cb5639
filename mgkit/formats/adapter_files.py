"""LoRA adapters in the files of Hugging Face's PEFT, under transformers' names or ours (arXiv:2106.09685).

    adapter_config.json          rank r, alpha, base model
    adapter_model.safetensors    base_model.model.….q_proj.lora_A.weight [r, in], ….lora_B.weight [out, r]

A linear layer with weights W computes W x + s B A x, where the scale s is alpha / r, or alpha / sqrt(r) in
rank-stabilized LoRA. Only such plain adapters are read; variants that compute something else are refused.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mgkit.formats.layouts import hugging_face
from mgkit.formats.readers import WeightsError, read_json, reading, short
from mgkit.formats.tensor_files import Stored, read_bin, read_safetensors

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
# Fields that do not change an adapter once it is trained, or that are read here.
FIELDS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("task_type", "exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),
    *("alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_rslora", "init_lora_weights"),
    *("lora_dropout", "megatron_core", "qalora_group_size"),
}
# Initializations that leave the base model's weights as they were. PiSSA, OLoRA and others change them.
INITIALIZATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
# A part of transformers' MusicGen may have been adapted alone, and its names begin there.
PARTS = ("", "decoder.", "decoder.model.", "decoder.model.decoder.", "lm.")


@dataclass(frozen=True)
class LowRank:
    """The matrices of one module: `a` [r, in] and `b` [out, r] (of an embedding [r, V] and [D, r])."""

    a: Tensor
    b: Tensor
    alpha: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        """The rank r."""
        return len(self.a)


@dataclass(frozen=True)
class Lora:
    """An adapter: its matrices by the name of our module, `lm.layers.0.attention.q_proj`."""

    modules: dict[str, LowRank]
    base: str = ""  # the model it was trained on
    rank_stabilized: bool = False
    norms: dict[str, float] = field(default_factory=dict)  # of the base weights; only in mgkit's files

    @property
    def digest(self) -> str:
        """A digest of the matrices and their scales."""
        total = hashlib.sha256(str(self.rank_stabilized).encode())
        for name, module in sorted(self.modules.items()):
            total.update(f"{name} {module.alpha:g} {module.rank}".encode())
            for matrix in (module.a, module.b):
                total.update(matrix.float().contiguous().numpy().tobytes())
        return total.hexdigest()[:16]


def read(folder: Path, weights: Mapping[str, Tensor]) -> Lora:
    """The adapter in `folder`, for a model whose matrices are `weights`, by module.

    Raises: FileNotFoundError without an adapter; WeightsError for a damaged one, another kind than LoRA, or
    another architecture.
    """
    file = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if not (folder / CONFIG).exists() or file is None:
        raise FileNotFoundError(
            f"{folder} holds no adapter: expected {CONFIG} and {WEIGHTS[0]}, as PEFT and mgkit write them"
        )
    config = read_json(folder / CONFIG)
    _require_plain(folder / CONFIG, config)
    source, metadata = read_safetensors(file) if file.suffix == ".safetensors" else (_read_bin(file), {})
    pairs: dict[str, dict[str, Stored]] = {}
    for name, tensor in source.items():
        if (match := TENSOR.fullmatch(name)) is None:
            raise WeightsError(f"{file} holds {name[:90]!r}, which is not a matrix of a LoRA adapter")
        pairs.setdefault(match[1], {})[(match[2] or "") + match[3]] = tensor
    spelled = _spelled(file, pairs, weights)
    _require_complete(folder / CONFIG, config, pairs, spelled.values())
    modules = {
        ours: _matrices(file, config, name, pairs[name], weights[ours])
        for ours, name in spelled.items()
        if name in pairs
    }
    base = config.get("base_model_name_or_path")
    base = base if isinstance(base, str) else ""
    return Lora(modules, base, bool(config.get("use_rslora")), _base_norms(file, metadata))


def _require_plain(file: Path, config: dict) -> None:
    """Raises: WeightsError for another kind of adapter than plain LoRA, by field and value."""
    kind, rank, alpha = config.get("peft_type"), config.get("r"), config.get("lora_alpha")
    if kind != "LORA":
        raise WeightsError(f"{file}: peft_type is {short(kind)}; mgkit loads LORA only")
    for name, value in config.items():
        if name not in FIELDS and value not in (None, False, "none", {}, []):
            raise WeightsError(
                f"{file}: {short(name)} is {short(value)}; mgkit loads plain LoRA, and this may change it: "
                "merge it with merge_and_unload of PEFT, save that model, and load its folder"
            )
    if config.get("init_lora_weights") not in INITIALIZATIONS:
        raise WeightsError(
            f"{file}: init_lora_weights is {short(config['init_lora_weights'])}, which also changes the base "
            "model: convert the adapter with path_initial_model_for_weight_conversion of PEFT"
        )
    if not isinstance(rank, int) or not 1 <= rank <= 65536:
        raise WeightsError(f"{file}: r, the rank, is {short(rank)}; expected an integer of at least 1")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise WeightsError(f"{file}: lora_alpha is {short(alpha)}; expected a number")


def _read_bin(file: Path) -> dict[str, Stored]:
    content = read_bin(file)
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{file} holds more than tensors; expected the matrices of an adapter")
    return {str(name): Stored.of(tensor) for name, tensor in content.items()}


def _base_norms(file: Path, metadata: dict[str, str]) -> dict[str, float]:
    """The norms in the metadata of mgkit's files, by module; none in others."""
    with reading(file, ValueError, RecursionError):
        norms = json.loads(metadata.get("base_norms", "{}"))
        return {name: float(norm) for name, norm in norms.items()} if isinstance(norms, dict) else {}


def _spelled(file: Path, names: Collection[str], ours: Collection[str]) -> dict[str, str]:
    """Our modules and their names as this file spells them, which may be those of a part of the model.

    Raises: WeightsError for a name in the file that is not one of them.
    """
    if not names:
        raise WeightsError(f"{file} is empty; copy it again")
    full = {name: hugging_face(f"{name}.weight").removesuffix(".weight") for name in ours}
    spellings = [
        {name: theirs.removeprefix(part) for name, theirs in table.items() if theirs.startswith(part)}
        for table in (full, {name: name for name in ours})
        for part in PARTS
    ]
    best = max(spellings, key=lambda spelled: len(set(names) & set(spelled.values())))
    if unknown := sorted(set(names) - set(best.values())):
        raise WeightsError(
            f"{file} adapts {unknown[0][:90]!r}, which this model lacks: load the model that the adapter was "
            "trained on"
        )
    return best


def _require_complete(file: Path, config: dict, names: Collection[str], known: Collection[str]) -> None:
    """Raises: WeightsError if the config lists modules that have no matrices: the files of two adapters."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform") or config.get("exclude_modules"):
        return
    for name in known:
        if name not in names and any(f".{name}".endswith(f".{target}") for target in targets):
            raise WeightsError(
                f"{file} adapts {name!r}, which its tensors lack: load the model that the adapter was "
                "trained on, or copy its files again"
            )


def _matrices(file: Path, config: dict, name: str, pair: dict[str, Stored], weight: Tensor) -> LowRank:
    """The matrices of the module `name` with these weights, compared with the config.

    Raises: WeightsError for another shape or rank, integers, NaN or infinity.
    """
    embedding = "embedding_A" in pair
    keys = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(pair) != set(keys):
        raise WeightsError(f"{file}: {name!r} has the matrices {', '.join(sorted(pair))}; expected A and B")
    rank = int(_of_module(file, config, "rank_pattern", name, config["r"]))
    alpha = _of_module(file, config, "alpha_pattern", name, config["lora_alpha"])
    outputs, inputs = weight.shape[::-1] if embedding else weight.shape
    a, b = keys
    for key, shape in zip(keys, ((rank, inputs), (outputs, rank)), strict=True):
        if pair[key].shape != shape:
            raise WeightsError(
                f"{file}: matrix {key[-1]} of {name!r} is {list(pair[key].shape)}; the rank in {CONFIG} and "
                f"this model ask for {list(shape)}: load the model that the adapter was trained on"
            )
        if not (pair[key].floating and pair[key].read().isfinite().all()):
            raise WeightsError(f"{file}: matrix {key[-1]} of {name!r} holds NaN, infinity or integers")
    return LowRank(pair[a].read(), pair[b].read(), alpha, embedding)


def _of_module(file: Path, config: dict, field: str, name: str, default: float) -> float:
    """The rank or alpha of a module: from the first pattern that is a suffix of its name, or the default.

    Raises: WeightsError for a pattern that is a regular expression.
    """
    patterns = config.get(field) or {}
    for pattern, value in patterns.items():
        plain = str(pattern).replace("\\.", ".")
        if not re.fullmatch(r"\^?[\w.]+", plain) or not isinstance(value, int | float):
            raise WeightsError(
                f"{file}: {field} has {short(pattern)}: {short(value)}; mgkit reads plain names of modules, "
                "and numbers"
            )
        if name == plain.removeprefix("^") or (plain[0] != "^" and name.endswith(f".{plain}")):
            return value
    return default
