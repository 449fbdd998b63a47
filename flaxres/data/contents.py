"""The contents of a dataset before its preparation, and orders of records that mix classes."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from flaxres.errors import InputError

Example = tuple[str, bytes, str]
"""File name, encoded image and class."""
Examples = Callable[[], Iterator[Example]]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a dataset in its original form.

    Attributes:
      classes: names of the classes in label order.
      splits: for each split the number of files, and a function that iterates over them.
      complete: fewer files than that are an error.
      notes: sentences on what is left out or unusual, for the user.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, tuple[int, Examples]]
    complete: bool = False
    notes: tuple[str, ...] = ()


def shuffled(items: Sequence[T], name: Callable[[T], str]) -> list[T]:
    """Returns items in an order that depends only on their names.

    Args:
      items: any items.
      name: returns the name of an item; names must differ.

    Examples:
      >>> shuffled(["a", "b", "c", "d"], str) == shuffled(["d", "c", "b", "a"], str)
      True
    """
    return sorted(items, key=lambda item: (_uniform(text := name(item)), text))


def mixed(classes: Mapping[str, Sequence[T]], name: Callable[[T], str]) -> list[tuple[str, T]]:
    """Mixes classes so that every slice holds them in their proportions.

    Item i of the n shuffled items of a class is placed at (i + u) / n of the whole, with u in
    [0, 1) drawn from its name. A slice by percentage therefore holds its share of each class, to
    within one or two items.

    Args:
      classes: items of each class.
      name: returns the name of an item; names must differ.

    Returns:
      Pairs of class and item.

    Examples:
      >>> order = mixed({"cat": range(20), "dog": range(100, 110)}, str)
      >>> [label for label, _ in order[:15]].count("dog") in (4, 5, 6)
      True
    """
    placed = (
        ((i + _uniform("place " + name(item))) / len(items), name(item), label, item)
        for label, items in classes.items()
        for i, item in enumerate(shuffled(items, name))
    )
    return [(label, item) for *_, label, item in sorted(placed, key=lambda entry: entry[:2])]


def stratified(
    classes: Mapping[str, Sequence[T]], share: float, name: Callable[[T], str]
) -> tuple[dict[str, list[T]], dict[str, list[T]]]:
    """Splits each class in two parts.

    Args:
      classes: items of each class.
      share: share of the second part, rounded in each class to at least one item. A class of one
        item has it in the first part.
      name: returns the name of an item; names must differ.

    Returns:
      The items of the first and of the second part by class.

    Examples:
      >>> first, second = stratified({"cat": range(20), "dog": range(5)}, 0.1, str)
      >>> [len(part["cat"]) for part in (first, second)], len(second["dog"])
      ([18, 2], 1)
    """
    first, second = {}, {}
    for label, items in classes.items():
        count = min(max(round(len(items) * share), 1), len(items) - 1)
        order = iter(shuffled(items, name))
        second[label] = list(itertools.islice(order, count))
        first[label] = list(order)
    return first, second


def require_images(split: str, left_out: int, images: Mapping[str, int]) -> None:
    """Refuses a split, or a class of it, that has files but no image.

    Args:
      split: name of the split.
      left_out: number of files that are no images.
      images: number of images of each class with files.

    Raises:
      InputError: there is no image at all, or none in a class.
    """
    if not any(images.values()):
        raise InputError(
            f"split {split!r} holds no image that can be read: {left_out} files were refused"
        )
    if empty := sorted(label for label, number in images.items() if not number):
        more = f" (and {len(empty) - 1} more classes)" if empty[1:] else ""
        raise InputError(
            f"class {empty[0]!r} of split {split!r} has files, but no image that can be "
            f"read{more}: repair its images, or remove its folder"
        )


def _uniform(text: str) -> float:
    """Returns a number in [0, 1) that is a function of a text."""
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
