"""The caches of features and images: find them, show their sizes, remove old ones."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from datasets.cached import KEY
from utils.errors import UserError
from utils.training.feature_cache import leftovers

NAME = re.compile(r"(train|test)-[0-9a-f]{16}")


def find_caches(root: str | Path) -> Iterator[Path]:
    """The folders of caches in `root` and below, sorted, and what killed runs left of some. Links are not followed."""
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder")
    for folder, names, _ in os.walk(root):
        parent = Path(folder)
        caches = [parent / name for name in names if NAME.fullmatch(name) and (parent / name / KEY).is_file()]
        caches += leftovers(parent)
        names[:] = sorted({*names} - {cache.name for cache in caches})
        yield from sorted(caches)


def show_caches(root: str | Path, remove_after: int | None = None) -> str:
    """A line a cache, with size and days since its last use. Removes those not used for `remove_after` days."""
    lines, total = [], 0.0
    for cache in list(find_caches(root)):
        megabytes = sum(file.stat().st_size for file in cache.iterdir()) / 1e6
        used = cache / KEY if (cache / KEY).exists() else cache
        days = int((time.time() - used.stat().st_mtime) / 86400)
        removes = remove_after is not None and days >= remove_after
        if removes:
            shutil.rmtree(cache)
        lines.append(f"{megabytes:10.1f} MB  used {days} days ago  {cache}{'  removed' * removes}")
        total += 0 if removes else megabytes
    return "\n".join([*lines, f"{total:10.1f} MB  in {root}"])
