"""A loader whose workers outlive signals that reach every process of a group or a job: the main process decides."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

# macOS and Windows do not tell who sent a signal: there a worker dies of it, and the run ends with an error.
SIGNALS = {signal.SIGTERM, signal.SIGUSR1} if hasattr(signal, "sigwaitinfo") else set()


class ShieldedLoader(DataLoader):
    """A DataLoader of which SIGTERM and SIGUSR1 end no worker, unless the main process sends them (it does so at its end)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, worker_init_fn=obey_parent_only, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        if not SIGNALS:
            return super().__iter__()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # workers inherit it; for this process they wait
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def obey_parent_only(worker: int) -> None:
    """Called in a new worker, which has the signals blocked: receive them in a thread of their own, which looks at the sender."""

    def receive(parent: int) -> None:
        while True:
            info = signal.sigwaitinfo(SIGNALS)
            if info.si_signo == signal.SIGTERM and info.si_pid == parent:
                os._exit(0)

    if SIGNALS:
        threading.Thread(target=receive, args=(os.getppid(),), daemon=True).start()
