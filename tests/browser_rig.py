"""Headless Chromium, driven as its developers' tools do (the DevTools protocol, over a pipe): real keys, clicks and files.

https://chromedevtools.github.io/devtools-protocol/ says what the calls are.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT_S = 20.0
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # it speaks to this machine alone
    "--hide-scrollbars",
    "--lang=en",
)
_KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    " ": 32,
    "ArrowDown": 40,
}


class BrowserError(Exception):
    """What the browser answered, or what the page threw."""


class Browser:
    """One Chromium, with one directory that downloads go to."""

    def __init__(self, directory: Path) -> None:
        assert CHROMIUM is not None
        self.downloads = directory / "downloads"
        self.downloads.mkdir()
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4. As root it has no sandbox.
        redirected = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        flags = [
            *_FLAGS,
            f"--user-data-dir={directory / 'profile'}",
            *(["--no-sandbox"] * (os.geteuid() == 0)),
        ]
        with (directory / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", redirected, "bash", CHROMIUM, *flags, "about:blank"],
                pass_fds=(theirs_in, theirs_out),
                stdout=log,
                stderr=log,
                env=os.environ | {"HOME": str(directory), "TZ": "UTC"},
                start_new_session=True,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._out = os.fdopen(ours_out, "wb", 0)
        self._in = os.fdopen(ours_in, "rb")
        self._number = 0
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.events: deque[dict[str, Any]] = deque()
        threading.Thread(target=self._listen, daemon=True).start()
        self.call(
            "Browser.setDownloadBehavior",
            behavior="allowAndName",
            downloadPath=str(self.downloads),
            eventsEnabled=True,
        )

    def close(self) -> None:
        try:
            self.call("Browser.close")
        except BrowserError:
            pass
        self._process.wait(TIMEOUT_S)
        self._out.close()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result. BrowserError."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._out.write(json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._next(method, deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self.events.append(answer)

    def event(self, method: str, session: str | None = None, **expected: Any) -> dict[str, Any]:
        """Waits for an event with these parameters among its own; those before it stay for who waits for them."""

        def fits(message: dict[str, Any]) -> bool:
            wanted = message["method"] == method and expected.items() <= message["params"].items()
            return wanted and session in (None, message.get("sessionId"))

        for known in list(self.events):
            if fits(known):
                self.events.remove(known)
                return dict(known["params"])
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            found = self._next(method, deadline)
            if fits(found):
                return dict(found["params"])
            self.events.append(found)

    def page(self, url: str) -> Page:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        page.go(url)
        return page

    def downloaded(self) -> tuple[str, bytes]:
        """Waits for the next download: the name that it would have, and its bytes."""
        begun = self.event("Browser.downloadWillBegin")
        self.event("Browser.downloadProgress", guid=begun["guid"], state="completed")
        path = self.downloads / begun["guid"]
        content = path.read_bytes()
        path.unlink()
        return begun["suggestedFilename"], content

    def _next(self, what: str, deadline: float) -> dict[str, Any]:
        try:
            message = self._messages.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"{what}: not within {TIMEOUT_S} s") from None
        if message is None:
            raise BrowserError(f"{what}: the browser has ended")
        return message

    def _listen(self) -> None:
        buffer = b""
        with self._in:
            while piece := os.read(self._in.fileno(), 1 << 16):
                *messages, buffer = (buffer + piece).split(b"\0")
                for message in messages:
                    self._messages.put(json.loads(message))
        self._messages.put(None)


class Page:
    """One tab. Selectors are CSS; ``:text(…)`` is none, so `find` takes the text that an element has beside its selector."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser = browser
        self._target = target
        self._session = session
        for domain in ("Page", "Runtime", "DOM", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self._session, **parameters)

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self._target)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.browser.event("Page.loadEventFired", self._session)

    def reload(self) -> None:
        self.call("Page.reload")
        self.browser.event("Page.loadEventFired", self._session)

    # --- what is there

    def evaluate(self, expression: str, **values: Any) -> Any:
        """Its value, of a promise what it resolves with. ``values`` are names in it."""
        names = ", ".join(values)
        given = ", ".join(json.dumps(value) for value in values.values())
        result = self.call(
            "Runtime.evaluate",
            expression=f"(async ({names}) => ({expression}))({given})",
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in result:
            raise BrowserError(json.dumps(result["exceptionDetails"])[:2000])
        return result["result"].get("value")

    def wait(self, expression: str, **values: Any) -> Any:
        """Until it is true: its value then."""
        names = ", ".join(values)
        found = self.evaluate(
            f"""(async () => {{
                const until = performance.now() + {TIMEOUT_S * 900};
                for (;;) {{
                    const value = await ({expression});
                    if (value) return [value];
                    if (performance.now() > until) return [];
                    await new Promise((resolve) => setTimeout(resolve, 10));
                }}
            }})({names and ""})""",
            **values,
        )
        assert found, f"{expression} never was true\n{self.text('body')}"
        return found[0]

    def text(self, selector: str) -> str:
        return str(self.evaluate("document.querySelector(selector)?.innerText ?? ''", selector=selector))

    def texts(self, selector: str) -> list[str]:
        return list(
            self.evaluate(
                "[...document.querySelectorAll(selector)].map((found) => found.innerText)", selector=selector
            )
        )

    def focused(self) -> str:
        """What a screen reader would say of the element that has the focus, about: its label or its text."""
        return str(
            self.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? (document.activeElement.innerText"
                " || document.activeElement.id)"
            )
        )

    def complaints(self) -> list[str]:
        """What went to the console as an error, and what nobody caught."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self._session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                entry = event["params"]["entry"]
                found.append(f"{entry['text']} {entry.get('url', '')}")
        return found

    # --- what people do

    def click(self, selector: str, text: str | None = None) -> None:
        """With the mouse, in the middle of the first element that matches and has this label or text."""
        x, y = self.wait(
            """(async () => {
                const found = [...document.querySelectorAll(selector)].find((one) =>
                    text === null || one.getAttribute("aria-label") === text || one.textContent === text);
                if (!found || found.disabled || !found.checkVisibility()) return null;
                found.scrollIntoView({ block: "center", behavior: "instant" });
                const middle = () => {
                    const { x, y, width, height } = found.getBoundingClientRect();
                    return [x + width / 2, y + height / 2];
                };
                const before = middle();
                await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
                return String(before) === String(middle()) && found.contains(document.elementFromPoint(...before)) && before;
            })()""",
            selector=selector,
            text=text,
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, times: int = 1) -> None:
        code = _KEYS[key]
        text = {"Enter": "\r", " ": " "}.get(key)
        for _ in range(times):
            down = {"text": text} if text else {}
            kind = "keyDown" if text else "rawKeyDown"
            names = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, **names, **down)
            self.call("Input.dispatchKeyEvent", type="keyUp", **names)

    def tab_to(self, what: str, most: int = 40) -> None:
        """Presses Tab until the focus is there."""
        seen = []
        for _ in range(most):
            self.press("Tab")
            seen.append(self.focused())
            if seen[-1] == what:
                return
        raise AssertionError(f"Tab never came to {what!r}: {seen}")

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, paths: Sequence[Path]) -> None:
        """Clicks on what opens a chooser of files, and chooses these."""
        self.call("Page.setInterceptFileChooserDialog", enabled=True)
        self.click(selector)
        opened = self.browser.event("Page.fileChooserOpened", self._session)
        self.call(
            "DOM.setFileInputFiles",
            files=[str(path) for path in paths],
            backendNodeId=opened["backendNodeId"],
        )

    def drag(self, kind: str, paths: Sequence[Path]) -> None:
        """``kind``: dragEnter, dragOver or drop, of files or directories, in the middle of the page."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        self.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)

    def drop(self, paths: Sequence[Path]) -> None:
        for kind in ("dragEnter", "dragOver", "drop"):
            self.drag(kind, paths)

    # --- what it looks like

    def emulate(self, width: int = 1100, height: int = 900, scale: float = 1, scheme: str = "light") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def throttle(self, upload_bytes_per_s: float = -1) -> None:
        """-1: as fast as it goes."""
        self.call(
            "Network.emulateNetworkConditions",
            offline=False,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=upload_bytes_per_s,
        )

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def running_browser(directory: Path) -> Iterator[Browser]:
    browser = Browser(directory)
    try:
        yield browser
    finally:
        browser.close()
