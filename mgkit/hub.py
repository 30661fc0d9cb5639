"""A name to a folder: models are found by name, downloaded from the hub, or read from a folder."""

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
