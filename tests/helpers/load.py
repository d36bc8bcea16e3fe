"""What a service answers to many clients at a time: images a second, and how long an image takes.

python tools/serve.py --checkpoint experiments/demo/memory/checkpoints/ckpt.pth.tar --max_waiting 64
python tests/helpers/load.py --clients 64 data/demo

Each client sends the test images one after the other, waits for each answer, and comes again where the service says so.
The clients run on the same machine, so they take a part of its cores.
"""

import argparse
import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import numpy as np


def call(port: int, images: list[bytes], start: int, until: float) -> tuple[list[float], int]:
    """Of one client the seconds of each image, from the first try to its decision, and how often it was told to come again."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    seconds, refused = [], 0
    for image in islice(cycle(images), start, None):
        if time.monotonic() > until:
            return seconds, refused
        began = time.perf_counter()
        while True:
            connection.request("POST", "/predict", image, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 503:
                break
            refused += 1
            time.sleep(float(answer.headers["Retry-After"]))
        if answer.status != 200:
            raise SystemExit(f"status {answer.status}: {content[:200]!r}")
        seconds.append(time.perf_counter() - began)


def measure(port: int, images: list[bytes], clients: int, duration: float) -> str:
    """In words."""
    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        calls = [pool.submit(call, port, images, number, started + duration) for number in range(clients)]
        found = [future.result() for future in calls]
    took = time.monotonic() - started
    seconds = np.concatenate([times for times, _ in found])
    p50, p99 = (f"{np.quantile(seconds, share):.3f} s" for share in (0.5, 0.99))
    refused = sum(count for _, count in found)
    return f"clients {clients}: {len(seconds) / took:.1f} images/s, p50 {p50}, p99 {p99}, told to come again {refused} times"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a data set: its test images are sent")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30)
    args = parser.parse_args()
    images = [path.read_bytes() for path in sorted(args.folder.glob("*/test/*/*.png"))]
    print(measure(args.port, images, args.clients, args.seconds))
