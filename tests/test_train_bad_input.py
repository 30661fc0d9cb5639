"""Training errors are one sentence, and the last good checkpoint survives them."""

import resource
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_finetune import plan, recordings
from tiny import CODEC, tiny
from tiny import codec as tiny_codec

from mgkit.codec import CodecConfig
from mgkit.train import export, history, tokens
from mgkit.train import finetune as tuning
from mgkit.train.finetune import TuneLearner, tune

FULL = 200_000  # bytes; no file grows further


@pytest.fixture
def disk():
    """A disk that fills when `disk.fill()` is called: the kernel then refuses every write beyond FULL."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, before[1]))

    def free() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield SimpleNamespace(fill=fill, free=free)
    free()


def test_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_last_one(tmp_path, monkeypatch, disk):
    tiny().save_pretrained(str(tmp_path / "start"))
    settings, out = plan(recordings(tmp_path / "own"), str(tmp_path / "start"), steps=4), tmp_path / "out"
    monkeypatch.setattr(tuning, "MEASURE_EVERY", 2)
    step = TuneLearner.step

    def fills(self: TuneLearner, number: int, lr: float) -> dict:
        # The checkpoint of step 2 has been written.
        if number == 2:
            disk.fill()
        return step(self, number, lr)

    monkeypatch.setattr(TuneLearner, "step", fills)
    with pytest.raises(
        OSError,
        match=r"could not write .*checkpoint\.pt .* an earlier version, if there is one, is unchanged",
    ) as error:
        tune(settings, out)
    disk.free()
    assert "\n" not in str(error.value)
    assert (out / "checkpoint.pt").stat().st_size > FULL
    assert torch.load(out / "checkpoint.pt", weights_only=False)["step"] == 2
    assert not list(out.glob(".draft*"))
    # With space again, the run resumes from there.
    monkeypatch.setattr(TuneLearner, "step", step)
    tune(settings, out)
    assert torch.load(out / "checkpoint.pt", weights_only=False)["step"] == 4
    assert [row["step"] for row in history.read(out / "log.csv")] == [0, 2, 4, 4]


def test_a_codec_with_another_frame_length_is_refused(tmp_path):
    data = SimpleNamespace(
        mix=np.zeros((1, 3200), np.int16), melody=np.zeros((1, 3200), np.int16), samples=3200
    )
    other = tiny_codec(
        CodecConfig(filters=4, dim=16, codebook_size=32, sample_rate=16000, ratios=(8, 5, 4, 2))
    )
    with pytest.raises(ValueError, match="a frame of this codec is 320 samples, .* frames of 640"):
        tokens.write(other, data, tmp_path / "tokens", 1)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"sample_rate": 16000}, r"takes 79 melody frames, but 10 s at the 16000 Hz of .* are 40"),
        ({"codebooks": 2}, r"predicts 4 codebooks of 32, but .* has 2 of 32"),
        ({"codebook_size": 64}, r"predicts 4 codebooks of 32, but .* has 4 of 64"),
    ],
    ids=["rate", "codebooks", "codebook size"],
)
def test_a_codec_and_a_language_model_that_do_not_match_are_not_exported(tmp_path, changed, message):
    tiny(melody=True).save_pretrained(str(tmp_path / "lm"))
    config = replace(CODEC, **changed)
    (tmp_path / "codec").mkdir()
    torch.save(
        {"config": asdict(config), "weights": tiny_codec(config).state_dict()},
        tmp_path / "codec" / "codec.pt",
    )
    with pytest.raises(ValueError, match=message):
        export.export(tmp_path / "codec", tmp_path / "lm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_logs_are_plotted(tmp_path):
    (tmp_path / "log.csv").write_text("step,minutes,loss,valid_text\n0,0,,4.5\n20,0.1,4.2,\n20,0.1,,4.1\n")
    picture = history.plot(tmp_path / "log.csv")
    assert [line.get_label() for line in picture.axes[0].lines] == ["valid, text", "loss"]
    assert picture.axes[0].lines[0].get_xydata().tolist() == [[0, 4.5], [20, 4.1]]
    for wrong in ("", "name,caption\na,b\n"):
        (tmp_path / "log.csv").write_text(wrong)
        with pytest.raises(ValueError, match="is not the log of a run"):
            history.plot(tmp_path / "log.csv")
