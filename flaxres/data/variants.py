"""Folders `<class>/*.jpg` whose classes are some of a network's, such as ImageNet's variants.

| test set | folders | source |
|---|---|---|
| ImageNet-V2 | 1,000, the numbers of the classes | Recht et al. 2019 |
| ImageNet-R | 200 WordNet ids | Hendrycks et al. 2021, "The Many Faces of Robustness" |
| ImageNet-A | 200 WordNet ids | Hendrycks et al. 2021, "Natural Adversarial Examples" |
| ImageNet-Sketch | 1,000 WordNet ids | Wang et al. 2019 |

The folders themselves say which classes a test set has.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from flaxres.data import digests
from flaxres.data.folders import files_below, may_be_image, visible
from flaxres.data.in_place import REMEDY, ImageFiles
from flaxres.data.source import Source
from flaxres.errors import InputError, nearest
from flaxres.paths import expanded


def open_variant(folder: str, classes: Sequence[str]) -> tuple[Source, tuple[int, ...]]:
    """Opens a folder of images by class, each class one of a network's.

    Args:
      folder: holds a folder of images for each of its classes. They are called by the names of
        classes or, if none of them is a name, by their numbers from 0.
      classes: the names of the network's classes, in label order.

    Returns:
      The images, with the classes of the folder in the order of the network's; and for each of
      these classes its number in the network.

    Raises:
      InputError: there is no such folder, or it holds something other than such classes.

    Examples:
      >>> import tempfile
      >>> from PIL import Image
      >>> root = tempfile.TemporaryDirectory()
      >>> for name in ("2", "0"):
      ...     path = pathlib.Path(root.name, name)
      ...     path.mkdir()
      ...     Image.new("RGB", (8, 8)).save(path / "1.png")
      >>> source, numbers = open_variant(root.name, ("n01", "n02", "n03"))
      >>> source.classes, numbers, source.read(1)[1]
      (('n01', 'n03'), (0, 2), 1)
      >>> root.cleanup()
    """
    root = expanded(folder)
    if not root.is_dir():
        raise InputError(f"{folder!r} is not a folder: give one with a folder for each class")
    numbers = _numbers(root, classes)
    paths, labels, facts = [], [], []
    for label, number in enumerate(sorted(numbers)):
        files = [path for path in files_below(numbers[number])[0] if may_be_image(path)]
        if not files:
            raise InputError(f"{str(numbers[number])!r} holds no images: remove it")
        for path in files:
            status = path.stat()
            facts.append(f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}")
            paths.append(os.fspath(path))
            labels.append(label)
    chosen = tuple(classes[number] for number in sorted(numbers))
    known = np.asarray(labels, np.int64)
    names = [os.fsencode(path.removeprefix(f"{root}/")).decode(errors="replace") for path in paths]
    source = Source(
        name=root.name or str(root),
        dataset=root.name,
        classes=chosen,
        digest=digests.words_digest([*chosen, *(os.fsencode(fact).hex() for fact in facts)]),
        records=ImageFiles(paths, names, known),
        image_key="image",
        label_key="label",
        files=((str(root), len(paths)),),
        labels=known,
        remedy=REMEDY,
    )
    return source, tuple(sorted(numbers))


def _numbers(root: pathlib.Path, classes: Sequence[str]) -> dict[int, pathlib.Path]:
    """Returns the folder of each class, by the number of the class."""
    folders = [path for path in visible(root) if path.is_dir()]
    if not folders:
        raise InputError(f"{str(root)!r} holds no folders: it needs one for each class")
    known = {name: number for number, name in enumerate(classes)}
    if not any(path.name in known for path in folders):
        known |= {str(number): number for number in range(len(classes))}
    for path in folders:
        if path.name not in known:
            near = nearest(path.name, known)
            hint = f"did you mean {near[0]}?" if near else f"the first is {classes[0]!r}"
            raise InputError(
                f"folder {path.name!r} in {str(root)!r} is none of the network's {len(classes)} "
                f"classes: {hint}"
            )
    return {known[path.name]: path for path in folders}
