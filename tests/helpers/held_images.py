"""An image file that holds the run that reads it, until the test lets it go on."""

import fcntl
import os
import signal
import time
from pathlib import Path

TIMEOUT = 60  # seconds until a reader comes; then it waits at most /proc/sys/fs/lease-break-time, 45 seconds


class HeldImage:
    """From now on the first run that opens `image` waits: the kernel gives it the file when this lease on it ends."""

    def __init__(self, image: Path) -> None:
        self.image = image
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel says so that somebody waits; wait_for_reader asks
        os.utime(image)  # a cache of it is no longer valid
        self.file = os.open(image, os.O_RDWR)
        fcntl.fcntl(self.file, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def wait_for_reader(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while fcntl.fcntl(self.file, fcntl.F_GETLEASE) == fcntl.F_WRLCK:
            assert time.monotonic() < deadline, f"nobody reads {self.image}"
            time.sleep(0.01)

    def release(self) -> None:
        """Let the reader go on; later ones find a plain file."""
        fcntl.fcntl(self.file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(self.file)
