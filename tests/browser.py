"""A headless Chromium, spoken to through two pipes in its DevTools protocol; nothing listens on a port.

with Browser() as browser:
    page = browser.open(path.as_uri(), width=390, height=844, dark=False)
    page.evaluate("document.title"); page.errors; page.requests; page.screenshot(Path("page.png"))
    page.click("button"); page.type("Once"); page.press("Enter"); page.wait_for("document.title === 'done'")
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 60.0  # seconds for any one answer


def find() -> str | None:
    """The path of an installed Chromium; None on systems whose pipes this driver does not speak, too."""
    return None if sys.platform == "win32" else next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    def __init__(self, browser: "Browser", session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []  # uncaught exceptions, console errors and warnings, the browser's own complaints
        self.requests: list[str] = []  # addresses asked for, the page's own and data: left out
        self.loaded = False

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first such element, where it stands."""
        place = self.evaluate(
            f"(e => (e.scrollIntoView({{block: 'nearest'}}), e.getClientRects()[0].toJSON()))"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        at = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """A key by its name: Enter, Tab, Escape, ArrowRight, …"""
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def wait_for(self, expression: str) -> None:
        """Until a JavaScript expression is true."""
        begun = time.monotonic()
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() - begun < _PATIENCE, expression
            time.sleep(0.02)

    def screenshot(self, into: Path) -> None:
        """The whole page, as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        into.write_bytes(base64.b64decode(data))

    def note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith("data:") and url != params["documentURL"]:
                self.requests.append(url)
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])


class Browser:
    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory(prefix="chromium-")
        self._number = 0
        self._pages: dict[str, Page] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._rest = b""
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        arguments = [
            *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars"),
            *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={self._home.name}"),
        ]
        executable = find()
        assert executable is not None
        launcher = (  # Chromium takes its commands from descriptor 3 and answers on 4
            "import os, sys; a, b = int(sys.argv[1]), int(sys.argv[2]); a, b = os.dup(a), os.dup(b); "
            "os.dup2(a, 3); os.dup2(b, 4); os.set_inheritable(3, True); os.set_inheritable(4, True); "
            "os.execv(sys.argv[3], sys.argv[3:])"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", launcher, str(to_browser), str(from_browser), executable, *arguments],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._out)
        self._process.terminate()
        self._process.wait(_PATIENCE)
        os.close(self._in)
        shutil.rmtree(self._home.name, ignore_errors=True)  # late helpers of Chromium may still write there

    def open(self, url: str, width: int, height: int, dark: bool = False) -> Page:
        """Load an address in a window of this size (CSS pixels) and wait until it and its pictures are there."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        phone = width < 600
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=url)
        while not page.loaded:
            self._receive()
        page.evaluate("Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => 0)")
        return page

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while self._number not in self._answers:
            self._receive()
        answer = self._answers.pop(self._number)
        assert "error" not in answer, (method, answer)
        return answer["result"]  # type: ignore[no-any-return]

    def _receive(self) -> None:
        """Take in what the browser says until at least one message is whole."""
        begun = time.monotonic()
        while b"\0" not in self._rest:
            block = os.read(self._in, 2**20)
            assert block, f"Chromium ended with {self._process.poll()}"
            assert time.monotonic() - begun < _PATIENCE
            self._rest += block
        *messages, self._rest = self._rest.split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif message.get("sessionId") in self._pages:
                self._pages[message["sessionId"]].note(message["method"], message["params"])
