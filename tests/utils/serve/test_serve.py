"""The service, in a process of its own at a real port: decisions, limits, many callers, and how it ends."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.helpers.hostile_images import hostile_images
from tests.helpers.load import measure
from tests.helpers.services import SECONDS, SERVE, Service, images
from utils.evaluation.decisions import Rule
from utils.predict.export import export_checkpoint
from utils.predict.predictor import Predictor
from utils.serve.start import listen


@pytest.fixture(scope="module")
def service(calibrated: Path) -> Iterator[Service]:
    service = Service(calibrated, "--max_megabytes", 2, "--max_megapixels", 1)
    yield service
    assert service.end() == (0, "")


# --- answers ---


@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_decisions_and_regions_are_those_of_prediction(kind: str, calibrated: Path, trained: Path, tmp_path: Path) -> None:
    path = calibrated
    if kind == "onnx":
        export_checkpoint(calibrated, "onnx", path := tmp_path / "model.onnx")
    predictor = Predictor.from_checkpoint(calibrated)
    rule = Rule.of(predictor.engine.calibration)
    service = Service(path)
    verdicts = Counter()
    for image in images(trained):
        score, anomaly_map = predictor(image)
        wanted, found = rule.decide(score, anomaly_map), service.predict(image.read_bytes()).json()
        assert (found["decision"], found["height"], found["width"]) == (wanted.verdict, *anomaly_map.shape)
        assert [found["score"], found["ratio"]] == pytest.approx([score, wanted.ratio], rel=1e-4)
        boxes = [[region[key] for key in ("x", "y", "width", "height")] for region in found["regions"]]
        if kind == "checkpoint":  # to the last bit
            assert found["p"] == wanted.p
            assert boxes == [[region.x, region.y, region.width, region.height] for region in wanted.regions]
        assert len(boxes) == len(wanted.regions)
        verdicts[found["decision"]] += 1
    assert len(verdicts) == 2
    assert service.end()[0] == 0


def test_forms_bodies_and_the_command_line_say_the_same(service: Service, trained: Path) -> None:
    image = images(trained)[0]
    body = service.predict(image.read_bytes()).json()
    assert service.client.post("predict", files={"image": image.open("rb")}).json() == body
    curl = ["curl", "-sS", "--data-binary", f"@{image}", f"{service.address}predict"]
    assert json.loads(subprocess.run(curl, capture_output=True, check=True).stdout) == body


def test_the_picture_and_the_heat_map(service: Service, trained: Path) -> None:
    image = images(trained)[0]
    answer = service.predict(image.read_bytes(), format="png")
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == ("PNG", (128, 64 + 24))
    assert service.predict(image.read_bytes(), heat_map=True).json()["heat_map"].startswith("iVBOR")


def test_health_metrics_and_their_description(service: Service, trained: Path) -> None:
    def counted() -> dict[str, float]:
        lines = service.client.get("metrics").text.splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    before = counted()
    verdicts = Counter(service.predict(image.read_bytes()).json()["decision"] for image in images(trained))
    after = counted()
    for verdict, count in verdicts.items():
        name = f'anomaly_images_total{{decision="{verdict}"}}'
        assert after[name] - before.get(name, 0) == count
    assert after["anomaly_seconds_count"] - before["anomaly_seconds_count"] == sum(verdicts.values())
    assert 0 < after["anomaly_share_above_threshold"] < 1
    health = service.client.get("health").json()
    assert (health["status"], health["classes"], health["score"]) == ("ok", ["cup"], "max")
    assert "/predict" in service.client.get("openapi.json").json()["paths"]


def test_without_a_calibration_there_is_a_score_and_no_decision(trained: Path, checkpoint: Path, tmp_path: Path) -> None:
    (path := tmp_path / "ckpt.pth.tar").write_bytes(checkpoint.read_bytes())
    service = Service(path)
    found = service.predict(images(trained)[0].read_bytes()).json()
    assert found["score"] > 0
    assert [found[key] for key in ("decision", "threshold", "ratio", "p", "regions")] == [None] * 5
    assert service.predict(images(trained)[0].read_bytes(), class_name="cup").status_code == 422
    service.end()


# --- refusals ---


def png(width: int, height: int) -> bytes:
    """A bomb where it is large: a few kB for any size."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "query", "status", "reason"),
    [
        (b"", {}, 415, "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, {}, 415, "not an image"),
        (b"hello", {}, 415, "not an image"),
        (png(64, 64)[:60], {}, 415, "image"),
        (png(20_000, 20_000), {}, 413, "too many pixels: the limit is 1 million"),
        (png(1100, 1000), {}, 413, "too many pixels: the limit is 1 million"),
        (b"x" * (3 << 20), {}, 413, "larger than 2 MB"),
        (png(8, 8), {"class_name": "lid"}, 422, "no class 'lid': its classes are cup"),
        (png(8, 8), {"format": "gif"}, 422, "use json or png"),
    ],
)
def test_what_gets_no_decision_gets_one_line(service: Service, data: bytes, query: dict, status: int, reason: str) -> None:
    answer = service.predict(data, **query)
    assert (answer.status_code, reason in answer.json()["error"]) == (status, True), answer.text
    assert "\n" not in answer.json()["error"]


def test_a_body_of_unknown_length_is_cut_at_the_limit(service: Service) -> None:
    answer = service.client.post("predict", content=(b"x" * 65536 for _ in range(100)))  # sent in chunks
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "content", [b"--b\r\nnonsense", b"", b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--b--\r\n']
)
def test_a_form_without_an_image_is_refused(service: Service, content: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = service.client.post("predict", content=content, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]


def test_a_caller_that_sends_slowly_is_answered_in_time(calibrated: Path) -> None:
    def slowly() -> Iterator[bytes]:
        yield b"x"
        time.sleep(3)
        yield b"x"

    service = Service(calibrated, "--max_seconds", 1)
    answer = service.client.post("predict", content=slowly())
    assert (answer.status_code, "no answer within 1 seconds" in answer.json()["error"]) == (408, True)
    service.end()


@pytest.mark.parametrize("source", ["option", "environment"])
def test_a_token_is_asked_for(calibrated: Path, trained: Path, source: str) -> None:
    given = {"options": ("--token", "secret")} if source == "option" else {"options": (), "UNIAD_TOKEN": "secret"}
    service = Service(calibrated, *given.pop("options"), **given)
    image = images(trained)[0].read_bytes()
    for token, status in ((None, 401), ("other", 401), ("sécret", 401), ("secret", 200)):
        service.client.headers = {"Authorization": f"Bearer {token}".encode()} if token else {}
        answers = [service.predict(image), service.client.get("health"), service.client.get("metrics")]
        assert [answer.status_code for answer in answers] == [status] * 3
    assert service.client.get("/").status_code == 200
    service.end()


@pytest.mark.parametrize(
    ("options", "reason"),
    [(("--host", "0.0.0.0"), "--host 0.0.0.0 lets other machines in: give a --token"), (("--port", "99999"), "port 99999")],
)
def test_a_service_that_cannot_start_ends_with_one_line(checkpoint: Path, options: tuple[str, str], reason: str) -> None:
    command = [sys.executable, str(SERVE), "--checkpoint", str(checkpoint), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, "UNIAD_TOKEN": ""})
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert reason in ended.stderr


def test_an_answer_waits_for_no_acknowledgement() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# --- many callers ---


def resident(process: int) -> float:
    """In MiB."""
    with open(f"/proc/{process}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def test_many_callers_and_hostile_ones_lose_nothing(calibrated: Path, trained: Path) -> None:
    service = Service(calibrated, "--max_waiting", 48, "--max_megapixels", 1)
    good = {image.read_bytes(): service.predict(image.read_bytes()).json() for image in images(trained)}
    hostile = [b"", b"nonsense" * 1000, png(20_000, 20_000), png(64, 64)[:60]]
    until, wrong, counts = time.monotonic() + 30, [], Counter()
    lock = threading.Lock()

    def call(number: int) -> None:
        rng = np.random.default_rng(number)
        with httpx.Client(base_url=service.address, timeout=SECONDS) as client:
            while time.monotonic() < until:
                data = list(good)[rng.integers(len(good))] if rng.random() < 0.8 else hostile[rng.integers(len(hostile))]
                answer = client.post("predict", content=data)
                with lock:
                    counts[answer.status_code] += 1
                    if answer.status_code == 200 and data in good:
                        expected = good[data]
                        if (
                            answer.json()["decision"] != expected["decision"]
                            or abs(answer.json()["score"] / expected["score"] - 1) > 1e-4
                        ):
                            wrong.append(answer.json())
                    elif answer.status_code == 503:
                        assert answer.headers["Retry-After"] == "1"
                    elif data in good or answer.status_code not in (413, 415):
                        wrong.append(answer.text)
                if answer.status_code == 503:
                    time.sleep(0.2)

    with ThreadPoolExecutor(64) as pool:
        calls = [pool.submit(call, number) for number in range(64)]
        time.sleep(15)
        half_way = resident(service.process.pid)
        for done in calls:
            done.result()
    assert wrong == []
    assert counts[200] > 64
    assert counts[503] > 0  # 64 callers, 48 places
    assert resident(service.process.pid) < half_way + 50
    assert service.end() == (0, "")


def test_the_load_tool_states_what_many_clients_get(calibrated: Path, trained: Path) -> None:
    service = Service(calibrated, "--max_waiting", 2)
    stated = measure(service.client.base_url.port, [image.read_bytes() for image in images(trained)], clients=4, duration=2)
    answered = re.fullmatch(r"clients 4: [\d.]+ images/s, p50 (\S+) s, p99 (\S+) s, told to come again ([1-9]\d*) times", stated)
    assert answered, stated
    assert 0 < float(answered[1]) <= float(answered[2])
    assert service.end()[0] == 0


def test_hostile_files_get_an_answer_each_and_leave_no_memory(calibrated: Path) -> None:
    service = Service(calibrated, "--max_megapixels", 1)
    statuses, memory = Counter(), {}
    for number, data in enumerate(hostile_images(1000)):
        answer = service.predict(data)
        statuses[answer.status_code] += 1
        if answer.status_code != 200:
            assert "\n" not in answer.json()["error"]
        if number in (300, 999):
            memory[number] = resident(service.process.pid)
    assert statuses.keys() == {200, 413, 415}
    assert memory[999] < memory[300] + 50
    assert service.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_what_has_come_in(calibrated: Path, trained: Path, number: int) -> None:
    image = images(trained)[0].read_bytes()
    service = Service(calibrated)
    has_begun = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield image[:100]
        has_begun.set()
        time.sleep(1)
        yield image[100:]

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: service.client.post("predict", content=slowly()))
        assert has_begun.wait(SECONDS)
        assert httpx.get(f"{service.address}health", timeout=SECONDS).status_code == 200  # so it has read what came before
        service.process.send_signal(number)
        assert answer.result().json()["decision"] in ("good", "defective")
    assert service.process.wait(SECONDS) == 0
