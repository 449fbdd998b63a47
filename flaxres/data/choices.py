"""The words that settings of the input take; here, apart, since configs name them where nothing that decodes is installed."""

from typing import Literal

Interpolation = Literal["bilinear", "bicubic"]
CropInterpolation = Literal["fast", "bilinear", "bicubic"]
BadImages = Literal["skip", "error"]
Fill = Literal["zero", "noise"]
