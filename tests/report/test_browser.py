"""The report in a real browser, on a wide and on a narrow screen."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from ppf.report.html import write_page
from ppf.report.search import search_page
from tests.report.test_html import report  # noqa: F401  (a fixture)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt install chromium"),
]


def test_the_page_fits_its_window_and_unfolds(report: Any, tmp_path: Path) -> None:  # noqa: F811
    write_page(tmp_path / "report.html", search_page(report))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        backgrounds = set()
        for width, scheme in ((1400, "light"), (400, "dark")):
            window = {"width": width, "height": 900}
            page = browser.new_page(viewport=window, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto((tmp_path / "report.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width
            backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            row = page.locator("details tr").last
            assert not row.is_visible()
            page.locator("summary").last.click()
            assert row.is_visible()
        browser.close()
    assert len(backgrounds) == 2, "dark windows get a dark page"
