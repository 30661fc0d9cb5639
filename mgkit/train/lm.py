"""Teaching the language model and its text encoder: what comes next, told by a caption, a melody, both or neither.

Letters: B batch, K codebooks, T frames, S delayed steps, F chroma frames, V codebook size.

    caption, melody -> prefix --.
    codes [B, K, T] -> delayed steps 0..T-1 -> logits, compared with steps 1..T wherever these hold a code

So that guidance works, what the model is told is left out now and then, in the way that generation leaves it out:
zeros for the text, pitch class 0 for the melody.
"""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit import audio, checkpoint, hub
from mgkit.condition import Condition, Conditioner
from mgkit.delay import delay, delays
from mgkit.lm import LM, LMConfig
from mgkit.lm import attend as attend_by_torch
from mgkit.text import TextEncoder
from mgkit.train.align import align
from mgkit.train.attributes import pretrain_text_encoder
from mgkit.train.auxiliary import Reader, scores
from mgkit.train.ema import EMA
from mgkit.train.history import Metrics
from mgkit.train.loop import train
from mgkit.train.muon import Muon
from mgkit.train.parallel import Processes, autocast, backward, supports_bf16
from mgkit.train.tokens import CODE_STRIDE, Tokens, add_options, open_splits

# Views take turns: share of the clip, how many times the batch, and whether from its beginning or from anywhere. What a
# caption says can be heard from what has sounded so far, once a second has sounded: beginnings teach to listen to it.
VIEWS = ((1.0, 1, False), (0.2, 4, False), (1.0, 1, False), (0.4, 2, True))
# How much each codebook counts. The finer ones are nearly noise to a small model, and would drown the first in theirs.
BOOKS = (2.0, 1.0, 0.6, 0.4)
ASTRAY = 60, 30  # mean frames of a clip's own music and of another's in turn; see `led_astray`
OWN_FIRST = 100  # frames at least that a clip has for itself before, where only these say what should sound
NAMED = re.compile(r"\d|major|minor", re.IGNORECASE)  # in captions that tell a tempo or a key


@dataclass(frozen=True)
class TextConfig:
    """Shape of the T5 encoder and of its vocabulary."""

    dim: int = 192
    layers: int = 3
    heads: int = 4
    head_dim: int = 48
    feed_forward: int = 512
    pieces: int = 1600


@dataclass(frozen=True)
class LMRun:
    """Everything that decides a run; `steps` or `minutes` is its budget."""

    data: str
    valid: str
    tokens: str
    valid_tokens: str
    lm: LMConfig = field(
        default_factory=lambda: LMConfig(
            dim=256, layers=6, heads=4, feed_forward=1024, codebook_size=1024, cross_attention=False
        )
    )
    text: TextConfig = field(default_factory=TextConfig)
    start: str | None = None  # a run's folder, or a model's name or folder: its weights instead of fresh ones
    align: bool = False  # begin with heads that look at the melody's present
    score: float = 0.25  # weight of what a middle layer is asked about the score; 0 where clips have none
    text_steps: int = 400  # steps in which T5 learns what captions say, before all else
    steps: int | None = None
    minutes: float | None = 36.0
    batch: int = 6  # an even number: each half has a thread of its own, or as many as there are processes
    lr: float = 2e-3
    text_lr: float = (
        0.15  # T5's share of it: faster, and its words all become one before anybody listens to them
    )
    drop_all: float = 0.2  # how often neither caption nor melody is told
    drop_melody: float = 0.65
    drop_text: float = 0.15  # where there is a melody
    drop_words: float = 0.3  # how often some words of the caption are missing
    foreign_words: float = 0.15  # how often some words that mean nothing stand in the caption
    astray: float = (
        0.5  # how often stretches of another clip stand in the past that the next codes are told from
    )
    average: float = 0.995
    bf16: bool = True
    seed: int = 0


# -- text ----------------------------------------------------------------------------------------------------------


@lru_cache
def plain_words() -> list[str]:
    """A thousand frequent English words: those of the help pages that come with Python."""
    from collections import Counter
    from pydoc_data.topics import topics

    counts = Counter(re.findall(r"\b[a-z]{3,10}\b", " ".join(topics.values()).lower()))
    return sorted(word for word, _ in counts.most_common(1000))


def make_tokenizer(captions: list[list[str]], pieces: int) -> Any:
    """A T5-like tokenizer of `pieces` pieces at most, learned from the captions and some plain English.

    Case and accents do not matter to it, and every ASCII sign is a piece, so that few words are unknown.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=pieces, special_tokens=special, unk_token="<unk>", show_progress=False,
        initial_alphabet=[chr(c) for c in range(33, 127) if not chr(c).isupper()],
    )  # fmt: skip
    texts = [text for texts in captions for text in texts]
    tokenizer.train_from_iterator(texts[:20000] + plain_words() * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def disturb(text: str, run: LMRun, rng: np.random.Generator) -> str:
    """`text` with some words missing or some foreign ones added, now and then."""
    words = text.split(" ")
    if rng.random() < run.drop_words:
        words = [word for word in words if rng.random() > 0.25] or words
    if rng.random() < run.foreign_words:
        for _ in range(rng.integers(1, 4)):
            words.insert(rng.integers(len(words) + 1), str(rng.choice(plain_words())))
    return " ".join(words)


# -- the model -----------------------------------------------------------------------------------------------------


def new_model(run: LMRun, tokenizer: Any, melody_frames: int) -> nn.ModuleDict:
    """`lm` and `conditioner` with fresh weights."""
    from transformers import T5Config, T5EncoderModel

    shape, lm = run.text, LM(run.lm)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=shape.dim, d_kv=shape.head_dim, d_ff=shape.feed_forward,
        num_layers=shape.layers, num_heads=shape.heads, feed_forward_proj="gated-gelu", dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=0,
    )  # fmt: skip
    for embedding in lm.embeddings:
        nn.init.normal_(embedding.weight, std=0.3)
    for head in lm.heads:
        nn.init.normal_(head.weight, std=0.02)
    for layer in lm.layers:  # the deeper, the smaller what each layer adds
        for last in (layer.attention.out_proj, layer.linear2):
            nn.init.normal_(last.weight, std=(2 * run.lm.layers * last.in_features) ** -0.5)
    text = TextEncoder(tokenizer, T5EncoderModel(config))
    return nn.ModuleDict({"lm": lm, "conditioner": Conditioner(text, run.lm.dim, melody_frames)})


def told(conditioner: Conditioner, texts: list[str], melody: Tensor, keep: Tensor) -> Any:
    """Condition of captions and `melody` [B, F]; where `keep` [B] is False the text is null, as long as it was.

    `Conditioner.describe` with gradients.
    """
    ids, mask = (x.to(conditioner.text_proj.weight.device) for x in conditioner.text.tokens(texts))
    vectors = conditioner.text.t5(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    projected = conditioner.text_proj(vectors) * (mask & keep.to(mask.device)[:, None])[..., None]
    rows = [row[: max(1, int(length))] for row, length in zip(projected, mask.sum(dim=1), strict=True)]
    return conditioner(rows, melody)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention written out (an `mgkit.lm.Attend`): on a CPU, there and back, in half the time of torch's own."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    length = scores.shape[-1]
    if causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores += torch.zeros(mask.shape, dtype=scores.dtype, device=mask.device).masked_fill(
            ~mask, float("-inf")
        )
    return scores.softmax(dim=-1) @ values


def led_astray(codes: Tensor, informed: np.ndarray, share: float, rng: np.random.Generator) -> Tensor:
    """`codes` [B, K, T] where in a `share` of the clips stretches are another clip's: from the beginning on in half of
    those whose caption names what they should be (`informed` [B]), after a beginning of their own in those where it does
    not.

    Of true music the past tells more than the caption, and a model that learns from nothing else goes on in the key of
    whatever it played last, right or wrong. Here it learns to come back to what it was told, or to what was there first.
    """
    count, _, frames = codes.shape
    swapped = np.zeros((count, frames), bool)
    for row in np.flatnonzero(rng.random(count) < share):
        other = bool(informed[row] and rng.random() < 0.5)
        at = 0 if informed[row] else OWN_FIRST
        while at < frames:
            end = at + 1 + int(rng.exponential(ASTRAY[other]))
            swapped[row, at:end] = other
            at, other = end, not other
    return torch.where(torch.from_numpy(swapped)[:, None], codes.roll(1, 0), codes)


def delayed(lm: LM, codes: Tensor) -> Tensor:
    """Steps 0..T [B, K, T + 1] of `codes` [B, K, T], which may end in the middle of a frame."""
    config = lm.config
    steps = delay(codes.to(lm.device), delays(config.codebooks, config.channels), config.special)
    return steps[..., : codes.shape[-1] + 1]


def hidden(lm: LM, steps: Tensor, condition: Condition) -> Tensor:
    """The last layer's output [B, T, D] at `steps` [B, K, T]."""
    return lm.hidden(steps, None, condition.prefix, condition.prefix_mask, condition.cross, condition.cross_mask,
                     attend if lm.device.type == "cpu" else attend_by_torch)  # fmt: skip


def losses(lm: LM, codes: Tensor, condition: Condition, past: Tensor | None = None) -> Tensor:
    """Mean cross-entropy [K] in nats of each codebook of `codes` [B, K, T], where the delayed steps hold a code, each
    told from the codes before it, or from those in `past` [B, K, T].

    The special token stands in `codes` where a clip has ended. Clips count alike, however long they are.
    """
    config, steps = lm.config, delayed(lm, codes)
    given = steps if past is None else delayed(lm, past)
    state = hidden(lm, given[..., :-1], condition)
    each = []
    for k, head in enumerate(lm.heads):
        target = steps[:, k, 1:]
        found = F.cross_entropy(
            head(state).float().flatten(0, 1),
            target.flatten(),
            ignore_index=config.special,
            reduction="none",
        )
        each.append((found.view_as(target).sum(dim=1) / (target != config.special).sum(dim=1)).mean())
    return torch.stack(each)


# -- the learner ---------------------------------------------------------------------------------------------------


class LMLearner:
    """The language model with its conditioner, and their optimizers."""

    def __init__(self, run: LMRun, data: Any, valid: Any, tokenizer: Any, resumed: bool = False):
        torch.manual_seed(run.seed)
        self.processes = Processes()
        self.run, self.data, self.valid, self.tokenizer = run, data, valid, tokenizer
        self.model = load(run.start) if run.start else new_model(run, tokenizer, data.melody.shape[1])
        self.model.train().requires_grad_(True)
        if run.text_steps and not resumed:
            pretrain_text_encoder(self.model["conditioner"].text, data.pieces, run.text_steps, seed=run.seed)
        if run.align and not resumed:
            rows = np.arange(min(48, len(data)))
            codes, melody = data.batch(rows, data.codes.shape[-1])
            texts = [data.caption(row, np.random.default_rng(row)) for row in rows]
            align(self.model, codes, texts, melody)
        self.reader = None
        if run.score:
            self.scores = scores(data.pieces, data.seconds, data.codes.shape[-1])
            self.reader = Reader(self.model["lm"]).to(self.processes.device)
        self.model.to(self.processes.device)
        matrices = [p for p in self.model["lm"].layers.parameters() if p.dim() == 2]
        taken = {id(p) for p in matrices}
        t5 = list(self.model["conditioner"].text.t5.parameters())
        taken |= {id(p) for p in t5}
        others = [p for p in self.model.parameters() if id(p) not in taken]
        # Muon turns the update of a matrix into a rotation: fewer steps, which is what a small computer lacks
        self.optimizers = [
            Muon(
                matrices,
                run.lr,
                0.05,
                torch.bfloat16 if supports_bf16(self.processes.device) else torch.float32,
            ),
            torch.optim.AdamW(others, run.lr, betas=(0.9, 0.97), weight_decay=0.01),
            torch.optim.AdamW(t5, run.lr, betas=(0.9, 0.97), weight_decay=0.01),
        ]
        if self.reader:
            self.optimizers[1].add_param_group({"params": list(self.reader.parameters())})
        self.learned = [
            p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]
        ]
        self.processes.broadcast(self.learned)
        self.ema = EMA(self.model, run.average)

    def step(self, step: int, lr: float) -> Metrics:
        """One batch; see `loop.Learner`."""
        clips, loss = self.lesson(step)
        each = backward(loss, self.processes.shards(clips), self.learned, self.processes)
        norm = self.descend(step, lr)
        weight = self._weights()
        each, missed = each[: len(weight)] / weight, each[len(weight) :]
        row = {"loss": float(each.mean()), "norm": norm}
        if self.reader:
            row["score"] = float(missed.sum()) / self.run.score
        return row | {f"book{k}": float(e) for k, e in enumerate(each)}

    def lesson(self, step: int) -> tuple[int, Callable[[slice], Tensor]]:
        """How many clips the batch of this step has, and the losses of a part of it: a codebook's each, a question's each."""
        run, rng = self.run, np.random.default_rng((self.run.seed, step))
        part, times, anywhere = VIEWS[step % len(VIEWS)]
        rows = self._rows(step, times)
        frames = round(part * self.data.codes.shape[-1])
        start = rng.integers(1 + (self.data.codes.shape[-1] - frames) // CODE_STRIDE) if anywhere else 0
        codes, melody = self.data.batch(rows, frames, int(start))
        texts = [disturb(self.data.caption(i, rng), run, rng) for i in rows]
        keep = torch.from_numpy(rng.random(len(rows)) >= run.drop_all)
        hear = torch.from_numpy(rng.random(len(rows)) >= run.drop_melody) & keep
        keep &= ~(hear & torch.from_numpy(rng.random(len(rows)) < run.drop_text))
        texts = [text if k or rng.random() < 0.5 else "" for text, k in zip(texts, keep, strict=True)]
        heard = melody * hear[:, None]
        informed = keep.numpy() & [bool(NAMED.search(text)) for text in texts]
        past = led_astray(codes, informed, run.astray, rng)
        if self.reader:
            played = torch.from_numpy(
                self.scores[rows, :, start * CODE_STRIDE : start * CODE_STRIDE + frames]
            )

        def loss(part: slice) -> Tensor:
            with self._precision():
                condition = told(self.model["conditioner"], texts[part], heard[part], keep[part])
                found = losses(self.model["lm"], codes[part], condition, past[part]) * self._weights()
                if not self.reader:
                    return found
                missed = self.reader(self.reader.heard(frames), played[part])
                return torch.cat([found, missed * run.score])

        return len(rows), loss

    def descend(self, step: int, lr: float) -> float:
        """Takes the step that the gradients say; their norm."""
        norm = nn.utils.clip_grad_norm_(self.learned, 1.0)
        for optimizer, share in zip(self.optimizers, (1.0, 1.0, self.run.text_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * share
            optimizer.step()
        self.ema.update(self.model, step)
        return float(norm)

    def _weights(self) -> Tensor:
        """How much each codebook counts [K]: 1 on average."""
        weight = torch.tensor(BOOKS[: self.run.lm.codebooks], device=self.processes.device)
        return weight / weight.mean()

    def _rows(self, step: int, times: int) -> np.ndarray:
        """The clips of a batch: every clip once, in an order of its own, then all again in another."""
        batches = [times for _, times, _ in VIEWS]
        rounds, rest = divmod(step, len(batches))
        first = self.run.batch * (rounds * sum(batches) + sum(batches[:rest]))
        places = range(first, first + self.run.batch * times)
        orders = {
            n: np.random.default_rng((self.run.seed, 77, n)).permutation(len(self.data))
            for n in {p // len(self.data) for p in places}
        }
        return np.array([orders[p // len(self.data)][p % len(self.data)] for p in places])

    @torch.no_grad()
    def measure(self) -> Metrics:
        """Loss on valid clips with what is true of them, with the captions or melodies of others, and with nothing."""
        count = min(24, len(self.valid))
        codes, melody = self.valid.batch(np.arange(count), self.valid.codes.shape[-1])
        texts = [captions[0] for captions in self.valid.captions[:count]]
        other_texts, other_melody, silent = texts[1:] + texts[:1], melody.roll(1, 0), torch.zeros_like(melody)
        cases = {"all": (texts, melody, True), "text": (texts, silent, True), "text_other": (other_texts, silent, True),
                 "melody": (texts, melody, False), "melody_other": (texts, other_melody, False),
                 "none": (texts, silent, False)}  # fmt: skip
        result = {}
        with self.ema.swapped_into(self.model), self._precision():
            for name, (words, tune, keep) in cases.items():
                found = []
                for at in range(0, count, 8):
                    part = slice(at, min(at + 8, count))
                    keeps = torch.full((part.stop - at,), keep)
                    condition = told(self.model["conditioner"], words[part], tune[part], keeps)
                    found.append(losses(self.model["lm"], codes[part], condition).mean())
                result[f"valid_{name}"] = float(torch.stack(found).mean())
        return result

    def _precision(self) -> torch.autocast:
        return autocast(self.processes.device, self.run.bf16)

    def state_dict(self) -> dict[str, Any]:
        """See `loop.Learner`."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "average": self.ema.weights,
            "reader": self.reader.state_dict() if self.reader else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `loop.Learner`."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.ema.weights = state["average"]
        if self.reader:
            self.reader.load_state_dict(state["reader"])

    def save(self, out: Path) -> None:
        """`out`/lm.pt, the configurations and the averaged weights, beside `out`/tokenizer."""
        run = self.run
        result = {"lm": asdict(run.lm), "text": asdict(run.text), "melody_frames": self.data.melody.shape[1],
                  "weights": {name: weight.cpu() for name, weight in self.ema.weights.items()}}  # fmt: skip
        audio.replace_file(out / "lm.pt", lambda path: torch.save(result, path))
        self.tokenizer.save_pretrained(out / "tokenizer")


def load(folder: str | Path) -> nn.ModuleDict:
    """`lm` and `conditioner` of a run's folder, or of a model's name or folder, in float32, ready for use."""
    from transformers import AutoTokenizer

    folder = Path(folder)
    if (folder / "config.json").is_file() or str(folder) in hub.NAMES:
        whole = checkpoint.load(str(folder), torch.device("cpu"), torch.float32)
        return nn.ModuleDict({"lm": whole.lm, "conditioner": whole.conditioner}).eval()
    if not (folder / "lm.pt").is_file():
        raise FileNotFoundError(
            f"{folder / 'lm.pt'} is missing: train a language model first (python -m mgkit train lm)"
        )
    result = torch.load(folder / "lm.pt", weights_only=True)
    run = LMRun("", "", "", "", lm=LMConfig(**result["lm"]), text=TextConfig(**result["text"]))
    model = new_model(run, AutoTokenizer.from_pretrained(folder / "tokenizer"), result["melody_frames"])
    model.load_state_dict(result["weights"], strict=False)  # the tied embedding has two names
    return model.eval()


def must_fit(run: LMRun, data: Tokens) -> None:
    """Errors: ValueError for tokens of other codebooks than the run's model predicts."""
    found, expected = (
        (data.metadata["codebooks"], data.metadata["codebook_size"]),
        (run.lm.codebooks, run.lm.codebook_size),
    )
    if found != expected:
        raise ValueError(
            f"{run.tokens} has {found[0]} codebooks of {found[1]}; the language model is for {expected[0]} of {expected[1]}"
        )


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train lm`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train lm", description="Teaches the language model."
    )
    add_options(parser)
    parser.add_argument("--out", default="runs/lm", help="folder of the run; goes on where it stopped")
    parser.add_argument("--minutes", type=float, default=36.0, help="budget in minutes of the clock")
    parser.add_argument("--steps", type=int, default=None, help="budget in steps instead")
    parser.add_argument(
        "--batch", type=int, default=6, help="whole clips in a batch (or twice as many halves)"
    )
    parser.add_argument(
        "--start", default=None, help="a run's folder, or a model's name or folder, to begin from"
    )
    parser.add_argument(
        "--text-steps",
        type=int,
        default=LMRun.text_steps,
        help="steps of guessing attributes from captions first",
    )
    parser.add_argument(
        "--align", action="store_true", help="begin with heads that look at the melody's present"
    )
    parser.add_argument(
        "--score",
        type=float,
        default=LMRun.score,
        help="weight of what a middle layer is asked about the score; 0 asks nothing",
    )
    parser.add_argument(
        "--astray",
        type=float,
        default=LMRun.astray,
        help="share of clips in whose past another clip's music stands now and then; 0 for none",
    )
    parser.add_argument("--lr", type=float, default=LMRun.lr, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    data, valid = open_splits(args)
    run = LMRun(args.data, args.valid, args.tokens, args.valid_tokens, steps=args.steps,
                minutes=None if args.steps else args.minutes, batch=args.batch, start=args.start, lr=args.lr,
                align=args.align, score=args.score, astray=args.astray, text_steps=args.text_steps, seed=args.seed)  # fmt: skip
    must_fit(run, data)
    if Processes().size == 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # of each half of a batch
    resumed = (Path(args.out) / "checkpoint.pt").is_file()
    if run.start:
        tokenizer = load(run.start)["conditioner"].text.tokenizer
    else:
        tokenizer = make_tokenizer(data.captions, run.text.pieces)
    learner = LMLearner(run, data, valid, tokenizer, resumed)
    end = train(run, args.out, learner, lr=run.lr, measure_every=200)
    if learner.processes.rank == 0:
        print(json.dumps(end))


if __name__ == "__main__":
    main()
