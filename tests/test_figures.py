"""Figures, players and pages: lossless audio, escaped text, pages without network requests."""

import base64
import io
import re

import pytest
import soundfile
import torch
from matplotlib.figure import Figure

from mgkit.generate import windows
from mgkit.lab import drawing, figures

RATE = 32000
WAVE = 0.5 * torch.sin(torch.arange(12345) / 20)[None]
EVIL = "<script>alert('$1')</script> & \"quoted\""


def sounds(text: str) -> list[tuple[torch.Tensor, int]]:
    """Wave [C, N] and rate of every player in HTML."""
    found = re.findall(r'<audio controls[^>]* src="data:audio/flac;base64,([^"]+)"', text)
    decoded = [
        soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32", always_2d=True) for data in found
    ]
    return [(torch.from_numpy(data.T), rate) for data, rate in decoded]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("samples", [1, 639, 12345])
def test_player_holds_every_sample_at_its_own_level(channels, samples):
    wave = WAVE[:, :samples].repeat(channels, 1) * 0.01
    [(decoded, rate)] = sounds(figures.player(wave, RATE).html)
    assert rate == RATE
    assert decoded.shape == wave.shape
    assert (decoded - wave).abs().max() <= 1 / 32768


def test_player_reports_clipping():
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


def test_player_table_holds_every_wave_under_its_headings_on_one_scale():
    cells = [[WAVE, WAVE * 0.1], [WAVE[:, :639], WAVE * 0]]
    text = figures.player_table(cells, RATE, ["seed 1", EVIL], ["warm", "cold"]).html
    assert "<script" not in text
    for wave, (decoded, rate) in zip(sum(cells, []), sounds(text), strict=True):
        assert (rate, decoded.shape) == (RATE, wave.shape)
        assert (decoded - wave).abs().max() <= 1 / 32768
    quiet = [image for image, _ in re.findall(r'src="(data:image/png[^"]+)"()', text)][1]
    assert quiet not in figures.player_table([[WAVE * 0.1]], RATE, ["seed 1"], ["cold"]).html
    with pytest.raises(ValueError, match="cells"):
        figures.player_table(cells, RATE, ["seed 1"], ["warm", "cold"])


def test_pattern_with_step_shows_only_the_tokens_generated_by_then():
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


def test_curves_are_smoothed_over_half_a_second():
    [axes] = figures.curves(
        [("flat", torch.ones(5)), ("step", torch.tensor([0.0] * 100 + [1.0] * 100))], 50, "bits"
    ).axes
    raw, mean, _, step = (line.get_ydata() for line in axes.lines)
    assert raw.tolist() == pytest.approx([1] * 5)
    assert mean.tolist() == pytest.approx([1] * 5)
    assert not step[:80].any()
    assert step[120:].tolist() == pytest.approx([1] * 80)
    assert step[100] == pytest.approx(0.5, abs=0.05)


def test_curves_end_at_the_given_top_and_are_four_at_most():
    made = [
        ("one", torch.rand(50)),
        ("two", torch.rand(50)),
        ("three", torch.rand(50)),
        ("four", torch.rand(50)),
    ]
    [axes] = figures.curves(made, 50, "bits", top=10).axes
    assert axes.get_ylim() == (0, 10)
    smooth = axes.lines[1::2]
    assert len({line.get_color() for line in smooth}) == len({line.get_linestyle() for line in smooth}) == 4
    with pytest.raises(ValueError, match="got 5 curves"):
        figures.curves([*made, ("five", torch.rand(50))], 50, "bits")


def test_lines_are_legible_on_white_and_on_black():
    """Contrast of at least 3, WCAG 2.2's bound for graphics; a dark page inverts the lightness."""
    from matplotlib.colors import to_rgb

    def luminance(color: list[float]) -> float:
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in color]
        return sum(x * weight for x, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    # hue-rotate(180deg), CSS Filter Effects
    rotate = torch.tensor([[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]])
    for name in drawing.COLORS:
        assert 1.05 / (luminance(to_rgb(name)) + 0.05) >= 3, name
        dark = (rotate @ (1 - torch.tensor(to_rgb(name)))).clamp(0, 1).tolist()
        assert (luminance(dark) + 0.05) / 0.05 >= 3, name


def test_a_table_is_text_that_can_be_copied_and_darker_is_larger():
    made = figures.table(
        torch.tensor([[0.0, 0.5], [1.0, 0.25]]), ["one", EVIL], ["two", "three"], EVIL, ".0%"
    )
    cells = re.findall(r"rgba\(31, 104, 163, ([\d.]+)\)[^>]*>([^<]*)</td>", made.html)
    assert [text for _, text in cells] == ["0%", "50%", "100%", "25%"]
    darkness = [float(alpha) for alpha, _ in cells]
    assert sorted(darkness) == [darkness[i] for i in (0, 3, 1, 2)]
    assert EVIL not in made.html and made._repr_html_() == made.html
    for values in (torch.full((1, 2), torch.nan), torch.ones(1, 2)):
        assert figures.table(values, ["one"], ["two", "three"]).html.count("<td") == 2
    with pytest.raises(ValueError, match="expected 1 rows"):
        figures.table(torch.ones(2, 2), ["one"], ["two", "three"])


def test_a_table_over_seeds_shows_mean_and_standard_deviation():
    values = torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]]])
    html = figures.table(values, ["one"], ["two", "three"], form=".1f").html
    assert ">2.0 ± 1.4</td>" in html and ">2.0 ± 0.0</td>" in html
    assert ">+2.0 ± 1.4</td>" in figures.table(values, ["one"], ["two", "three"], form="+.1f").html
    assert ">1.0</td>" in figures.table(values[:1], ["one"], ["two", "three"], form=".1f").html


def test_more_is_darker_in_every_colour_map():
    from matplotlib import colormaps

    for name in (drawing.LOUD, drawing.MORE):
        lightness = colormaps[name](torch.linspace(0, 1, 20).numpy())[:, :3] @ [0.2126, 0.7152, 0.0722]
        assert (lightness[:-1] > lightness[1:]).all()


@pytest.mark.parametrize("wave", [torch.zeros(2, 1, 100), torch.full((1, 100), torch.nan), torch.zeros(1, 0)])
def test_player_rejects_anything_but_one_wave(wave):
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
        "attention to many positions": figures.attention(
            torch.rand(16, 20, 79), [str(i) for i in range(79)], 50
        ),
        "overview": figures.overview(EVIL + 40 * " a very long prompt", codes, WAVE, RATE),
    }


def test_every_picture_is_a_figure_that_draws_without_a_backend():
    import matplotlib

    before = matplotlib.rcParams["backend"]
    for name, figure in pictures().items():
        assert isinstance(figure, Figure), name
        data, metadata = figure._repr_mimebundle_()
        assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG"), name
        assert metadata["image/png"]["alt"], name
        assert data["image/png"] in data["text/html"] and EVIL not in data["text/html"], name
    assert matplotlib.rcParams["backend"] == before


@pytest.mark.parametrize("codes", [torch.zeros(1, 4, 10), torch.zeros(4, 0)])
def test_token_pictures_reject_codes_of_another_shape(codes):
    with pytest.raises(ValueError, match="codes"):
        figures.pattern(codes)


def test_page_is_self_contained(tmp_path):
    items = [EVIL, figures.player(WAVE, RATE, EVIL, seam=0.1), *pictures().values()]
    path = figures.page(items, tmp_path / "new" / "page.html", EVIL)
    text = path.read_text(encoding="utf-8")
    # that of the players, once
    assert text.count("<script") == 1
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert not re.search(r"https?://|url\(|@import", text)
    assert text.count('class="mgkit-picture"') == len(pictures())
    [(decoded, _)] = sounds(text)
    assert decoded.shape == WAVE.shape


def test_a_failed_write_keeps_the_existing_page(tmp_path, monkeypatch):
    path = figures.page(["first"], tmp_path / "page.html", "title")
    before = path.read_text(encoding="utf-8")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="space"):
        figures.page(["second"], path, "title")
    with pytest.raises(TypeError, match="int"):
        figures.page([3], path, "title")
    assert path.read_text(encoding="utf-8") == before
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


def test_windows_draws_context_generated_and_unused_parts():
    plan = windows(1000, 0, window=500, stride=300, changes=[700])
    [axes] = figures.windows(plan, 50, [(0, EVIL), (14, "jazz")]).axes
    bars = {}
    for bar in axes.patches:
        bars.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append((bar.get_x(), bar.get_width()))
    assert bars[0] == [(0, 10)]
    # 4 s of context, 4 s generated, 2 s unused
    assert bars[1] == [(6, 4), (10, 4), (14, 2)]
    assert bars[2] == [(10, 4), (14, 6)]
    assert EVIL[:10] in axes.texts[0].get_text()
    figures.windows(plan, 50)._repr_mimebundle_()


def test_real_time_draws_playback_from_the_first_chunk_on():
    [axes] = figures.real_time([(0.5, 1.0), (1.0, 2.0), (1.5, 3.0)]).axes
    generated, played = (line.get_xydata().tolist() for line in axes.lines)
    assert generated[-1] == [1.5, 3.0] and played == [[0.5, 0.0], [3.5, 3.0]]


@pytest.mark.parametrize("draw", [lambda: figures.windows([], 50), lambda: figures.real_time([])])
def test_pictures_of_empty_lists_are_rejected(draw):
    with pytest.raises(ValueError, match="no windows|got none"):
        draw()
