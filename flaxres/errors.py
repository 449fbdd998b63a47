"""Errors that end a run with one line."""

import contextlib
import difflib
import pathlib
from collections.abc import Iterable, Iterator

# Choices in a message, where no choice is near.
LISTED = 30


class InputError(ValueError):
    """Input that can't be used: the message is one line with the value, the rule and the fix.

    `train.py` and the `flaxres` command print the message and exit with code 2.

    Examples:
      >>> import flaxres
      >>> try:
      ...     flaxres.create_model("resnet51")
      ... except flaxres.InputError as error:
      ...     print(str(error).partition(":")[0])
      unknown model 'resnet51'
    """


class WriteError(OSError):
    """A file that a run must keep can't be written.

    The message is one line with the place, the reason and the fix. `train.py` and the `flaxres`
    command print it and exit with code 74. Everything saved before is intact.
    """


# Packages of the extra `train` that flax itself does not bring.
TRAINER_PACKAGES = {
    *("array_record", "cv2", "flatbuffers", "fsspec", "huggingface_hub", "importlib_resources"),
    *("jinja2", "matplotlib", "PIL", "pyarrow", "simplejpeg", "tensorboardX", "tyro"),
    *("tensorflow_datasets", "upath"),
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
        f"this needs the package {package!r}, which is not installed: in the clone of flaxres, "
        "pip install -e '.[train]'"
    )


@contextlib.contextmanager
def writing_to(folder: pathlib.Path) -> Iterator[None]:
    """Turns OSError into an InputError that names the folder of a command's `--out`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--out {str(folder)!r} can't be written ({error.strerror}): give another folder"
        ) from error


def unknown(kind: str, name: object, choices: Iterable[str]) -> InputError:
    """Returns the error for a name that is not among the choices.

    The message lists the nearest choices, or the first ones if none is near.

    Args:
      kind: of the name, e.g. "model".
      name: the unknown name.
      choices: the valid names.

    Examples:
      >>> print(unknown("model", "resnet51", ["resnet18", "resnet50"]))
      unknown model 'resnet51': did you mean resnet50 or resnet18?
    """
    choices = sorted(set(choices))
    near = nearest(name, choices)
    more = f" and {len(choices) - LISTED:,} more" if len(choices) > LISTED else ""
    listed = f"{', '.join(choices[:LISTED])}{more}"
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {listed}"
    return InputError(f"unknown {kind} {str(name)!r}: {hint}")


def nearest(name: object, choices: Iterable[str]) -> list[str]:
    """Returns at most three of the choices that are spelt like a name, the nearest first.

    Choices that begin with the name are the nearest if there are at most three. Upper case does not
    count.

    Examples:
      >>> nearest("Float32", ["bfloat16", "float32", "float64"])
      ['float32']
      >>> nearest("resnet50.a1", ["resnet50.ra_in1k", "resnet50.a1_in1k"])
      ['resnet50.a1_in1k']
    """
    text = str(name).lower()
    lower = {choice.lower(): choice for choice in choices}
    if text in lower:
        return [lower[text]]
    longer = [choice for choice in lower if choice.startswith(text)]
    if text and 0 < len(longer) <= 3:
        return [lower[choice] for choice in sorted(longer, key=len)]
    near = difflib.get_close_matches(text, lower, n=3, cutoff=0.6)
    alike = [difflib.SequenceMatcher(None, choice, text).ratio() for choice in near]
    return [
        lower[choice] for choice, ratio in zip(near, alike, strict=True) if ratio > alike[0] - 0.15
    ]
