"""The fixtures of the browser tests: a server, a page, a kernel, and no network."""

from playwright.sync_api import expect


def test_a_notebook_opens_runs_and_shows_its_output(lab, page):
    lab.open(page, lab.write("sum.ipynb", ["1 + 1", "print('data' in __import__('os').listdir('..'))"]))
    lab.run_all(page)
    expect(lab.output(page, 0)).to_have_text("2")
    expect(lab.output(page, 1)).to_contain_text("True")
    assert lab.run(page, "print(3)") == "3\n"


def test_the_page_cannot_reach_other_machines(lab, page, refused):
    lab.open(page, lab.write("empty.ipynb", ["pass"]))
    assert refused == []
    assert page.evaluate("fetch('https://example.org/x').then(() => 'out', () => 'in')") == "in"
    assert refused == ["https://example.org/x"]
