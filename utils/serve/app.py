"""The service: an image in, a decision and its regions out."""

import base64
import io
import secrets
import time
from asyncio import wrap_future
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image

from datasets.images import decode_rgb
from utils.errors import UserError
from utils.evaluation.decisions import Decision, Rule
from utils.predict.batches import Result, read_item
from utils.predict.inputs import Item
from utils.predict.pictures import draw, scale_of
from utils.predict.predictor import Predictor, whole_map
from utils.report.drawing import colours, normalise
from utils.serve.batcher import Batcher
from utils.serve.limits import LimitRequests, Limits, TooLarge, refuse
from utils.serve.metrics import Metrics

LONGEST = 1024  # pixels of the longer side of an image in a picture
TOO_MANY = "too many pixels"
HERE = Path(__file__).parent
REQUEST = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                    "required": ["image"],
                }
            },
        },
    }
}


class Refusal(Exception):
    """A request that gets no decision: an HTTP status and one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def create_app(predictor: Predictor, checkpoint: str, limits: Limits, token: str | None = None, workers: int = 2) -> FastAPI:
    """The service of one network. token: that every request must bring, None: none; workers: threads that decode and draw."""
    service = Service(predictor, checkpoint, limits, workers)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="Anomaly detection", description=f"Model: {checkpoint}", lifespan=lifespan)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        service.metrics.refused.labels(str(refusal.status)).inc()
        return refuse(refusal.status, str(refusal))

    @app.exception_handler(TooLarge)
    async def too_large(request: Request, error: TooLarge) -> JSONResponse:
        return await refused(request, Refusal(413, f"the request is larger than {limits.megabytes:g} MB"))

    def authorise(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if token is not None and not secrets.compare_digest(given.encode(), token.encode()):
            raise Refusal(401, "give the service's token in the header Authorization: Bearer TOKEN")

    protected = {"dependencies": [Depends(authorise)]}

    @app.post("/predict", openapi_extra=REQUEST, **protected)
    async def predict(request: Request, class_name: str | None = None, format: str = "json", heat_map: bool = False) -> Response:
        """Decide on an image: the request's body, or the field `image` of a form.

        class_name: use this class's thresholds. format: json, or png, a picture. heat_map: in JSON also the map, a PNG in base64.
        """
        if format not in ("json", "png"):
            raise Refusal(422, f"format '{format}' is unknown: use json or png")
        return await service.predict(await read_body(request), class_name, format, heat_map)

    @app.get("/health", **protected)
    def health() -> dict[str, Any]:
        """What runs here."""
        return service.health()

    @app.get("/metrics", **protected)
    def metrics() -> Response:
        """Counts, latency and scores, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        policy = (
            "default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        )
        text = (HERE / "page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": f"{policy}; media-src blob:; base-uri 'none'"})

    app.add_middleware(LimitRequests, limits=limits)  # the outermost: it counts before anything is read
    return app


async def read_body(request: Request) -> bytes:
    """The image's file. Raises Refusal for a form without one."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    try:
        async with request.form(max_files=1, max_fields=4) as form:
            file = form.get("image")
            if file is None or isinstance(file, str):
                raise Refusal(422, "the form has no file named image")
            return await file.read()
    except (TooLarge, Refusal):
        raise
    except Exception as error:  # of Starlette's parser, which has no common class
        raise Refusal(400, f"not a form that can be read: {getattr(error, 'detail', error)}") from None


class Service:
    """The network and what its answers are made with."""

    def __init__(self, predictor: Predictor, checkpoint: str, limits: Limits, workers: int) -> None:
        self.predictor, self.checkpoint, self.limits = predictor, checkpoint, limits
        self.calibration = predictor.engine.calibration
        self.batcher = Batcher(predictor, batch_size=8)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
        self.metrics = Metrics(self.calibration.pooled if self.calibration else None)

    def close(self) -> None:
        self.batcher.close()
        self.pool.shutdown()

    def health(self) -> dict[str, Any]:
        classes = sorted(self.calibration.classes) if self.calibration else []
        rate = self.calibration.false_alarm_rate if self.calibration else None
        return {
            "status": "ok",
            "checkpoint": self.checkpoint,
            "score": self.predictor.engine.score,
            "false_alarm_rate": rate,
            "classes": classes,
            "drift": self.metrics.drift_text(),
        }

    def rule(self, class_name: str | None) -> Rule:
        """Raises Refusal for a class without thresholds, or without a region of interest where each class has one."""
        try:
            self.predictor.check_class(class_name)
            if self.calibration is None and (class_name is None or self.predictor.engine.roi):
                return Rule()
            if self.calibration is None:
                raise UserError("this checkpoint has no calibration, so there are no thresholds of classes")
            return Rule.of(self.calibration, class_name)
        except UserError as error:
            raise Refusal(422, str(error)) from None

    async def predict(self, data: bytes, class_name: str | None, format: str, with_map: bool) -> Response:
        """The answer to a request. Raises Refusal for what is no image, or too large a one."""
        started, rule = time.perf_counter(), self.rule(class_name)
        item = Item("the image", partial(self.decode, data), class_name)
        result = await wrap_future(self.pool.submit(read_item, self.predictor, item, LONGEST if format == "png" else 0))
        if result.error is not None:
            raise Refusal(413 if result.error.startswith(TOO_MANY) else 415, result.error)
        result = await wrap_future(self.batcher.submit(result))
        if result.error is not None:
            raise Refusal(500, result.error)
        decision, response = await wrap_future(self.pool.submit(self.answer, result, rule, format, with_map))
        self.metrics.count(result.score, decision.verdict, time.perf_counter() - started)
        return response

    def decode(self, data: bytes) -> np.ndarray:
        """Raises UserError for what is no image, before it is decoded for one with too many pixels."""
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        except Exception:  # a damaged file raises any of many kinds
            raise UserError("not an image that can be read: send a JPEG, PNG, TIFF, BMP or WebP file") from None
        if width * height > self.limits.megapixels * 1e6:
            raise UserError(f"{TOO_MANY}: the limit is {self.limits.megapixels:g} million")
        return decode_rgb(data, "the image")

    def answer(self, result: Result, rule: Rule, format: str, with_map: bool) -> tuple[Decision, Response]:
        decision = rule.decide(result.score, whole_map(result.anomaly_map, result.size, result.inside), result.inspected)
        if format == "png":
            return decision, Response(encode_png(draw(result, decision, rule)), media_type="image/png")
        regions = [asdict(region) | {"percent": 100 * region.share} for region in decision.regions or ()]
        content = {
            "decision": decision.verdict,
            "score": result.score,
            "threshold": rule.threshold,
            "ratio": decision.ratio,
            "p": decision.p,
            "height": result.size[0],
            "width": result.size[1],
            "regions": None if decision.regions is None else regions,
        }
        if with_map:
            normalised = normalise(result.anomaly_map, *scale_of(result, rule))
            content["heat_map"] = base64.b64encode(encode_png(colours(normalised))).decode()
        return decision, JSONResponse(content)


def encode_png(picture: np.ndarray) -> bytes:
    """picture: HxWx3 uint8 RGB."""
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
