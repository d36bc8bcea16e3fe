"""How tools end."""

import os
import sys
from collections.abc import Callable

from utils.errors import Interrupted, UserError
from utils.process.memory import keep_freed_memory

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the same command goes on with the work; a batch script requeues the job on it


def run(main: Callable[[], None]) -> None:
    """Call a tool's `main`, and end as it ended.

    A UserError becomes one line on stderr and exit code 2, Ctrl-C exit code 130, a run that SIGTERM or SIGUSR1 asked to stop
    one line, of rank 0, and exit code EXIT_INTERRUPTED, and the loss of another process one line and exit code 1.
    """
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
    prefix = "error: " if rank == "0" else f"error on rank {rank}: "
    keep_freed_memory()
    try:
        main()
    except UserError as error:
        print(f"{prefix}{error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interruption:
        from utils.process.signals import leave  # here: many tools have no need of torch, which takes a second to import

        if rank == "0":
            print(interruption, file=sys.stderr)
        leave()
        sys.exit(EXIT_INTERRUPTED)
    except RuntimeError as error:
        from utils.process.distributed import describe_lost_ranks  # here: as above

        if not (reason := describe_lost_ranks(error)):
            raise
        print(f"{prefix}{reason}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # 1 is the least of all codes, so that the lost rank's own becomes the launcher's. At once: a thread of gloo's that
        # still waits for the lost rank can abort an interpreter that takes its time to end.
        os._exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
