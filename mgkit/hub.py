"""A name to a folder, and the facts about a model known before it is loaded: its licence, its memory.

"nano"                        the folder in this repository or in the installed package
"small", "stereo-melody", …   facebook/musicgen-…, a repository on the Hugging Face hub or in its cache
"audiogen"                    facebook/audiogen-medium, text to sound
"owner/name"                  any other repository
"path/to/folder"              the folder, which comes before a preset or repository of the same name
"""

import json
import math
import os
import re
import zipfile
from difflib import get_close_matches
from pathlib import Path

SIZES = ("small", "medium", "melody", "large", "melody-large")
PRESETS = {
    **{size: f"facebook/musicgen-{size}" for size in SIZES},
    **{f"stereo-{size}": f"facebook/musicgen-stereo-{size}" for size in SIZES},
    "audiogen": "facebook/audiogen-medium",
}
NAMES = ("nano", *PRESETS)

# Other models by the names of their repositories, which are refused before anything is downloaded.
OTHER_MODELS = {
    r"(audio-)?magnet-(small|medium).*": "MAGNeT",
    r"jasco-.*": "JASCO",
    r"(musicgen-)?style": "MusicGen-Style",
    r"multiband-diffusion": "MultiBandDiffusion",
    r"audioseal.*": "AudioSeal",
    r"melodyflow.*": "MelodyFlow",
}

CC_BY_NC = "CC-BY-NC 4.0 (not for commercial use), Meta Platforms, Inc."
MIT = "MIT, the mgkit authors"

# Layers and width of the published language models; a head is 64 wide, a feed-forward layer 4 × the width.
SHAPES = {
    "small": (24, 1024),
    "medium": (48, 1536),
    "melody": (48, 1536),
    "large": (48, 2048),
    "melody-large": (48, 2048),
    "audiogen-medium": (48, 1536),
}
# Parameters of T5-base's encoder and of the 32 kHz EnCodec, which all published MusicGens share.
T5_AND_CODEC = 169e6
# Parameters of AudioGen's T5-large beyond those of T5-base.
T5_LARGE = 225e6


def shipped(name: str) -> Path:
    """What ships with mgkit as data/`name`: in the installed package, or beside the package in a checkout."""
    inside = Path(__file__).parent / "data" / name
    return inside if inside.exists() else Path(__file__).parent.parent / "data" / name


def embedded() -> Path:
    """Folder of nano."""
    return shipped("nano")


def find(name: str) -> Path:
    """Folder of the model `name`, downloaded unless it is in the cache.

    Raises: ValueError for an unknown name, with the nearest known one; FileNotFoundError if the model is
    neither in the cache nor reachable.
    """
    if name == "nano":
        return embedded()
    if Path(name).is_dir() and name:
        return Path(name)
    return download(hub_id(name))


def snapshot(folder: Path) -> Path:
    """`folder` itself, or the model in it if it belongs to the hub's cache: `models--owner--name`.

    Raises: ValueError for the whole cache, or several versions of one model of which none is the main one.
    """
    if not (folder / "snapshots").is_dir():
        if models := sorted(folder.glob("models--*")) + sorted(folder.glob("hub/models--*")):
            raise ValueError(
                f"{folder} is a cache of {len(models)} models; give the name of one, as in "
                f"{'/'.join(models[0].name.split('--')[1:])!r}, or its folder under snapshots"
            )
        return folder
    versions = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        revision = main.read_text(encoding="utf-8", errors="replace").strip()
        versions = [path for path in versions if path.name == revision] or versions
    if len(versions) != 1:
        raise ValueError(
            f"{folder / 'snapshots'} has {len(versions)} versions of a model; give the folder of one of them"
        )
    return versions[0]


def hub_id(name: str) -> str:
    """Repository on the hub, "owner/name", of the model `name`.

    Raises: ValueError for anything else, with the nearest known name.
    """
    if Path(name).is_file():
        raise ValueError(f"{name!r} is a file; give the folder that holds it")
    repository = PRESETS.get(name, name)
    for pattern, other in OTHER_MODELS.items():
        if re.fullmatch(pattern, repository.rpartition("/")[2].lower()):
            raise ValueError(
                f"{name!r}: {other} is another model; mgkit does not run it; choose one of {', '.join(NAMES)}"
            )
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        return repository
    if "/" in name or os.sep in name:
        raise ValueError(
            f"there is no folder {name!r}; give a folder, or a hub id such as facebook/musicgen-small"
        )
    near = get_close_matches(name.lower().removeprefix("musicgen-"), NAMES, n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"there is no model {name!r}; {suggestion}expected one of {', '.join(NAMES)}, a hub id such as "
        "facebook/musicgen-small, or a folder"
    )


def download(hub_id: str, dest: Path | None = None) -> Path:
    """Download the files of `hub_id` used by mgkit to `dest` or to the hub's cache, and return their folder.

    Without a network, a folder in the cache that has the files of a model serves, whoever filled it.

    Raises: FileNotFoundError without a network, with the command to run on a machine that has one.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # Weights in the order in which loading prefers them.
    weights = (["*.safetensors"], ["*state_dict.bin"], ["pytorch_model*.bin", "checkpoint*.th"])
    try:
        for files in (["*.json", "*.model", "README.md", *weights[0]], *weights[1:]):
            folder = Path(snapshot_download(hub_id, allow_patterns=files, local_dir=dest))
            if _has_weights(folder):
                return folder
        reason = f"{hub_id} has no weights in the cache or on the hub that mgkit can read"
    # OSError: no network, and nothing in the cache. An incomplete snapshot in the cache comes with its path.
    except (HfHubHTTPError, OSError) as error:
        found = cached(hub_id, getattr(error, "snapshot_path", None))
        if found is not None and dest is None:
            return found
        reason = f"{hub_id} is not in the cache and could not be downloaded ({type(error).__name__})"
    command = f"python -m mgkit fetch {hub_id} --dest models/{hub_id.split('/')[1]}"
    raise FileNotFoundError(
        f"{reason}; on a machine with a network, run: {command}  and load that folder"
    ) from None


def _has_weights(folder: Path) -> bool:
    """Whether the folder has weights of either layout."""
    patterns = ("*.safetensors", "state_dict.bin", "pytorch_model*.bin", "checkpoint*.th")
    return any(path.exists() for pattern in patterns for path in folder.glob(pattern))


def cached(hub_id: str, snapshot_path: str | None = None) -> Path | None:
    """The folder of a model in the hub's cache, if it has weights; it may lack other files."""
    from huggingface_hub import constants

    if snapshot_path is not None and _has_weights(Path(snapshot_path)):
        return Path(snapshot_path)
    try:
        folder = snapshot(Path(constants.HF_HUB_CACHE, "models--" + hub_id.replace("/", "--")))
    except (ValueError, OSError):
        return None
    return folder if _has_weights(folder) else None


def licence(name: str) -> str | None:
    """Licence of the weights of the model `name`, or None if only its files tell."""
    if name == "nano":
        return MIT
    return CC_BY_NC if PRESETS.get(name, name).startswith("facebook/") else None


def memory(name: str, seconds: float = 0.0) -> float | None:
    """Approximate bytes of the weights of `name` in float32 and of the KV cache for `seconds` of music.

    Estimated without loading, for published models and for folders (without the cache); None for any other
    name. Python and its libraries take about half a gigabyte more.
    """
    if name == "nano" or (name and Path(name).is_dir()):
        return _stored(find(name)) or None
    size = PRESETS.get(name, name).removeprefix("facebook/").removeprefix("musicgen-").removeprefix("stereo-")
    if size not in SHAPES:
        return None
    layers, width = SHAPES[size]
    codebooks = 8 if "stereo" in name else 4
    # The melody models take text as a prefix; without cross-attention they have 4 matrices and a norm less.
    matrices, norms = (12, 2) if "melody" in size else (16, 3)
    parameters = layers * (matrices * width**2 + norms * 2 * width) + 2 * width
    parameters += codebooks * (2048 + 1 + 2048) * width
    shared = T5_AND_CODEC + (T5_LARGE if size == "audiogen-medium" else 0)
    return 4 * (parameters + shared) + kv_cache(layers, width, 50 * min(seconds, 30))


def kv_cache(layers: int, width: int, steps: float) -> float:
    """Bytes of keys and values in float32 for both streams of guidance, conditional and unconditional."""
    return 2 * 2 * 4 * layers * width * steps


def _stored(folder: Path) -> float:
    """Bytes of the tensors in a model's files once in float32, whatever type they are stored in."""
    total, files = 0.0, list(folder.glob("*.safetensors"))
    # Loading prefers safetensors; the same weights may be there in both forms.
    for file in () if files else folder.glob("*.bin"):
        total += 4 * _count(file)
    for file in files:
        # A safetensors file starts with the length of its JSON header.
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        total += 4 * sum(math.prod(tensor.get("shape", [0])) for tensor in header.values())
    return total


def _count(file: Path) -> float:
    """Number of values of the tensors in a file of torch; an old or damaged one may hold float32."""
    from torch import Tensor

    from mgkit.formats.tensor_files import WeightsError, read_bin

    tensors: dict[int, int] = {}

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            # Tied tensors share their memory.
            tensors[value.data_ptr()] = value.numel()
        for inner in value.values() if isinstance(value, dict) else ():
            add(inner)

    # The old format cannot be mapped: reading it would take as long as loading the model.
    if not zipfile.is_zipfile(file):
        return file.stat().st_size / 4
    try:
        add(read_bin(file))
    except (WeightsError, OSError):
        return file.stat().st_size / 4
    return sum(tensors.values())
