"""A headless chromium, driven by its DevTools protocol through two pipes: no package is needed for it."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager, suppress

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe", "--hide-scrollbars",
)  # fmt: skip


def chromium():
    """The program, or None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab. Since the last ``open``: ``requests``, the URLs that were asked for; ``problems``, what was logged."""

    def __init__(self, process, write, read):
        self._process, self._write, self._read = process, write, read
        self._rest, self._count, self._session = b"", 0, None
        self.requests, self.problems, self._events = [], [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **given):
        """The result of a command of the protocol."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": given}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next()
            if got.get("id") == number:
                assert "error" not in got, f"{method}: {got['error']}"
                return got["result"]

    def _next(self, seconds=30):
        deadline = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            some = os.read(self._read, 1 << 20) if ready else b""
            assert some, f"chromium said nothing for {seconds} seconds, or ended"
            self._rest += some
        line, self._rest = self._rest.split(b"\0", 1)
        got = json.loads(line)
        if got.get("method") == "Network.requestWillBeSent":
            self.requests.append(got["params"]["request"]["url"])
        if got.get("method") == "Log.entryAdded":
            self.problems.append(got["params"]["entry"]["text"])
        if "method" in got:
            self._events.append(got["method"])
        return got

    def look(self, width, dark=False, height=900):
        """How pages are seen from now on."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="screen", features=[scheme])

    def open(self, path):
        """Load a file, to the end."""
        self.requests, self.problems, self._events = [], [], []
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._next()

    def value(self, expression):
        """Of JavaScript in the page."""
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def screenshot(self, place):
        """The whole page, as a PNG; returns the bytes."""
        found = base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        place.write_bytes(found)
        return found

    def pdf(self, place):
        """The page as it is printed, also where screens are dark; returns the bytes."""
        scheme = {"name": "prefers-color-scheme", "value": "dark"}
        self.call("Emulation.setEmulatedMedia", media="print", features=[scheme])
        found = base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])
        place.write_bytes(found)
        return found


@contextmanager
def opened(profile):
    """A browser with an empty profile in the folder ``profile``."""
    theirs_in, write = os.pipe()
    read, theirs_out = os.pipe()

    def pipes():  # what chromium reads from and writes to are descriptors 3 and 4
        high = [os.dup(one) for one in (theirs_in, theirs_out)]
        while min(high) < 5:
            high = [os.dup(one) for one in high]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    words = [chromium(), *QUIET, f"--user-data-dir={profile}", "about:blank"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, preexec_fn=pipes, close_fds=False, **quiet)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        browser = Browser(process, write, read)
        yield browser
        browser._session = None
        browser.call("Browser.close")
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        os.close(write)
        os.close(read)
