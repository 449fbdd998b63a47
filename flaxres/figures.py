"""What the pictures for people have in common."""

from typing import Any

from flaxres.errors import InputError


def pyplot() -> Any:
    """matplotlib.pyplot, which draws into files and needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, target: str, option: str) -> None:
    """Writes a matplotlib figure and closes it; raises InputError that names the `option` where it can't be written."""
    import matplotlib.pyplot as plt

    try:
        figure.savefig(target, dpi=110)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{option} {target!r} can't be written ({error}): give a .png file"
        ) from error
    finally:
        plt.close(figure)
