"""Start a tool in several processes on this machine: python launch.py COUNT TOOL ARGUMENT ...

Unlike torchrun it ends with the processes' own exit code, without a traceback, and passes SIGUSR1 on with any PyTorch.
"""

import os
import signal
import socket
import sys
from contextlib import suppress

SECONDS_TO_END = 30  # for the other processes after one has failed
INTERRUPTED = 130  # the exit code after Ctrl-C


def launch(count: int, command: list[str]) -> int:
    """Run `python command` in `count` processes, with torchrun's environment; returns the code of the first that fails, or 0.

    The others are then asked to end. SIGTERM, SIGUSR1 and SIGHUP are passed on; Ctrl-C reaches the processes without help.
    """
    running: list[int] = []

    def send(number: int, _: object = None) -> None:
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, send)
    signal.signal(signal.SIGALRM, lambda *_: send(signal.SIGKILL))
    with socket.create_server(("127.0.0.1", 0)) as server:
        free_port = str(server.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ.get("MASTER_PORT") or free_port, "WORLD_SIZE": str(count)}
    for rank in range(count):
        env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(os.spawnve(os.P_NOWAIT, sys.executable, [sys.executable, *command], env))
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    code = 0
    while running:
        pid, status = os.wait()
        running.remove(pid)
        failure = os.waitstatus_to_exitcode(status)  # -N is the death by signal N
        if failure and not code:
            code = failure if failure > 0 else 128 - failure
            if code != INTERRUPTED:  # Ctrl-C has reached the others too, and each says so
                send(signal.SIGTERM)
            signal.alarm(SECONDS_TO_END)
    return code


if __name__ == "__main__":
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
