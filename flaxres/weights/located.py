"""Places of pretrained weights: folders, repositories of the Hugging Face hub, and addresses."""

import functools
import importlib.util
import json
import pathlib
from collections.abc import Callable
from typing import Any

from flaxres.errors import InputError
from flaxres.paths import expanded
from flaxres.weights.files import PICKLES, MissingFileError
from flaxres.weights.tags import TRAINED, pretrained_info


def located(
    tag: str, revision: str | None, cache_dir: str | None
) -> tuple[str, Callable[[str], pathlib.Path] | None]:
    """Returns the folder, repository or address that a name stands for, and what finds its files.

    At an address there is one file.
    """
    folder = tag.removeprefix("local-dir:")
    if folder != tag or expanded(folder).is_dir():
        return folder, functools.partial(_in_folder, folder)
    repository = _repository(tag)
    if not repository:
        folder = str(TRAINED / tag)
        return folder, functools.partial(_in_folder, folder)
    if is_address(repository):
        if revision is not None:
            raise InputError(f"{tag!r} is a file at {repository}: it has no revision {revision!r}")
        return repository, None
    return repository, functools.partial(fetch, repository, revision=revision, cache_dir=cache_dir)


def _in_folder(folder: str, file: str) -> pathlib.Path:
    """Returns the path of a file in a folder."""
    path = expanded(folder) / file
    if not path.is_file():
        raise MissingFileError(
            f"folder {folder!r} has no {file}: give one that save_pretrained, timm, transformers "
            "or KerasHub wrote, or read a single file with load_weights"
        )
    return path


def _repository(tag: str) -> str:
    """Returns the repository that a name of weights stands for, '' for a folder of the package."""
    name = tag.removeprefix("hf-hub:").removeprefix("hf_hub:")
    return name if "/" in name else pretrained_info(name).repository


def is_address(repository: str) -> bool:
    """Returns whether weights are a file at an address, and no repository of the hub."""
    return repository.startswith(("http://", "https://"))


def downloaded(address: str, cache_dir: str | None = None) -> pathlib.Path:
    """Returns the path of a file of weights in a cache, downloaded if it is not there.

    Its name ends with the first digits of its SHA-256, as PyTorch's hub names files.

    Args:
      address: of the file.
      cache_dir: folder in place of the user's cache.

    Raises:
      InputError: it can't be downloaded, has another SHA-256, or needs PyTorch to be read.
    """
    from flaxres.data._download import download

    if address.endswith(PICKLES) and importlib.util.find_spec("torch") is None:
        raise InputError(f"weights {address} need PyTorch to be read: install torch")
    digest = pathlib.PurePosixPath(address).stem.rpartition("-")[2]
    folder = expanded(cache_dir) if cache_dir else None
    return download(address, digest, "read it with load_weights", folder)


def fetch(repository: str, file: str, revision: str | None, cache_dir: str | None) -> pathlib.Path:
    """Returns the path of a hub repository's file, downloaded if the cache does not have it.

    Raises:
      InputError: there is no such file, or the hub can't be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
    )

    try:
        path = huggingface_hub.hf_hub_download(
            repository, file, revision=revision, cache_dir=cache_dir
        )
    except LocalEntryNotFoundError as error:
        if (
            huggingface_hub.try_to_load_from_cache(
                repository, file, cache_dir=cache_dir, revision=revision
            )
            is not None
        ):  # known to be absent
            raise MissingFileError(f"{repository!r} has no {file}") from error
        raise InputError(
            f"{repository!r} is not in the hub's cache and the hub can't be reached: load it once "
            "with a network connection"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise MissingFileError(
            f"{file} of {repository!r} is not on the hub: give another repository or revision"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{file} of {repository!r} can't be loaded from the hub ({reason}): check the tag"
        ) from error
    return pathlib.Path(path)


def content_of(origin: str, path: pathlib.Path) -> Any:
    """Returns the content of the config.json of a repository or folder."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"config.json of {origin!r} is no JSON ({error}): give another tag"
        ) from error
