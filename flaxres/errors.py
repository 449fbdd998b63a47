"""The errors that end a run in one line, and the wording that every refusal shares."""

import contextlib
import difflib
import pathlib
from collections.abc import Iterable, Iterator


class InputError(ValueError):
    """Input that can't be used: the message is one line with the value, the rule and the fix.

    `train.py` and the `flaxres` command print the message and exit with code 2.
    """


class WriteError(OSError):
    """Something that a run must keep could not be written: the message is one line with the place, the reason and the fix.

    `train.py` and the `flaxres` command print the message and exit with code 74. What was saved before is intact.
    """


# Packages of the extra `train` that flax itself does not bring.
TRAINER_PACKAGES = {
    *("array_record", "cv2", "flatbuffers", "huggingface_hub", "importlib_resources", "matplotlib"),
    *("PIL", "simplejpeg", "tensorboardX", "tensorflow_datasets", "tyro"),
}


def missing_extra(error: ModuleNotFoundError) -> InputError | None:
    """Returns the refusal for a package of the extra `train` that is not installed.

    Args:
      error: the failed import.

    Returns:
      An InputError with the command that installs the package; None for any other module.
    """
    package = (error.name or "").partition(".")[0]
    if package not in TRAINER_PACKAGES:
        return None
    return InputError(
        f"this needs the package {package!r}, which is not installed: pip install 'flaxres[train]'"
    )


@contextlib.contextmanager
def writing_to(folder: pathlib.Path) -> Iterator[None]:
    """Refuses, by name, the folder that a command's `--out` gives where it can't be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--out {str(folder)!r} can't be written ({error.strerror}): give another folder"
        ) from error


def unknown(kind: str, name: object, choices: Iterable[str]) -> InputError:
    """The refusal of a `name` that is not among `choices`, with the near ones or, failing that, all of them."""
    choices = sorted(set(choices))
    near = difflib.get_close_matches(str(name), choices, n=3, cutoff=0.6)
    alike = [difflib.SequenceMatcher(None, choice, str(name)).ratio() for choice in near]
    near = [choice for choice, ratio in zip(near, alike, strict=True) if ratio > alike[0] - 0.15]
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(choices)}"
    return InputError(f"unknown {kind} {str(name)!r}: {hint}")
