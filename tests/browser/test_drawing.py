"""The melody editor under a real pointer and keyboard."""

import json
import time

CELLS = [
    "import torch\nfrom mgkit.lab import melody_editor\n"
    "editor = melody_editor.MelodyEditor(torch.arange(40) // 4, 32000)",
    "editor.widget()",
]


def drawn(lab, page):
    """Pitch classes in the kernel."""
    return json.loads(lab.run(page, "print(editor.drawn.tolist())"))


def held(lab, page, expected):
    """Whether the kernel has these pitch classes within ten seconds."""
    end = time.monotonic() + 10
    while drawn(lab, page) != expected and time.monotonic() < end:
        time.sleep(0.1)
    return drawn(lab, page) == expected


def centre(box, frame, pitch):
    """Position on the page of the cell (frame, pitch): 40 pixels of names, rows of 16 pixels."""
    return box["x"] + 40 + (frame + 0.5) * (box["width"] - 40) / 40, box["y"] + (11.5 - pitch) * 16


def test_drawings_and_arrow_keys_reach_the_kernel(lab, page, refused):
    lab.open(page, lab.write("editor.ipynb", CELLS))
    lab.run_all(page)
    canvas = page.locator("canvas[role=application]")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    expected = [i // 4 for i in range(40)]

    page.mouse.click(*centre(box, 10, 9))
    expected[10] = 9
    assert held(lab, page, expected)

    # a stroke in one jump also fills the columns between
    page.mouse.move(*centre(box, 20, 3))
    page.mouse.down()
    page.mouse.move(*centre(box, 29, 3))
    page.mouse.up()
    expected[20:30] = [3] * 10
    assert held(lab, page, expected)

    for key in ("ArrowLeft", "ArrowUp", "ArrowUp", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
    expected[28], expected[27] = 5, 2
    assert held(lab, page, expected)

    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('audio')?.duration > 4.9")
    page.get_by_role("button", name="Reset").click()
    assert held(lab, page, [i // 4 for i in range(40)])
    assert not refused


def test_a_stroke_wraps_around_the_octave_makes_rests_and_can_be_undone(lab, page):
    lab.open(page, lab.write("editor.ipynb", CELLS))
    lab.run_all(page)
    canvas = page.locator("canvas[role=application]")
    canvas.scroll_into_view_if_needed()
    box, expected = canvas.bounding_box(), [i // 4 for i in range(40)]
    # from B over the top to C: no note between them
    page.mouse.move(*centre(box, 10, 11))
    page.mouse.down()
    page.mouse.move(*centre(box, 14, 12))
    page.mouse.up()
    drawn_one = [*expected[:10], 11, 11, 11, 11, 0, *expected[15:]]
    assert held(lab, page, drawn_one)
    # the row below C
    page.mouse.click(*centre(box, 20, -1))
    assert held(lab, page, [*drawn_one[:20], -1, *drawn_one[21:]])
    assert json.loads(lab.run(page, "print(editor.classes.tolist())"))[20] == drawn_one[19]
    # an edit in code leaves what the hand drew
    lab.run(page, "editor.edit('G', 0, 99)")
    assert drawn(lab, page)[20] == -1 and drawn(lab, page)[10:15] == [11, 11, 11, 11, 0]
    for state in ([*drawn_one[:20], -1, *drawn_one[21:]], drawn_one, expected):
        page.get_by_role("button", name="Undo").click()
        assert held(lab, page, state)


def test_the_names_are_legible_in_light_and_dark(lab, page):
    """The text colour of the twelve names contrasts with the page."""
    for dark in (False, True):
        lab.open(page, lab.write("ink.ipynb", CELLS), dark=dark)
        lab.run_all(page)
        page.wait_for_selector("canvas[role=application]")
        page.wait_for_timeout(500)
        ink = page.evaluate(
            """() => {
                const canvas = document.querySelector("canvas[role=application]")
                const names = canvas.getContext("2d").getImageData(0, 0, 26, 190).data
                let most = 0, ink = null
                for (let i = 0; i < names.length; i += 4)
                    if (names[i + 3] > most) [most, ink] = [names[i + 3], names[i]]
                return ink
            }"""
        )
        assert ink > 150 if dark else ink < 100
