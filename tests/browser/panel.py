"""The studio in a page, and its parts."""

from playwright.sync_api import Locator, Page, expect

# Timeout for operations that take two seconds on an idle machine.
SECONDS = 240

CELLS = ["from mgkit.lab import studio\n\npanel = studio.Studio()\npanel"]


class Panel:
    """The studio in a page, and its parts."""

    def __init__(self, page: Page):
        self.page, self.root = page, page.locator(".mgkit-studio")
        self.go = self.button("Generate")
        self.stop = self.button("Stop")
        self.bar = self.root.locator(".progress-bar")
        self.cards = self.root.locator(".mgkit-take")
        self.status = self.root.locator(".mgkit .status[role=status]").last
        self.problem = self.root.get_by_role("alert")

    def field(self, label: str) -> Locator:
        return self.root.get_by_label(label, exact=True)

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name, exact=True)

    def enter(self, label: str, value: str) -> None:
        self.field(label).fill(value)
        self.field(label).blur()

    def start_from(self, name: str) -> None:
        self.root.get_by_role("button", name=name).click()

    def generate(self, count: int) -> None:
        """Click Generate and return when the panel has `count` takes."""
        self.go.click()
        expect(self.cards).to_have_count(count, timeout=SECONDS * 1000)
        self.idle()

    def start_a_minute(self) -> None:
        """Start a minute of music and return after its first steps."""
        self.enter("Seconds", "60")
        self.go.click()
        self.page.wait_for_function(
            "parseFloat(document.querySelector('.mgkit-studio .progress-bar').style.width) > 1",
            timeout=SECONDS * 1000,
        )

    def duration(self, card: int = 0) -> float:
        """Duration in seconds of a take's sound, newest first, once the browser has read it."""
        player = self.cards.nth(card).locator("audio")
        return player.evaluate(
            "player => new Promise(done => { const tell = () => done(player.duration); "
            "player.readyState ? tell() : player.addEventListener('loadedmetadata', tell) })"
        )

    def playing(self, card: int = 0) -> bool:
        return not self.cards.nth(card).locator("audio").evaluate("player => player.paused")

    def idle(self) -> None:
        expect(self.go).to_be_enabled(timeout=SECONDS * 1000)
