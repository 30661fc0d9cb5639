"""`MusicGen`, the one door for users: text, melody and audio to music.

Letters: B batch, C channels, K codebooks, T frames, N samples, F chroma frames.

    descriptions, melody, prompt -> Job -> condition -> frames -> tokens [B, K, T] -> codec -> wave [B, C, N]

Names and defaults are those of audiocraft's `MusicGen`, so that code written for it runs after changing the import.
What the reference never had is keyword-only.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import chain, count, islice
from numbers import Real

import torch
from torch import Tensor

from mgkit import __version__, audio, checkpoint, export, hub, melody
from mgkit.generate import DAY, Settings, Stop, Told, Window, endless, frames, steps, windows
from mgkit.job import (
    Descriptions,
    Job,
    Prompt,
    Texts,
    Timeline,
    at,
    check_descriptions,
    check_prompt,
    check_seeds,
    check_texts,
    check_waves,
    digest,
    from_manifest,
    manifest,
)

OnStep = Callable[[int, int], None]
"""Called after each step with the steps done and the steps of the whole piece."""


class MusicGen:
    """A MusicGen model and the settings that it generates with."""

    def __init__(self, model: checkpoint.Model):
        self.model = model
        self.codec, self.lm, self.conditioner = model.codec, model.lm, model.conditioner
        self.name, self.licence, self.max_duration = model.name, model.licence, model.window
        self.settings = Settings(duration=min(15.0, model.window))
        self.manifests: list[dict] = []
        self._on_step: OnStep | None = None

    @staticmethod
    def get_pretrained(
        name: str = "nano", device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "MusicGen":
        """The model `name`: nano (ships with mgkit), small, medium, melody, large, melody-large, stereo-…, a hub id or a folder.

        `device` is the best there is (cuda, mps, cpu) unless named; `dtype` is that of the language model, float16 on a
        GPU and float32 elsewhere. Says in one line what the licence of the weights is, unless it is mgkit's own.
        Errors: ValueError for an unknown name, with the nearest; FileNotFoundError where the weights are not to be had.
        """
        best = best_device()
        where = best if device is None else torch.device(device)
        if where.type not in ("cpu", best.type):
            raise ValueError(
                f"there is no {where.type} here; leave device out for {best.type}, or give 'cpu'"
            )
        if dtype is None:
            dtype = torch.float32 if where.type == "cpu" else torch.float16
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype!r}; it must be torch.float32, torch.bfloat16 or torch.float16")
        model = checkpoint.load(name, where, dtype)
        if model.licence != hub.MIT:
            print(f"{name}: licence of the weights: {model.licence}", file=sys.stderr)
        return MusicGen(model)

    def save_pretrained(self, folder: str, dtype: torch.dtype | None = None) -> None:
        """Writes the model in the Hugging Face layout; `transformers` and `get_pretrained(folder)` load it."""
        export.save(self.model, folder, dtype)

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        """Samples in a second of the result."""
        return self.codec.config.sample_rate

    @property
    def frame_rate(self) -> int:
        """Frames of tokens in a second."""
        return self.codec.config.frame_rate

    @property
    def audio_channels(self) -> int:
        """1, or 2 for the stereo models."""
        return self.lm.config.channels

    @property
    def duration(self) -> float:
        """Seconds that are generated, an audio prompt included."""
        return self.settings.duration

    # --- how to generate ----------------------------------------------------------------------------------------

    def set_generation_params(
        self,
        use_sampling: bool = True,
        top_k: int = 250,
        top_p: float = 0.0,
        temperature: float = 1.0,
        duration: float = 30.0,
        cfg_coef: float = 3.0,
        cfg_coef_beta: float | None = None,
        two_step_cfg: bool = False,
        extend_stride: float | None = None,
    ) -> None:
        """Sets how to generate from now on; what is left out takes its default. `Settings` says what each does."""
        self.settings = Settings(
            use_sampling,
            top_k,
            top_p,
            temperature,
            duration,
            cfg_coef,
            cfg_coef_beta,
            two_step_cfg,
            extend_stride,
        )

    def set_custom_progress_callback(self, progress_callback: OnStep | None) -> None:
        """Calls `progress_callback(done, total)` after every step of every run, unless the run has its own."""
        self._on_step = progress_callback

    # --- four ways to make music --------------------------------------------------------------------------------

    def generate(
        self,
        descriptions: Descriptions,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        seed: int | Sequence[int] | None = None,
        negative: str | Texts | None = None,
        on_step: OnStep | None = None,
        stop: Stop | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Music [B, C, N] for each of the B descriptions, float32 at `sample_rate`; with `return_tokens` the tokens too.

        A description is a text; several texts and how much each counts, {"calm piano": 0.7, "fast jazz": 0.3}; or a
        timeline of such by the second, [(0, "calm piano"), (6, "fast jazz")], where at second 6 the music so far is
        gone on with under the new text. `progress` shows a bar. `seed` is one number (sample i takes seed + i) or one for each sample; the same seed,
        prompt and settings give the same sample, whatever else is in the batch. `negative` says what to keep away
        from. Setting `stop`, or Ctrl-C, ends early and returns what was made. `manifests` then holds, for each sample,
        what made it. Errors: ValueError in one sentence for what cannot be generated from.
        """
        return self._run(self._job(descriptions, seed, negative), progress, return_tokens, on_step, stop)

    def generate_unconditional(
        self,
        num_samples: int,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        seed: int | Sequence[int] | None = None,
        on_step: OnStep | None = None,
        stop: Stop | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Music [B, C, N] for no description, `num_samples` times; see `generate`."""
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples is {num_samples!r}; it must be a whole number over 0")
        return self._run(self._job([None] * num_samples, seed), progress, return_tokens, on_step, stop)

    def generate_with_chroma(
        self,
        descriptions: Descriptions,
        melody_wavs: Tensor | Sequence[Tensor | None],
        melody_sample_rate: int = 0,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        seed: int | Sequence[int] | None = None,
        negative: str | Texts | None = None,
        on_step: OnStep | None = None,
        stop: Stop | None = None,
        separate: melody.Separate | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Music [B, C, N] for the descriptions that follows the melodies; see `generate`.

        `melody_wavs` is [C, N] for all samples, [B, C, N], or a list of B waves or None. In place of waves, with no rate,
        it takes what the model hears of them: pitch classes of `mgkit.melody.classes`, int64 [F], [B, F] or in the
        list; too few repeat. `separate` takes drums and bass out of waves first (`mgkit.melody.demucs()`, as the
        reference always does). Errors: ValueError for a model that takes no melody, or a silent one.
        """
        job = self._job(
            descriptions, seed, negative, melody=(melody_wavs, melody_sample_rate), separate=separate
        )
        return self._run(job, progress, return_tokens, on_step, stop)

    def generate_continuation(
        self,
        prompt: Tensor | Sequence[Tensor],
        prompt_sample_rate: int,
        descriptions: Descriptions | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        seed: int | Sequence[int] | None = None,
        negative: str | Texts | None = None,
        on_step: OnStep | None = None,
        stop: Stop | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Music [B, C, N] that begins with `prompt` ([C, N], [B, C, N] or a list) and goes on up to `duration`; see `generate`."""
        if descriptions is None:
            several = isinstance(prompt, list | tuple) or getattr(prompt, "ndim", 0) == 3
            descriptions = [None] * (len(prompt) if several else 1)
        job = self._job(descriptions, seed, negative, prompt=(prompt, prompt_sample_rate))
        return self._run(job, progress, return_tokens, on_step, stop)

    def stream(
        self,
        descriptions: Descriptions,
        *,
        chunk_seconds: float = 1.0,
        melody_wavs: Tensor | Sequence[Tensor | None] | None = None,
        melody_sample_rate: int = 0,
        prompt: Tensor | None = None,
        prompt_sample_rate: int = 0,
        seed: int | Sequence[int] | None = None,
        negative: str | Texts | None = None,
        on_step: OnStep | None = None,
        stop: Stop | None = None,
    ) -> Iterator[Tensor]:
        """Yields the music [B, C, n] while it is made, about `chunk_seconds` at a time; joined, it is the whole.

        Takes what the four ways above take together, and begins with the prompt where there is one.
        """
        job = self._job(
            descriptions,
            seed,
            negative,
            melody=None if melody_wavs is None else (melody_wavs, melody_sample_rate),
            prompt=None if prompt is None else (prompt, prompt_sample_rate),
        )
        chunk = self._chunk(chunk_seconds)
        return self._stream(job, self._frames(job, on_step or self._on_step, stop), chunk)

    def live(
        self,
        prompts: Prompt | Callable[[], Prompt],
        *,
        chunk_seconds: float = 1.0,
        melody_wav: Tensor | None = None,
        melody_sample_rate: int = 0,
        seed: int | None = None,
        negative: str | None = None,
        stop: Stop | None = None,
    ) -> Iterator[Tensor]:
        """Yields music [1, C, n] without end, about `chunk_seconds` at a time, and asks before each what to play.

        `prompts` is a text; or texts and how much each counts, {"calm piano": 1, "fast jazz": 0}, a dict that may be
        changed while it plays; or a function that returns either. From the next chunk on, the music goes on under what
        was changed. The model's settings hold, but for the duration. Setting `stop`, or Ctrl-C, yields what was made
        and ends. Then `manifests` holds the timeline that it came to, and `replay` makes it again; that keeps 2 bytes
        for each token, and is given up after a day. Errors: those of `generate`, and of prompts also while it plays.
        """
        ask = prompts if callable(prompts) else lambda: prompts
        job = self._job(
            [check_prompt(ask())],
            seed,
            [negative],
            melody=None if melody_wav is None else (melody_wav, melody_sample_rate),
            settings=replace(self.settings, duration=2 * self.max_duration),  # longer than a window
        )
        tunes = None if melody_wav is None else self._tunes(1, melody_wav, melody_sample_rate)
        return self._live(job, ask, tunes, self._chunk(chunk_seconds), stop)

    def replay(self, manifest: dict, progress: bool = False) -> tuple[Tensor, Tensor]:
        """Wave [1, C, N] and tokens [1, K, T] of the run that `manifest` (of `audio.read_manifest`) tells of, made again.

        Errors: ValueError where the weights are others than those that made it, or the tokens come out different.
        """
        if not isinstance(manifest, dict):
            raise ValueError(
                f"the manifest is a {type(manifest).__name__}; it must be what audio.read_manifest gives"
            )
        if manifest.get("weights") != self._fingerprint():
            raise ValueError(
                f"it was made with other weights than those of {self.name!r} here: load the ones that made it"
            )
        job = from_manifest(manifest, self.lm.config.codebooks)
        prompt = job.prompt.to(self.lm.device)
        plan = self._plan(job.settings, prompt.shape[-1], job.texts[0])
        job = replace(job, prompt=prompt, plans=[plan])
        made = int(manifest["frames"])  # fewer than planned where it was stopped
        tokens = self._tokens(job, progress, None, None, max(0, made - prompt.shape[-1]))[..., :made]
        if digest(tokens[0]) != manifest.get("tokens"):
            raise ValueError(
                f"the tokens came out different: the file was made with {manifest.get('machine')}, this is "
                f"{self._machine()}; another processor or version rounds differently"
            )
        return self.generate_audio(tokens), tokens

    @torch.no_grad()
    def generate_audio(self, tokens: Tensor) -> Tensor:
        """Wave [B, C, T * hop] of `tokens` [B, K, T]."""
        return self.codec.decode(tokens.to(self.lm.device), self.audio_channels)

    # --- from a request to a job --------------------------------------------------------------------------------

    def _job(
        self,
        descriptions: Descriptions,
        seed: int | Sequence[int] | None,
        negative: str | Texts | None = None,
        melody: tuple[Tensor | Sequence[Tensor | None], int] | None = None,
        prompt: tuple[Tensor, int] | None = None,
        separate: melody.Separate | None = None,
        settings: Settings | None = None,
    ) -> Job:
        settings = settings or self.settings
        texts = check_descriptions(descriptions)
        batch = len(texts)
        negative = [negative] * batch if negative is None or isinstance(negative, str) else negative
        against = check_texts(negative, "negative")
        if len(against) != batch:
            raise ValueError(
                f"there are {batch} descriptions and {len(against)} negative ones; give one, or one for each"
            )
        if settings.cfg_coef_beta is not None and melody is None:
            raise ValueError(
                "cfg_coef_beta weighs the text against a melody, and there is none: leave it out, or give a melody"
            )
        last = max(timeline[-1][0] for timeline in texts)
        if last and last >= settings.duration:
            raise ValueError(
                f"a description changes at {last:g} s, and the duration is {settings.duration:g} s: ask for a longer "
                "duration, or leave that change out"
            )
        codes = self._prompt(batch, prompt)
        plans = [self._plan(settings, codes.shape[-1], timeline) for timeline in texts]
        grids = {}
        if melody is not None:
            tunes = self._tunes(batch, *melody, separate)
            long = plans[0][-1].end > round(self.max_duration * self.frame_rate)
            starts = {window.start for plan in plans for window in plan}
            grids = {start: self._heard(tunes, start, long) for start in sorted(starts)}
        return Job(texts, against, grids, codes, check_seeds(seed, batch), settings, plans)

    def _plan(self, settings: Settings, prompt: int, timeline: Timeline) -> list[Window]:
        """The windows that bring a piece from `prompt` frames to its duration."""
        window, stride = self._window(settings)
        total = max(1, round(settings.duration * self.frame_rate))
        changes = [round(seconds * self.frame_rate) for seconds, _ in timeline[1:]]
        if prompt >= total:
            raise ValueError(
                f"the audio prompt lasts {prompt / self.frame_rate:g} s, and the duration, which includes it, is "
                f"{settings.duration:g} s: ask for a longer duration or give a shorter prompt"
            )
        if (total > window or changes) and not 0 < stride < window:
            raise ValueError(
                f"extend_stride is {settings.extend_stride:g} s; it must be a frame or more, and less than a window "
                f"of this model ({self.max_duration:g} s): leave it out for {0.6 * self.max_duration:g} s"
            )
        return windows(total, prompt, window, stride, changes)

    def _window(self, settings: Settings) -> tuple[int, int]:
        """Frames of a window, and from one to the next."""
        stride = settings.extend_stride or 0.6 * self.max_duration
        return round(self.max_duration * self.frame_rate), round(stride * self.frame_rate)

    def _chunk(self, seconds: float) -> int:
        """Frames of a chunk of music."""
        if not isinstance(seconds, Real) or not 0 < seconds < math.inf:
            raise ValueError(f"chunk_seconds is {seconds!r}; it must be a number of seconds over 0")
        return max(1, round(seconds * self.frame_rate))

    @torch.no_grad()
    def _prompt(self, batch: int, given: tuple[Tensor, int] | None) -> Tensor:
        """Codes [B, K, T] of the audio prompt."""
        if given is None:
            return torch.zeros(batch, self.lm.config.codebooks, 0, dtype=torch.long, device=self.lm.device)
        rate = given[1]
        waves = [
            audio.resample(audio.to_channels(wave, self.audio_channels), rate, self.sample_rate)
            for wave in check_waves(given[0], batch, "the audio prompt")
        ]
        if len({wave.shape[-1] for wave in waves}) > 1:
            raise ValueError(
                "the audio prompts of a batch must be of one length; cut them, or continue them one by one"
            )
        return self.codec.encode(torch.stack(waves).to(self.lm.device))

    def _tunes(
        self,
        batch: int,
        given: Tensor | Sequence[Tensor | None],
        rate: int,
        separate: melody.Separate | None = None,
    ) -> list[Tensor | None]:
        """The melody of each sample: a wave [C, N] at `sample_rate`, pitch classes [F], or None."""
        if self.conditioner.melody_frames is None:
            raise ValueError(
                f"the model {self.name!r} takes no melody; nano, melody, melody-large and stereo-melody do"
            )
        tunes: list[Tensor | None] = []
        for tune in check_waves(given, batch, "the melody", tunes=True):
            if tune is not None and tune.dim() == 2:
                tune = audio.resample(separate(tune, rate) if separate else tune, rate, self.sample_rate)
                if not tune.any():
                    raise ValueError("the melody is silent: check the recording, or leave the melody out")
            tunes.append(tune)
        return tunes

    def _heard(self, tunes: list[Tensor | None], start: int, long: bool) -> Tensor:
        """Pitch classes [B, F] that the window at frame `start` of a piece, `long` if of several windows, is given.

        It hears the melody from where it starts, over and over.
        """
        length, past = self.conditioner.melody_frames, start * self.codec.config.hop
        assert length is not None
        grid = torch.zeros(len(tunes), length, dtype=torch.long)
        for i, tune in enumerate(tunes):
            if tune is None:
                continue
            if tune.dim() == 1:  # pitch classes
                grid[i] = melody.rotate(tune[None], round(past / melody.HOP), length)[0]
                continue
            if long or start:
                tune = melody.rotate(tune, past, round(self.max_duration * self.sample_rate))
            grid[i] = melody.classes(tune, self.sample_rate, length)
        return grid

    # --- from a job to tokens and sound -------------------------------------------------------------------------

    def _run(
        self, job: Job, progress: bool, return_tokens: bool, on_step: OnStep | None, stop: Stop | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        tokens = self._tokens(job, progress, on_step or self._on_step, stop)
        try:
            wave = self.generate_audio(tokens)
        except KeyboardInterrupt:  # the tokens took the time; what is left takes little
            print("decoding what was made; Ctrl-C again gives it up", file=sys.stderr)
            wave = self.generate_audio(tokens)
        return (wave, tokens) if return_tokens else wave

    def _tokens(
        self, job: Job, progress: bool, on_step: OnStep | None, stop: Stop | None, most: int | None = None
    ) -> Tensor:
        """Tokens [B, K, T], at most so many new frames; fewer than asked for where `stop` or Ctrl-C ended the run."""
        made = [job.prompt]
        with _bar(progress, on_step) as on_step:
            try:
                for frame in islice(self._frames(job, on_step, stop), most):
                    made.append(frame[..., None])
            except KeyboardInterrupt:
                self._say_stopped(made, job)
        tokens = torch.cat(made, dim=-1)
        self.manifests = self._manifests(job, tokens)
        return tokens

    def _stream(self, job: Job, frames: Iterator[Tensor], chunk: int) -> Iterator[Tensor]:
        made, sent = [job.prompt], 0

        def chunks() -> Iterator[Tensor]:
            if job.prompt.shape[-1]:
                yield job.prompt
            held: list[Tensor] = []
            for frame in frames:
                made.append(frame[..., None])
                held.append(frame[..., None])
                if len(held) == chunk:
                    yield torch.cat(held, dim=-1)
                    held = []
            if held:
                yield torch.cat(held, dim=-1)

        try:
            for wave in self._sound(chunks()):
                sent += wave.shape[-1]
                yield wave
        except KeyboardInterrupt:
            self._say_stopped(made, job)
            rest = self.generate_audio(torch.cat(made, dim=-1))[..., sent:]
            if rest.shape[-1]:
                yield rest
        finally:
            self.manifests = self._manifests(job, torch.cat(made, dim=-1))

    def _live(
        self,
        job: Job,
        ask: Callable[[], Prompt],
        tunes: list[Tensor | None] | None,
        chunk: int,
        stop: Stop | None,
    ) -> Iterator[Tensor]:
        timeline, tell = job.texts[0], self._told(job)
        made, kept, end = [job.prompt.cpu().short()], True, 0  # of a day, what a manifest tells

        def changed(frame: int) -> bool:
            mix = timeline[-1][1] if frame % chunk else check_prompt(ask())
            if mix == timeline[-1][1]:
                return False
            timeline.append((frame / self.frame_rate, mix))
            return True

        def told(window: Window) -> Told:
            nonlocal kept, end
            kept, end = kept and window.end <= DAY * self.frame_rate, window.end
            if not kept:
                made.clear()
                job.melody.clear()
                del timeline[:-1]
            if tunes is not None:
                job.melody[window.start] = self._heard(tunes, window.start, True)
            return tell(window)

        def chunks() -> Iterator[Tensor]:
            held: list[Tensor] = []
            try:
                for frame in endless(
                    self.lm, told, changed, *self._window(job.settings), job.settings, generators, stop
                ):
                    held.append(frame)
                    if len(held) == chunk:
                        yield keep(held)
                        held = []
            except KeyboardInterrupt:
                say_stopped()
            if held:
                yield keep(held)

        def say_stopped() -> None:
            print("stopped; what was made is kept", file=sys.stderr)

        def keep(held: list[Tensor]) -> Tensor:
            codes = torch.stack(held, dim=-1)
            if kept:
                made.append(codes.cpu().short())
            return codes

        generators = [torch.Generator().manual_seed(seed) for seed in job.seeds]
        try:
            yield from self._sound(chunks())
        except KeyboardInterrupt:
            say_stopped()
        finally:
            self.manifests = []
            if kept and end and not sys.is_finalizing():  # Python may end while music waits to go on
                settings = replace(job.settings, duration=end / self.frame_rate)
                plan = self._plan(settings, 0, timeline)
                job = replace(job, settings=settings, plans=[plan])
                self.manifests = self._manifests(job, torch.cat(made, dim=-1).long())

    def _sound(self, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Music [B, C, n] of chunks of tokens, as they come."""
        waves = self.codec.decode_stream(chunks, self.audio_channels)
        while True:
            with torch.no_grad():  # not around the yield: it would reach into the caller's code
                wave = next(waves, None)
            if wave is None:
                return
            yield wave

    def _say_stopped(self, made: list[Tensor], job: Job) -> None:
        seconds = sum(part.shape[-1] for part in made) / self.frame_rate
        total = job.plans[0][-1].end / self.frame_rate
        print(f"stopped after {seconds:g} of {total:g} s; what was made is kept", file=sys.stderr)

    def _frames(self, job: Job, on_step: OnStep | None, stop: Stop | None) -> Iterator[Tensor]:
        """The new frames [B, K] of the job. Samples whose windows differ go side by side, so that none feels another."""
        groups: dict[tuple[Window, ...], list[int]] = {}
        for i, own in enumerate(job.plans):
            groups.setdefault(tuple(own), []).append(i)
        total, done = sum(steps(self.lm, plan) for plan in groups), count(1)
        step = on_step and (lambda *_: on_step(next(done), total))
        made = []
        for plan, rows in groups.items():
            part = job.only(rows)
            generators = [torch.Generator().manual_seed(seed) for seed in part.seeds]
            told = self._told(part)
            made.append(frames(self.lm, told, part.prompt, plan, job.settings, generators, step, stop))
        order = torch.tensor(list(chain(*groups.values()))).argsort()
        together = zip(*made, strict=False)  # some are a frame ahead where it was stopped
        return (torch.cat(parts)[order] for parts in together)

    @torch.no_grad()
    def _told(self, job: Job) -> Callable[[Window], Told]:
        """What the model is told in a window: the prompts of that time, and what guidance compares them with."""
        settings, encoder, vectors = job.settings, self.conditioner, dict[str, Tensor]()
        against = encoder(encoder.describe(job.negative)) if any(job.negative) else None

        def encode(texts: list[str]) -> None:
            """Adds the vectors of texts that are new, once for all windows; of others, in live music, the last few stay."""
            for text in list(vectors)[:-64]:
                if text not in texts:
                    del vectors[text]
            new = [text for text in dict.fromkeys(texts) if text not in vectors]
            if new:
                vectors.update(zip(new, encoder.describe(new), strict=True))

        @torch.no_grad()
        def told(window: Window) -> Told:
            now = window.start + window.known
            mixes = [list(at(timeline, now, self.frame_rate).items()) for timeline in job.texts]
            texts = [text for mix in mixes for text, _ in mix]
            encode(texts)
            several = max(len(mix) for mix in mixes)
            for mix in mixes:  # a sample with fewer prompts has its first more often, counting nothing
                mix += [(mix[0][0], 0.0)] * (several - len(mix))
            columns = list(zip(*mixes, strict=True))
            rows = [[vectors[text] for text, _ in column] for column in columns]
            shares = [[weight for _, weight in column] for column in columns]
            alone = shares == [[1.0] * len(mixes)]
            weights = None if alone else torch.tensor(shares, device=self.lm.device)
            grid = job.melody.get(window.start)

            prompts = [encoder(row, grid) for row in rows]
            unguided = settings.cfg_coef == 1 and settings.cfg_coef_beta is None and alone
            aimless = not any(texts) and grid is None and against is None
            if unguided or aimless:  # the null stream would not change a number
                return Told(prompts)
            null = encoder.null(rows[0]) if against is None else against
            if settings.cfg_coef_beta is None:
                return Told([*prompts, null], weights)
            melody_alone = encoder([torch.zeros_like(text) for text in rows[0]], grid)
            return Told([*prompts, melody_alone, null], weights)

        encode([text for timeline in job.texts for _, mix in timeline for text in mix])
        return told

    # --- what a run was -----------------------------------------------------------------------------------------

    def _manifests(self, job: Job, tokens: Tensor) -> list[dict]:
        """For each sample what made it."""
        made_by = {
            "mgkit": __version__,
            "model": self.name,
            "weights": self._fingerprint(),
            "licence": self.licence,
            "machine": self._machine(),
        }
        return [made_by | manifest(job, i, sample) for i, sample in enumerate(tokens)]

    def _fingerprint(self) -> str:
        """Tells weights apart: a digest of a few of them."""
        parts = (self.lm.norm.weight, self.lm.heads[0].weight[:64], self.codec.encoder[0].weight)
        return hashlib.sha256(
            b"".join(part.detach().float().cpu().numpy().tobytes() for part in parts)
        ).hexdigest()[:16]

    def _machine(self) -> str:
        """What the same numbers depend on besides the manifest."""
        kind = (
            torch.cuda.get_device_name()
            if self.lm.device.type == "cuda"
            else torch.backends.cpu.get_cpu_capability()
        )
        return f"torch {torch.__version__}, transformers {version('transformers')}, {self.lm.device.type} {kind}, {self.lm.dtype}"


def best_device() -> torch.device:
    """A GPU where there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextmanager
def _bar(progress: bool, also: OnStep | None) -> Iterator[OnStep | None]:
    """A callback that draws a progress bar with the time left, where `progress`, and calls `also`."""
    if not progress:
        yield also
        return
    from tqdm.auto import tqdm

    bar = None

    def on_step(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:  # drawn once there is something to show
            bar = tqdm(total=total, unit=" steps")
        bar.update(done - bar.n)
        if also:
            also(done, total)

    try:
        yield on_step
    finally:
        if bar is not None:
            bar.close()
