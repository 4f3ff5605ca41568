"""A headless Chromium at the size of a phone, over its DevTools protocol."""

import base64
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


class Phone:
    """One page. `run` evaluates JavaScript, `tap` touches what has this text, as a finger does."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.numbers, self.session = connection, itertools.count(1), None
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", **PHONE)
        self.call("Emulation.setTouchEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.connection.send(json.dumps(message))
        while True:
            reply = json.loads(self.connection.recv(timeout=30))
            if reply.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(reply["params"])[:400])
            if reply.get("method") == "Log.entryAdded" and "security" in str(reply):
                self.problems.append(json.dumps(reply["params"])[:400])
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def text(self) -> str:
        return self.run("document.body ? document.body.innerText : ''")

    def wait(self, words: str, seconds: float = 20.0) -> str:
        """Until the page shows these words."""
        end = time.monotonic() + seconds
        while words not in (text := self.text()):
            assert time.monotonic() < end, f"no {words!r} in: {text}"
            time.sleep(0.05)
        return text

    def until(self, script: str, seconds: float = 20.0) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while self.run(script) is not True:
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)

    def tap(self, words: str) -> None:
        """Touch the button or label with exactly this text; fails if anything covers it."""
        script = """
            (() => {
              const all = [...document.querySelectorAll('button, label')];
              const node = all.find((one) => one.textContent.trim() === WORDS);
              if (!node) return null;
              node.scrollIntoView({ block: 'center' });
              const box = node.getBoundingClientRect();
              const at = [box.x + box.width / 2, box.y + box.height / 2];
              return node.contains(document.elementFromPoint(...at)) ? [...at, box.height] : null;
            })()
        """
        self.call(
            "Page.bringToFront"
        )  # a page behind another one draws no frame and takes no touch
        found = self.run(script.replace("WORDS", json.dumps(words)))
        assert found, f"nothing to tap is called {words!r}: {self.text()}"
        x, y, height = found
        assert height >= 44, f"{words!r} is {height} pixels high: too small for a finger"
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    def type(self, element: str, text: str) -> None:
        self.call("Page.bringToFront")
        self.run(f"document.getElementById({json.dumps(element)}).focus()")
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        self.call("Page.bringToFront")
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def overflow(self) -> int:
        """How many pixels the page is wider than the screen."""
        return self.run("document.documentElement.scrollWidth - window.innerWidth")


@contextmanager
def phones(folder: Path, count: int = 1) -> Iterator[list[Phone]]:
    """Pages of one browser, which ends with the context."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [PROGRAM, *options, f"--user-data-dir={folder / 'profile'}", "about:blank"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        for line in process.stderr:
            if found := re.search(r"DevTools listening on (ws://\S+)", line):
                break
        else:
            raise AssertionError("the browser did not start")
        links = [connect(found[1], max_size=None, proxy=None) for _ in range(count)]
        yield [Phone(link) for link in links]
        for link in links:
            link.close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
