"""The page in a real browser."""

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SPEED = re.compile(r"^\d+\.\d$")

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


def test_two_ratios_answer_a_chat_side_by_side(page: Page, address: str) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else 0)
    page.on("request", lambda asked: problems.append(asked.url) if foreign(asked.url) else 0)

    page.goto(address)
    left, right = page.locator(".pane").nth(0), page.locator(".pane").nth(1)
    expect(page.locator("#model")).to_have_text("org/tiny, compensation bias")
    expect(left.locator(".map .cell")).to_have_count(8)
    ratio_is(left, "0.0 %", "20.1")
    ratio_is(right, "20.0 %", "24.5")
    dense = left.locator(".map").inner_html()
    right.get_by_role("slider").fill("2")
    ratio_is(right, "40.0 %", "30.0")
    assert right.locator(".map").inner_html() != dense

    page.locator("#tokens").fill("5")
    for turn in (1, 2):
        page.locator("#prompt").fill("Hello")
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#prompt")).to_have_value("")
        for pane in (left, right):
            expect(pane.locator(".asked")).to_have_count(turn)
            expect(pane.locator(".speed")).to_have_text(SPEED)
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
    assert left.locator(".answer").all_inner_texts() != right.locator(".answer").all_inner_texts()
    assert not problems

    page.locator("#mode").select_option("text")
    page.locator("#tokens").fill("9999")
    page.locator("#prompt").fill("Hello")
    page.get_by_role("button", name="Send").click()
    expect(left.locator(".error")).to_contain_text("at most 1024")
    expect(right.locator(".asked")).to_have_count(1)


@pytest.mark.parametrize("api_key", ["sesame"])
@pytest.mark.parametrize("template", [None])
def test_the_page_asks_for_the_key_and_offers_no_chat_without_a_template(
    page: Page, address: str
) -> None:
    page.goto(address)
    expect(page.get_by_role("alert")).to_contain_text("needs an API key")
    page.get_by_label("API key").fill("sesame")
    page.get_by_label("API key").press("Enter")
    expect(page.locator("#model")).to_have_text("org/tiny, compensation bias")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("#mode")).to_have_value("text")
    page.locator("#tokens").fill("5")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".speed").first).to_have_text(SPEED)


def ratio_is(pane: Locator, ratio: str, perplexity: str) -> None:
    expect(pane.locator(".ratio")).to_have_text(ratio)
    expect(pane.locator(".perplexity")).to_have_text(perplexity)


def foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "data:"))
