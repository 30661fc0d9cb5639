"""`python -m mgkit bench`: time to generate music, compared with transformers on the same weights.

The lower bound of a step is the time to read every weight of the language model once: bytes divided by
memory bandwidth. Runs of the two alternate, so a machine that slows down affects both; the ratio is the
median over pairs of runs.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from mgkit import MusicGen, checkpoint, export, hub, ranges
from mgkit.codec import Codec, CodecConfig
from mgkit.condition import Conditioner
from mgkit.lm import LM, LMConfig
from mgkit.text import TextEncoder

TEXT = "calm piano with soft strings"


def random_small(folder: str) -> str:
    """Write a model of small's size, with random weights and nano's tokenizer, to `folder`."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(hub.embedded(), trust_remote_code=False)
    t5 = T5EncoderModel(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
    lm = LM(LMConfig())
    conditioner = Conditioner(TextEncoder(tokenizer, t5), lm.config.dim)
    export.save(checkpoint.Model(Codec(CodecConfig()), lm, conditioner), folder)
    return folder


def mgkit_run(folder: str, seconds: float) -> tuple[Callable[[], object], MusicGen]:
    """A call generating `seconds` of music with guidance in mgkit, and its model."""
    model = MusicGen.get_pretrained(folder, device="cpu")
    model.set_generation_params(duration=seconds, use_sampling=False)
    return lambda: model.generate([TEXT]), model


def transformers_run(folder: str, seconds: float, frame_rate: int) -> Callable[[], object]:
    """A call generating the same length of music in transformers."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    text = tokenizer(TEXT, return_tensors="pt")
    # The last codebook is delayed by three steps, so there are three more steps than frames.
    steps = round(seconds * frame_rate) + 3
    return lambda: model.generate(
        input_ids=text.input_ids,
        attention_mask=text.attention_mask,
        do_sample=False,
        guidance_scale=3.0,
        max_new_tokens=steps,
    )


def bandwidth() -> float:
    """Memory bandwidth in bytes per second: a matrix of 256 MB times a vector, the best of five runs."""
    matrix, vector = torch.ones(8192, 8192), torch.ones(8192)
    return 4 * matrix.numel() / min(_seconds(lambda: matrix @ vector) for _ in range(5))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bench(model: str, seconds: float, pairs: int) -> None:
    """Print the lower bound, both times and their ratio for `seconds` of music."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_small(scratch) if model == "random-small" else str(hub.find(model))
        run_mgkit, loaded = mgkit_run(folder, seconds)
        # The first run of each is not timed.
        run_mgkit()
        # The peak before transformers loads a second copy; kilobytes on Linux.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        run_transformers = transformers_run(folder, seconds, loaded.frame_rate)
        run_transformers()
        times = [(_seconds(run_mgkit), _seconds(run_transformers)) for _ in range(pairs)]

    size = sum(p.numel() * p.element_size() for p in loaded.lm.parameters())
    bound = size / bandwidth() * seconds * loaded.frame_rate
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(
        f"{model}: {seconds:g} s of music, guidance 3, float32, {torch.get_num_threads()} threads, "
        f"{pairs} pairs of runs"
    )
    print(f"  lower bound   {bound:7.2f} s   {size / 1e6:.0f} MB of weights are read at each step")
    print(f"  mgkit         {ours:7.2f} s   {seconds / ours:.2f} x real time, peak memory {peak:.1f} GB")
    print(f"  transformers  {theirs:7.2f} s   mgkit is {ratio:.2f} times as fast")


def main(argv: list[str] | None = None) -> None:
    """Run `python -m mgkit bench`."""
    parser = argparse.ArgumentParser(prog="python -m mgkit bench", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--model", default="nano", help="name, folder, or random-small: random weights, small's size"
    )
    parser.add_argument("--duration", type=ranges.amount, default=5.0, help="seconds of music")
    parser.add_argument("--pairs", type=ranges.count, default=3, help="timed runs of each library")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    bench(arguments.model, arguments.duration, arguments.pairs)
