"""Image files: unusual ones are repaired, and unreadable ones are refused with the reason."""

import io
import pathlib
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from flaxres.data.decode import TRIES, random_resized_crop
from flaxres.data.images import repair, shrink_image
from flaxres.serving.crop import UnreadableError, centre_crop
from tests.data.samples import encoded, numbers_of, photograph


@pytest.mark.parametrize(
    ("image", "original", "expected"),
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
def test_unusual_files_become_rgb(image: Image.Image, original: str, expected: str) -> None:
    form, data = repair(encoded(image, original))
    assert form.startswith(expected)
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
    """Flips bytes in a JPEG, which Pillow tolerates and libjpeg's strict mode refuses.

    Preparation and training must agree on which images are usable.
    """
    data, forms = encoded(photograph(200, 150)), set()
    for at in range(700, len(data) - 2, 37):
        damaged = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        try:
            form, kept = repair(damaged)
        except UnreadableError:
            continue
        forms.add(form)
        simplejpeg.decode_jpeg(kept, "RGB") if kept[:2] == b"\xff\xd8" else None
        for usable in (kept, damaged):
            assert random_resized_crop(
                usable, 32, numbers_of(at), (0.08, 1), (0.75, 1.33), "bilinear"
            ).shape == (32, 32, 3)
    assert "JPEG with damaged parts repaired" in forms


def test_sixteen_bits_of_gray_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    form, data = repair(buffer.getvalue())
    assert "repaired" in form
    np.testing.assert_allclose(
        centre_crop(data, 16, 16, "bilinear")[..., 0].ravel(), np.arange(256), atol=1
    )


def bomb() -> bytes:
    """Returns a PNG with a header that promises 65,500 x 65,500 pixels."""

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


def test_an_image_is_shrunk_once(shared: pathlib.Path) -> None:
    data = encoded(photograph(900, 600))
    form, small = shrink_image(data, 256, 90)
    assert (form, Image.open(io.BytesIO(small)).size) == ("shrunk", (384, 256))
    expected = np.asarray(
        Image.open(io.BytesIO(data)).resize((384, 256), Image.Resampling.BOX)
    ).astype(int)
    assert np.abs(np.asarray(Image.open(io.BytesIO(small)).convert("RGB")) - expected).mean() < 3
    assert shrink_image(small, 256, 90) == ("JPEG kept", small)
    with pytest.raises(UnreadableError):
        shrink_image(b"text", 256, 90)


@pytest.mark.parametrize(
    "form",
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
    form: str,
) -> None:
    image, tall = photograph(120, 90), encoded(photograph(300, 900))
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
        "png": encoded(image, "PNG"),
        "exif": encoded(image, exif=b"Exif\x00\x00broken" + exif.tobytes()[:9]),
        "gray": encoded(photograph(120, 90, "L")),
        "alpha": encoded(photograph(120, 90, "RGBA"), "PNG"),
        "deep": deep.getvalue(),
        "animated": buffer.getvalue(),
        "empty": b"",
        "pixel": encoded(photograph(1, 1)),
        "bomb": bomb(),
    }[form]
    tracemalloc.start()

    def crop() -> np.ndarray:
        return random_resized_crop(data, 64, upper, (0.08, 1), (0.75, 1.33), "fast")

    upper = np.tile([0.1, 0.5, 0.0, 0.0], (TRIES, 1))
    for decoded in (crop, lambda: centre_crop(data, 64, 72, "bilinear")):
        if form in ("truncated", "empty", "bomb"):  # truncated even below the crop
            with pytest.raises(UnreadableError):
                decoded()
        else:
            assert decoded().shape == (64, 64, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6
