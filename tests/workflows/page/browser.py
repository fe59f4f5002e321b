"""A headless Chromium, spoken to through a pipe (the DevTools protocol, messages that end with a NUL)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


class Browser:
    """One tab."""

    def __init__(self, there: BinaryIO, back: BinaryIO) -> None:
        self._there, self._back, self._number, self._session = there, back, 0, ""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.complaints: list[str] = []
        """What the browser said in its console: refused by the page's rules, not found, scripts."""
        for domain in ("Page", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._there.write(json.dumps(message).encode() + b"\0")
        self._there.flush()
        while True:
            found = self._message()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return dict(found["result"])

    def _message(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._back.read(1)) != b"\0":
            assert byte, "the browser ended"
            text += byte
        found: dict[str, Any] = json.loads(text)
        if found.get("method") == "Log.entryAdded":
            self.complaints.append(found["params"]["entry"]["text"])
        return found

    def ask(self, expression: str) -> Any:
        """What an expression of JavaScript is in the page."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def go(self, url: str) -> None:
        """Open an address and wait until it is loaded."""
        self("Page.navigate", url=url)
        end = time.monotonic() + 60
        while (
            self.ask("document.readyState") != "complete"
            or self.ask("location.href") == "about:blank"
        ):
            assert time.monotonic() < end, url
            time.sleep(0.05)

    def looks(self, *, width: int = 1100, dark: bool = False) -> None:
        """The screen's width in pixels, and what its owner prefers."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str) -> None:
        """One key."""
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def picture(self, path: Path) -> None:
        """What is to be seen, as a PNG."""
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot")["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser that ends with the block."""
    program = shutil.which("chromium")
    assert program is not None
    (read_there, write_there), (read_back, write_back) = os.pipe(), os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    # It reads from 3 and writes to 4, whatever numbers the pipes have here.
    command = ["bash", "-c", f'exec "$@" 3<&{read_there} 4>&{write_back}', "bash", program, *flags]
    command.append(f"--user-data-dir={profile}")
    with open(profile.with_suffix(".log"), "wb") as log:
        child = subprocess.Popen(command, pass_fds=(read_there, write_back), stderr=log, stdout=log)
    os.close(read_there)
    os.close(write_back)
    try:
        with open(write_there, "wb") as there, open(read_back, "rb") as back:
            yield Browser(there, back)
    finally:
        child.terminate()
        child.wait(30)
