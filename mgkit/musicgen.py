"""`MusicGen`, the class that users call: text, melody and audio to music.

Axes: B batch, C channels, K codebooks, T frames, N samples, F chroma frames.

    descriptions, melody, audio prompt -> Request -> conditions -> tokens [B, K, T] -> codec -> wave [B, C, N]

Names and defaults are those of audiocraft's `MusicGen`, so code written for it runs after changing the
import. Arguments that audiocraft lacks are keyword-only.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mgkit import adapters, checkpoint, export, hub, melody
from mgkit.between import rejoin
from mgkit.brief import brief
from mgkit.devices import parse_device, parse_dtype
from mgkit.edits import Change
from mgkit.generate import Stop
from mgkit.interrupt import CtrlC
from mgkit.interventions import LogitsHook
from mgkit.loops import recut
from mgkit.manifest import manifests, replay_request, require_model, require_tokens
from mgkit.model import compile_steps
from mgkit.perform import OnStep, decode_or_keep, decode_whole, request_frames, say_stopped
from mgkit.progress import ProgressBar
from mgkit.prompts import Descriptions, Prompt, Texts, parse_descriptions, parse_prompt
from mgkit.request import Request, Waves, parse_melodies, parse_request
from mgkit.schedule import Schedule
from mgkit.sessions import LiveSession, Stream, chunk_frames
from mgkit.settings import Settings

Result: TypeAlias = Tensor | tuple[Any, ...]
"""The wave [B, C, N]; then, if requested, the tokens [B, K, T] and the manifests of the B samples."""


class MusicGen:
    """A MusicGen model and its generation settings."""

    def __init__(self, model: checkpoint.Model):
        self.model = model
        self.codec, self.lm, self.conditioner = model.codec, model.lm, model.conditioner
        self.name, self.licence = model.name, model.licence
        self.settings = Settings(duration=min(15.0, model.window))
        self._on_step: OnStep | None = None

    @staticmethod
    def get_pretrained(
        name: str = "nano",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        lm: str | os.PathLike | None = None,
    ) -> "MusicGen":
        """Load the model `name`: nano (ships with mgkit), small, melody, large, …, a hub id or a folder.

        `device` defaults to the best one available (cuda, mps, cpu); `dtype`, the type of the language model,
        to float16 on a GPU and float32 on a CPU, where bfloat16 and int8 are faster and less exact (see
        `mgkit.packed`). `lm` is a file with the state dict of a language model fine-tuned from `name`, by
        audiocraft or mgkit. Prints the licence of weights other than mgkit's.

        Raises:
            ValueError: an unknown name (the message has the nearest one), device or dtype.
            FileNotFoundError: the weights are not on this machine and cannot be downloaded.
        """
        target = parse_device(device)
        model = checkpoint.load(name, target, parse_dtype(dtype, target), lm)
        if model.licence != hub.MIT:
            print(f"{name}: licence of the weights: {model.licence}", file=sys.stderr)
        return MusicGen(model)

    def save_pretrained(self, folder: str, dtype: torch.dtype | None = None) -> None:
        """Write the model in the Hugging Face layout, for `transformers` and `get_pretrained(folder)`."""
        export.save(self.model, folder, dtype)

    def load_adapter(self, path: str | os.PathLike, strength: float = 1.0) -> None:
        """Add a LoRA adapter, a folder of `train tune --lora` or of PEFT, to those loaded before.

        It changes the music in proportion to `strength`; loading it again sets another one, and 0 removes it.

        Raises:
            ImportError: PEFT is not installed.
            FileNotFoundError: there is no adapter.
            ValueError: an adapter of another kind or another model, or a strength that is not a number.
        """
        adapters.load(self.model, path, strength)

    def merge(self) -> None:
        """Add the loaded adapters to the weights, at their strengths; they then cost no time."""
        adapters.merge(self.model)

    def compile(self) -> None:
        """Take the steps of up to two samples in compiled loops, as in int8: nano in about half the time.

        Logits agree to 1e-6. It takes some five seconds on a machine that has never done it.

        Raises: ValueError for a model that is not in float32 or int8 on a CPU.
        """
        compile_steps(self.lm)

    # --- properties ----------------------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        """Samples per second of the result."""
        return self.model.sample_rate

    @property
    def frame_rate(self) -> int:
        """Frames of tokens per second."""
        return self.model.frame_rate

    @property
    def audio_channels(self) -> int:
        """1, or 2 for the stereo models."""
        return self.model.channels

    @property
    def duration(self) -> float:
        """Length of the result in seconds, an audio prompt included."""
        return self.settings.duration

    @property
    def max_duration(self) -> float:
        """Length of a window in seconds; longer music is generated in several. May be set."""
        return self.model.window

    @max_duration.setter
    def max_duration(self, seconds: float) -> None:
        self.model.window = seconds

    # --- settings ------------------------------------------------------------------------------------------

    def set_generation_params(
        self,
        use_sampling: bool = True,
        top_k: int = 250,
        top_p: float = 0.0,
        temperature: float = 1.0,
        duration: float = 30.0,
        cfg_coef: Schedule = 3.0,
        cfg_coef_beta: float | None = None,
        two_step_cfg: bool = False,
        extend_stride: float | None = None,
        *,
        min_p: float = 0.0,
    ) -> None:
        """Set how to generate from now on; arguments left out take their defaults. See `Settings`."""
        self.settings = Settings(
            use_sampling=use_sampling,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            duration=duration,
            cfg_coef=cfg_coef,
            cfg_coef_beta=cfg_coef_beta,
            two_step_cfg=two_step_cfg,
            extend_stride=extend_stride,
            min_p=min_p,
        )

    def set_custom_progress_callback(self, progress_callback: OnStep | None = None) -> None:
        """Call `progress_callback(done, total)` after every step of each run without its own callback."""
        self._on_step = progress_callback

    # --- generation ----------------------------------------------------------------------------------------

    def generate(
        self,
        descriptions: Descriptions,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        return_manifests: bool = False,
        seed: int | Sequence[int] | None = None,
        negative: str | Texts | None = None,
        on_step: OnStep | None = None,
        stop: Stop | None = None,
        edits: Sequence[Change] = (),
        logits: LogitsHook | None = None,
    ) -> Result:
        """Music [B, C, N], float32 at `sample_rate`, for each of B descriptions.

        A description is a text; a mix of texts with weights, {"calm piano": 0.7, "fast jazz": 0.3}; or a
        timeline of either, [(0, "calm piano"), (6, "fast jazz")], under which the music continues with the
        new prompt at second 6.

        Args:
            progress: show a progress bar.
            return_tokens: also return the tokens [B, K, T].
            return_manifests: also return a list of manifests, one for each sample, for `replay`.
            seed: an integer (sample i uses seed + i) or one for each sample. The same seed, prompt and
                settings give the same sample, whatever else is in the batch.
            negative: a text to steer away from.
            on_step: called after each step with the number of steps done and of all steps.
            stop: once it is set, generation ends and returns the music so far, as it does on Ctrl-C.
            edits: changes of activations, such as [edits.Add(4, direction, 8.0)]; see `mgkit.edits`.
            logits: a function of the logits [B, K, V] after guidance and the number of the step; it returns
                those to draw from. See `mgkit.interventions.LogitsHook`.

        Raises:
            ValueError: an invalid argument.
        """
        how = (seed, negative, None, None, edits, logits)
        request = parse_request(self.model, self.settings, descriptions, *how)
        return self._run(request, progress, return_tokens, return_manifests, on_step, stop)

    def generate_unconditional(
        self,
        num_samples: int,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        return_manifests: bool = False,
        seed: int | Sequence[int] | None = None,
        on_step: OnStep | None = None,
        stop: Stop | None = None,
        edits: Sequence[Change] = (),
        logits: LogitsHook | None = None,
    ) -> Result:
        """Music [B, C, N] without a description, B = `num_samples`; see `generate`."""
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples is {brief(num_samples)}; it must be an integer of at least 1")
        how = (seed, None, None, None, edits, logits)
        request = parse_request(self.model, self.settings, [None] * num_samples, *how)
        return self._run(request, progress, return_tokens, return_manifests, on_step, stop)

    def generate_with_chroma(
        self,
        descriptions: Descriptions,
        melody_wavs: Waves,
        melody_sample_rate: int = 0,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        return_manifests: bool = False,
        seed: int | Sequence[int] | None = None,
        negative: str | Texts | None = None,
        on_step: OnStep | None = None,
        stop: Stop | None = None,
        edits: Sequence[Change] = (),
        logits: LogitsHook | None = None,
        separate: melody.Separate | None = None,
    ) -> Result:
        """Music [B, C, N] for the descriptions, following the melodies; see `generate`.

        `melody_wavs` is [C, N] for all samples, [B, C, N], or a list of B waves or None. In place of a wave,
        and without a rate, it takes pitch classes, int64 [F] (`mgkit.melody.classes`), or chroma of 0 and 1,
        float [F, 12] (`mgkit.melody.chords`), also [B, …]; a short melody repeats. `separate` removes drums
        and bass first (`mgkit.melody.demucs()`; audiocraft always does).

        Raises:
            ValueError: a model without melody conditioning, or a silent melody.
        """
        tunes = self._melodies(descriptions, melody_wavs, melody_sample_rate, separate)
        how = (seed, negative, tunes, None, edits, logits)
        request = parse_request(self.model, self.settings, descriptions, *how)
        return self._run(request, progress, return_tokens, return_manifests, on_step, stop)

    def generate_continuation(
        self,
        prompt: Waves,
        prompt_sample_rate: int,
        descriptions: Descriptions | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        return_manifests: bool = False,
        seed: int | Sequence[int] | None = None,
        negative: str | Texts | None = None,
        on_step: OnStep | None = None,
        stop: Stop | None = None,
        edits: Sequence[Change] = (),
        logits: LogitsHook | None = None,
    ) -> Result:
        """Continuation [B, C, N] of the audio `prompt` ([C, N], [B, C, N] or a list), which it begins with.

        The prompt counts towards `duration`; see `generate`.
        """
        if descriptions is None:
            several = isinstance(prompt, list | tuple) or getattr(prompt, "ndim", 0) == 3
            descriptions = [None] * (len(prompt) if several else 1)
        how = (seed, negative, None, (prompt, prompt_sample_rate), edits, logits)
        request = parse_request(self.model, self.settings, descriptions, *how)
        return self._run(request, progress, return_tokens, return_manifests, on_step, stop)

    def stream(
        self,
        descriptions: Descriptions,
        *,
        chunk_seconds: float = 1.0,
        melody_wavs: Waves | None = None,
        melody_sample_rate: int = 0,
        prompt: Tensor | None = None,
        prompt_sample_rate: int = 0,
        seed: int | Sequence[int] | None = None,
        negative: str | Texts | None = None,
        on_step: OnStep | None = None,
        stop: Stop | None = None,
        edits: Sequence[Change] = (),
        logits: LogitsHook | None = None,
    ) -> Stream:
        """Iterator of the music [B, C, n] while it is generated, about `chunk_seconds` at a time.

        Takes the arguments of the four methods above together; the first wave is the audio prompt, if there
        is one. The iterator's `manifests` and `tokens` describe the music so far.
        """
        chunk = chunk_frames(self.model, chunk_seconds)
        tunes = None if melody_wavs is None else self._melodies(descriptions, melody_wavs, melody_sample_rate)
        given = None if prompt is None else (prompt, prompt_sample_rate)
        how = (seed, negative, tunes, given, edits, logits)
        request = parse_request(self.model, self.settings, descriptions, *how)
        return Stream(self.model, request, chunk, on_step or self._on_step, stop)

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
        edits: Sequence[Change] = (),
        logits: LogitsHook | None = None,
    ) -> LiveSession:
        """Iterator of music [1, C, n] without end, about `chunk_seconds` at a time, under a changing prompt.

        `prompts` is a text; a mix of texts with weights, {"calm piano": 1, "fast jazz": 0}, a dict to change
        while the music plays; or a function returning either. A change takes effect with the next chunk. The
        model's settings apply, except the duration. Once `stop` is set, or on Ctrl-C, the last chunk is
        yielded and the iterator ends. Its `manifests` hold the timeline of prompts, for `replay`; the tokens
        kept for them take 2 bytes each and are dropped after a day.

        Raises:
            ValueError: as `generate`; for a changed prompt, while the music plays.
        """
        ask = prompts if callable(prompts) else lambda: prompts
        chunk = chunk_frames(self.model, chunk_seconds)
        tunes = None if melody_wav is None else parse_melodies(self.model, 1, melody_wav, melody_sample_rate)
        # Longer than a window, so that the stride is checked as well.
        settings = replace(self.settings, duration=2 * self.max_duration)
        how = (seed, [negative], tunes, None, edits, logits)
        request = parse_request(self.model, settings, [parse_prompt(ask())], *how)
        return LiveSession(self.model, request, ask, tunes, chunk, stop)

    def replay(
        self,
        manifest: dict,
        progress: bool = False,
        *,
        edits: Sequence[Change] | None = None,
        logits: LogitsHook | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Generate a sample again from its `manifest` (`audio.read_manifest`): wave [1, C, N] and tokens.

        A manifest holds digests of the tensors of `edits`, and names of functions: give the same ones again.

        Raises:
            ValueError: other weights, adapters or edits than those of the manifest, or other tokens.
        """
        require_model(manifest, self.model)
        request = replay_request(self.model, manifest, edits, logits)
        frames = int(manifest["frames"])  # fewer than planned if the run was stopped
        new = max(0, frames - request.audio_prompt.shape[-1])
        tokens = self._tokens(request, progress, None, None, new)[..., :frames]
        require_tokens(manifest, self.model, tokens[0])
        for entry, finish in (("loop", recut), ("between", rejoin)):
            if entry in manifest:
                return finish(self.model, manifest[entry], tokens)
        return self.generate_audio(tokens), tokens

    def generate_audio(self, tokens: Tensor) -> Tensor:
        """Wave [B, C, T * hop] of `tokens` [B, K, T]."""
        return decode_whole(self.model, tokens.to(self.lm.device))

    # --- steps of the work ---------------------------------------------------------------------------------

    def _run(
        self,
        request: Request,
        progress: bool,
        return_tokens: bool,
        return_manifests: bool,
        on_step: OnStep | None,
        stop: Stop | None,
    ) -> Result:
        with CtrlC(stop) as stopped:
            tokens = self._tokens(request, progress, on_step or self._on_step, stopped)
            if stopped.pressed:
                say_stopped(self.model, request, tokens)
            wave = decode_or_keep(self.model, tokens)
            origin = manifests(self.model, request, tokens) if return_manifests else []
        if return_tokens:
            return (wave, tokens, origin) if return_manifests else (wave, tokens)
        return (wave, origin) if return_manifests else wave

    def _tokens(
        self,
        request: Request,
        progress: bool,
        on_step: OnStep | None,
        stop: Stop | None,
        limit: int | None = None,
    ) -> Tensor:
        """Tokens [B, K, T], at most `limit` new frames; fewer than requested after `stop` or Ctrl-C."""
        codes = [request.audio_prompt]
        bar = ProgressBar(on_step) if progress else None
        with bar or nullcontext():
            try:
                for frame in islice(request_frames(self.model, request, bar or on_step, stop), limit):
                    codes.append(frame[..., None])
            except KeyboardInterrupt:
                say_stopped(self.model, request, torch.cat(codes, dim=-1))
        return torch.cat(codes, dim=-1)

    def _melodies(
        self, descriptions: Descriptions, waves: Waves, rate: int, separate: melody.Separate | None = None
    ) -> list[Tensor | None]:
        batch, duration = len(parse_descriptions(descriptions)), self.settings.duration
        return parse_melodies(self.model, batch, waves, rate, separate, duration)
