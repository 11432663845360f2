"""A headless Chromium, driven through chromedriver's W3C protocol with nothing but the standard library."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing() -> str | None:
    """Return what is not installed, None if a browser can be started."""
    if not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        return "no Chromium: apt-get install chromium chromium-driver"
    return None if shutil.which("chromedriver") else "no chromedriver: apt-get install chromium-driver"


class Browser:
    """One session of a browser."""

    def __init__(self, url: str, session: str) -> None:
        self.base = f"{url}/session/{session}"

    def call(self, path: str, payload: dict[str, Any] | None = None, method: str = "POST") -> Any:
        return _request(f"{self.base}{path}", payload or {}, method)

    def open(self, path: Path) -> None:
        self.call("/url", {"url": path.resolve().as_uri()})

    def script(self, code: str, *arguments: Any) -> Any:
        return self.call("/execute/sync", {"script": code, "args": list(arguments)})

    def click(self, css: str) -> None:
        """Press an element with the mouse."""
        element = self.call("/element", {"using": "css selector", "value": css})[ELEMENT]
        self.call(f"/element/{element}/click")

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Return and forget what was logged: "browser" for the console, "performance" for the network."""
        entries: list[dict[str, Any]] = self.call("/se/log", {"type": kind})
        return entries

    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [str(address) for address in sent]

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def emulate(self, scheme: str = "light", media: str = "screen", width: int = 1200, height: int = 900) -> None:
        """Pretend a colour scheme, a medium and a size of the window."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self, path: Path, clip: dict[str, float] | None = None) -> None:
        """Write a picture of the whole page, or of a rectangle of it."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        area = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1} | (clip or {})
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=area)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """Print the page."""
        path.write_bytes(base64.b64decode(self.call("/print", {"background": False})))


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser with a profile of its own, and end both."""
    with tempfile.TemporaryDirectory() as profile:
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            url = f"http://127.0.0.1:{_port(driver)}"
            session = _request(f"{url}/session", {"capabilities": {"alwaysMatch": _capabilities(profile)}})["sessionId"]
            try:
                started = Browser(url, session)
                started.call("/url", {"url": "about:blank"})
                started.log("performance")  # what the browser's own start page asked for
                yield started
            finally:
                _request(f"{url}/session/{session}", None, "DELETE")
        finally:
            driver.terminate()
            driver.wait(timeout=20)
            if driver.stdout is not None:
                driver.stdout.close()
            _wait_until_free(Path(profile))


def _capabilities(profile: str) -> dict[str, Any]:
    return {
        "browserName": "chrome",
        "goog:chromeOptions": {"args": [*FLAGS, f"--user-data-dir={profile}"], "binary": _binary()},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }


def _binary() -> str:
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next(path for path in found if path is not None)


def _port(driver: subprocess.Popen[str]) -> int:
    assert driver.stdout is not None
    for line in driver.stdout:
        if "started successfully on port" in line:
            return int(line.rstrip().rstrip(".").rsplit(" ", 1)[1])
    raise RuntimeError("chromedriver ended before it listened")


def _wait_until_free(profile: Path) -> None:
    # The browser's last processes still write into the profile for a moment.
    for _ in range(50):
        if not (profile / "SingletonLock").is_symlink():
            return
        time.sleep(0.1)


def _request(url: str, payload: dict[str, Any] | None, method: str = "POST") -> Any:
    body = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    # Proxies of the environment are not for this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise RuntimeError(error.read().decode()) from error
