"""Images of Parquet's row groups in memory of their own."""

import pyarrow as pa
import pytest

from flaxres.data.parquet import Images
from tests.data.test_parquet import IMAGES


@pytest.mark.parametrize("large", [False, True])
def test_images_are_copied_out_of_larger_buffers(large: bool) -> None:
    """The budget counts what is kept: pyarrow's buffers are larger."""
    kind = pa.large_binary() if large else pa.binary()
    struct = pa.struct({"bytes": kind, "path": pa.string()})
    values = [{"bytes": data, "path": f"{i}"} for i, data in enumerate(IMAGES)]
    values += [None, {"bytes": None, "path": "none"}]
    column = pa.chunked_array([values[:3], values[3:]], struct)
    for first in (0, 2):
        images = Images.of(column.slice(first))
        assert [images[i] for i in range(10 - first)] == [*IMAGES[first:], b"", b""]
        assert [*images.names] == [*(str(i) for i in range(first, 8)), None, "none"]
        assert images.size == len(images.data) == sum(map(len, IMAGES[first:]))
    assert Images.of(column.slice(8))[0] == b""
    bare = pa.chunked_array([[{"bytes": b"image"}]], pa.struct({"bytes": kind}))
    assert (Images.of(bare)[0], Images.of(bare).names) == (b"image", [None])
