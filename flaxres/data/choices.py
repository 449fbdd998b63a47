"""The values that settings of the input accept.

They are apart so that configs can name them where no decoder is installed.
"""

from typing import Literal

Interpolation = Literal["bilinear", "bicubic"]
CropInterpolation = Literal["fast", "bilinear", "bicubic"]
BadImages = Literal["skip", "error"]
Fill = Literal["zero", "noise"]
