"""Loads the server of exported folders: `python -m benchmarks.serving FOLDER... [--json]`.

Each folder's `serve.py` is started in turn on a free port and gets `--requests` POSTs of one image
by `--clients` clients at once, each request on a new connection. With `--mixed`, of ten clients one
pauses in the middle of its image, one sends an invalid Content-Length, and one closes the
connection in the middle of its image. `lost` counts the requests of all others, and of those that
pause, that did not get classes within a minute; the rate counts the others. Clients and server
share the machine. Exports of older versions have another serve.py, and can be compared.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from benchmarks.scaling import loopback

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


async def one(port: int, body: bytes, role: str) -> bool:
    """Runs a client; returns False if it got no classes though it should."""
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = request(body, "abc" if role == "invalid" else None)
        if role in ("slow", "gone"):
            writer.write(data[: len(data) // 2])
            await writer.drain()
            if role == "gone":
                return True
            await asyncio.sleep(PAUSE)
            data = data[len(data) // 2 :]
        writer.write(data)
        response = await reader.read()
        return role == "invalid" or b" 200 " in response.partition(b"\r\n")[0]
    except OSError:
        return role == "invalid"
    finally:
        if writer is not None:
            writer.close()


async def load(
    port: int, body: bytes, requests: int, clients: int, mixed: bool
) -> tuple[int, float]:
    """Sends all requests; returns how many were lost, and the seconds."""
    roles = ["good"] * 7 + (["slow", "invalid", "gone"] if mixed else ["good"] * 3)
    numbers, lost = iter(range(requests)), 0

    async def client() -> None:
        nonlocal lost
        for i in numbers:
            try:
                done = await asyncio.wait_for(one(port, body, roles[i % 10]), PATIENCE)
            except TimeoutError:
                done = False
            lost += not done

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return lost, time.perf_counter() - began


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[int]:
    """Serves a folder; yields the port once an image was classified."""
    port = int(loopback().partition(":")[2])
    words = [sys.executable, str(folder / "serve.py"), str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if asyncio.run(one(port, encoded(64, 64), "good")):
                break
            time.sleep(0.5)
        yield port
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving")
    parser.add_argument("folders", nargs="+", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--image", type=int, nargs=2, default=(500, 375), metavar=("W", "H"))
    parser.add_argument("--mixed", action="store_true", help="slow and broken clients among them")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    chosen = parser.parse_args()
    body, results = encoded(*chosen.image), {}
    for folder in chosen.folders:
        with served(folder) as port:
            lost, seconds = asyncio.run(
                load(port, body, chosen.requests, chosen.clients, chosen.mixed)
            )
        rate = (chosen.requests - lost) / seconds
        results[str(folder)] = {"lost": lost, "requests_per_second": round(rate, 1)}
        print(
            f"{folder}: {lost:,} of {chosen.requests:,} requests lost, {rate:,.1f} others a second"
        )
    if chosen.json:
        print(json.dumps(results | {"cpus": os.cpu_count()}))


if __name__ == "__main__":
    main()
