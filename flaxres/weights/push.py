"""Uploads folders of `save_pretrained` to the Hugging Face hub."""

import os
import pathlib

from flaxres.errors import InputError
from flaxres.paths import expanded
from flaxres.weights.hub_folder import CONFIG, README, WEIGHTS


def push_to_hub(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload weights",
) -> str:
    """Uploads a folder in the hub's form to a repository, which is created if it does not exist.

    Afterwards `flaxres.load_pretrained("owner/name")` loads it, and so does
    `timm.create_model("hf-hub:owner/name", pretrained=True)` if timm has the architecture. All
    files go into one commit. The token is that of `hf auth login`, or of the variable `HF_TOKEN`.

    Args:
      folder: a folder of `save_pretrained`. Its files of other names are not uploaded.
      repository: `owner/name` on the hub.
      private: whether a repository that is created is private; None leaves it to the owner's
        default. An existing repository stays as it is.
      revision: the branch; None is the main branch.
      message: subject of the commit.

    Returns:
      The address of the commit.

    Raises:
      InputError: the folder lacks a file, the name is not of the form `owner/name`, there is no
        token, the hub refuses it, or the hub can't be reached.

    Examples:
      >>> push_to_hub("no_such_folder", "owner/name")
      Traceback (most recent call last):
      flaxres.errors.InputError: folder 'no_such_folder' has no config.json: give one that ...
    """
    path = expanded(folder)
    for file in (CONFIG, WEIGHTS, README):
        if not (path / file).is_file():
            raise InputError(
                f"folder {str(folder)!r} has no {file}: give one that save_pretrained or "
                "flaxres convert --hub wrote"
            )
    require_ready(repository)
    return _upload(path, repository, private, revision, message)


def require_ready(repository: str) -> None:
    """Checks what an upload needs, before there is a folder to upload.

    Raises:
      InputError: the name is not of the form `owner/name`, or there is no token.
    """
    import huggingface_hub

    if repository.count("/") != 1:
        raise InputError(f"repository {repository!r}: the rule is owner/name, as in ann/resnet50")
    if not huggingface_hub.get_token():
        raise InputError(
            f"pushing to {repository!r} needs a token of the hub: run hf auth login, or set "
            "HF_TOKEN"
        )


def _upload(
    folder: pathlib.Path, repository: str, private: bool | None, revision: str | None, message: str
) -> str:
    """Creates the repository and uploads the files."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The error of its HTTP library, which is httpx in huggingface_hub 1 and httpx2 in 2.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # isort: skip

    api = huggingface_hub.HfApi(library_name="flaxres")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            allow_patterns=[CONFIG, WEIGHTS, README],
        )
    except HFValidationError as error:
        raise InputError(
            f"repository {repository!r} is no name on the hub ({_line(error)}): give owner/name"
        ) from error
    except HfHubHTTPError as error:
        reason = f"{error.response.status_code}: {error.server_message or _line(error)}"
        raise InputError(
            f"the hub refuses {repository!r} ({reason}): check the name, and that the token may "
            "write there"
        ) from error
    except RuntimeError as error:  # from huggingface_hub where storing a large file fails
        reason = _line(error.__cause__ or error)
        raise InputError(
            f"the upload to {repository!r} failed ({reason}): nothing was committed; push again"
        ) from error
    except (HTTPError, OSError) as error:
        raise InputError(
            f"the hub can't be reached ({_line(error)}): check the network, then push again"
        ) from error
    return str(commit.commit_url)


def _line(error: BaseException) -> str:
    """Returns an error's message on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
