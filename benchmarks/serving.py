"""Loads the server of networks: `python -m benchmarks.serving NETWORK... [--json]`.

A network is a folder of `flaxres export`, whose `serve.py` is started, the workdir of a run, or a
pretrained tag; the last two are given to `flaxres serve`. Each is started in turn on a free port
and gets `--requests` POSTs by `--clients` clients at once, each request on a new connection. The
images are those of `--images`, in turn, or a single one. Every response is compared with what
`flaxres predict` gives.

With `--mixed`, of ten clients one pauses in the middle of its image, one sends an invalid
Content-Length, and one closes the connection in the middle of its image. `lost` counts the requests
of all others, and of those that pause, that did not get classes within a minute; the rate counts
the others. Clients and server share the machine. Exports of older versions have another serve.py,
and can be compared.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.scaling import loopback
from flaxres.inference import predict
from flaxres.inference.artifacts import SERVER, WEIGHTS

Classes = dict[str, float]
"""The likeliest classes of an image with their probabilities."""

PAUSE, PATIENCE = 0.2, 60.0


def encoded(width: int, height: int) -> bytes:
    """Returns a JPEG of smoothed noise, which takes about as many bytes as a photograph."""
    noise = np.random.default_rng(0).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def request(body: bytes, length: str | None = None) -> bytes:
    """Returns the bytes of a POST."""
    head = f"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length or len(body)}\r\n"
    return (head + "Content-Type: image/jpeg\r\nConnection: close\r\n\r\n").encode() + body


async def one(port: int, body: bytes, role: str) -> Classes | None:
    """Runs a client; returns the classes that it got, none if it asked for none, None if lost."""
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = request(body, "abc" if role == "invalid" else None)
        if role in ("slow", "gone"):
            writer.write(data[: len(data) // 2])
            await writer.drain()
            if role == "gone":
                return {}
            await asyncio.sleep(PAUSE)
            data = data[len(data) // 2 :]
        writer.write(data)
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        if role == "invalid":
            return {}
        classes: list[Classes] = json.loads(content)
        return classes[0] if b" 200 " in head.partition(b"\r\n")[0] else None
    except (OSError, ValueError):
        return {} if role == "invalid" else None
    finally:
        if writer is not None:
            writer.close()


@dataclasses.dataclass
class Outcome:
    """The results of many requests.

    Attributes:
      requests: number of requests.
      lost: number of requests that did not get classes though they should.
      seconds: until the last response.
      largest_difference: of a probability from the expected one.
      other_order: number of responses whose classes are others, or in another order.
    """

    requests: int
    lost: int = 0
    seconds: float = 0.0
    largest_difference: float = 0.0
    other_order: int = 0

    def compare(self, got: Classes, expected: Classes) -> None:
        """Compares the classes of a response."""
        self.other_order += list(got) != list(expected)
        for name, probability in got.items():
            difference = abs(probability - expected.get(name, probability))
            self.largest_difference = max(self.largest_difference, difference)


async def load(
    port: int, images: Sequence[tuple[bytes, Classes]], requests: int, clients: int, mixed: bool
) -> Outcome:
    """Sends all requests, and compares each response with the expected classes."""
    roles = ["good"] * 7 + (["slow", "invalid", "gone"] if mixed else ["good"] * 3)
    numbers, outcome = iter(range(requests)), Outcome(requests)

    async def client() -> None:
        for i in numbers:
            body, expected = images[i // len(roles) % len(images)]
            try:
                got = await asyncio.wait_for(one(port, body, roles[i % len(roles)]), PATIENCE)
            except TimeoutError:
                got = None
            outcome.lost += got is None
            if got:
                outcome.compare(got, expected)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    outcome.seconds = time.perf_counter() - began
    return outcome


def predictor_of(network: str) -> predict.Predictor:
    """Returns the network as `flaxres predict` runs it; of an export, with its weights."""
    folder = pathlib.Path(network)
    if (folder / SERVER).exists():
        return predict.from_weights(str(folder / WEIGHTS)).for_photographs()
    predictor = predict.from_workdir(network) if folder.is_dir() else predict.from_tag(network)
    return predictor.for_photographs()


@contextlib.contextmanager
def served(network: str) -> Iterator[int]:
    """Serves a network; yields the port once an image was classified."""
    port, folder = loopback().partition(":")[2], pathlib.Path(network)
    if (folder / SERVER).exists():
        words = [sys.executable, str(folder / SERVER), port]
    else:
        origin = "--workdir" if folder.is_dir() else "--tag"
        words = [sys.executable, "-m", "flaxres.cli", "serve", origin, network, "--port", port]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if asyncio.run(one(int(port), encoded(64, 64), "good")) is not None:
                break
            time.sleep(0.5)
        yield int(port)
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving")
    parser.add_argument("networks", nargs="+", metavar="NETWORK")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--images", metavar="FOLDER", help="of images to send, at any depth")
    parser.add_argument("--image", type=int, nargs=2, default=(500, 375), metavar=("W", "H"))
    parser.add_argument("--mixed", action="store_true", help="slow and broken clients among them")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    chosen = parser.parse_args()
    bodies = [encoded(*chosen.image)]
    if chosen.images:
        bodies = [pathlib.Path(path).read_bytes() for path in predict.image_files([chosen.images])]
    results: dict[str, Any] = {}
    for network in chosen.networks:
        expected = map(dict, predictor_of(network)(bodies))
        images = list(zip(bodies, expected, strict=True))
        with served(network) as port:
            outcome = asyncio.run(load(port, images, chosen.requests, chosen.clients, chosen.mixed))
        rate = (outcome.requests - outcome.lost) / outcome.seconds
        results[network] = dataclasses.asdict(outcome) | {"requests_per_second": round(rate, 1)}
        print(
            f"{network}: {outcome.lost:,} of {outcome.requests:,} requests lost, {rate:,.1f} "
            f"others a second; probabilities within {outcome.largest_difference:.1e} of predict's, "
            f"{outcome.other_order:,} in another order"
        )
    if chosen.json:
        print(json.dumps(results | {"cpus": os.cpu_count()}))


if __name__ == "__main__":
    main()
