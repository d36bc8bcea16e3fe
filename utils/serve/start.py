"""Listen at a port."""

import socket
from pathlib import Path

import cv2
import uvicorn

from utils.errors import UserError
from utils.predict.predictor import Predictor
from utils.serve.app import create_app
from utils.serve.limits import Limits

OWN = ("127.0.0.1", "localhost", "::1")  # names by which only this machine reaches itself


def serve(
    checkpoint: str | Path,
    limits: Limits,
    host: str,
    port: int,
    token: str | None = None,
    device: str | None = None,
    config: str | Path | None = None,
    workers: int = 2,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that have come in are answered. Port 0: any free one.

    Raises UserError for a file that cannot be used, for a port that is taken, and for other machines' access without a token.
    """
    if host not in OWN and not token:
        raise UserError(f"--host {host} lets other machines in: give a --token that they must bring")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the answer says what is wrong with an image
    predictor = Predictor.from_checkpoint(checkpoint, device, config)
    listener = listen(host, port)
    app = create_app(predictor, Path(checkpoint).name, limits, token, workers)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
    if predictor.engine.calibration is None:
        print("no decisions, as there is no calibration: find thresholds with tools/calibrate.py", flush=True)
    print(f"{checkpoint} at {address}", flush=True)
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=round(limits.seconds), timeout_keep_alive=5)
    Server(settings).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Raises UserError for a port that is taken."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(f"port {port} of {host} cannot be used ({reason}): choose another --port") from None
    # An answer is sent in two pieces; without this the second waits 40 ms for the client to acknowledge the first. Connections
    # inherit it. asyncio sets it only on sockets that it made itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class Server(uvicorn.Server):
    """Ends with code 0 when a signal asks it to: uvicorn would send itself the signal again."""

    def handle_exit(self, sig: int, frame: object) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()
