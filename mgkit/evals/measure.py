"""`python -m mgkit measure`: scores of a model on held-out prompts, or metrics of a folder of recordings."""

import argparse
from pathlib import Path

from mgkit import audio, files, ranges
from mgkit.evals import recordings, report
from mgkit.train.captions import visible

# Files by which a folder is a model's, even if it has audio files too.
MODEL_FILES = ("config.json", "state_dict.bin", "checkpoint.th")
OF_A_MODEL, OF_RECORDINGS = ("count", "seconds"), ("reference", "prompts", "training", "embedding")


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit measure`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit measure",
        description="Score a model on held-out prompts, or measure a folder of recordings.",
    )
    option = parser.add_argument
    option("what", nargs="?", default="nano", help="name or folder of a model, or a folder of audio files")
    option("--out", type=Path, default=Path("runs/measure"), help="folder for the results")
    option = parser.add_argument_group("a model").add_argument
    option(
        "--count",
        type=ranges.count,
        help=f"number of held-out prompts (default {report.CARD_COUNT}); with at least as many, the scores "
        "enter the model card",
    )
    option("--seconds", type=ranges.amount, help="duration of each clip (default 10); less for a trial")
    option = parser.add_argument_group("a folder of recordings").add_argument
    option("--reference", type=Path, help="folder of recordings to compare with: Fréchet distance, KAD")
    option("--prompts", type=Path, help="table with the columns file and caption, for text adherence by CLAP")
    option("--training", type=Path, help="folder of training recordings: the nearest to each recording")
    option(
        "--embedding",
        nargs="+",
        help="musicnn (default) and CLAP checkpoints of transformers, such as laion/larger_clap_music",
    )
    given = parser.parse_args(argv)
    audible = _has_recordings(Path(given.what))
    for name in OF_A_MODEL if audible else OF_RECORDINGS:
        if getattr(given, name) is not None:
            kinds = (
                ("a folder of audio files", "a model") if audible else ("a model", "a folder of audio files")
            )
            raise ValueError(f"{given.what} is {kinds[0]}, and --{name} is for {kinds[1]}; leave it out")
    if not audible:
        report.run(
            given.what, given.out, given.count or report.CARD_COUNT, given.seconds or report.CARD_SECONDS
        )
        return
    # Report a folder that cannot be written before the work.
    given.out.mkdir(parents=True, exist_ok=True)
    files.check_output(given.out / "recordings.csv")
    networks = list(dict.fromkeys(given.embedding or ("musicnn",)))
    measured = recordings.measure(given.what, given.reference, given.prompts, given.training, networks)
    measured.write(given.out)
    print(measured.table())
    print(f"each recording: {given.out / 'recordings.csv'}")


def _has_recordings(folder: Path) -> bool:
    """Whether a folder holds recordings, and not a model."""
    if not folder.is_dir() or any((folder / name).exists() for name in MODEL_FILES):
        return False
    return any(path.suffix.lower() in audio.FORMATS and visible(path, folder) for path in folder.rglob("*"))


if __name__ == "__main__":
    main()
