"""Makes the pictures of the report and of the server's page, light and dark; needs chromium.

Start `python serve.py search=FOLDER` with the folder of a run with mode=dynamic. Then, elsewhere:

    python docs/images/make.py SEARCH/report.html http://127.0.0.1:8000
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

HERE = Path(__file__).parent
TOP = {"x": 0, "y": 0, "width": 1180, "height": 1250}
QUESTION = "What is the capital of France, and what is it known for?"


def opened(browser: Browser, address: str, scheme: str) -> Page:
    """A page in a light or dark window of the documentation's width."""
    window = {"width": 1180, "height": 790}
    page = browser.new_page(viewport=window, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address)
    return page


def chat(page: Page) -> None:
    """Asks the dense model and the one at 20 % the same question, and waits for their answers."""
    expect(page.locator(".ratio").nth(1)).to_contain_text("%")
    place = page.evaluate("ratios.findIndex((ratio) => ratio >= 0.2)")
    page.get_by_role("slider").nth(1).fill(str(place))
    page.locator("#tokens").fill("48")
    page.locator("#prompt").fill(QUESTION)
    send = page.get_by_role("button", name="Send")
    send.click()
    expect(page.locator(".asked")).to_have_count(2)
    expect(send).to_be_enabled(timeout=120_000)


def main() -> None:
    """Writes four pictures beside this file."""
    report, server = Path(sys.argv[1]).resolve().as_uri(), sys.argv[2]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for scheme in ("light", "dark"):
            page = opened(browser, report, scheme)
            page.screenshot(path=HERE / f"report-{scheme}.png", clip=TOP, full_page=True)
            page = opened(browser, server, scheme)
            chat(page)
            page.screenshot(path=HERE / f"page-{scheme}.png", full_page=True)


if __name__ == "__main__":
    main()
