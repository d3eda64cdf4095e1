"""Chromium without a window, spoken to by its DevTools protocol over two pipes: no driver needed.

with Browser(scratch) as browser:
    page = browser.open("report.html", width=400, dark=True)
    page.ask("document.title"), page.complaints, page.picture()
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from typing import Any

COMMAND = shutil.which("chromium") or shutil.which("chromium-browser")
_SECONDS = 60.0


class Browser:
    """A browser process with a profile of its own in `scratch`; leave the block to end it."""

    def __init__(self, scratch: pathlib.Path):
        if COMMAND is None:
            raise FileNotFoundError("there is no chromium (apt-get install chromium)")
        ours, theirs = os.pipe(), os.pipe()  # what it reads, and what it writes
        os.set_inheritable(ours[0], True)
        os.set_inheritable(theirs[1], True)
        # The protocol is spoken on 3 and 4; a shell puts the pipes there.
        shell = f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={scratch}", "--no-first-run", "--hide-scrollbars"]
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", COMMAND, *flags, "about:blank"],
            pass_fds=(ours[0], theirs[1]),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._write, self._read = ours[1], theirs[0]
        self._numbers, self._buffer = itertools.count(1), b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        self._process.terminate()
        self._process.wait(20)
        os.close(self._read)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """One command and its result; events that come meanwhile are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != number:
            self.events.append(found)
        assert "error" not in found, found["error"]
        return found["result"]

    def wait_for(self, method: str, session: str) -> None:
        while not any(e.get("method") == method and e["sessionId"] == session for e in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            ready = select.select([self._read], [], [], max(0, until - time.monotonic()))[0]
            block = os.read(self._read, 1 << 20) if ready else b""
            assert block, "the browser says nothing"
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def open(self, file: str | os.PathLike[str], *, width: int, dark: bool = False) -> Page:
        """A page of that width, once it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable", session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        size = dict(width=width, height=1000, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        self.events.clear()
        self.call("Page.navigate", session, url=pathlib.Path(file).resolve().as_uri())
        self.wait_for("Page.loadEventFired", session)
        return Page(self, session)


class Page:
    """A loaded page; `complaints` are errors and what was written to the console."""

    def __init__(self, browser: Browser, session: str):
        self._browser, self._session = browser, session

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, as JSON has it."""
        settings = dict(expression=expression, returnByValue=True, awaitPromise=True)
        found = self._browser.call("Runtime.evaluate", self._session, **settings)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    @property
    def complaints(self) -> list[str]:
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        kinds += ("Page.javascriptDialogOpening", "Network.loadingFailed")
        return [json.dumps(e) for e in self._browser.events if e.get("method") in kinds]

    def picture(self, top: int = 0, height: int | None = None) -> bytes:
        """PNG of the page, or of a stretch of it."""
        size = self._browser.call("Page.getLayoutMetrics", self._session)["cssContentSize"]
        clip = dict(x=0, y=top, width=size["width"], height=height or size["height"] - top, scale=1)
        found = self._browser.call(
            "Page.captureScreenshot", self._session, clip=clip, captureBeyondViewport=True
        )
        return base64.b64decode(found["data"])
