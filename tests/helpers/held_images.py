"""An image file that holds the run that reads it, until the test lets it go on."""

import os
import time
from pathlib import Path

TIMEOUT = 60  # seconds until a reader comes


class HeldImage:
    """From now on the first run that reads `image` waits in there. A run takes it only with dataset.on_bad_image=skip."""

    def __init__(self, image: Path) -> None:
        self.image, self.content = image, image.read_bytes()
        image.unlink()
        os.mkfifo(image)

    def wait_for_reader(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                self.pipe = os.open(self.image, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads yet
                assert time.monotonic() < deadline, f"nobody reads {self.image}"
                time.sleep(0.01)
            else:
                return

    def release(self) -> None:
        """Give the reader its content; later ones find a plain file."""
        self.image.unlink()
        self.image.write_bytes(self.content)
        os.set_blocking(self.pipe, True)
        with open(self.pipe, "wb") as file:
            file.write(self.content)
