"""How every tool ends: nothing for success, one line and exit code 2 for what a person can mend."""

import os
import sys
from collections.abc import Callable

from utils.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Call a tool's `main`; a UserError becomes one line on stderr and exit code 2, Ctrl-C becomes exit code 130."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
    prefix = "error: " if rank == "0" else f"error on rank {rank}: "
    try:
        main()
    except UserError as error:
        print(f"{prefix}{error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
