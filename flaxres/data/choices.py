"""The values that settings of the input accept.

They are apart so that configs can name them where no decoder is installed.
"""

from typing import Literal

# Datasets that can be read where they lie. A folder is prepared unless `data.copy` is False; the
# others are always read in place.
IN_PLACE = ("folder", "parquet", "webdataset", "tfrecord", "manifest", "idx")
# Those whose images may have any number of labels.
MULTI_LABEL = ("manifest", "parquet")
# Those that can be read from an object store, file by file or in ranges of large files.
FROM_ADDRESSES = ("parquet", "webdataset", "tfrecord")
# Photographs as cameras wrote them, which may lie on their side.
FROM_CAMERAS = ("folder", "manifest")
CACHE_MIB = 768

Interpolation = Literal["bilinear", "bicubic"]
CropInterpolation = Literal["fast", "bilinear", "bicubic"]
BadImages = Literal["skip", "error"]
Fill = Literal["zero", "noise"]
