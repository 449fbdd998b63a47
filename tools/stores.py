"""Object stores on loopback, for tests and for tools/kill.py.

    python -m tools.stores s3
    python -m tools.stores gs

Serves an empty bucket, `bucket`, by moto or by gcp-storage-emulator, and prints the port. SIGUSR1
closes the port and SIGUSR2 opens it again, with what the bucket held.
"""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import command

KINDS = ("s3", "gs")


@dataclasses.dataclass(frozen=True)
class Store:
    """A store that is served by another process.

    Attributes:
      address: of its bucket.
      environment: variables by which clients find it.
      process: its process.
    """

    address: str
    environment: dict[str, str]
    process: subprocess.Popen[str]

    def close_port(self) -> None:
        """Lets clients fail to connect, from now on."""
        self._switch(signal.SIGUSR1)

    def open_port(self) -> None:
        """Lets clients connect again."""
        self._switch(signal.SIGUSR2)

    def _switch(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.process.stdout.readline()


@contextlib.contextmanager
def served(kind: str) -> Iterator[Store]:
    """Serves an empty bucket, and stops at the end.

    Args:
      kind: "s3" or "gs".
    """
    words = [sys.executable, "-m", "tools.stores", kind]
    quiet = subprocess.DEVNULL  # the servers report each client that is killed
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=quiet, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        environment = {
            "s3": {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
            },
            "gs": {"STORAGE_EMULATOR_HOST": url},
        }[kind]
        yield Store(f"{kind}://bucket", environment, process)
    finally:
        process.kill()
        process.communicate()


def _s3_server(port: int) -> Any:
    """Returns moto's server, started; port 0 takes a free one and makes the bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    if not port:
        port = server.get_host_and_port()[1]
        boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        ).create_bucket(Bucket="bucket")
    return server, port


def _exact(read: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the emulator's parser of requests, which then also keeps a last byte of 13.

    gcsfs delimits the parts of an upload by a line feed alone. The emulator takes a carriage return
    before it for a part of the delimiter, and drops it.
    """

    def exact(handler: Any, query: Any) -> Any:
        kind = handler.headers.get("Content-Type") or ""
        if not kind.startswith("multipart/related"):
            return read(handler, query)
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        delimiter = b"\n--" + kind.partition("boundary=")[2].strip('"').encode()
        _, first, second, _ = (b"\n" + body).split(delimiter, 2 + 1)
        head, content = second.lstrip(b"\n").split(b"\n\n", 1)
        return {
            "meta": json.loads(first.split(b"\n\n", 1)[1]),
            "content": content,
            "content-type": head.decode().partition("Content-Type: ")[2],
        }

    return exact


def _gs_server(port: int, storage: Any = None) -> Any:
    """Returns Google's emulator, started; port 0 takes a free one and makes the bucket."""
    from gcp_storage_emulator import server as emulator
    from gcp_storage_emulator.server import APIThread, create_server

    emulator._read_data = _exact(emulator._read_data)
    if storage is None:
        storage = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")._storage
    server = APIThread("127.0.0.1", port, storage)
    server.start()
    server.is_running.wait()
    return server, server._httpd.server_address[1], storage


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("kind", choices=KINDS)
    chosen = parser.parse_args()
    logging.disable(logging.ERROR)
    switches = threading.Semaphore(0)
    signal.signal(signal.SIGUSR1, lambda *_: switches.release())
    signal.signal(signal.SIGUSR2, lambda *_: switches.release())
    if chosen.kind == "s3":
        server, port = _s3_server(0)
    else:
        server, port, storage = _gs_server(0)
    os.write(1, f"{port}\n".encode())
    while True:
        switches.acquire()
        server.stop() if chosen.kind == "s3" else server.join()
        os.write(1, b"closed\n")
        switches.acquire()
        server = _s3_server(port)[0] if chosen.kind == "s3" else _gs_server(port, storage)[0]
        os.write(1, b"open\n")


if __name__ == "__main__":
    main()
