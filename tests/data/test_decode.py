"""Decoding: evaluation is Pillow's to the bit, the training crop follows its rule, bad files are named."""

import io
import pathlib
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from flaxres.data.decode import (
    TRIES,
    UnreadableError,
    centre_crop,
    crop_box,
    decode_above,
    height_offset,
    random_resized_crop,
    repair,
    resize,
    shrink_image,
)
from flaxres.data.order import uniforms


def numbers_of(position: int) -> np.ndarray:
    return uniforms(0, np.asarray([position]), (TRIES, 4))[0]


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture, so that two resizings can be compared."""
    y, x = np.mgrid[:height, :width]
    channels = np.stack(
        [128 + 100 * np.sin(x / 17), 128 + 100 * np.cos(y / 23), 255 * x / width], -1
    )
    return Image.fromarray(channels.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (256, 256), (100, 80)])
def test_evaluation_is_pillows_resize_and_centre_crop(width: int, height: int) -> None:
    data = encoded(photograph(width, height))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(width, height)
    image = image.resize(
        (int(64 * width / short), int(64 * height / short)), Image.Resampling.BILINEAR
    )
    left, top = round((image.width - 56) / 2), round((image.height - 56) / 2)
    np.testing.assert_array_equal(
        centre_crop(data, 56, 64, "bilinear"), np.asarray(image)[top : top + 56, left : left + 56]
    )


def test_crop_boxes_lie_inside_and_have_the_asked_area_and_ratio() -> None:
    areas, ratios = [], []
    for position in range(2000):
        top, left, height, width = crop_box(
            300, 400, numbers_of(position), (0.08, 1.0), (3 / 4, 4 / 3)
        )
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        areas.append(height * width / 120_000)
        ratios.append(width / height)
    assert 0.075 < min(areas) < 0.1
    assert max(areas) > 0.9
    assert 0.73 < min(ratios) < 0.76
    assert 1.31 < max(ratios) < 1.35
    # Log-uniform, so that wide and tall crops are equally likely; the image is wide, which cuts off some of the tall ones.
    assert 0.45 < np.mean(np.asarray(ratios) > 1) < 0.65


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10))]
)
def test_an_image_too_long_for_any_crop_gets_the_central_one(
    height: int, width: int, expected: tuple[int, ...]
) -> None:
    whole = np.full((TRIES, 4), 0.999)
    assert crop_box(height, width, whole, (0.99, 1.0), (3 / 4, 4 / 3)) == pytest.approx(
        expected, abs=2
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_training_crop_is_the_box_resized(kind: str) -> None:
    image = photograph(640, 480)
    data = encoded(image, kind, **({"quality": 95} if kind == "JPEG" else {}))
    reference = Image.open(io.BytesIO(data)).convert("RGB")
    for position in range(20):
        numbers = numbers_of(position)
        top, left, height, width = crop_box(480, 640, numbers, (0.08, 1.0), (3 / 4, 4 / 3))
        expected = np.asarray(
            reference.resize(
                (64, 64), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
            ),
            int,
        )
        ours = random_resized_crop(
            data, 64, numbers, (0.08, 1.0), (3 / 4, 4 / 3), "bilinear"
        ).astype(int)
        assert ours.shape == (64, 64, 3)
        assert np.abs(ours - expected).mean() < (
            1.5 if kind == "JPEG" else 1e-9
        )  # libjpeg's scaled decoding blurs a little otherwise


def test_real_photographs_decode(shared: pathlib.Path) -> None:
    import tarfile

    with tarfile.open(shared / "imagenet_sample.tar") as tar:
        for i, member in zip(range(40), (m for m in tar if m.isfile()), strict=False):
            file = tar.extractfile(member)
            assert file is not None
            data = file.read()
            assert (
                random_resized_crop(
                    data, 224, numbers_of(i), (0.08, 1), (3 / 4, 4 / 3), "bilinear"
                ).std()
                > 1
            )
            assert centre_crop(data, 224, 256, "bilinear").shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (photograph(20, 10), "JPEG", "JPEG"),
        (photograph(20, 10, "L"), "JPEG", "JPEG"),
        (photograph(20, 10, "CMYK"), "JPEG", "JPEG CMYK repaired"),
        (photograph(20, 10), "PNG", "PNG"),
        (photograph(20, 10, "RGBA"), "PNG", "PNG RGBA repaired"),
        (photograph(20, 10, "P"), "GIF", "GIF"),
        (photograph(1, 1), "PNG", "PNG"),
    ],
)
def test_unusual_files_become_rgb(image: Image.Image, kind: str, expected: str) -> None:
    found, data = repair(encoded(image, kind))
    assert found.startswith(expected)
    for decoded in (
        centre_crop(data, 8, 8, "bilinear"),
        random_resized_crop(data, 8, np.full((TRIES, 4), 0.5), (0.08, 1), (0.75, 1.33), "bilinear"),
    ):
        assert decoded.shape == (8, 8, 3)
    if image.width > 1:
        assert (
            np.abs(
                np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
                - np.asarray(image.convert("RGB"), int)
            ).mean()
            < 12
        )


def test_what_preparation_lets_pass_training_can_read() -> None:
    """A flipped byte inside a JPEG: Pillow reads on, libjpeg's strict reading refuses; both halves must agree on what is usable."""
    data, kinds = encoded(photograph(200, 150)), set()
    for at in range(700, len(data) - 2, 37):
        damaged = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        try:
            kind, kept = repair(damaged)
        except UnreadableError:
            continue
        kinds.add(kind)
        simplejpeg.decode_jpeg(kept, "RGB") if kept[:2] == b"\xff\xd8" else None
        for usable in (kept, damaged):
            assert random_resized_crop(
                usable, 32, numbers_of(at), (0.08, 1), (0.75, 1.33), "bilinear"
            ).shape == (32, 32, 3)
    assert "JPEG with damaged parts repaired" in kinds


def test_sixteen_bits_of_gray_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    kind, data = repair(buffer.getvalue())
    assert "repaired" in kind
    np.testing.assert_allclose(
        centre_crop(data, 16, 16, "bilinear")[..., 0].ravel(), np.arange(256), atol=1
    )


def bomb() -> bytes:
    """A PNG whose header promises 65,500 x 65,500 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 65_500, 65_500, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is text", "this is no JPEG or PNG image"),
        (encoded(photograph(200, 200))[:2000], "truncated"),
        (encoded(photograph(200, 200), "PNG")[:500], "truncated"),
        (bomb(), "pixels"),
    ],
)
def test_files_that_can_not_be_read_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        repair(data)
    with pytest.raises(UnreadableError):
        random_resized_crop(data, 64, numbers_of(0), (0.08, 1), (3 / 4, 4 / 3), "bilinear")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 1},
        {"restart_marker_rows": 1},
        {"progressive": True},
        {"mode": "L"},
    ],
)
@pytest.mark.parametrize("size", [16, 60, 200])
def test_what_is_left_out_of_a_jpeg_changes_no_pixel_above(
    options: dict[str, object], size: int
) -> None:
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (301, 407, 3), np.uint8)
    ).convert(str(options.get("mode", "RGB")))
    data = encoded(
        image, quality=80, **{key: value for key, value in options.items() if key != "mode"}
    )
    shorter = 0
    for position in range(40):
        box = crop_box(301, 407, numbers_of(position), (0.08, 1), (0.75, 1.33))
        part, factor = decode_above(data, 301, 407, box, size)
        part = part.copy()
        whole = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_factor=factor,
            min_height=-(-301 // factor),
            min_width=-(-407 // factor),
        )
        assert min(box[2:]) >= factor * size or factor == 1
        needed = -(-(box[0] + box[2]) // factor)
        np.testing.assert_array_equal(part[:needed], whole[:needed])
        shorter += len(part) < len(whole)
    whole_only = {"progressive", "restart_marker_rows"} & set(options)
    assert bool(shorter) != bool(whole_only)


def test_a_jpeg_of_several_scans_keeps_its_height() -> None:
    data = encoded(photograph(64, 64))
    at = data.index(b"\xff\xda")
    assert height_offset(data) == data.index(b"\xff\xc0") + 5
    assert height_offset(data[: at + 4] + b"\x01" + data[at + 5 :]) is None, (
        "its first scan has one of three components"
    )
    assert height_offset(data[:at]) is None
    assert height_offset(b"\xff\xd8" + b"\xff") is None


def test_the_fast_resize_is_close_to_pillows(shared: pathlib.Path) -> None:
    import tarfile

    differences, aliased = [], []
    with tarfile.open(shared / "imagenet_sample.tar") as tar:
        for i, member in zip(range(60), (m for m in tar if m.isfile()), strict=False):
            file = tar.extractfile(member)
            assert file is not None
            data = file.read()
            ours, pillows = (
                random_resized_crop(data, 224, numbers_of(i), (0.08, 1), (0.75, 1.33), kind).astype(
                    int
                )
                for kind in ("fast", "bilinear")
            )
            differences.append(np.abs(ours - pillows).mean())
            picture = simplejpeg.decode_jpeg(data, "RGB")
            top, left, h, w = crop_box(*picture.shape[:2], numbers_of(i), (0.08, 1), (0.75, 1.33))
            aliased.append(
                np.abs(
                    cv2.resize(picture[top : top + h, left : left + w], (224, 224)).astype(int)
                    - pillows
                ).mean()
            )
    assert np.mean(differences) < 1
    assert np.mean(differences) < 0.6 * np.mean(aliased), (
        "antialiasing is what makes the difference"
    )


@pytest.mark.parametrize(
    "shape", [(64, 64), (64, 300), (300, 64), (40, 50), (1000, 90), (129, 128)]
)
def test_every_shape_of_crop_is_resized(shape: tuple[int, int]) -> None:
    picture = np.asarray(photograph(shape[1], shape[0]))
    for kind in ("fast", "bilinear", "bicubic"):
        result = resize(picture, (0, 0, *shape), 1, 64, kind)
        assert result.shape == (64, 64, 3)
        assert not np.shares_memory(result, picture)
        expected = np.asarray(
            Image.fromarray(picture).resize((64, 64), Image.Resampling.BILINEAR)
        ).astype(int)
        assert np.abs(result - expected).mean() < 4


def test_damage_inside_the_part_that_is_decoded_is_not_let_pass() -> None:
    """The warning about what was left out must not hide another one; Pillow then reads what it can, as for a whole file."""
    data = bytearray(
        encoded(
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)),
            quality=90,
        )
    )
    start = data.index(b"\xff\xda") + 400
    data[start : start + 40] = b"\xff\x01" * 20
    box = (0, 0, 60, 200)
    with pytest.raises(ValueError, match="orrupt"):
        decode_above(bytes(data), 256, 256, box, 32)


def test_an_image_is_shrunk_once(shared: pathlib.Path) -> None:
    data = encoded(photograph(900, 600))
    kind, small = shrink_image(data, 256, 90)
    assert (kind, Image.open(io.BytesIO(small)).size) == ("shrunk", (384, 256))
    expected = np.asarray(
        Image.open(io.BytesIO(data)).resize((384, 256), Image.Resampling.BOX)
    ).astype(int)
    assert np.abs(np.asarray(Image.open(io.BytesIO(small)).convert("RGB")) - expected).mean() < 3
    assert shrink_image(small, 256, 90) == ("JPEG kept", small)
    with pytest.raises(UnreadableError):
        shrink_image(b"text", 256, 90)


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "cmyk",
        "png",
        "exif",
        "gray",
        "alpha",
        "deep",
        "animated",
        "empty",
        "pixel",
        "bomb",
    ],
)
def test_fault_25_fault_26_odd_images_are_decoded_or_refused_and_never_cost_much_memory(
    kind: str,
) -> None:
    picture, tall = photograph(120, 90), encoded(photograph(300, 900))
    exif = Image.Exif()
    exif[0x0112] = 99
    buffer = io.BytesIO()
    photograph(64, 64, "P").save(
        buffer, "GIF", save_all=True, append_images=[photograph(64, 64, "L").convert("P")]
    )
    deep = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)).save(deep, "PNG")
    data = {
        "truncated": tall[: 2 * len(tall) // 3],
        "cmyk": encoded(photograph(120, 90, "CMYK")),
        "png": encoded(picture, "PNG"),
        "exif": encoded(picture, exif=b"Exif\x00\x00broken" + exif.tobytes()[:9]),
        "gray": encoded(photograph(120, 90, "L")),
        "alpha": encoded(photograph(120, 90, "RGBA"), "PNG"),
        "deep": deep.getvalue(),
        "animated": buffer.getvalue(),
        "empty": b"",
        "pixel": encoded(photograph(1, 1)),
        "bomb": bomb(),
    }[kind]
    tracemalloc.start()

    def crop() -> np.ndarray:
        return random_resized_crop(data, 64, upper, (0.08, 1), (0.75, 1.33), "fast")

    upper = np.tile([0.1, 0.5, 0.0, 0.0], (TRIES, 1))
    for decoded in (crop, lambda: centre_crop(data, 64, 72, "bilinear")):
        if kind in ("truncated", "empty", "bomb"):  # truncated even below the crop
            with pytest.raises(UnreadableError):
                decoded()
        else:
            assert decoded().shape == (64, 64, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6
