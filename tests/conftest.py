"""Shared by all tests: no network unless asked for, and a plain account at the end of what was not run.

On a laptop a test that needs something absent (a sound font, a browser) skips, and names the command that
installs it. On CI (environment variable `CI`) the same skip fails, unless CI cannot help it: `MAY_SKIP`.
"""

import getpass
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mgkit import MusicGen

# One cache of compiled code per process: librosa compiles with numba, and two may break a cache which
# they fill at once. Workers inherit the variable and replace it.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ["NUMBA_CACHE_DIR"] = str(Path(tempfile.gettempdir(), f"mgkit-numba-{getpass.getuser()}-{WORKER}"))

# Published weights, a GPU and audiocraft are not there on CI. Anything else that skips has lost its ground
# (a package, a sound font, data/nano) and must fail, or nobody would notice.
MAY_SKIP = ("hub", "gpu", "reference")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def on_ci() -> bool:
    return os.environ.get("CI", "") not in ("", "0", "false")


def find_browser() -> str | None:
    """Path of a browser that Playwright can drive, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="session")
def chromium() -> str | None:
    """Path of the browser for the tests marked `browser`; without one they skip before they get here."""
    return find_browser()


@pytest.fixture(scope="session")
def soundfont() -> Path:
    """The sound font that the band plays. Tests that render music ask for it."""
    from mgkit.band.synth import find_soundfont

    pytest.importorskip("tinysoundfont", reason="needs tinysoundfont: pip install --no-deps tinysoundfont")
    try:
        return find_soundfont()
    except FileNotFoundError:
        pytest.skip("needs a sound font, on Debian or Ubuntu: apt-get install fluidr3mono-gm-soundfont")


@pytest.fixture(scope="module")
def models() -> "dict[str, MusicGen]":
    """Tiny models by what they take beside text; see `text`, `melody` and `stereo`."""
    from tiny import tiny

    return {"text": tiny(), "melody": tiny(melody=True), "stereo": tiny(channels=2)}


def ready(model: "MusicGen") -> "MusicGen":
    """The model with the settings that the tests of bad input start from."""
    from refusals import SECONDS

    model.set_generation_params(duration=SECONDS)
    model.set_custom_progress_callback(None)
    return model


@pytest.fixture
def text(models: "dict[str, MusicGen]") -> "MusicGen":
    """A tiny mono model that takes text only."""
    return ready(models["text"])


@pytest.fixture
def melody(models: "dict[str, MusicGen]") -> "MusicGen":
    """A tiny mono model that takes text and a melody."""
    return ready(models["melody"])


@pytest.fixture
def stereo(models: "dict[str, MusicGen]") -> "MusicGen":
    """A tiny stereo model that takes text only."""
    return ready(models["stereo"])


@pytest.fixture(scope="module")
def saved(models: "dict[str, MusicGen]", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the saved models `text` and `melody`."""
    folder = tmp_path_factory.mktemp("saved")
    models["text"].save_pretrained(folder / "text")
    models["melody"].save_pretrained(folder / "melody")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the folder of the model `text`, to damage."""
    return shutil.copytree(saved / "text", tmp_path / "model")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--hub", action="store_true", help="run the tests that fetch published weights (gigabytes)"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--hub"):
        # before anything imports huggingface_hub
        os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip before the first fixture what cannot run here."""
    browser = find_browser()
    for item in items:
        if item.get_closest_marker("hub") and not config.getoption("--hub"):
            reason = "needs published weights from the Hugging Face hub: run `pytest --hub`"
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("browser") and browser is None:
            reason = "needs Chromium, on Debian: apt-get install chromium"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    expected = hasattr(report, "wasxfail") or any(item.get_closest_marker(name) for name in MAY_SKIP)
    if on_ci() and report.skipped and not expected:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped on CI, where it must run: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    if on_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped on CI, where it must run: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason to skip; also into the file `NOT_RUN`, which `make test` shows at its end."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in reports
        if isinstance(report.longrepr, tuple)
    )
    lines = [f"{count} test{'s' * (count > 1)}: {reason}" for reason, count in reasons.most_common()]
    if lines:
        terminalreporter.section("not run")
        terminalreporter.write("".join(f"{line}\n" for line in lines))
        if path := os.environ.get("NOT_RUN"):
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
