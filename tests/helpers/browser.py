"""A real browser, Chromium, for the report's page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.helpers import apt

# It has no user's account and nothing to look for on the network; as root it needs its own sandbox off.
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = (390, 844)
SECONDS = 30


class Page:
    """One page of a file."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path, fragment: str = "") -> None:
        """Opens a report, and waits for its reader."""
        self.driver.get("about:blank")
        self.driver.get(path.as_uri() + fragment)
        WebDriverWait(self.driver, SECONDS).until(lambda _: self.one("#reader").get_attribute("data-ready") == "true")

    def one(self, selector: str) -> WebElement:
        """The first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """All elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Their texts."""
        return [element.text for element in self.all(selector)]

    def choose(self, selector: str, label: str) -> None:
        """Chooses an entry of a list."""
        Select(self.one(selector)).select_by_visible_text(label)

    def search(self, text: str) -> None:
        """Types into the reader's search field, in place of what is there."""
        field = self.one(".reader .query")
        field.clear()
        field.send_keys(text)
        WebDriverWait(self.driver, SECONDS).until(
            lambda _: self.one("#reader").get_attribute("data-query") == text.strip().lower()
        )

    def prefer(self, colors: str) -> None:
        """As someone sees it who prefers `light` or `dark` colors."""
        features = [{"name": "prefers-color-scheme", "value": colors}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self.driver.execute_script(f"return {script}")

    @property
    def errors(self) -> list[str]:
        """What the browser's console says since it was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def browser(size: tuple[int, int] = (1280, 900)) -> Iterator[Page]:
    """A window of this size; of PHONE's, a phone's with touch."""
    apt.install(["chromium", "chromium-driver"], ["chromium", "chromedriver"])
    options = webdriver.ChromeOptions()
    options.binary_location = str(apt.program("chromium"))
    for option in (*_OPTIONS, f"--window-size={size[0]},{size[1]}"):
        options.add_argument(option)
    if size == PHONE:
        metrics = {"width": size[0], "height": size[1], "pixelRatio": 2.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(apt.program("chromedriver"))))
    try:
        yield Page(driver)
    finally:
        driver.quit()
