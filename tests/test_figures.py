"""What `mgkit.lab.figures` promises: sound to the sample, text that stays text, pages that fetch nothing."""

import base64
import io
import re

import pytest
import soundfile
import torch
from matplotlib.figure import Figure

from mgkit.generate import windows
from mgkit.lab import figures

RATE = 32000
WAVE = 0.5 * torch.sin(torch.arange(12345) / 20)[None]
EVIL = "<script>alert('$1')</script> & \"quoted\""


def sounds(text: str) -> list[tuple[torch.Tensor, int]]:
    """Wave [C, N] and rate of every player in a piece of HTML."""
    found = re.findall(r'<audio controls[^>]* src="data:audio/flac;base64,([^"]+)"', text)
    decoded = [
        soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32", always_2d=True) for data in found
    ]
    return [(torch.from_numpy(data.T), rate) for data, rate in decoded]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("samples", [1, 639, 12345])
def test_player_holds_every_sample_at_its_own_level(channels, samples):
    wave = WAVE[:, :samples].repeat(channels, 1) * 0.01
    [(heard, rate)] = sounds(figures.player(wave, RATE).html)
    assert rate == RATE
    assert heard.shape == wave.shape
    assert (heard - wave).abs().max() <= 1 / 32768


def test_player_says_that_it_clips():
    assert "clipped" in figures.player(WAVE * 3, RATE).html
    assert "clipped" not in figures.player(WAVE, RATE).html


def test_player_escapes_the_title():
    text = figures.player(WAVE, RATE, EVIL).html
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert re.search(r'alt="waveform of [^"<>]*"', text)


def test_players_share_one_level_scale():
    loud, quiet = WAVE, WAVE * 0.1
    together = figures.players([("loud", loud), ("quiet", quiet)], RATE).html
    images = re.findall(r"data:image/png;base64,[^\"]+", together)
    assert images[0] in figures.player(loud, RATE).html
    assert images[1] not in figures.player(quiet, RATE).html
    assert len(sounds(together)) == 2


def test_grid_holds_every_sound_under_its_headings_on_one_scale():
    cells = [[WAVE, WAVE * 0.1], [WAVE[:, :639], WAVE * 0]]
    text = figures.grid(cells, RATE, ["seed 1", EVIL], ["warm", "cold"]).html
    assert "<script" not in text
    for wave, (heard, rate) in zip(sum(cells, []), sounds(text), strict=True):
        assert (rate, heard.shape) == (RATE, wave.shape)
        assert (heard - wave).abs().max() <= 1 / 32768
    quiet = [image for image, _ in re.findall(r'src="(data:image/png[^"]+)"()', text)][1]
    assert quiet not in figures.grid([[WAVE * 0.1]], RATE, ["seed 1"], ["cold"]).html
    with pytest.raises(ValueError, match="cells"):
        figures.grid(cells, RATE, ["seed 1"], ["warm", "cold"])


def test_a_stepped_pattern_shows_what_is_written_by_then_and_no_more():
    codes = torch.arange(1000, 1040).reshape(4, 10)
    above, below = figures.pattern(codes, step=3).axes
    assert {text.get_text() for text in above.texts} == {"1000", "1001", "1002", "1010", "1011", "1020"}
    assert {text.get_text() for text in below.texts} == {"–"} | {text.get_text() for text in above.texts}
    assert len(figures.pattern(codes).axes[0].texts) == 40


def test_usage_ranks_the_tokens_of_each_codebook():
    counts = torch.tensor([[1, 0, 5, 2], [0, 0, 0, 8]])
    first, second = figures.usage([("a", counts), ("b", counts * 2)]).axes
    assert [line.get_ydata().tolist() for line in first.lines] == [[5, 2, 1, 0], [8, 0, 0, 0]]
    assert [line.get_ydata().tolist() for line in second.lines] == [[10, 4, 2, 0], [16, 0, 0, 0]]
    with pytest.raises(ValueError, match="counts"):
        figures.usage([("one row", counts[0])])


def test_curves_draw_the_mean_of_what_is_near():
    [axes] = figures.curves(
        [("flat", torch.ones(5)), ("step", torch.tensor([0.0] * 100 + [1.0] * 100))], 50, "bits"
    ).axes
    raw, mean, _, step = (line.get_ydata() for line in axes.lines)
    assert raw.tolist() == pytest.approx([1] * 5)
    assert mean.tolist() == pytest.approx([1] * 5)
    assert not step[:80].any()
    assert step[120:].tolist() == pytest.approx([1] * 80)
    assert step[100] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("wave", [torch.zeros(2, 1, 100), torch.full((1, 100), torch.nan), torch.zeros(1, 0)])
def test_player_refuses_what_is_not_one_wave(wave):
    with pytest.raises(ValueError):
        figures.player(wave, RATE)


def pictures() -> dict[str, Figure]:
    codes = torch.arange(40).reshape(4, 10) * 50
    return {
        "waveform": figures.waveform(WAVE.repeat(2, 1), RATE, EVIL, seam=0.1),
        "mel": figures.mel([("one", WAVE), (EVIL, WAVE[:, :100])], RATE, seam=0.1),
        "silent mel": figures.mel([("silence", WAVE * 0)], RATE),
        "chroma": figures.chroma([("given", torch.eye(12)), (EVIL, torch.rand(12, 1))], RATE),
        "tokens": figures.tokens(codes, EVIL),
        "usage": figures.usage([(EVIL, codes), ("two", codes)], EVIL),
        "pattern": figures.pattern(codes),
        "stereo pattern": figures.pattern(codes.repeat(2, 1), channels=2),
        "stepped pattern": figures.pattern(codes, step=3),
        "schedule": figures.schedule([("flattened", codes // 50), (EVIL, codes // 50)]),
        "bars": figures.bars(torch.arange(60) / 1770, torch.eye(60)[59], 59, EVIL),
        "curves": figures.curves([("one", torch.rand(3)), (EVIL, torch.rand(200))], 50, EVIL, EVIL),
        "attention": figures.attention(torch.rand(3, 20, 2), ["word", EVIL], 50, EVIL),
        "attention to much": figures.attention(torch.rand(16, 20, 79), [str(i) for i in range(79)], 50),
        "table": figures.table(torch.rand(2, 2), ["one", EVIL], ["two", EVIL], EVIL, ".0%"),
        "overview": figures.overview(EVIL + 40 * " a very long prompt", codes, WAVE, RATE),
    }


def test_every_picture_is_a_figure_that_draws_without_a_backend():
    import matplotlib

    before = matplotlib.rcParams["backend"]
    for name, figure in pictures().items():
        assert isinstance(figure, Figure), name
        png, metadata = figure._repr_png_()
        assert png.startswith(b"\x89PNG"), name
        assert metadata["alt"], name
    assert matplotlib.rcParams["backend"] == before


@pytest.mark.parametrize("codes", [torch.zeros(1, 4, 10), torch.zeros(4, 0)])
def test_pictures_of_tokens_refuse_what_is_not_one_grid(codes):
    with pytest.raises(ValueError, match="codes"):
        figures.pattern(codes)


def test_page_is_whole_and_fetches_nothing(tmp_path):
    items = [EVIL, figures.player(WAVE, RATE, EVIL, seam=0.1), *pictures().values()]
    path = figures.page(items, tmp_path / "new" / "page.html", EVIL)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert not re.search(r"https?://|url\(|@import", text)
    assert text.count('class="picture"') == len(pictures())
    [(heard, _)] = sounds(text)
    assert heard.shape == WAVE.shape


def test_page_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    path = figures.page(["first"], tmp_path / "page.html", "title")
    before = path.read_text()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="space"):
        figures.page(["second"], path, "title")
    with pytest.raises(TypeError, match="int"):
        figures.page([3], path, "title")
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_each_of_several_players_has_its_own_seam():
    text = figures.players([("one", WAVE), ("two", WAVE), ("three", WAVE)], RATE, seam=[0.1, None, 0.2]).html
    assert re.findall(r"new after ([0-9.]+) s", text) == ["0.10", "0.20"]
    assert (
        figures.players([("one", WAVE)], RATE, 0.1).html == figures.players([("one", WAVE)], RATE, [0.1]).html
    )
    for draw in (figures.players, figures.mel):
        with pytest.raises(ValueError, match="2 seams for 1 waves"):
            draw([("one", WAVE)], RATE, [0.1, 0.2])


def test_a_picture_of_windows_draws_what_each_knows_makes_and_leaves():
    plan = windows(1000, 0, window=500, stride=300, changes=[700])
    [axes] = figures.windows(plan, 50, [(0, EVIL), (14, "jazz")]).axes
    bars = {}
    for bar in axes.patches:
        bars.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append((bar.get_x(), bar.get_width()))
    assert bars[0] == [(0, 10)]
    assert bars[1] == [(6, 4), (10, 4), (14, 2)]  # knows 4 s, makes 4, and is left 2 before its end
    assert bars[2] == [(10, 4), (14, 6)]
    assert EVIL[:10] in axes.texts[0].get_text()
    figures.windows(plan, 50)._repr_png_()


def test_a_race_is_won_where_making_stays_above_hearing():
    [axes] = figures.race([(0.5, 1.0), (1.0, 2.0), (1.5, 3.0)]).axes
    made, heard = (line.get_xydata().tolist() for line in axes.lines)
    assert made[-1] == [1.5, 3.0] and heard == [[0.5, 0.0], [3.5, 3.0]]


@pytest.mark.parametrize("draw", [lambda: figures.windows([], 50), lambda: figures.race([])])
def test_pictures_of_nothing_are_refused(draw):
    with pytest.raises(ValueError, match="no windows|got none"):
        draw()
