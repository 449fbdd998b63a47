"""SHA-256 of files and of words, which names what a dataset, a checkpoint or a download is."""

import hashlib
import pathlib
from collections.abc import Iterable


def of_file(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_words(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
