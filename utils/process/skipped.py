"""The summary of images that could not be read."""

import logging

from datasets.loading import ImageLoader
from utils.process.distributed import Process, gather

NAMES = 10  # at most, in a line

log = logging.getLogger("uniad")


def report_skipped(loader: ImageLoader, process: Process, where: str) -> None:
    """After a pass over `loader`, log how many images were skipped, and their names. Every process must call this."""
    shares = gather(loader.skipped, process) or ()
    names = sorted({name for share in shares for name in share})
    if names:
        counted = "1 image was" if len(names) == 1 else f"{len(names)} images were"
        log.warning("%s: %s skipped: %s%s", where, counted, ", ".join(names[:NAMES]), ", …" if len(names) > NAMES else "")
