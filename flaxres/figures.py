"""Shared functions of the figures that flaxres draws."""

from typing import Any

from flaxres.errors import InputError
from flaxres.paths import expanded


def pyplot() -> Any:
    """Returns matplotlib.pyplot, set to draw into files without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, target: str, option: str) -> None:
    """Writes a matplotlib figure into a file and closes it.

    Args:
      figure: the figure.
      target: the file.
      option: the command-line option that named the file, for the error.

    Raises:
      InputError: the file can't be written.
    """
    import matplotlib.pyplot as plt

    try:
        figure.savefig(expanded(target), dpi=110)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{option} {target!r} can't be written ({error}): give a .png file"
        ) from error
    finally:
        plt.close(figure)
