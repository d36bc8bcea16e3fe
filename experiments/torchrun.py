"""torchrun, except that it ends as its processes do: with their exit code, below their own error lines.

`python -m torch.distributed.run` ends with 1 whatever they ended with, and with a traceback of 30 lines under the one that says
what to do. Its two log lines, which name the failed process, are kept.
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except ChildFailedError as error:
        # An exit code; -N is a death by signal N. The largest is the cause: the others are then ended by SIGTERM, -15.
        code = max(failure.exitcode for failure in error.failures.values())
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + error.sigval)
