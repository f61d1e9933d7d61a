"""A real browser for tests: headless Chromium, driven by its own driver."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
DRIVER = shutil.which("chromedriver")
MISSING = not (PROGRAM and DRIVER) and (
    "needs Chromium and its driver (on Debian: apt-get install chromium chromium-driver)"
)
AXE = Path(__file__).parent / "report" / "node_modules" / "axe-core" / "axe.min.js"
QUIET = (  # without a graphics card, or talk to anything but the page
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--no-first-run", "--disable-quic", "--disable-dev-shm-usage"),
)
PATIENCE = 60  # seconds: beside other busy processes


class Browser:
    """One window, with what tests ask of it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = 1440, height: int = 1000, dark: bool = False) -> None:
        """Loads a page in a window of some size, in one of the themes."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme, still]})
        for kind in ("browser", "performance"):  # of the page before
            self.driver.get_log(kind)
        self.driver.get(url)

    def run(self, script: str, *arguments: object):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)",
            selector,
        )

    def wait(self, script: str, *arguments: object):
        """Waits until the script's value is true, and returns it."""
        return WebDriverWait(self.driver, PATIENCE, 0.05).until(
            lambda driver: driver.execute_script(f"return {script}", *arguments)
        )

    def press(self, *keys: str) -> None:
        """Types where the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8: what the window shows."""
        image = Image.open(io.BytesIO(self.driver.get_screenshot_as_png()))
        return np.asarray(image.convert("RGB"))

    def complaints(self) -> list[str]:
        """What the console has reported since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that have been asked for since the page was opened."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

    def axe(self) -> list[str]:
        """What the accessibility checker finds serious or critical."""
        self.run(AXE.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then((r) => done(r.violations), (e) => done(e))"
        )
        return [
            f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]


@contextmanager
def started() -> Iterator[Browser]:
    """A browser of its own, without a profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(PROGRAM)
    for argument in QUIET:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.set_script_timeout(PATIENCE)
        yield Browser(driver)
    finally:
        driver.quit()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder on a server on loopback."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
