"""What all tests share: no network unless asked for, and on CI no skip but those that CI cannot help."""

import os

import pytest

# On CI these may skip: published weights and a GPU are not there. Anything else that skips has lost its ground
# (a package, a sound font, data/nano) and must fail, or nobody would notice.
MAY_SKIP = ("hub", "gpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--hub", action="store_true", help="run the tests that fetch published weights (gigabytes)"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--hub"):
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--hub"):
        return
    for item in items:
        if item.get_closest_marker("hub"):
            item.add_marker(
                pytest.mark.skip(reason="needs published weights from the hub: run `pytest --hub`")
            )


def on_ci() -> bool:
    return os.environ.get("CI", "") not in ("", "0", "false")


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
