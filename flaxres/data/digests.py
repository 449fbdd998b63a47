"""SHA-256 digests that identify datasets, checkpoints and downloads."""

import hashlib
import pathlib
from collections.abc import Iterable


def file_digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
      OSError: the file can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def words_digest(words: Iterable[str]) -> str:
    """Returns the SHA-256 of words, joined by line feeds, as 64 hexadecimal digits.

    Examples:
      >>> words_digest(["cat", "dog"])[:16]
      '3a450eb155d6a4c6'
    """
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
