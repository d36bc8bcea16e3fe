"""Memory of this process, and what is free."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MEMINFO, GROUPS_OF_PROCESS, GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
GROUP_FILES = {  # by kind: its limit, what it uses, and what of that is files that can be dropped
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of the C library's mallopt


def keep_freed_memory() -> None:
    """Let glibc keep up to a gigabyte of freed memory for reuse; does nothing with other C libraries.

    Otherwise every large activation on the CPU is requested from the system, page by page, and given back: a third of inference.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def peak_megabytes() -> float:
    """The peak memory of this process in 10⁶ bytes, libraries included."""
    import resource  # Unix only, and needed only here

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def free_bytes() -> int | None:
    """The memory that this process may still take: the machine's, or its container's where that is less; None if unknown."""
    found = [*free_in_containers()]
    with suppress(OSError, ValueError, LookupError):
        lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        found.append(sum(int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree")))
    return min(found, default=None)


def free_in_containers() -> Iterator[int]:
    """Of each control group with a limit that this process is in, version 2 ("0::/path") or 1 ("4:memory:/path")."""
    with suppress(OSError):
        for line in GROUPS_OF_PROCESS.read_text().splitlines():
            _, kind, path = line.split(":", 2)
            limit, usage, cache = GROUP_FILES.get(kind, (None, None, None))
            inner = Path(GROUPS, kind, path.lstrip("/"))
            for folder in (inner, *inner.parents) if limit else ():
                with suppress(OSError, ValueError, LookupError):  # no such file, or "max"
                    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    taken = int((folder / usage).read_text()) - int(statistics[cache])
                    yield max(0, int((folder / limit).read_text()) - taken)
