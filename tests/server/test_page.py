"""The page in a real browser."""

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt install chromium"),
]


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def test_moving_the_slider_changes_speed_prediction_and_policy(page: Page, address: str) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else 0)
    page.on("request", lambda asked: problems.append(asked.url) if foreign(asked.url) else 0)

    page.goto(address)
    expect(page.locator("#model")).to_have_text("tiny, compensation bias")
    expect(page.locator("#map .cell")).to_have_count(8)
    expect(page.locator("#ratio")).to_have_text("0.0 %")
    expect(page.locator("#perplexity")).to_have_text("20.1")
    expect(page.locator("#key")).to_be_hidden()
    dense = page.locator("#map").inner_html()

    page.locator("#tokens").fill("5")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#speed")).to_have_text(re.compile(r"^\d+\.\d$"))
    expect(page.locator("#output .prompt")).to_contain_text("The city of London")

    page.locator("#slider").fill("2")
    expect(page.locator("#ratio")).to_have_text("40.0 %")
    expect(page.locator("#perplexity")).to_have_text("30.0")
    assert page.locator("#map").inner_html() != dense
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#bars .bar")).to_have_count(2)
    assert not problems

    page.locator("#tokens").fill("9999")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#output .error")).to_contain_text("1024 positions")


@pytest.mark.parametrize("api_key", ["sesame"])
def test_the_page_asks_for_the_key_and_sends_it(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("#output .error")).to_contain_text("needs an API key")
    page.get_by_label("API key").fill("sesame")
    page.get_by_label("API key").press("Enter")
    expect(page.locator("#model")).to_have_text("tiny, compensation bias")
    expect(page.locator("#output .error")).to_have_count(0)
    page.locator("#tokens").fill("5")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#speed")).to_have_text(re.compile(r"^\d+\.\d$"))


def foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "data:"))
