"""Downloads of datasets and of weights, kept in the user's cache."""

import pathlib
import urllib.error
import urllib.request

from flaxres.cache import cache_folder
from flaxres.data import digests
from flaxres.data._progress import progress_bar
from flaxres.errors import InputError

BLOCK = 1 << 20


def download(
    url: str,
    digest: str,
    instead: str = "give its path as data.source",
    folder: pathlib.Path | None = None,
) -> pathlib.Path:
    """Downloads a file into a cache, unless it is there already.

    Args:
      url: address of the file.
      digest: SHA-256 that the file must have, or the first digits of it.
      folder: of the cache; None is the user's.
      instead: what to do with a file that came another way, for error messages.

    Returns:
      The path of the file.

    Raises:
      InputError: the file can't be downloaded, or has another SHA-256.
    """
    target = (folder or cache_folder() / "downloads") / url.rsplit("/", 1)[-1]
    if target.is_file() and digests.file_digest(target).startswith(digest):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    try:
        _fetch(url, part, f"download {target.name} (KiB)")
    except (urllib.error.URLError, OSError) as error:
        raise InputError(
            f"{url} can't be downloaded ({error}): download it elsewhere and {instead}"
        ) from error
    if not (received := digests.file_digest(part)).startswith(digest):
        part.unlink()
        raise InputError(
            f"{url} came with SHA-256 {received}: the rule is {digest}; try again, or download "
            f"it elsewhere and {instead}"
        )
    part.rename(target)
    return target


def _fetch(url: str, path: pathlib.Path, title: str) -> None:
    """Writes the content of `url` to `path` and shows the progress on stderr."""
    with (
        urllib.request.urlopen(url, timeout=60) as response,
        path.open("wb") as file,
        progress_bar() as progress,
    ):
        total = int(response.headers.get("Content-Length", 0)) // 1024 or None
        task = progress.add_task(title, total=total)
        while block := response.read(BLOCK):
            file.write(block)
            progress.advance(task, len(block) // 1024)
