"""`python -m mgkit`: generate, replay, fetch, app, bench, gallery and train from the command line."""

import argparse
import sys
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path

from mgkit import __version__

TRAIN = {  # python -m mgkit train WHAT: the module that does it
    "data": "mgkit.band.dataset",
    "codec": "mgkit.train.codec",
    "tokens": "mgkit.train.tokens",
    "lm": "mgkit.train.lm",
    "rehearse": "mgkit.train.reinforce",
    "export": "mgkit.train.export",
    "tune": "mgkit.train.finetune",
    "preview": "mgkit.band.preview",
    "measure": "mgkit.evals.report",
    "look": "mgkit.evals.memorization",
}


OWN_PARSER = {"app": "mgkit.lab.app", "bench": "mgkit.bench", "gallery": "mgkit.lab.gallery"}

STRATEGIES = ("loudness", "peak", "rms", "clip")  # of `audio.normalize`, which would be slow to import here


def main(argv: list[str] | None = None) -> int:
    """Runs the command; a mistake of the user's is one line on stderr and a status of 2."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] and argv[0] in OWN_PARSER:
        command = partial(import_module(OWN_PARSER[argv[0]]).main, argv[1:])
    elif argv[:1] == ["train"] and argv[1:2] and argv[1] in TRAIN:
        command = partial(import_module(TRAIN[argv[1]]).main, argv[2:])
    else:
        arguments = _parser().parse_args(argv)
        command = partial(arguments.command, arguments)
    try:
        return command() or 0
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"mgkit: {error}".splitlines()[0], file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mgkit: stopped", file=sys.stderr)
        return 130


def _generate(arguments: argparse.Namespace) -> None:
    from mgkit import MusicGen, audio
    from mgkit.generate import Settings

    # What can be known to be wrong is said before the minutes of work, not after.
    if arguments.out.suffix.lower() not in audio.FORMATS:
        raise ValueError(f"{arguments.out.name!r} must end in {', '.join(audio.FORMATS)}")
    if arguments.out.is_dir():
        raise ValueError(f"{str(arguments.out)!r} is a folder; give the name of a file")
    if not arguments.out.parent.is_dir():
        raise ValueError(f"there is no folder {str(arguments.out.parent)!r} to write to")
    if arguments.melody and arguments.prompt_audio:
        raise ValueError("--melody and --prompt-audio are two ways to start; give one of them")
    chosen = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    Settings(**chosen)
    model = MusicGen.get_pretrained(arguments.model, arguments.device)
    model.set_generation_params(**{"duration": model.duration, **chosen})
    common = {"progress": True, "seed": arguments.seed, "negative": arguments.negative}
    texts = [arguments.prompt]
    if arguments.melody:
        separate = import_module("mgkit.melody").demucs() if arguments.separate else None
        wave = model.generate_with_chroma(texts, *audio.read(arguments.melody), separate=separate, **common)
    elif arguments.prompt_audio:
        wave = model.generate_continuation(*audio.read(arguments.prompt_audio), texts, **common)
    else:
        wave = model.generate(texts, **common)
    if wave.shape[-1] == 0:
        raise ValueError("stopped before anything was made")
    path = audio.write(arguments.out, wave[0], model.sample_rate, arguments.strategy, model.manifests[0])
    print(f"{path}: {wave.shape[-1] / model.sample_rate:g} s, seed {model.manifests[0]['seed']}")


def _replay(arguments: argparse.Namespace) -> None:
    from mgkit import MusicGen, audio

    manifest = audio.read_manifest(arguments.file)
    model = MusicGen.get_pretrained(arguments.model or manifest.get("model", "nano"), arguments.device)
    wave, tokens = model.replay(manifest, progress=True)
    print(f"the same {tokens.shape[-1]} frames of tokens came out")
    if arguments.out:
        strategy = manifest.get("strategy", "loudness")
        print(audio.write(arguments.out, wave[0], model.sample_rate, strategy, model.manifests[0]))


def _fetch(arguments: argparse.Namespace) -> None:
    from mgkit import hub

    if arguments.name == "nano":
        raise ValueError("nano ships with mgkit; there is nothing to fetch")
    hub_id = hub.hub_id(arguments.name)
    folder = hub.download(hub_id, arguments.dest)
    licence = hub.CC_BY_NC if hub_id.startswith("facebook/") else "see its README.md"
    print(f"{folder}: licence of the weights: {licence}")
    print(f"load it with  MusicGen.get_pretrained({str(folder)!r})")


def _parser() -> argparse.ArgumentParser:
    from mgkit.generate import Settings
    from mgkit.hub import NAMES

    parser = argparse.ArgumentParser(
        "python -m mgkit", description="MusicGen to learn from, teach with and study."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    form = argparse.ArgumentDefaultsHelpFormatter
    make = commands.add_parser("generate", help="music from a sentence", formatter_class=form)
    make.set_defaults(command=_generate)
    make.add_argument("prompt", help="what to play, such as 'calm piano'; empty for no description")
    make.add_argument(
        "-o", "--out", type=Path, default=Path("out.wav"), help="file to write: .wav, .flac, .ogg or .mp3"
    )
    make.add_argument("--model", default="nano", help=f"{', '.join(NAMES)}, a hub id or a folder")
    make.add_argument("--device", help="cuda, mps or cpu; left out, the best there is")
    make.add_argument("--melody", type=Path, help="audio file whose melody to follow")
    make.add_argument(
        "--separate", action="store_true", help="take drums and bass out of the melody first (HDemucs)"
    )
    make.add_argument("--prompt-audio", type=Path, help="audio file to go on from")
    make.add_argument("--negative", help="what to keep away from")
    make.add_argument("--seed", type=int, help="the same seed makes the same music; left out, a random one")
    make.add_argument("--strategy", default="loudness", choices=STRATEGIES, help="level of the file")
    for field in fields(Settings):
        option, help = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        if field.metadata["kind"] is bool:
            make.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default, help=help)
        else:
            default = None if field.name == "duration" else field.default  # the model's own: at most a window
            make.add_argument(option, type=field.metadata["kind"], default=default, help=help)

    again = commands.add_parser("replay", help="make a file's tokens again from what it says of itself")
    again.set_defaults(command=_replay)
    again.add_argument("file", type=Path)
    again.add_argument("-o", "--out", type=Path, help="file to write")
    again.add_argument("--model", help="where the weights are now, if not under the name that the file says")
    again.add_argument("--device")

    fetch = commands.add_parser("fetch", help="download a model into a folder, to share or to carry")
    fetch.set_defaults(command=_fetch)
    fetch.add_argument("name", help="a name such as small or melody, or a hub id")
    fetch.add_argument("--dest", type=Path, help="folder; left out, the hub's cache")

    commands.add_parser("app", help="the panel of the notebooks as a page of its own; has its own --help")
    commands.add_parser("bench", help="how fast it is here, beside transformers; has its own --help")
    commands.add_parser("gallery", help="run the notebooks and make a site of them; has its own --help")
    train = commands.add_parser(
        "train", help=f"make the model that ships: {', '.join(TRAIN)}; each has --help"
    )
    train.add_argument("what", choices=TRAIN)
    return parser


if __name__ == "__main__":
    sys.exit(main())
