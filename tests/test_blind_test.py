"""Blind tests: nothing reveals the clips, order and loudness are fair, no answer is lost."""

import csv
import re

import ipywidgets
import pytest
import torch
from tiny import RATE, noise, tune

from mgkit import audio
from mgkit.lab import blind_panel, blind_test, pooled, preferences
from mgkit.lab.blind_panel import BlindPanel
from mgkit.lab.blind_test import BlindTest, Pair, match_loudness
from mgkit.lab.preferences import Preference, count, read, sign_test

NAMES = {"guidance 3", "guidance 1"}


def pairs(count=4, question="Which is better?"):
    return [
        Pair(
            question,
            f"clip {i}",
            {"guidance 3": tune(0.5, (60 + i,)), "guidance 1": 0.1 * noise(1, RATE // 2, seed=i)},
        )
        for i in range(count)
    ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "answers.csv"


def order(test):
    """Items and names of A in the order of the file, after a complete test."""
    while not test.finished:
        test.answer("A")
    return [(row["item"], row["a"]) for row in read(test.path) if row["listener"] == test.listener]


# --- fair -------------------------------------------------------------------------------------------------


def test_the_order_depends_on_seed_and_listener_alone(tmp_path):
    make = [("Ada", 1, "a"), ("Ada", 1, "b"), ("Bob", 1, "c"), ("Ada", 2, "d")]
    first, again, other, reseeded = (
        order(BlindTest(pairs(8), RATE, tmp_path / name, listener, seed)) for listener, seed, name in make
    )
    assert first == again
    assert first != other
    assert first != reseeded
    assert sorted(item for item, _ in first) == sorted(item for item, _ in other)


@pytest.mark.parametrize("seed", range(5))
def test_half_of_the_pairs_are_swapped(path, seed):
    asked = order(BlindTest(pairs(8), RATE, path, "Ada", seed))
    assert [a for _, a in asked].count("guidance 3") == 4


def test_the_file_names_the_clip_that_was_played_as_a(path):
    test = BlindTest(pairs(6), RATE, path, "Ada")
    while not test.finished:
        clip, pair = test.clips[0], test.pair
        test.answer("A")
        row = read(path)[-1]
        expected = match_loudness(*(pair.clips[row[letter]] for letter in "ab"), RATE)[0]
        assert torch.equal(clip, expected)
        assert row["preferred"] == row["a"] and {row["a"], row["b"]} == NAMES


def test_nothing_shown_to_the_listener_names_the_clips(path):
    test = BlindTest(pairs(), RATE, path, "Ada")
    panel = BlindPanel(test)
    shown = [test.players().html, panel.name.value, panel.head.value, panel.sound.html, panel.outcome.value]
    # in code and in the panel
    assert sum("<audio" in text for text in shown) == 2
    for text in shown:
        assert not any(name in text for name in NAMES)


def test_both_clips_are_equally_loud_and_long_and_do_not_clip():
    loud, quiet = tune(2, channels=1), 0.03 * noise(1, 3 * RATE)
    # this peak would clip at -14 LUFS
    quiet[0, 5] = 1.0
    a, b = match_loudness(loud, quiet, RATE)
    assert a.shape == b.shape == (1, 2 * RATE)
    assert audio.loudness(a, RATE) == pytest.approx(audio.loudness(b, RATE), abs=0.1)
    assert audio.loudness(loud, RATE) - audio.loudness(quiet, RATE) > 6
    assert max(a.abs().max(), b.abs().max()) == pytest.approx(blind_test.PEAK)
    assert torch.allclose(a / a.max(), loud / loud.max(), atol=1e-5)


def test_clips_of_undefined_loudness_keep_their_level():
    silent, short = torch.zeros(1, RATE), tune(0.2)
    assert torch.equal(match_loudness(silent, tune(1), RATE)[1], tune(1))
    assert torch.equal(match_loudness(short, 0.5 * short, RATE)[1], 0.5 * short)


# --- nothing is lost --------------------------------------------------------------------------------------


def test_every_answer_is_in_the_file_when_the_call_returns_and_none_before_it_changes(path):
    test = BlindTest(pairs(3), RATE, path, "Ada")
    before = ""
    for number, choice in enumerate(("A", "B", "same"), 1):
        assert test.progress == f"{number} of 3"
        test.answer(choice, f"comment {number}")
        after = path.read_text(encoding="utf-8")
        assert after.startswith(before) and len(after) > len(before)
        before = after
    assert test.finished and test.progress == "done"
    assert [(row["answer"], row["comment"], row["trial"]) for row in read(path)] == [
        ("A", "comment 1", "1"),
        ("B", "comment 2", "2"),
        ("same", "comment 3", "3"),
    ]
    assert read(path)[2]["preferred"] == ""


def test_an_interrupted_test_resumes_with_the_remaining_pairs(path):
    whole = order(BlindTest(pairs(6), RATE, path.with_name("whole.csv"), "Ada"))
    first = BlindTest(pairs(6), RATE, path, "Ada")
    first.answer("A"), first.answer("A")
    second = BlindTest(pairs(6), RATE, path, "Ada")
    assert second.progress == "3 of 6"
    assert order(second) == whole
    assert BlindTest(pairs(6), RATE, path, "Ada").finished
    assert BlindTest(pairs(6), RATE, path, "Bob").progress == "1 of 6"


def test_answers_about_other_audio_do_not_count(path):
    order(BlindTest(pairs(4), RATE, path, "Ada"))
    changed = [Pair(p.question, p.item, {name: 0.9 * w for name, w in p.clips.items()}) for p in pairs(4)]
    assert BlindTest(changed, RATE, path, "Ada").progress == "1 of 4"


def test_an_incomplete_line_affects_no_other(path):
    test = BlindTest(pairs(4), RATE, path, "Ada")
    test.answer("A"), test.answer("B", 'a "quoted", comment')
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[: whole.index('"a "') + 3], encoding="utf-8")
    assert len(read(path)) == 1
    again = BlindTest(pairs(4), RATE, path, "Ada")
    assert again.progress == "2 of 4"
    again.answer("same")
    assert [row["answer"] for row in read(path)] == ["A", "same"]


@pytest.mark.parametrize("comment", ['"', "a,b", "two\nlines", "ä 音 ♯", "=1+1"])
def test_any_comment_and_name_comes_back_on_one_line(path, comment):
    test = BlindTest(pairs(2), RATE, path, f"Ada {comment}")
    test.answer("A", comment)
    [row] = read(path)
    assert row["comment"] == " ".join(comment.split())
    assert row["listener"] == test.listener
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_an_answer_that_cannot_be_saved_does_not_advance_the_test(path):
    test = BlindTest(pairs(2), RATE, path, "Ada")
    path.parent.write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(OSError):
        test.answer("A")
    assert test.progress == "1 of 2"


# --- counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wins, losses", [(0, 0), (5, 0), (6, 0), (10, 2), (7, 7), (3, 9), (40, 60)])
def test_the_sign_test_agrees_with_scipy(wins, losses):
    from scipy.stats import binomtest

    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)


def test_preferences_are_counted_by_question_whatever_the_letter(path):
    both = [*pairs(5, "Which follows?"), *pairs(3, "Which is cleaner?")]
    test = BlindTest(both, RATE, path, "Ada")
    while not test.finished:
        if test.pair.question == "Which is cleaner?":
            test.answer("same")
        else:
            # always the tune, which is smoother than the noise
            a, b = test.clips
            test.answer("A" if a.diff().abs().mean() < b.diff().abs().mean() else "B")
    found = {preference.question: preference for preference in count(read(path))}
    assert found["Which is cleaner?"] == Preference(
        "Which is cleaner?", "guidance 1", "guidance 3", 0, 0, 3, 1.0
    )
    assert found["Which follows?"] == Preference(
        "Which follows?", "guidance 1", "guidance 3", 0, 5, 0, 2 / 2**5
    )


def test_only_the_first_answer_of_a_listener_to_a_pair_counts(path):
    BlindTest(pairs(1), RATE, path, "Ada").answer("A")
    rows = read(path)
    other = {**rows[0], "answer": "B", "preferred": rows[0]["b"]}
    assert count([*rows, other]) == count(rows)
    two_listeners = count([*rows, {**other, "listener": "Bob"}])
    assert sum(preference.wins + preference.losses for preference in two_listeners) == 2


def test_plots_describe_their_content(path):
    order(BlindTest(pairs(3), RATE, path, "Ada"))
    assert "guidance 3" in preferences.plot(count(read(path))).alt
    drawn = preferences.plot_intervals({"tempo": (0.5, 0.2, 0.8)}, chance=0.25)
    assert "50% (20% to 80%)" in drawn.alt
    for figure in (drawn, preferences.plot(count(read(path)))):
        assert "image/png" in figure._repr_mimebundle_()[0]


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mistake, message",
    [
        (lambda path: BlindTest([], RATE, path), "at least one pair"),
        (lambda path: BlindTest([Pair("q", "i", {"one": tune(1)})], RATE, path), "has 1 clips; expected two"),
        (lambda path: BlindTest(pairs(1) * 2, RATE, path), "twice"),
        (lambda path: BlindTest(pairs(1), RATE, path).answer("A"), "no listener yet"),
        (lambda path: BlindTest(pairs(1), RATE, path).start("  "), "name is empty"),
        (lambda path: BlindTest(pairs(1), RATE, path, "Ada").answer("a"), "must be one of A, B, same"),
        (lambda path: order(test := BlindTest(pairs(1), RATE, path, "Ada")) and test.answer("A"), "all 1"),
        (lambda path: preferences.plot(count(read(path))), "no answers yet"),
    ],
)
def test_a_mistake_is_reported_in_one_line(path, mistake, message):
    with pytest.raises(ValueError, match=message) as caught:
        mistake(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe\x00", b"\n"])
def test_a_file_of_another_kind_is_rejected_and_unchanged(tmp_path, content):
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a file of blind-test answers"):
        BlindTest(pairs(1), RATE, path, "Ada")
    assert path.read_bytes() == content


# --- undo and result --------------------------------------------------------------------------------------


def test_an_answer_taken_back_does_not_count_and_its_pair_is_asked_again(path):
    test = BlindTest(pairs(3), RATE, path, "Ada")
    test.answer("A")
    item = test.pair.item
    test.answer("B", "a slip")
    before = path.read_text(encoding="utf-8")
    assert test.undo() == "2 of 3" and test.pair.item == item
    assert path.read_text(encoding="utf-8").startswith(before), "the file only grows"
    test.answer("same")
    rows = preferences.standing(read(path))
    assert [(row["item"] == item, row["answer"], row["comment"]) for row in rows] == [
        (False, "A", ""),
        (True, "same", ""),
    ]
    assert sum(p.wins + p.losses + p.ties for p in count(read(path))) == 2


def test_an_answer_taken_back_is_asked_again_in_the_next_session(path):
    first = BlindTest(pairs(3), RATE, path, "Ada")
    first.answer("A"), first.answer("A")
    first.undo()
    again = BlindTest(pairs(3), RATE, path, "Ada")
    assert again.progress == "2 of 3" and again.pair.item == first.pair.item


def test_only_answers_of_this_session_can_be_taken_back_and_none_after_the_result(path):
    BlindTest(pairs(2), RATE, path, "Ada").answer("A")
    test = BlindTest(pairs(2), RATE, path, "Ada")
    with pytest.raises(ValueError, match="no answer to take back"):
        test.undo()
    test.answer("B")
    test.undo(), test.answer("B")
    test.result()
    with pytest.raises(ValueError, match="no answer to take back"):
        test.undo()


def test_an_undo_that_cannot_be_saved_changes_nothing(path):
    test = BlindTest(pairs(2), RATE, path, "Ada")
    test.answer("A")
    path.unlink(), path.mkdir()
    with pytest.raises(OSError):
        test.undo()
    assert test.progress == "2 of 2" and test.can_undo


def test_the_result_names_the_systems_of_this_listener_and_comes_last(path):
    order(BlindTest(pairs(4), RATE, path, "Bob"))
    test = BlindTest(pairs(4), RATE, path, "Ada")
    with pytest.raises(ValueError, match="1 of 4"):
        test.result()
    while not test.finished:
        test.answer("A", plays=(1, 2))
    result = test.result()
    assert [row["listener"] for row in result.rows] == ["Ada"] * 4
    # Half of the pairs are swapped, so A alone decides nothing.
    assert result.preferences == [Preference("Which is better?", "guidance 1", "guidance 3", 2, 2, 0, 1.0)]
    assert result.table().html.count("1 and 2") == 4


def test_a_clip_that_was_not_played_cannot_be_judged(path):
    test = BlindTest(pairs(2), RATE, path, "Ada")
    with pytest.raises(ValueError, match="Listen to B first"):
        test.answer("A", plays=(3, 0))
    assert read(path) == [] and test.progress == "1 of 2"
    test.answer("A", plays=(3, 1))
    test.answer("A")
    assert [(row["plays_a"], row["plays_b"]) for row in read(path)] == [("3", "1"), ("", "")]


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_earlier_version_is_continued_in_its_own_columns(path, version):
    BlindTest(pairs(2), RATE, path, "Ada").answer("A", plays=(1, 1))
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row[: len(preferences.VERSIONS[version])] for row in csv.reader(file)]
    path.write_text("".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    test = BlindTest(pairs(2), RATE, path, "Ada")
    assert test.progress == "2 of 2"
    test.answer("B", plays=(2, 2))
    plays = ["1", "2"] if version == 1 else ["", ""]
    assert [(row["answer"], row["plays_a"]) for row in read(path)] == list(zip("AB", plays))
    assert [row["answer"] for row in test.result().rows] == ["A", "B"]


# --- the panel --------------------------------------------------------------------------------------------


def panel(test, monkeypatch):
    monkeypatch.setattr(blind_panel, "DEBOUNCE", 0)
    return BlindPanel(test)


def listen(panel, letters="AB"):
    """The browser's reports of a play of each clip of the current pair."""
    for letter in letters:
        panel.sound._on_browser(None, {"kind": "played", "name": f"{panel.test.progress} {letter}"}, [])


def test_the_panel_asks_for_a_name_and_saves_every_click(path, monkeypatch):
    shown = panel(BlindTest(pairs(2), RATE, path), monkeypatch)
    assert all(button.disabled for button in shown.choices) and shown.sound.html == ""
    shown.name.value = "Ada"
    assert "1 of 2" in shown.head.value
    listen(shown)
    shown.comment.value = "warm"
    shown.choices[1].click()
    assert [(row["answer"], row["comment"]) for row in read(path)] == [("B", "warm")]
    assert "2 of 2" in shown.head.value and shown.comment.value == ""
    listen(shown)
    shown.choices[2].click()
    assert "Thank you, Ada" in shown.head.value and shown.choices[0].disabled and shown.sound.html == ""
    # a click sent before the test ended
    shown.choices[0].click()
    assert [row["answer"] for row in read(path)] == ["B", "same"]


def test_the_panel_asks_for_listening_before_an_answer_and_counts_plays(path, monkeypatch):
    shown = panel(BlindTest(pairs(2), RATE, path, "Ada"), monkeypatch)
    assert shown.choices[2].disabled and "Listen to A and B first" in shown.status.value
    shown.choices[2].click()
    assert read(path) == [], "a click on a disabled button, as the kernel would see it"
    listen(shown, "AAB")
    assert not shown.choices[2].disabled
    shown.choices[0].click()
    assert [(row["plays_a"], row["plays_b"]) for row in read(path)] == [("2", "1")]
    # a report about the previous pair
    shown._count("1 of 2 A")
    assert shown.plays == {"A": 0, "B": 0} and shown.choices[0].disabled


def test_the_panel_undoes_the_last_answer_until_it_shows_the_result(path, monkeypatch):
    shown = panel(BlindTest(pairs(2), RATE, path, "Ada"), monkeypatch)
    assert shown.back.disabled and shown.end.disabled
    for _ in range(2):
        listen(shown)
        shown.choices[0].click()
    assert not any(name in shown.outcome.value for name in NAMES)
    shown.back.click()
    assert "2 of 2" in shown.head.value and shown.end.disabled
    listen(shown)
    shown.choices[2].click()
    shown.end.click()
    assert all(name in shown.outcome.value for name in NAMES) and shown.back.disabled


def test_without_anywidget_the_panel_does_not_wait_for_plays(path, monkeypatch):
    monkeypatch.setattr(blind_panel, "LIVE", False)
    shown = panel(BlindTest(pairs(1), RATE, path, "Ada"), monkeypatch)
    shown.choices[0].click()
    assert [(row["answer"], row["plays_a"]) for row in read(path)] == [("A", "")]


def test_quick_clicks_do_not_answer_the_next_pair(path, monkeypatch):
    shown = panel(BlindTest(pairs(4), RATE, path, "Ada"), monkeypatch)
    listen(shown)
    monkeypatch.setattr(blind_panel, "DEBOUNCE", 1000)
    for _ in range(20):
        shown.choices[0].click()
    assert read(path) == []


def test_the_panel_reports_a_failed_save_and_keeps_the_pair(path, monkeypatch):
    shown = panel(BlindTest(pairs(2), RATE, path, "Ada"), monkeypatch)
    path.parent.write_text("in the way", encoding="utf-8")
    listen(shown)
    shown.comment.value = "kept"
    shown.choices[0].click()
    assert "not saved" in shown.status.value and "1 of 2" in shown.head.value
    assert shown.comment.value == "kept"


def test_texts_are_escaped_in_the_panel(path, monkeypatch):
    evil = "<script>alert(1)</script>"
    evil_pairs = [Pair(evil, evil, pair.clips) for pair in pairs(1)]
    shown = panel(BlindTest(evil_pairs, RATE, path, evil), monkeypatch)
    assert "<script>" not in shown.head.value and shown.head.value.count("&lt;script&gt;") == 2
    listen(shown)
    shown.comment.value = evil
    shown.choices[0].click(), shown.end.click()
    assert "<script>" not in shown.head.value + shown.outcome.value


def test_the_panel_uses_only_controls_of_ipywidgets_7(path):
    kinds = {type(child).__name__ for child in BlindPanel(BlindTest(pairs(1), RATE, path)).children}
    assert kinds == {"Text", "HTML", "HBox", "Players"}
    assert re.match(r"[78]\.", ipywidgets.__version__)


@pytest.mark.parametrize(
    "cell",
    [
        '=HYPERLINK("http://x","y")',
        "+1+1",
        "@SUM(A1)",
        "-2+3",
        "-3.5",
        "'=1",
        "''=1",
        "'quoted'",
        "-",
        "plain",
    ],
)
def test_no_cell_is_a_formula_to_a_spreadsheet(tmp_path, cell):
    path, row = tmp_path / "answers.csv", dict.fromkeys(preferences.COLUMNS, cell)
    preferences.append(path, row)
    assert preferences.read(path) == [row]
    with open(path, newline="", encoding="utf-8") as file:
        stored = list(csv.reader(file))[1]
    assert all(text[0] not in "=+-@" or text == "-3.5" for text in stored)


# --- many listeners ---------------------------------------------------------------------------------------


def test_equal_names_are_kept_apart_and_the_same_name_resumes(tmp_path):
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for file in files:
        BlindTest(pairs(2), RATE, file, "Ada").answer("A")
        BlindTest(pairs(2), RATE, file, "Ada").answer("A")
    # each file's Ada answered two pairs, in two sessions
    merged = pooled.merge(files)
    assert len(preferences.standing(merged)) == 4
    assert len({row["participant"] for row in merged}) == 2
    # a third Ada in the second file
    third = BlindTest(pairs(2), RATE, files[1])
    third.start("Ada", "third")
    assert third.progress == "1 of 2"


def test_a_copy_of_a_file_adds_nothing_and_a_missing_one_is_named(tmp_path):
    whole, part = tmp_path / "whole.csv", tmp_path / "part.csv"
    test = BlindTest(pairs(3), RATE, whole, "Ada")
    test.answer("A"), test.undo()
    part.write_bytes(b"\xef\xbb\xbf" + whole.read_bytes().replace(b"\n", b"\r\n"))
    test.answer("A"), test.answer("B")
    assert pooled.merge([part, whole]) == pooled.merge([whole]) == read(whole)
    with pytest.raises(FileNotFoundError, match="no file .*none.csv"):
        pooled.merge([whole, tmp_path / "none.csv"])


def test_the_interval_of_a_share_covers_the_truth_if_listeners_and_pairs_differ():
    """Forty listeners and twelve pairs with tastes of their own; taken as independent, answers mislead."""
    import numpy as np

    draw = np.random.default_rng(0)
    covered, wilson, count = 0, 0, 400
    # the mean chance of a new listener with a new pair
    truth = 1 / (1 + np.exp(-(0.4 + draw.normal(0, 0.8, 10**6) + draw.normal(0, 0.8, 10**6))))
    for _ in range(count):
        taste = 0.4 + draw.normal(0, 0.8, (40, 1)) + draw.normal(0, 0.8, (1, 12))
        hits = draw.random((40, 12)) < 1 / (1 + np.exp(-taste))
        who, what = np.indices(hits.shape).reshape(2, -1).tolist()
        share, low, high = pooled.clustered_share(hits.ravel().tolist(), who, what)
        covered += low <= truth.mean() <= high
        half = 1.96 * (share * (1 - share) / hits.size) ** 0.5
        wilson += share - half <= truth.mean() <= share + half
    assert 0.92 < covered / count < 0.99
    assert wilson / count < 0.8


@pytest.mark.parametrize("hits, listeners", [(6, 1), (1, 1), (240, 40)])
def test_unanimous_answers_leave_an_interval(hits, listeners):
    who = [i % listeners for i in range(hits)]
    share, low, high = pooled.clustered_share([True] * hits, who, [i // listeners for i in range(hits)])
    assert share == 1 and high == pytest.approx(1) and 0 < low < 1
    # Wilson's intervals, whose centre shrinks towards a half
    assert (low < 0.25) == (hits == 1)


def test_pooled_answers_count_listeners_pairs_and_ties(path):
    for name in ("Ada", "Bob"):
        test = BlindTest(pairs(3), RATE, path, name)
        test.answer("A"), test.answer("B"), test.answer("same")
    [found] = pooled.pool(read(path))
    assert (found.listeners, found.pairs, found.ties) == (2, 3, 2)
    assert found.wins + found.losses == 4 and found.low < found.share < found.high
    assert "2 listeners, 3 pairs" in str(found)
    assert pooled.pool([]) == []


def test_a_merged_file_reads_back_and_the_report_holds_it_all(path, tmp_path):
    evil = "<script>alert(1)</script>"
    for name in ("Ada", "Bob"):
        test = BlindTest(pairs(3, f"Which {evil}?"), RATE, path, name)
        test.answer("A", "=1+1", plays=(2, 1)), test.answer("B"), test.answer("same")
    rows = read(path)
    merged = pooled.write(tmp_path / "new" / "merged.csv", rows)
    assert read(merged) == rows
    text = pooled.report(rows, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 listeners gave 6 answers" in text and "1.5 times" in text and text.count("data:image/png") == 1
    assert all(f"clip {i}" in text for i in range(3)) and evil not in text
    with pytest.raises(ValueError, match="no answers yet"):
        pooled.report([], tmp_path / "none.html")
