"""The command line of the server: `python serve.py 8000` and `flaxres serve FOLDER`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import sockets
from .errors import StartError

if TYPE_CHECKING:  # so that --help needs no package
    from .app import App
    from .model import Model

EXIT_REFUSED, EXIT_INTERRUPTED = 2, 130
HERE = pathlib.Path(__file__).resolve().parents[1]
ADVICE = "pip install waitress: without it, a slow client takes a thread"


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the server.

    Attributes:
      host: the name or address to listen on.
      port: the port; 0 takes a free one.
      threads: number of requests that waitress handles at once.
      max_batch: most images of a batch.
      max_queue: most images that wait; further requests get 503.
      max_mb: largest body of a request, megabytes.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    threads: int = 64
    max_batch: int = 16
    max_queue: int = 256
    max_mb: int = 32


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the server to a parser; see `options_of`."""
    default = Options()
    numbers = {
        "threads": "requests handled at once, by waitress",
        "max_batch": "most images in a batch",
        "max_queue": "most images that wait; then 503",
        "max_mb": "largest body of a request, MB",
    }
    parser.add_argument(
        "given_port", nargs="?", type=int, metavar="PORT", help=f"the port ({default.port})"
    )
    parser.add_argument("--port", type=int, help="the same; 0 takes a free one")
    parser.add_argument(
        "--host", default=default.host, help=f"the address to listen on ({default.host})"
    )
    for name, text in numbers.items():
        value = getattr(default, name)
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=value, metavar="N", help=f"{text} ({value})")


def options_of(chosen: argparse.Namespace) -> Options:
    """Returns the checked options.

    Raises:
      StartError: an option breaks its rule.
    """
    ports = [port for port in (chosen.given_port, chosen.port) if port is not None]
    if len(set(ports)) > 1:
        raise StartError(f"PORT={ports[0]} and --port={ports[1]}: give one of them")
    port = ports[0] if ports else Options.port
    if not 0 <= port < 65536:
        raise StartError(f"--port={port}: the rule is 0 to 65535")
    given = {"threads": chosen.threads, "max_batch": chosen.max_batch}
    given |= {"max_queue": chosen.max_queue, "max_mb": chosen.max_mb}
    for name, value in given.items():
        if value < 1:
            raise StartError(f"--{name.replace('_', '-')}={value}: the rule is > 0")
    return Options(host=chosen.host, port=port, **given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the folder in which this package lies.

    Args:
      arguments: the words after the program's name; None takes those of the process.

    Returns:
      The exit code: 0 after SIGTERM or Ctrl-C, 2 if the server can't start.
    """
    parser = argparse.ArgumentParser(
        "serve.py", description="Serve the network of this folder by HTTP on this machine."
    )
    add_options(parser)
    chosen = parser.parse_args(arguments)
    try:
        serve(loading(HERE), options_of(chosen))
    except StartError as error:
        print(f"serve.py: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except ModuleNotFoundError as error:
        print(
            f"serve.py: the package {error.name!r} is not installed: "
            "pip install jax flatbuffers pillow waitress",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    return 0


def loading(folder: pathlib.Path) -> Callable[[], Model]:
    """Returns a function that loads the network of a folder that `flaxres export` wrote."""

    def loaded() -> Model:
        from .model import load

        return load(folder)

    return loaded


def serve(load: Callable[[], Model], options: Options) -> None:
    """Serves a network until SIGTERM or Ctrl-C.

    The program is compiled for all sizes of batches before the port is opened. After the signal,
    the requests that wait are finished.

    Args:
      load: returns the network. It is called once the port is known to be free.
      options: see `Options`.

    Raises:
      StartError: the port is taken; and what `load` raises.
    """
    from .app import App

    with sockets.bound(options.host, options.port) as listening, stopped_by_signals() as stop:
        model = load()
        app = App(model, options.max_batch, options.max_queue, options.max_mb * 1_000_000)
        sizes = ", ".join(map(str, app.batches.sizes))
        print(f"compiling for batches of {sizes} images ...", file=sys.stderr)
        app.batches.warm_up(stop)
        if not stop.is_set():
            run(app, listening, options, stop)
        app.batches.close()


def run(app: App, listening: socket.socket, options: Options, stop: threading.Event) -> None:
    """Listens and serves, by waitress if it is installed, else by the standard library.

    Raises:
      StartError: another process listens on the port.
    """
    try:
        listening.listen(sockets.QUEUED_CONNECTIONS)
    except OSError as error:
        raise sockets.taken(options.host, options.port, error) from error
    address = sockets.address_of(listening)
    ready = f"{address} is ready: open it in a browser, or POST an image to it; Ctrl-C ends it"
    print(ready, flush=True)
    try:
        from . import _waitress
    except ModuleNotFoundError:
        from . import _wsgiref

        print(ADVICE, file=sys.stderr)
        _wsgiref.serve(app, listening, stop)
    else:
        _waitress.serve(app, listening, options.threads, stop)


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM and Ctrl-C set; a second signal ends the process at once."""
    stop = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            os._exit(EXIT_INTERRUPTED)
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
