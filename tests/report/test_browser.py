"""The report in a real browser, on a wide and on a narrow screen."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from ppf.report.page import write_page
from ppf.report.search import page
from tests.report.summaries import summary

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt install chromium"),
]


def test_the_page_fits_its_window_and_unfolds(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", page(summary()))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        backgrounds = set()
        for width, scheme in ((1400, "light"), (400, "dark")):
            window = {"width": width, "height": 900}
            tab = browser.new_page(viewport=window, color_scheme=scheme)  # type: ignore[arg-type]
            tab.goto((tmp_path / "report.html").as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            backgrounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            row = tab.locator("details tr").last
            assert not row.is_visible()
            tab.locator("summary").last.click()
            assert row.is_visible()
        browser.close()
    assert len(backgrounds) == 2, "dark windows get a dark page"
