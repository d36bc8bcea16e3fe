"""What a request may cost. An answer beyond a limit says which one it was."""

import asyncio
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEBI = 1 << 20


@dataclass(frozen=True)
class Limits:
    megabytes: float = 20.0  # of a request
    megapixels: float = 50.0  # of an image, by its header, before it is decoded
    waiting: int = 32  # requests at a time; beyond, 503 says to come again
    seconds: float = 30.0  # from the first byte to the answer

    @property
    def bytes(self) -> int:
        return int(self.megabytes * MEBI)


class TooLarge(Exception):
    """A request has more bytes than the limit."""


def refuse(status: int, reason: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status_code=status, headers=headers)


class LimitRequests:
    """ASGI middleware for POST requests: their size, their number at a time, and their time."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self.running >= self.limits.waiting:
            busy = refuse(503, f"{self.running} images are waiting already: come again in a second", **{"Retry-After": "1"})
            await busy(scope, receive, send)
            return
        started, answer = False, None

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        self.running += 1
        try:
            await asyncio.wait_for(self.app(scope, self.counted(scope, receive), watched_send), self.limits.seconds)
        except asyncio.TimeoutError:
            answer = refuse(408, f"no answer within {self.limits.seconds:g} seconds: send a smaller image, or come again")
        finally:
            self.running -= 1
        if answer is not None and not started:
            await answer(scope, receive, send)

    def counted(self, scope: Scope, receive: Receive) -> Receive:
        """Raises TooLarge where the body passes the limit: at once if its header says so."""
        announced = int(dict(scope["headers"]).get(b"content-length", b"0"))
        received = 0

        async def counting() -> Message:
            nonlocal received
            if max(announced, received) > self.limits.bytes:
                raise TooLarge
            message = await receive()
            received += len(message.get("body", b""))
            return message

        return counting
