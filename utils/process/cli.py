"""How tools end, with which exit codes. Tools import this first: other imports take seconds, in which Ctrl-C is one line too."""

import errno
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from utils.errors import Interrupted, UserError
from utils.process.memory import keep_freed_memory

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the same command continues the work; train.sbatch requeues the job
EXIT_CLOSED_PIPE = 141  # as a shell reports SIGPIPE
SECONDS_FOR_OTHERS = 2  # to meet the same error


def _report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    elif reason := describe_lack_of_memory(error):
        print(f"error: {reason}", file=sys.stderr)
        os._exit(2)  # Python would end with 1
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report


def run(main: Callable[[], None]) -> None:
    """Call a tool's `main`. An expected end is one line on stderr and an exit code:

    UserError, loss of a loader worker, lack of memory and output to a full disk 2; loss of another process 1; training stopped by
    a signal or a first Ctrl-C EXIT_INTERRUPTED; Ctrl-C 130; output into a closed pipe EXIT_CLOSED_PIPE.
    """
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
    prefix = "error: " if rank == "0" else f"error on rank {rank}: "
    keep_freed_memory()
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()  # None: closed by the caller
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends no run
    try:
        _check_folder()
        main()
        leave(0)
    except UserError as error:
        print(f"{prefix}{error}", file=sys.stderr)
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            # srun terminates the others when one task fails, and ends with the largest code: each with this error ends with 2
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(SECONDS_FOR_OTHERS)
        sys.exit(2)
    except Interrupted as interruption:
        from utils.process.signals import leave_process_group  # here: imports torch, a second that many tools can save

        if rank == "0":
            print(interruption, file=sys.stderr)
        leave_process_group()
        leave(EXIT_INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        from datasets.loading import describe_lost_worker
        from utils.process.distributed import describe_lost_ranks  # here: imports torch

        if reason := describe_lost_worker(error) or describe_lack_of_memory(error):
            print(f"{prefix}{reason}", file=sys.stderr)
            sys.exit(2)
        if not (reason := describe_lost_ranks(error)):
            raise
        print(f"{prefix}{reason}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # With 1, the smallest code, so that srun, which takes the largest, ends with the lost rank's own code. At once, because
        # a thread of gloo that still waits for the lost rank can abort an interpreter that shuts down slowly.
        os._exit(1)
    except OSError as error:
        if error.errno == errno.EMFILE:
            print(f"{prefix}too many open files: raise the limit (ulimit -n), or set dataset.workers=0", file=sys.stderr)
            sys.exit(2)
        is_full = error.errno == errno.ENOSPC and not error.filename  # a file of ours would be named
        if not is_full and not isinstance(error, BrokenPipeError):
            raise
        if is_full:
            print(f"{prefix}the output cannot be written ({error.strerror})", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write has no reader
        sys.exit(2 if is_full else EXIT_CLOSED_PIPE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.stdout.flush()
        for child in multiprocessing.active_children():
            child.kill()  # a loader worker that hangs
        sys.exit(130)


def _check_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder no longer exists: go to another one (cd)") from None


def describe_lack_of_memory(error: BaseException) -> str:
    """A line where `error` says that memory is used up; empty otherwise."""
    first = (str(error).splitlines() or [""])[0]
    signs = ("out of memory", "can't allocate memory", "failed to map segment", "Cannot allocate memory")
    if isinstance(error, MemoryError) or any(sign in first for sign in signs):
        cure = "use smaller batches, images or networks, or raise the limit (ulimit -v)"
        return str(UserError(f"memory is used up ({first or 'MemoryError'}): {cure}"))
    return ""


def leave(code: int) -> None:
    """End with a code; one process of several at once, because a thread of gloo can abort an interpreter that shuts down."""
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        os._exit(code)
    if code:
        sys.exit(code)
