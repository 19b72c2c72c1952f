"""Debian's Chromium without a window, driven by its own protocol: what people see."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clusters import die_with_parent
from lacking import lacks
from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--window-size=1400,800",
)
_PATIENCE_S = 240.0
_POLL_S = 0.2
_DRAWN_S = 20.0


def program() -> str:
    """Where the browser is."""
    return next(filter(None, map(shutil.which, _NAMES)), None) or lacks("Chromium", "chromium")


class Page:
    """An open page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._session: str | None = None
        self._calls = 0
        self._url = "about:blank"
        self._begin()

    def _begin(self) -> None:
        self._session = None
        target = self.call("Target.createTarget", url=self._url)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, *, within_s: float = _PATIENCE_S, **params: Any) -> Any:
        self._calls += 1
        said = {"id": self._calls, "method": method, "params": params}
        self._connection.send(json.dumps(said | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._connection.recv(within_s))
            if answer.get("id") == self._calls:
                return answer["result"]

    def open(self, url: str) -> None:
        self._url = url
        self.call("Page.navigate", url=url)

    def text(self) -> str:
        return str(self.find("document.body ? document.body.innerText : ''") or "")

    def find(self, expression: str) -> Any:
        """The value of an expression in JavaScript."""
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")

    def press(self, element: str) -> None:
        """Clicks an element, an expression in JavaScript, as soon as it is there."""
        self.until(lambda: self.find(f"!!({element})"))
        self.find(f"({element}).click()")

    def picture(self) -> bytes | None:
        """The page as PNG; None if it hung while it was drawn, as happens without a GPU: it was opened anew."""
        try:
            drawn = self.call("Page.captureScreenshot", within_s=_DRAWN_S, format="png")
        except TimeoutError:
            self._begin()
            return None
        return base64.b64decode(drawn["data"])

    def until(self, condition: Callable[[], Any], *, every_s: float = _POLL_S) -> Any:
        """Waits for a condition and returns its answer."""
        until = time.monotonic() + _PATIENCE_S
        while not (answer := condition()):
            assert time.monotonic() < until, self.text()
            time.sleep(every_s)
        return answer


@contextmanager
def chromium(scratch: Path) -> Iterator[Page]:
    """A browser with one page."""
    browser = subprocess.Popen(
        [program(), *_FLAGS, f"--user-data-dir={scratch}", "about:blank"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    try:
        assert browser.stderr is not None
        found = next(filter(None, (re.search(r"DevTools listening on (ws://\S+)", line) for line in browser.stderr)))
        with connect(found[1], max_size=None) as connection:
            yield Page(connection)
    finally:
        browser.kill()
        browser.wait()
        if browser.stderr is not None:
            browser.stderr.close()
