"""Another process that writes into a folder."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import tiny

HOLD = "import sys; from utils.files import lock\nwith lock(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()"


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen]:
    """A process that has the folder locked."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=tiny.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
