"""Splits of datasets of numbered files, by the names that the Hugging Face hub uses."""

import pathlib
import re

from flaxres.errors import InputError
from flaxres.remote import path_of

_SPLIT = r"(?:.*-)?(?P<split>\w+(?:\.\w+)*)-(?P<number>\d+)"
# train-00000-of-00005.parquet, also with a digest at the end, and train-000000.tar
_COUNTED = re.compile(_SPLIT + r"-of-(?P<count>\d+)(?:-[0-9a-f]+)?")
_NUMBERED = re.compile(_SPLIT)
TFRECORD = ".tfrecord"
# Folders that hold the files of several splits.
_SHARED = ("", "data")


def find_shards(
    name: str, source: str | None, suffix: str
) -> tuple[pathlib.Path, dict[str, list[pathlib.Path]]]:
    """Finds the files of a dataset in a folder, in its folder `data`, or in a folder a split.

    The split of `train-00000-of-00005.parquet` or `train-000000.tar` is `train`. Any other name
    belongs to the split that its folder names, as in `train/0000.parquet`.

    Args:
      name: name of the dataset, for messages.
      source: the folder, or its address in an object store.
      suffix: `.parquet`, `.tar` or `.tfrecord`, which files of TensorFlow have within their names
        or not at all.

    Returns:
      The folder, and the files of each split, in the order of their names.

    Raises:
      InputError: there is no such folder, it has no such files, one of them belongs to no split, or
        a numbered file is missing.
    """
    rule = f"train-00000-of-00005{suffix} or train/*{suffix}"
    if suffix == TFRECORD:
        rule = "train-00000-of-00005, name-train.tfrecord-00000-of-00005 or train/*.tfrecord"
    if source is None:
        raise InputError(f"data.name={name!r} needs data.source: the folder that holds {rule}")
    root = path_of(source)
    if not root.is_dir():
        raise InputError(
            f"data.source={str(source)!r} is not a folder: give the one that holds {rule}"
        )
    splits: dict[str, list[pathlib.Path]] = {}
    for path in sorted([*root.glob("*"), *root.glob("*/*")]):
        stem, inside = _stem(path.name, suffix), path.relative_to(root)
        hidden = any(part.startswith(".") for part in inside.parts)
        if stem is None or hidden or not path.is_file():
            continue
        folder = "" if len(inside.parts) == 1 else inside.parts[0]
        numbered = _COUNTED.fullmatch(stem) or _NUMBERED.fullmatch(stem)
        if numbered is None and folder in _SHARED:
            raise InputError(f"{str(path)!r} belongs to no split: the rule is {rule}; rename it")
        split = numbered["split"] if numbered and folder in _SHARED else folder
        splits.setdefault(split, []).append(path)
    if not splits:
        raise InputError(f"data.source={str(source)!r} holds no {rule}: give another folder")
    for split, paths in splits.items():
        _require_all(split, paths, suffix)
    return root, splits


def _stem(name: str, suffix: str) -> str | None:
    """Returns the name of a file without its suffix, None if it is of another kind.

    >>> _stem("train-00001.tar", ".tar"), _stem("train-00001.txt", ".tar")
    ('train-00001', None)
    >>> _stem("mnist-train.tfrecord-00000-of-00001", ".tfrecord")
    'mnist-train-00000-of-00001'
    """
    if suffix != TFRECORD:
        return name.removesuffix(suffix) if name.endswith(suffix) else None
    stem = re.sub(r"\.tfrecords?(?=$|-)", "", name)
    return stem if stem != name or _COUNTED.fullmatch(name) else None


def _require_all(split: str, paths: list[pathlib.Path], suffix: str) -> None:
    """Refuses a split with files `-of-N` that are not N."""
    stems = [_stem(path.name, suffix) or "" for path in paths]
    names = [name for stem in stems if (name := _COUNTED.fullmatch(stem))]
    if not names:
        return
    count = max(int(name["count"]) for name in names)
    missing = sorted(set(range(count)) - {int(name["number"]) for name in names})
    if missing:
        raise InputError(
            f"split {split!r} in {str(paths[0].parent)!r} lacks file {missing[0]} (of "
            f"{count}, numbered from 0; {len(missing)} are missing): download it again"
        )
    if len(paths) > count:
        raise InputError(
            f"split {split!r} has {len(paths)} files, and {paths[0].name!r} says {count}: "
            "remove those that belong to another version"
        )
