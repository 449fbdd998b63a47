"""Files in the IDX form of MNIST, read in place: `data.name='idx'`.

`train-images-idx3-ubyte` with `train-labels-idx1-ubyte` is the split `train`, and the files that
begin with `t10k` or `test` are the split `test`. Names may have a prefix, as EMNIST's, and end in
`.gz`. `classes.txt` beside the files names the classes; without it they are numbers.

Each image becomes a PGM, pixels after a short header, so that the loader treats it as any other.
The digest covers all pixels and labels.

The form is that of http://yann.lecun.com/exdb/mnist (LeCun, Cortes and Burges 1998).
"""

import dataclasses
import gzip
import hashlib
import math
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from flaxres.data import digests
from flaxres.data.labels import class_names
from flaxres.data.store import Split, Store
from flaxres.errors import InputError
from flaxres.paths import expanded

REMEDY = "download it again"
RULE = "the folder of train-images-idx3-ubyte and train-labels-idx1-ubyte, which may end in .gz"
_FILE = re.compile(
    r"(?:.*[-_])?(?P<split>train|t10k|test|val)[-_](?P<part>images|labels)[-.]idx[13][-.]ubyte(?:\.gz)?"
)
_SPLITS = {"t10k": "test"}
# Third byte of the header of a file of unsigned bytes; the fourth is the number of dimensions.
_BYTES = 8


@dataclasses.dataclass(frozen=True)
class Pixels(Sequence[Any]):
    """Random access to grey images, as PGM.

    Attributes:
      images: all images.
      labels: label of each image.
    """

    images: UInt8[np.ndarray, "n h w"]
    labels: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        height, width = self.images.shape[1:]
        data = b"P5 %d %d 255\n" % (width, height) + self.images[index].tobytes()
        return {"image": data, "label": int(self.labels[index]), "file_name": ""}


def open_idx(source: str | None) -> Store:
    """Opens a folder of IDX files.

    Args:
      source: the folder.

    Raises:
      InputError: the folder has no such files, a split lacks its images or labels or has them
        twice, or a file is cut, damaged or of another form.
    """
    root, found = _found(source)
    splits, facts = {}, ["idx"]
    for name, (images_file, labels_file) in found.items():
        images, labels = _read(images_file, 3), _read(labels_file, 1).astype(np.int64)
        if len(images) != len(labels):
            raise InputError(
                f"{str(images_file)!r} has {len(images):,} images and {str(labels_file)!r} "
                f"{len(labels):,} labels: they are not of one dataset; download them again"
            )
        if not images.size:
            raise InputError(f"{str(images_file)!r} is empty: remove it")
        files = ((str(images_file), len(images)),)
        size = images_file.stat().st_size + labels_file.stat().st_size
        splits[name] = Split(Pixels(images, labels), labels, files, size)
        facts += [name, *(hashlib.sha256(part.tobytes()).hexdigest() for part in (images, labels))]
        facts += [repr(images.shape)]
    classes = class_names(root, max(int(split.labels.max()) for split in splits.values()))
    digest = digests.words_digest([*facts, *classes])
    return Store("idx", root, classes, digest, splits, REMEDY)


def _found(source: str | None) -> tuple[pathlib.Path, dict[str, list[pathlib.Path]]]:
    """Returns the folder, and the files of images and labels of each split."""
    if source is None:
        raise InputError(f"data.name='idx' needs data.source: {RULE}")
    root = expanded(source)
    if not root.is_dir():
        raise InputError(f"data.source={source!r} is not a folder: give {RULE}")
    parts: dict[str, dict[str, pathlib.Path]] = {}
    for path in sorted(root.iterdir()):
        if not (match := _FILE.fullmatch(path.name)) or not path.is_file():
            continue
        files = parts.setdefault(_SPLITS.get(match["split"], match["split"]), {})
        if (other := files.get(match["part"])) is not None:
            raise InputError(
                f"{other.name!r} and {path.name!r} in {str(root)!r} are {match['part']} of one "
                "split: keep one dataset, compressed or not, in a folder"
            )
        files[match["part"]] = path
    if not parts:
        raise InputError(f"data.source={source!r} holds no IDX files: give {RULE}")
    for name, files in parts.items():
        if missing := {"images", "labels"} - files.keys():
            raise InputError(f"split {name!r} in {str(root)!r} lacks its {missing.pop()}: {RULE}")
    # `train` first
    order = sorted(parts, key=lambda split: (split != "train", split))
    return root, {split: [parts[split]["images"], parts[split]["labels"]] for split in order}


def _read(path: pathlib.Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Reads a file of unsigned bytes of so many dimensions."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{str(path)!r} can't be read ({reason}): {REMEDY}") from error
    start = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, _BYTES, dimensions)) or len(data) < start:
        raise InputError(
            f"{str(path)!r} begins with {data[:4].hex(' ')}: the rule is 00 00 08 0{dimensions}, "
            f"unsigned bytes of {dimensions} dimensions; {REMEDY}"
        )
    shape = tuple(np.frombuffer(data, ">u4", dimensions, 4).tolist())
    if len(data) - start != math.prod(shape):
        raise InputError(
            f"{str(path)!r} has {len(data) - start:,} bytes for {' x '.join(map(str, shape))}: it "
            f"is cut or damaged, {REMEDY}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
