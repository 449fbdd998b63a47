"""Photographs whose EXIF data say how the camera was held."""

import dataclasses
import io
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from flaxres.config.schema import Config, DataConfig, ModelConfig
from flaxres.data import images, orientation
from flaxres.data.decode import CentreCrop, RandomResizedCrop, crop_box
from flaxres.data.preprocess import Preprocess
from flaxres.diagnostics import sheet
from flaxres.serving.crop import open_image, to_rgb


def photograph(turned: int, form: str = "JPEG", size: tuple[int, int] = (88, 56)) -> bytes:
    """Returns a smooth image whose four corners differ, with an orientation."""
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([255 * x / size[0], 255 * y / size[1], 255 * (x > 2 * y)], -1)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[orientation.ORIENTATION] = turned
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


def stored_upright(data: bytes) -> bytes:
    """Returns a PNG of the image as a viewer shows it."""
    buffer = io.BytesIO()
    ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_crops_are_those_of_the_upright_image(turned: int, form: str) -> None:
    data = photograph(turned, form)
    centre = CentreCrop(24, 32, exif=True)
    none = np.zeros(0)
    np.testing.assert_array_equal(centre(data, none), centre(stored_upright(data), none))
    for interpolation in ("bilinear", "fast"):
        crop = RandomResizedCrop(24, 3, (0.2, 0.9), interpolation=interpolation, exif=True)
        for numbers in crop.numbers(np.arange(6)):
            got, expected = crop(data, numbers), crop(stored_upright(data), numbers)
            # JPEGs are decoded at half their size here; another orientation differs by 40.
            assert np.abs(got.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_box_of_the_upright_image_has_its_place_in_the_stored_one(turned: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[orientation.ORIENTATION] = turned
    Image.fromarray(stored).save(buffer, "PNG", exif=exif)
    whole = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    np.testing.assert_array_equal(orientation.upright(stored, turned), whole)
    top, left, h, w = crop_box(*whole.shape[:2], np.full((1, 4), 0.7), (0.2, 0.4), (0.5, 0.6))
    y, x, height, width = orientation.stored_box((top, left, h, w), 6, 9, turned)
    part = stored[y : y + height, x : x + width]
    expected = whole[top : top + h, left : left + w]
    np.testing.assert_array_equal(orientation.upright(part, turned), expected)


def test_without_the_setting_the_image_is_taken_as_stored() -> None:
    data, plain = photograph(6), photograph(1)
    none = np.zeros(0)
    np.testing.assert_array_equal(CentreCrop(24, 32)(data, none), CentreCrop(24, 32)(plain, none))
    np.testing.assert_array_equal(Preprocess(24, 32).crop(data), Preprocess(24, 32).crop(plain))
    assert (Preprocess(24, 32, exif=True).crop(data) != Preprocess(24, 32).crop(plain)).any()


def test_invalid_orientations_change_nothing() -> None:
    assert orientation.orientation(photograph(0)) == orientation.orientation(photograph(9)) == 1
    cut = photograph(6)[:60]
    assert orientation.orientation(cut) == 1


@pytest.mark.parametrize("turned", [1, 3, 6])
def test_repaired_and_shrunk_images_keep_their_orientation(turned: int) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[orientation.ORIENTATION] = turned
    Image.new("CMYK", (40, 30), (200, 10, 10, 0)).save(buffer, "JPEG", exif=exif)
    name, repaired = images.repair(buffer.getvalue())
    assert name == "JPEG CMYK repaired"
    assert orientation.orientation(repaired) == turned
    done, small = images.shrink_image(photograph(turned), 28, 90)
    assert done == "shrunk"
    assert orientation.orientation(small) == turned
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(small)))
    assert shown.size == ((28, 44) if turned == 6 else (44, 28))


def test_a_tiff_is_turned_once(tmp_path: pathlib.Path) -> None:
    """Pillow turns TIFF files itself when it decodes them."""
    data = photograph(6, "TIFF")
    once = np.asarray(to_rgb(open_image(data), exif=True))
    assert once.shape == (88, 56, 3)
    _, repaired = images.repair(data)
    np.testing.assert_array_equal(np.asarray(to_rgb(open_image(repaired), exif=True)), once)


def test_the_setting_is_on_for_folders_alone() -> None:
    assert DataConfig("folder").uses_exif
    assert not DataConfig("imagenet2012").uses_exif
    assert DataConfig("imagenet2012", exif=True).uses_exif
    assert not DataConfig("folder", exif=False).uses_exif


def test_a_contact_sheet_shows_the_crops_of_the_evaluation(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[np.ndarray]] = {}
    monkeypatch.setattr(
        sheet, "_layout", lambda images, names, target: drawn.update({target: images})
    )
    for name, change in (("turned", lambda data: data), ("upright", stored_upright)):
        for label in ("a", "b"):
            folder = tmp_path / name / "train" / label
            folder.mkdir(parents=True)
            for turned in range(1, 9):
                (folder / f"{turned}.png").write_bytes(change(photograph(turned, "PNG")))
        data = DataConfig("folder", str(tmp_path / name), str(tmp_path / "data"), image_size=24)
        data = dataclasses.replace(data, eval_size=24, eval_resize=32)
        sheet.draw_sheet(Config(model=ModelConfig("resnet20"), data=data), name)
    np.testing.assert_array_equal(
        drawn["turned"][: sheet.SAMPLES], drawn["upright"][: sheet.SAMPLES]
    )
