"""Both servers lose no request, whatever other clients do, and refuse in JSON."""

import contextlib
import pathlib
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flaxres.serving import _waitress, _wsgiref, main, sockets
from flaxres.serving.app import App
from flaxres.serving.errors import StartError
from flaxres.serving.main import Options

from .clients import Gate, app, coloured, levels, post, request, response

Address = tuple[str, int]
NAMES = ("red", "green", "blue")
IMAGES = {name: coloured(name) for name in NAMES}
LARGEST = 1_000_000


@contextlib.contextmanager
def serving(
    server: str, program: Callable[[np.ndarray], np.ndarray] = levels
) -> Iterator[tuple[Address, threading.Event, threading.Thread, App]]:
    """Serves in a thread; yields the address, the event that stops it, the thread and the app."""
    served, stop = (
        app(program, largest_batch=16, queue=256, largest_body=LARGEST),
        threading.Event(),
    )
    listening = sockets.bound("127.0.0.1", 0)
    listening.listen(1024)
    address = listening.getsockname()

    def run() -> None:
        if server == "waitress":
            _waitress.serve(served, listening, 32, stop)
        else:
            _wsgiref.serve(served, listening, stop)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield address, stop, thread, served
    finally:
        stop.set()
        thread.join(30)
        served.batches.close()
        listening.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module", params=["waitress", "wsgiref"])
def address(request: pytest.FixtureRequest) -> Iterator[Address]:
    with serving(request.param) as (address, _, _, _):
        yield address


def good(address: Address, i: int) -> str:
    status, rows = post(address, IMAGES[NAMES[i % 3]])
    return "good" if status == 200 and next(iter(rows[0])) == NAMES[i % 3] else f"lost: {rows}"


def slow(address: Address, i: int) -> str:
    """Sends an image in two parts, with a pause between them."""
    data = request(IMAGES[NAMES[i % 3]])
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(data[:-20])
        time.sleep(1)
        connection.sendall(data[-20:])
        status, rows = response(connection)
    return "slow" if status == 200 and next(iter(rows[0])) == NAMES[i % 3] else f"lost: {rows}"


def damaged(address: Address, i: int) -> str:
    status, content = post(address, b"no image")
    return "damaged" if status == 415 and "are no image" in content["error"] else f"lost: {content}"


def gone(address: Address, i: int) -> str:
    """Closes the connection in the middle of the image, or before the response."""
    data = request(IMAGES["red"])
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(data if i % 2 else data[:-20])
    return "gone"


def wrong_length(address: Address, i: int) -> str:
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(request(IMAGES["red"], length="abc"))
        status, content = response(connection)
    return "wrong" if status == 400 and "Content-Length" in content["error"] else f"lost: {content}"


CLIENTS = (good, good, slow, good, damaged, good, gone, good, wrong_length, good)


def ask_at_once(address: Address, count: int, clients: int) -> Counter[str]:
    """Runs `count` clients of all types, so many of them at a time; returns what became of them."""
    with ThreadPoolExecutor(clients) as pool:
        return Counter(pool.map(lambda i: CLIENTS[i % 10](address, i), range(count)))


EXPECTED = {"good": 6, "slow": 1, "damaged": 1, "gone": 1, "wrong": 1}


def test_of_100_clients_at_once_none_is_lost(address: Address) -> None:
    assert ask_at_once(address, 200, 100) == {name: 20 * n for name, n in EXPECTED.items()}


@pytest.mark.slow
@pytest.mark.parametrize("server", ["waitress", "wsgiref"])
def test_of_10_000_requests_none_is_lost(server: str) -> None:
    with serving(server) as (address, _, _, served):
        done = ask_at_once(address, 10_000, 100)
        assert done == {name: 1000 * n for name, n in EXPECTED.items()}
        assert 'flaxres_requests_total{status="200"}' in served.metrics.text(0)


def test_slow_clients_stop_nobody(address: Address) -> None:
    """More clients are silent in the middle of a request than requests are handled at once."""
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            connection = stack.enter_context(socket.create_connection(address, timeout=60))
            connection.sendall(request(IMAGES["red"])[:-20])
        began = time.monotonic()
        assert [good(address, i) for i in range(3)] == ["good"] * 3
        assert time.monotonic() - began < 10


def test_a_body_that_is_too_large_is_refused_though_it_is_sent(address: Address) -> None:
    for _ in range(3):
        status, content = post(address, bytes(3 * LARGEST))
        assert status == 413
        assert "3,000,000 bytes: the limit is 1,000,000" in content["error"]


def test_a_body_that_ends_early_is_refused(address: Address) -> None:
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(request(IMAGES["red"], length=5000))
        connection.shutdown(socket.SHUT_WR)
        status, content = response(connection)
    assert status == 400
    assert f"the body ended after {len(IMAGES['red'])} of 5,000 bytes" in content["error"]


def test_what_is_not_http_is_refused(address: Address) -> None:
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"POST / HTTP/one\r\n\r\n")
        status, content = response(connection)
    assert status == 400
    assert "send a valid HTTP" in content["error"]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["waitress", "wsgiref"])
def test_a_silent_client_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waitress, "SILENT_SECONDS", 1)
    monkeypatch.setattr(_wsgiref._Handler, "timeout", 1)
    with serving(server) as (address, _, _, _), socket.create_connection(address) as connection:
        connection.settimeout(30)
        connection.sendall(request(IMAGES["red"], length=5000))
        status, content = response(connection)
    assert status == 408
    assert "5,000 bytes" in content["error"]


@pytest.mark.parametrize("server", ["waitress", "wsgiref"])
def test_a_client_that_sends_a_byte_now_and_then_is_given_up(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SILENT_SECONDS", 1)
    with serving(server) as (address, _, _, _), socket.create_connection(address) as connection:
        connection.settimeout(30)
        began = time.monotonic()
        connection.sendall(request(IMAGES["red"], length=5000)[:-20])
        while not select.select([connection], [], [], 0.1)[0]:
            connection.sendall(b"x")
            assert time.monotonic() - began < 20
        status, content = response(connection)
    assert status == 408
    assert "5,000 bytes" in content["error"]


@pytest.mark.parametrize("server", ["waitress", "wsgiref"])
def test_a_slow_body_takes_its_time(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SILENT_SECONDS", 0.5)
    body = IMAGES["red"] + bytes(4000)
    with serving(server) as (address, _, _, _), socket.create_connection(address) as connection:
        connection.settimeout(30)
        data = request(body)
        for first in range(0, len(data), 500):
            connection.sendall(data[first : first + 500])
            time.sleep(0.2)
        status, _ = response(connection)
    assert status == 200


@pytest.mark.parametrize("server", ["waitress", "wsgiref"])
def test_a_stop_finishes_the_requests_that_wait(server: str) -> None:
    gate = Gate()
    with serving(server, gate) as (address, stop, thread, served), ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(good, address, i) for i in range(8)]
        assert gate.entered.wait(20)
        for _ in range(2000):
            if served.active == 8:
                break
            time.sleep(0.005)
        stop.set()
        time.sleep(1.3)
        assert thread.is_alive()
        with pytest.raises(OSError):  # noqa: PT011  (refused or reset)
            post(address, IMAGES["red"])
        gate.open.set()
        assert [done.result() for done in waiting] == ["good"] * 8
        thread.join(20)
        assert not thread.is_alive()


def test_a_port_in_use_is_one_line(tmp_path: pathlib.Path) -> None:
    with sockets.bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port} of 127.0.0.1 can't be used"):
            main.serve(main.loading(tmp_path), Options(port=port))
    with pytest.raises(StartError, match="can't be used"):
        sockets.bound("no.such.host.invalid", 8000)
