"""Embeddings of recordings for the distances between sets: musicnn, which needs no network, and CLAP.

Axes: N samples, B windows of a recording, D features.

    wave [N] -> windows -> network -> embeddings [B, D]
    text     -> CLAP               -> embedding [D], compared with those of a recording by their cosine

A distance depends on its embedding: `name` goes into every output.
"""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from mgkit import hub
from mgkit.evals import musicnn
from mgkit.formats.readers import quiet_transformers, read_json

BATCH = 8  # windows at once


class Embedding(Protocol):
    """A network that embeds mono waves, window by window."""

    name: str

    def __call__(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """Embeddings [B, D] of the windows of a wave [N]."""


class MusicnnEmbedding:
    """The penultimate layer of musicnn, D = 200, on windows of three seconds.

    Raises: RuntimeError with the command to run, if the package `musicnn` is not installed.
    """

    name = "musicnn (MTT), windows of 3 s"

    def __init__(self) -> None:
        self.network = musicnn.musicnn()

    def __call__(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """Embeddings [B, 200] of a wave [N]; an incomplete last window is dropped.

        Raises: ValueError for less than three seconds.
        """
        return self.network(musicnn.patches(wave, rate))[1].numpy()


class ClapEmbedding:
    """A CLAP of transformers (`ClapModel`): any checkpoint in a folder or on the hub, such as
    laion/larger_clap_music.

    Windows have the length that the checkpoint asks for, 10 s in the published ones. A last window of less
    than half of it is dropped, unless it is the only one; other incomplete windows are padded as the
    checkpoint asks. Embeddings have unit length. Source: LAION-CLAP, arXiv:2211.06687.

    Raises: ValueError for a folder or repository with another model; FileNotFoundError if it is not there.
    """

    def __init__(self, checkpoint: str):
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        folder = hub.snapshot(hub.find(checkpoint))
        kind = read_json(folder / "config.json").get("model_type")
        if kind != "clap":
            raise ValueError(
                f"{checkpoint} holds a model of type {kind}; give a CLAP checkpoint of transformers, such as "
                "laion/larger_clap_music"
            )
        try:
            with quiet_transformers():
                self.model, report = ClapModel.from_pretrained(
                    folder, trust_remote_code=False, output_loading_info=True
                )
                self.extractor = ClapFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
                self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # transformers and safetensors raise many types for a damaged file
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(
                f"{checkpoint} is not a whole CLAP checkpoint of transformers ({reason}); download it again"
            ) from None
        # transformers would fill them with random numbers.
        if report["missing_keys"]:
            raise ValueError(
                f"{checkpoint} lacks {len(report['missing_keys'])} tensors, such as "
                f"{min(report['missing_keys'])}; download it again"
            )
        self.model.eval()
        self.seconds = self.extractor.max_length_s
        self.name = f"CLAP {checkpoint}, windows of {self.seconds:g} s"

    @torch.no_grad()
    def __call__(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """Embeddings [B, D] of a wave [N]."""
        import librosa

        extractor = self.extractor
        wave = librosa.resample(wave, orig_sr=rate, target_sr=extractor.sampling_rate, res_type="soxr_hq")
        size = round(self.seconds * extractor.sampling_rate)
        windows = [wave[start : start + size] for start in range(0, len(wave), size)]
        if len(windows) > 1 and len(windows[-1]) < size / 2:
            windows.pop()
        rows = []
        for start in range(0, len(windows), BATCH):
            batch = windows[start : start + BATCH]
            inputs = extractor(batch, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            # Of short clips, the extractor of a fused checkpoint marks a random one as longer.
            longer = torch.zeros(len(batch), 1, dtype=torch.bool)
            output = self.model.audio_model(input_features=inputs["input_features"], is_longer=longer)
            rows.append(F.normalize(self.model.audio_projection(output.pooler_output), dim=-1))
        return torch.cat(rows).numpy()

    @torch.no_grad()
    def texts(self, texts: list[str]) -> np.ndarray:
        """Embeddings [n, D] of texts, cut at the longest that the checkpoint takes."""
        inputs = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        output = self.model.text_model(inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return F.normalize(self.model.text_projection(output.pooler_output), dim=-1).numpy()


def load(name: str) -> Embedding:
    """The embedding "musicnn", or that of a CLAP checkpoint.

    Raises: as the classes.
    """
    return MusicnnEmbedding() if name == "musicnn" else ClapEmbedding(name)
