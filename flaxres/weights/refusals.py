"""The error for weights that don't fit a network."""

from flaxres.errors import InputError

SHOWN = 3
ANOTHER = "create the model that the weights belong to (adapt=True re-initialises the head)"


class WeightsError(InputError):
    """Weights that don't fit a model. The message shows some leaves, the attributes have all.

    Attributes:
      missing: leaves that the weights lack, by both names: `fc.bias (params.fc.bias)`.
      unexpected: names in the weights that the model lacks.
      misshapen: leaves of another shape, by both names and with both shapes.
    """

    def __init__(
        self,
        message: str,
        missing: tuple[str, ...],
        unexpected: tuple[str, ...],
        misshapen: tuple[str, ...],
    ) -> None:
        super().__init__(message)
        self.missing, self.unexpected, self.misshapen = missing, unexpected, misshapen


def refuse(source: str, fix: str = ANOTHER, **problems: list[str]) -> None:
    """Raises WeightsError if there are problems.

    Args:
      source: subject of the message.
      fix: what to do about it.
      **problems: leaves that are `missing`, `unexpected` or `misshapen`.
    """
    shown = [
        f"{len(names)} {problem}: {', '.join(names[:SHOWN])}{', ...' if names[SHOWN:] else ''}"
        for problem, names in problems.items()
        if names
    ]
    if shown:
        raise WeightsError(
            f"{source} don't fit the model; {'; '.join(shown)}: {fix}",
            **{problem: tuple(names) for problem, names in problems.items()},
        )
