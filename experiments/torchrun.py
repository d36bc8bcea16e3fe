"""torchrun, except that it ends as its processes do: with their exit code, below their own error lines.

`python -m torch.distributed.run` ends with 1 whatever they ended with, and with a traceback of 30 lines under the one that says
what to do. Its two log lines, which name the failed process, are kept. SIGTERM and SIGUSR1 reach every process; a training saves
then and ends with 75, which becomes the exit code. Behind SIGTERM torchrun waits 30 s for that, then kills.
"""

import signal
import subprocess
import sys
from typing import Any

INTERRUPTED = 75  # utils.process.cli.EXIT_INTERRUPTED
SECONDS = 30  # to save in, as torchrun gives


class Started(subprocess.Popen):
    """A process that torchrun has started; behind a signal torchrun itself does not tell how they ended."""

    all: list["Started"] = []  # noqa: RUF012  (one list for the whole program)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.all.append(self)

    def end(self, number: int) -> int:
        """Its exit code. It gets the signal where it runs on, as torchrun passes none on while it is still starting processes."""
        if self.poll() is None:
            self.send_signal(number)
        try:
            return self.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()


def run() -> int:
    """Run torchrun with the command line's arguments; returns the exit code."""
    subprocess.Popen = Started  # before torch imports the name
    from torch.distributed import DistNetworkError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: [process.send_signal(number) for process in Started.all])
    try:
        main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()  # the others are then ended by SIGTERM
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode  # -N is a death by signal N
    except SignalException as error:
        codes = [process.end(error.sigval) for process in Started.all]
        return INTERRUPTED if INTERRUPTED in codes else 128 + error.sigval
    except DistNetworkError as error:
        reason = "it is busy here, set it to a free one" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
        print(f"error: the processes cannot meet at MASTER_PORT: {reason}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
