"""`python -m mgkit`, the command line: generate, replay, fetch, and a table of the other commands."""

import argparse
import io
import os
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from mgkit import __version__
from mgkit.files import printable

# Name, module with a `main(argv)` and a --help of its own, line in the list of commands.
COMMANDS = {
    "app": ("mgkit.lab.app", "open the studio as a web page"),
    "bench": ("mgkit.bench.command", "time generation on this machine, side by side with transformers"),
    "class": ("mgkit.lab.classroom.command", "serve a blind listening test to a class, and read its answers"),
    "gallery": ("mgkit.lab.gallery.command", "run the notebooks and render them as a web site"),
    "measure": ("mgkit.evals.measure", "compute the metrics of a model's music, or of any recordings"),
    "reset": ("mgkit.lab.reset", "set outputs and changed notebooks aside, for the next group of a class"),
    "memorization": ("mgkit.evals.memorization", "compare a model's music with the nearest training clips"),
}
TRAIN = {
    "data": ("mgkit.band.dataset", "compose, render and caption training clips"),
    "preview": ("mgkit.band.preview", "write a page with a few training clips"),
    "stems": ("mgkit.band.stems", "render single instruments of the clips, for the codec"),
    "codec": ("mgkit.train.codec", "train the codec"),
    "tokens": ("mgkit.train.tokens", "encode the training clips"),
    "lm": ("mgkit.train.lm", "train the language model on the tokens"),
    "transplant": ("mgkit.train.transplant", "start a language model from one for another codec's tokens"),
    "reinforce": ("mgkit.train.reinforce", "improve the language model by reinforcement learning"),
    "export": ("mgkit.train.export", "join codec and language model into a model folder"),
    "nano": ("mgkit.train.nano", "train a small model from nothing: data to export, in a time budget"),
    "tune": ("mgkit.train.finetune", "fine-tune any model on a folder of audio and captions"),
}

# In the messages of torch's RuntimeErrors, for a CPU and a GPU
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")

# The strategies of `audio.normalize`, repeated because importing mgkit.audio takes a second.
STRATEGIES = ("loudness", "peak", "rms", "clip")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status; a user's mistake is one line on stderr and status 2."""
    # A name that the console cannot show must not fail a command whose work is done.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(sys.argv[1:] if argv is None else argv) or 0
    except KeyboardInterrupt:
        print("mgkit: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("MGKIT_TRACEBACK"):
            raise
        print(f"mgkit: {printable(_sentence(error))}", file=sys.stderr)
        return 2


def _run(argv: list[str]) -> int | None:
    if argv[:1] and argv[0] in COMMANDS:
        return import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    if argv[:1] == ["train"] and argv[1:2] and argv[1] in TRAIN:
        return import_module(TRAIN[argv[1]][0]).main(argv[2:])
    arguments = _parser().parse_args(argv)
    return arguments.command(arguments)


def _sentence(error: Exception) -> str:
    """One line for an error: its own first line if it is about the user's input or machine."""
    text = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return "there is not enough memory: give a shorter duration, a smaller batch, or a smaller model"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply: check the files and the options of this command"
    if text and isinstance(error, ValueError | OSError | RuntimeError | ImportError | FloatingPointError):
        return text
    return (
        f"internal error ({type(error).__name__}: {text[:200]}), a mistake of mgkit's: please report it with "
        "the command; MGKIT_TRACEBACK=1 shows where it happened"
    )


def _generate(arguments: argparse.Namespace) -> int | None:
    from mgkit.command import generate

    return generate(arguments)


def _replay(arguments: argparse.Namespace) -> None:
    from mgkit import MusicGen, audio
    from mgkit.command import load_adapters

    manifest = audio.read_manifest(arguments.file)
    if arguments.out:
        audio.check_output(arguments.out)
    model = MusicGen.get_pretrained(arguments.model or _model_of(manifest), arguments.device)
    entries = manifest.get("adapters")
    merged = isinstance(entries, list) and any(isinstance(one, dict) and one.get("merged") for one in entries)
    load_adapters(model, arguments.adapter, merged)
    wave, tokens = model.replay(manifest, progress=True)
    print(f"the tokens are identical: {tokens.shape[-1]} frames")
    if arguments.out:
        strategy = manifest.get("strategy", "loudness")
        path = audio.write_or_rescue(arguments.out, wave[0], model.sample_rate, strategy, manifest)
        print(printable(path))


def _adapter(text: str) -> tuple[str, float]:
    """Folder and strength of an adapter; a folder's name may contain `=`."""
    folder, _, strength = text.rpartition("=")
    try:
        return (folder, float(strength)) if folder else (text, 1.0)
    except ValueError:
        return text, 1.0


def _model_of(manifest: dict) -> str:
    """The model named in a manifest, if it ships with mgkit or is a published one.

    Anyone can write a manifest: a file must not choose which folder or repository is opened.
    """
    from mgkit import hub

    name = manifest.get("model", "nano")
    if isinstance(name, str) and name in {*hub.NAMES, *hub.PRESETS.values()}:
        return name
    raise ValueError(
        f"the file names the model {repr(name)[:200]}, which is not one of {', '.join(hub.NAMES)}: name the "
        "weights that made it with --model, if you trust them"
    )


def _fetch(arguments: argparse.Namespace) -> None:
    from mgkit import hub

    if arguments.name == "nano":
        raise ValueError("nano ships with mgkit; there is nothing to fetch")
    repository = hub.hub_id(arguments.name)
    folder = hub.download(repository, arguments.dest)
    licence = printable(hub.licence(repository) or "see its README.md")
    print(f"{printable(folder)}: licence of the weights: {licence}")
    print(f"load it with  MusicGen.get_pretrained({str(folder)!r})")


def _parser() -> argparse.ArgumentParser:
    from mgkit.hub import NAMES
    from mgkit.ranges import amount, count, shard
    from mgkit.settings import SETTINGS_HELP, Settings

    parser = argparse.ArgumentParser(
        "python -m mgkit",
        description="MusicGen to learn from, teach with and study.",
        epilog="Every command has a --help of its own.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    adapters: dict[str, Any] = {
        "action": "append",
        "type": _adapter,
        "default": [],
        "metavar": "FOLDER[=STRENGTH]",
        "help": "LoRA adapter, from train tune --lora or PEFT; may be repeated",
    }
    form = argparse.ArgumentDefaultsHelpFormatter
    generate = commands.add_parser("generate", help="generate music from a text prompt", formatter_class=form)
    generate.set_defaults(command=_generate)
    option = generate.add_argument
    option("prompt", nargs="?", help="description of the music, such as 'calm piano'; '' for none")
    option(
        "-o",
        "--out",
        type=Path,
        help="output: .wav, .flac, .ogg or .mp3, by default out.wav; a folder with --csv",
    )
    columns = "prompt, chords, melody, audio_prompt, bpm, beats, negative, seed, or a setting"
    option("--csv", type=Path, help=f"table with a row per piece; columns: {columns}; [1, 3] is a list")
    option("--shard", type=shard, help="part of the table for this process, such as 1/4 or 4/4")
    option("--batch", type=count, help="pieces of the table generated together; by default as memory permits")
    option("--model", default="nano", help=f"{', '.join(NAMES)}, a hub id or a folder")
    option("--device", help="cuda, mps or cpu; by default the fastest available")
    option("--adapter", **adapters)
    option("--melody", type=Path, help="audio or MIDI file with a melody to follow")
    option("--chords", help="chords to follow, such as 'C G A:min F'; they repeat")
    option("--bpm", type=amount, default=120.0, help="tempo of chords and loops in beats per minute")
    option("--beats", type=amount, default=4.0, help="beats of each chord")
    option("--loop", type=amount, metavar="BEATS", help="make a loop of this many beats, cut at a beat")
    option("--separate", action="store_true", help="remove drums and bass from the melody first (HDemucs)")
    option("--prompt-audio", type=Path, help="audio file to continue")
    option("--negative", help="description of music to avoid")
    option("--seed", type=int, help="random seed; the same seed gives the same music; by default a new one")
    option("--strategy", default="loudness", choices=STRATEGIES, help="normalization of the output's level")
    for field in fields(Settings):
        name, help = f"--{field.name.replace('_', '-')}", SETTINGS_HELP[field.name]
        kind = float if field.default is None else type(field.default)
        if kind is bool:
            option(name, action=argparse.BooleanOptionalAction, default=field.default, help=help)
        else:
            # The default duration is the model's, which is at most its window.
            default = None if field.name == "duration" else field.default
            option(name, type=kind, default=default, help=help)

    replay = commands.add_parser("replay", help="generate a file's music again, from the manifest inside it")
    replay.set_defaults(command=_replay)
    replay.add_argument("file", type=Path, help="audio file generated by mgkit")
    replay.add_argument("-o", "--out", type=Path, help="output; by default only the tokens are compared")
    replay.add_argument("--adapter", **adapters)
    replay.add_argument("--model", help="name or folder of the weights, unless they are published")
    replay.add_argument("--device", help="cuda, mps or cpu; by default the fastest available")

    fetch = commands.add_parser("fetch", help="download a model, for use without a network")
    fetch.set_defaults(command=_fetch)
    fetch.add_argument("name", help="a name such as small or melody, or a hub id")
    fetch.add_argument("--dest", type=Path, help="output folder; by default the hub's cache")

    train = commands.add_parser("train", help="train or fine-tune a model, step by step")
    steps = train.add_subparsers(required=True, metavar="STEP")
    train.epilog = "Every step has a --help of its own."
    # Only listed here: `main` hands these to their modules, which have parsers of their own.
    for name, (_, help) in COMMANDS.items():
        commands.add_parser(name, help=help)
    for name, (_, help) in TRAIN.items():
        steps.add_parser(name, help=help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
