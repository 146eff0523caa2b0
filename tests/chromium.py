"""A page as a reader's browser shows it: headless Chromium, spoken to over its own pipe. Needs no package."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import count

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Chromium reads commands from descriptor 3 and answers on 4
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One tab. messages: what the page wrote to the console, and its uncaught errors."""

    def __init__(self, profile):
        commands_out, commands_in = os.pipe()
        answers_out, answers_in = os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (commands_out, answers_in)]
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, ends), EXECUTABLE, *options, "about:blank"],
            pass_fds=ends,
            stderr=subprocess.DEVNULL,
        )
        for fd in (*ends, commands_out, answers_in):
            os.close(fd)
        self._commands, self._answers = os.fdopen(commands_in, "wb"), os.fdopen(answers_out, "rb")
        self._ids, self._unread = count(1), b""
        self._session = None
        self.messages = []
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.requested = []
        self.look(1200, 900)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._commands.close()
        self._answers.close()

    def send(self, method, **params):
        """The answer to a command; events that come before it are kept."""
        number = next(self._ids)
        session = {"sessionId": self._session} if self._session else {}
        self._commands.write(json.dumps({"id": number, "method": method, "params": params, **session}).encode() + b"\0")
        self._commands.flush()
        while True:
            message = self._read()
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._keep(message)

    def look(self, width, height, *, is_dark=False):
        """Through a window of that size; a narrow one is a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])

    def show(self, url, ready):
        """Open a page, in a wide light window, and wait until the expression holds there."""
        self.send("Page.navigate", url="about:blank")  # the page before says nothing more
        self.wait_for("location.href === 'about:blank'")
        self.look(1200, 900)
        self.messages, self.requested = [], []
        self.send("Page.navigate", url=url)
        self.wait_for(ready)

    def run(self, expression):
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression, seconds=60):
        deadline = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < deadline, f"{expression} stayed false; console: {self.messages}"
            time.sleep(0.05)
        return value

    def screenshot(self, path, *, whole_page=False):
        clip = {}
        if whole_page:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {**size, "scale": 1}, "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **clip)["data"]))

    def _keep(self, message):
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                self.messages.append((params["type"], [arg.get("value") for arg in params["args"]]))
            case "Runtime.exceptionThrown":
                self.messages.append(("exception", params["exceptionDetails"]))
            case "Log.entryAdded":
                self.messages.append((params["entry"]["level"], params["entry"]["text"]))
            case "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])

    def _read(self):
        while b"\0" not in self._unread:
            data = os.read(self._answers.fileno(), 1 << 16)
            assert data, "Chromium has ended"
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)
