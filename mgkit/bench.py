"""`python -m mgkit bench`: how long music takes, beside transformers on the same weights in the same run.

What one step must cost is known beforehand: every weight of the language model is read once, so its bytes over the
memory's bandwidth is the floor. Runs of the two alternate, so that a drifting machine slows both; ratios are medians
over pairs of runs.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from mgkit import MusicGen, checkpoint, export, hub
from mgkit.codec import Codec, CodecConfig
from mgkit.condition import Conditioner
from mgkit.lm import LM, LMConfig
from mgkit.text import TextEncoder

TEXT = "calm piano with soft strings"


def random_small(folder: str) -> str:
    """Writes a model of the shape of `facebook/musicgen-small` with random weights to `folder`; nano's tokenizer."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(hub.embedded())
    t5 = T5EncoderModel(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
    lm = LM(LMConfig())
    conditioner = Conditioner(TextEncoder(tokenizer, t5), lm.config.dim)
    export.save(checkpoint.Model(Codec(CodecConfig()), lm, conditioner), folder)
    return folder


def ours(folder: str, seconds: float) -> tuple[Callable[[], object], MusicGen]:
    """What generates `seconds` of guided music with mgkit."""
    model = MusicGen.get_pretrained(folder, device="cpu")
    model.set_generation_params(duration=seconds, use_sampling=False)
    return lambda: model.generate([TEXT]), model


def theirs(folder: str, seconds: float, frame_rate: int) -> Callable[[], object]:
    """What generates as much with transformers."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32).eval()
    text = transformers.AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")
    steps = round(seconds * frame_rate) + 3  # of which the delay keeps three
    return lambda: model.generate(
        input_ids=text.input_ids,
        attention_mask=text.attention_mask,
        do_sample=False,
        guidance_scale=3.0,
        max_new_tokens=steps,
    )


def bandwidth() -> float:
    """Bytes a second at which this machine reads memory: a matrix of 256 MB times a vector, the best of five."""
    matrix, vector = torch.ones(8192, 8192), torch.ones(8192)
    return 4 * matrix.numel() / min(_seconds(lambda: matrix @ vector) for _ in range(5))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bench(model: str, seconds: float, pairs: int) -> None:
    """Prints the floor, both times and their ratio for `seconds` of music."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_small(scratch) if model == "random-small" else str(hub.find(model))
        mine, loaded = ours(folder, seconds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        mine()
        peak = max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        other = theirs(folder, seconds, loaded.frame_rate)
        other()  # once, not counted, as for ours
        times = [(_seconds(mine), _seconds(other)) for _ in range(pairs)]

    size = sum(p.numel() * p.element_size() for p in loaded.lm.parameters())
    floor = size / bandwidth() * seconds * loaded.frame_rate
    own, their = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(
        f"{model}: {seconds:g} s of music, guidance 3, float32, {torch.get_num_threads()} threads, {pairs} pairs"
    )
    print(f"  floor         {floor:7.2f} s   {size / 1e6:.0f} MB of weights read at each step")
    print(f"  mgkit         {own:7.2f} s   {seconds / own:.2f} x real time, peak memory {peak:.1f} GB")
    print(f"  transformers  {their:7.2f} s   mgkit is {ratio:.2f} times as fast")


def main(argv: list[str] | None = None) -> None:
    """The command line of `bench`."""
    parser = argparse.ArgumentParser(prog="python -m mgkit bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="nano", help="a name, a folder, or random-small for small's shape")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of music")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    bench(arguments.model, arguments.duration, arguments.pairs)
