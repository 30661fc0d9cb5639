"""The pages of a class in a browser, by real clicks: a listener's on a phone, and the teacher's."""

import json
import sys

import pytest
import torch
from playwright.sync_api import Page, expect

from browser.conftest import Server, assert_fits, assert_follows_theme, free_port, isolated
from mgkit.lab import preferences
from mgkit.lab.blind_test import Pair
from mgkit.lab.classroom.folder import Classroom, write_pairs

TOKENS = {"class": "listener", "teacher": "teacher-0123456789", "cookie": "0123456789"}
EVIL = "<img src=x onerror=document.title='hacked'>"


@pytest.fixture
def folder(tmp_path):
    """A class of three pairs of 1.5 s, with known addresses."""
    time = torch.arange(12000) / 8000
    pairs = [
        Pair(
            "Which one is cleaner?",
            f"tone {i} {EVIL}",
            {"sine": torch.sin(time * (2000 + 300 * i))[None], "noise": torch.rand(1, 12000) - 0.5},
        )
        for i in range(3)
    ]
    folder = tmp_path / "root"
    write_pairs(folder, pairs, 8000)
    (folder / "access.json").write_text(json.dumps(TOKENS), encoding="utf-8")
    return folder


@pytest.fixture
def serve(folder):
    """Start the server, again at the same port on a second call."""
    port, servers = free_port(), []

    def start() -> Server:
        command = [sys.executable, "-m", "mgkit", "class", "--dir=.", f"--port={port}"]
        servers.append(Server(command, port, folder, "/listener/", isolated(folder.parent)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def join(page: Page, server: Server, name: str) -> None:
    page.goto(f"http://127.0.0.1:{server.port}/listener/")
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#who")).to_contain_text("1 of 3")


def listen(page: Page) -> None:
    """Play both clips until they count."""
    for clip in page.locator(".clip").all():
        clip.get_by_role("button", name="Play").click()
        expect(clip).to_contain_text("played once")


def test_a_phone_takes_the_whole_test_through_reload_undo_and_restart(folder, serve, page, refused):
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.set_viewport_size({"width": 400, "height": 800})
    server = serve()
    join(page, server, f"Ada {EVIL}"[:40])
    votes = [
        page.get_by_role("button", name=name) for name in ("A is better", "B is better", "no difference")
    ]
    for vote in votes:
        expect(vote).to_be_disabled()
    expect(page.locator("#hint")).to_have_text("Listen to A and B first.")
    expect(page.get_by_role("button", name="Undo")).to_be_hidden()
    first = page.locator("#item").inner_text()
    page.locator(".clip").first.get_by_role("button", name="Play").click()
    expect(page.locator("#hint")).to_have_text("Listen to B first.")
    expect(votes[0]).to_be_disabled()
    listen_second = page.locator(".clip").nth(1)
    listen_second.get_by_role("button", name="Play").click()
    expect(votes[0]).to_be_enabled()
    # one sound at a time
    assert page.locator(".clip audio").first.evaluate("sound => sound.paused")
    page.get_by_label("Why?").fill("warmer")
    votes[0].click()
    expect(page.locator("#who")).to_contain_text("2 of 3")
    expect(votes[0]).to_be_disabled()
    expect(page.get_by_label("Why?")).to_have_value("")

    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#item")).to_have_text(first)
    listen(page)
    votes[1].click()
    expect(page.locator("#who")).to_contain_text("2 of 3")
    page.reload()
    expect(page.locator("#who")).to_contain_text("2 of 3")

    listen(page)
    server.close()
    votes[2].click()
    expect(page.get_by_role("alert")).to_contain_text("not saved yet")
    server = serve()
    votes[2].click()
    expect(page.locator("#who")).to_contain_text("3 of 3")
    listen(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    votes[2].click()
    expect(page.get_by_role("heading", name="That was the last pair")).to_be_visible()
    assert "sine" not in page.content() and "noise" not in page.content()
    page.get_by_role("button", name="Show my result").click()
    expect(page.get_by_role("heading", name="Your result")).to_be_visible()
    expect(page.locator("#counts")).to_contain_text("no difference: 2")
    expect(page.locator("#rows")).to_contain_text("sine")
    expect(page.get_by_role("button", name="Undo")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.reload()
    expect(page.get_by_role("heading", name="Your result")).to_be_visible()

    page.get_by_role("button", name="Another listener").click()
    page.get_by_label("Your name").fill(f"Ada {EVIL}"[:40])
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#who")).to_contain_text("(2)")

    rows = preferences.standing(preferences.read(folder / "answers.csv"))
    assert [(row["answer"], row["comment"]) for row in rows] == [("B", ""), ("same", ""), ("same", "")]
    assert all(int(row["plays_a"]) >= 1 and int(row["plays_b"]) >= 1 for row in rows)
    assert page.title() == "Listening test" and problems == [] and refused == []


def test_the_teacher_sees_who_has_finished_and_the_answers_of_all(folder, serve, page, refused):
    room = Classroom(folder)
    for name, count in (("Ada", 3), (EVIL[:40], 3), ("Bob", 1)):
        participant = room.join(name)
        for _ in range(count):
            room.answer(participant, room.state(participant)["pair"], "A", "", (1, 2))
    server = serve()
    page.goto(f"http://127.0.0.1:{server.port}/teacher-0123456789/")
    expect(page.locator("#finished")).to_have_text("2")
    expect(page.locator("#joined")).to_contain_text("of 3 listeners")
    expect(page.locator("#address")).to_have_text(f"http://127.0.0.1:{server.port}/listener/")
    expect(page.get_by_text("Which one is cleaner?").first).to_be_hidden()
    page.get_by_text("Progress of each listener").click()
    expect(page.locator("#people")).to_contain_text(EVIL[:40])
    page.get_by_text("Results so far").click()
    expect(page.locator("#intervals")).to_contain_text("3 listeners, 3 pairs")

    # a listener joins elsewhere, and appears
    other = page.context.browser.new_context().new_page()
    join(other, server, "Cleo")
    expect(page.locator("#joined")).to_contain_text("of 4 listeners")
    other.context.close()

    with page.expect_popup() as popup:
        page.get_by_role("link", name="Report").click()
    expect(popup.value.get_by_role("img")).to_have_count(1)
    expect(popup.value.locator("body")).to_contain_text("3 listeners gave 7 answers")
    with page.expect_download() as download:
        page.get_by_role("link", name="answers.csv").click()
    assert download.value.path().read_bytes() == (folder / "answers.csv").read_bytes()
    assert_fits(page)
    assert_follows_theme(page, "body")
    assert page.title() == "Listening test: teacher" and refused == []
