"""Folders in an object store, given by an address such as `gs://bucket/run`, through fsspec."""

import contextlib
import functools
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from flaxres.errors import InputError
from flaxres.paths import expanded, replacing

# Scheme -> what installs its package.
EXTRAS = {"gs": "flaxres[gcs]", "gcs": "flaxres[gcs]", "s3": "flaxres[s3]", "az": "adlfs"}

# gcsfs compares what arrived with what it sent only if told to; s3fs always does.
OPTIONS: Mapping[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True},
    "gs": {"consistency": "md5"},
    "gcs": {"consistency": "md5"},
}


class RemoteError(OSError):
    """An object store refuses a request, or can't be reached; the message is its reason."""


def is_address(path: str | os.PathLike[str]) -> bool:
    """Returns True for an address, such as `gs://bucket/run`, and False for a path.

    Examples:
      >>> is_address("s3://bucket/run"), is_address("runs/digits")
      (True, False)
    """
    return isinstance(path, str) and "://" in path


def is_refusal(path: str | os.PathLike[str], error: BaseException) -> bool:
    """Returns True for an error of the store or the network, and False for damage of a file.

    Args:
      path: the file or object that was read.
      error: what reading it raised.
    """
    return is_address(str(path)) and isinstance(error, OSError)


class RemoteFolder:
    """A folder in an object store. The names of its objects are relative to it.

    Every method raises RemoteError where the store refuses, or can't be reached after the retries
    of its library.

    Args:
      address: SCHEME://BUCKET/PATH, of any scheme that fsspec knows.

    Raises:
      InputError: the scheme is unknown, its package is not installed, or there is no path.

    Examples:
      >>> folder = RemoteFolder("memory://bucket/run")
      >>> folder.write("a.txt", b"a")
      >>> folder.read("a.txt"), list(folder.names())
      (b'a', ['a.txt'])
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.files, root = file_system(self.address)
        self.root = root.rstrip("/")
        if not self.address.partition("://")[2].partition("/")[2]:
            raise InputError(f"{address!r} is a whole bucket: give a folder in it, {address}/NAME")

    def __repr__(self) -> str:
        return f"RemoteFolder({self.address!r})"

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def names(self) -> Mapping[str, str]:
        """Returns the name of each object, also in folders, with its version.

        The version is a text that differs once the object was written again.
        """
        with refusals():
            found = self.files.find(self.root, detail=True)
        names = {path.removeprefix(self.root).lstrip("/"): path for path in sorted(found)}
        # An empty name is the mark that some programs write for a folder.
        return {name: _version(found[path]) for name, path in names.items() if name}

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object, None if there is none."""
        with refusals(), contextlib.suppress(FileNotFoundError):
            content: bytes = self.files.cat_file(self._path(name))
            return content
        return None

    def write(self, name: str, content: bytes) -> None:
        """Writes an object; an existing one is replaced in one step."""
        with refusals():
            self.files.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object that does not exist yet; returns False if it does.

        S3 and Google's store decide it in one step. A store that ignores the condition is asked
        first, so that only two requests at the same time may both succeed.
        """
        if self.read(name) is not None:
            return False
        with refusals():
            try:
                self.files.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
        return True

    def upload(self, path: pathlib.Path, name: str) -> None:
        """Writes a file as an object; FileNotFoundError where there is no such file."""
        path.stat()
        with refusals():
            self.files.put_file(str(path), self._path(name))

    def download(self, name: str, path: pathlib.Path) -> None:
        """Writes an object as a file, in one step; FileNotFoundError where it is gone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, refusals(missing=True):
            self.files.get_file(self._path(name), str(part))

    def remove(self, name: str) -> None:
        """Deletes an object, if there is one."""
        with refusals(), contextlib.suppress(FileNotFoundError):
            self.files.rm_file(self._path(name))

    def modified(self, name: str) -> float:
        """Returns when an object was written, in seconds by the clock of the store.

        FileNotFoundError where there is none.
        """
        with refusals(missing=True):
            time: float = self.files.modified(self._path(name)).timestamp()
        return time


def file_system(address: str) -> tuple[Any, str]:
    """Returns the file system of fsspec for an address, one for each bucket, and the path in it.

    Raises:
      InputError: the scheme is unknown, or its package is not installed.
    """
    scheme, _, path = address.partition("://")
    files = _of_bucket(scheme, path.partition("/")[0])
    return files, files._strip_protocol(address)


@functools.cache
def _of_bucket(scheme: str, bucket: str) -> Any:
    """Makes the file system of a bucket; s3fs complains if one is dropped while it is in use."""
    import fsspec

    address = f"{scheme}://{bucket}"
    # Its warnings about each object would come beside our line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        files, _ = fsspec.url_to_fs(
            address, use_listings_cache=False, skip_instance_cache=True, **OPTIONS.get(scheme, {})
        )
    except ImportError as error:
        package = EXTRAS.get(scheme, str(error))
        raise InputError(
            f"{address!r} needs a package that is not installed: pip install {package!r}"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{address!r}: the scheme {scheme!r} is unknown to fsspec: give gs://, s3:// or "
            "another one that it knows"
        ) from error
    except Exception as error:
        raise InputError(f"{address!r} can't be opened ({_reason(error)})") from error
    return files


def path_of(place: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path with `~` expanded; for an address, one with the same methods.

    Raises:
      InputError: the address can't be opened.

    Examples:
      >>> path_of("memory://bucket/data").name
      'data'
    """
    if not is_address(place):
        return expanded(place)
    import upath

    address = str(place).rstrip("/")
    files, _ = file_system(address)
    path: pathlib.Path = upath.UPath(address, **files.storage_options)
    return path


def read_range(address: str, offset: int, size: int) -> bytes:
    """Returns bytes of an object, fewer where it ends before.

    Raises:
      RemoteError: the store refuses, or can't be reached after the retries of its library.
    """
    files, path = file_system(address)
    with refusals():
        content: bytes = files.cat_file(path, start=offset, end=offset + size)
    return content


def _version(facts: Mapping[str, Any]) -> str:
    """Returns the version of an object, by the facts that its store lists."""
    names = ("ETag", "etag", "generation", "md5Hash", "LastModified", "mtime", "created")
    return " ".join(str(facts[name]) for name in ("size", *names) if facts.get(name) is not None)


@contextlib.contextmanager
def refusals(missing: bool = False) -> Iterator[None]:
    """Turns the errors of a store, which are of many types, into RemoteError.

    Args:
      missing: passes FileNotFoundError on; else it tells of a missing bucket.

    Examples:
      >>> with refusals():
      ...     raise ConnectionError("the network is gone")
      Traceback (most recent call last):
      flaxres.remote.RemoteError: the network is gone
    """
    try:
        yield
    except Exception as error:
        if missing and isinstance(error, FileNotFoundError):
            raise
        raise RemoteError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Returns the message of an error in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
