"""A name to a folder: models are found by name, downloaded from the hub, or read from a folder."""

import json
import math
import os
import re
from difflib import get_close_matches
from pathlib import Path

SIZES = ("small", "medium", "melody", "large", "melody-large")
PRESETS = {
    **{size: f"facebook/musicgen-{size}" for size in SIZES},
    **{f"stereo-{size}": f"facebook/musicgen-stereo-{size}" for size in SIZES},
}
NAMES = ("nano", *PRESETS)

CC_BY_NC = "CC-BY-NC 4.0 (not for commercial use), Meta Platforms, Inc."
MIT = "MIT, the mgkit authors"

# Layers and width of the published language models; a head is 64 wide, a feed-forward layer 4 × the width.
SHAPES = {
    "small": (24, 1024),
    "medium": (48, 1536),
    "melody": (48, 1536),
    "large": (48, 2048),
    "melody-large": (48, 2048),
}
# Parameters of T5-base's encoder and of the 32 kHz EnCodec, which all published models share.
T5_AND_CODEC = 169e6


def embedded() -> Path:
    """Folder of the model that ships with mgkit: beside the package in a checkout, inside it once installed."""
    inside = Path(__file__).parent / "data" / "nano"
    return inside if inside.exists() else Path(__file__).parent.parent / "data" / "nano"


def find(name: str) -> Path:
    """The folder of the model `name`; a hub id is downloaded, or taken from the cache without a network.

    Errors: ValueError for an unknown name, with the nearest; FileNotFoundError where it is neither here nor to be had.
    """
    if name == "nano":
        return embedded()
    if Path(name).is_dir() and name:
        return Path(name)
    return download(hub_id(name))


def licence(name: str) -> str | None:
    """Licence of the weights of the model `name`, or None if only its files tell."""
    if name == "nano":
        return MIT
    return CC_BY_NC if name in PRESETS or name in PRESETS.values() else None


def memory(name: str, seconds: float = 0.0) -> float | None:
    """Approximate bytes of the weights of `name` in float32 and of the KV cache for `seconds` of music.

    Known without loading for the published sizes and for folders; None for anything else. Folders are counted without
    a cache. Python and its libraries take about half a gigabyte more.
    """
    if name == "nano" or (name and Path(name).is_dir()):
        return _stored(find(name)) or None
    size = name.removeprefix("facebook/musicgen-").removeprefix("stereo-")
    if size not in SHAPES:
        return None
    layers, width = SHAPES[size]
    codebooks = 8 if "stereo" in name else 4
    # The melody models take text as a prefix and have no cross-attention: 4 of 16 matrices less, one norm less.
    matrices, norms = (12, 2) if "melody" in size else (16, 3)
    parameters = layers * (matrices * width**2 + norms * 2 * width) + 2 * width
    parameters += codebooks * (2048 + 1 + 2048) * width
    return 4 * (parameters + T5_AND_CODEC) + kv_cache(layers, width, 50 * min(seconds, 30))


def kv_cache(layers: int, width: int, steps: float) -> float:
    """Bytes of keys and values in float32 for both streams of guidance, conditional and unconditional."""
    return 2 * 2 * 4 * layers * width * steps


def _stored(folder: Path) -> float:
    """Bytes of the tensors in a model's files once in float32; audiocraft's files store float16."""
    total = 2.0 * sum(file.stat().st_size for file in folder.glob("*.bin"))
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        total += 4 * sum(math.prod(tensor.get("shape", [0])) for tensor in header.values())
    return total


def hub_id(name: str) -> str:
    """The hub's id of the model `name`. Errors: ValueError for a name that can be none, with the nearest that is."""
    if Path(name).is_file():
        raise ValueError(f"{name!r} is a file; give the folder that holds it")
    found = PRESETS.get(name, name)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", found):
        return found
    if "/" in name or os.sep in name:
        raise ValueError(
            f"there is no folder {name!r}, and a hub id is an owner and a name, as facebook/musicgen-small"
        )
    near = get_close_matches(name.lower().removeprefix("musicgen-"), NAMES, n=1, cutoff=0.5)
    raise ValueError(
        f"there is no model {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} Known are {', '.join(NAMES)}, any "
        "hub id such as facebook/musicgen-small, and any folder"
    )


def download(hub_id: str, dest: Path | None = None) -> Path:
    """Folder with the files of `hub_id` that mgkit reads, in the hub's cache or in `dest`.

    Errors: FileNotFoundError with the command to run where there is a network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    files = ["*.json", "*.safetensors", "*.model", "README.md"]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=files, local_dir=dest))
        if not any(folder.glob("*.safetensors")):  # audiocraft's layout only
            folder = Path(snapshot_download(hub_id, allow_patterns=["*state_dict.bin"], local_dir=dest))
    except (HfHubHTTPError, OSError) as error:  # no network and not in the cache is an OSError, too
        raise FileNotFoundError(
            f"{hub_id} is no folder here, not in the cache, and could not be downloaded ({type(error).__name__}); where there is a network, "
            f"run: python -m mgkit fetch {hub_id} --dest models/{hub_id.split('/')[1]}  and load that folder"
        ) from None
    return folder
