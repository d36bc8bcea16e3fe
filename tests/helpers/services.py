"""A service in a process of its own, at a real port."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.helpers import tiny

SERVE = tiny.ROOT / "tools" / "serve.py"
SECONDS = 60  # for anything to happen


class Service:
    """A running tools/serve.py."""

    def __init__(self, checkpoint: Path, *options: object, **environment: str) -> None:
        command = [sys.executable, str(SERVE), "--checkpoint", str(checkpoint), "--port", "0", *map(str, options)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, **pipes)
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if " at http://" in line:
                break
        assert lines, self.process.stderr.read()
        self.address = lines[-1].split(" at ")[1].strip()
        self.client = httpx.Client(base_url=self.address, timeout=SECONDS)

    def predict(self, data: bytes, **query: object) -> httpx.Response:
        return self.client.post("predict", content=data, params=query)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and what it wrote to stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, re.sub("libpng error: .*\n", "", errors)  # OpenCV cannot keep libpng quiet


def images(trained: Path) -> list[Path]:
    return sorted((trained.parent / "data").glob("*/test/*/*.png"))
