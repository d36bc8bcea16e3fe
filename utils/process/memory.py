"""Memory of this process."""

import ctypes
import sys

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
