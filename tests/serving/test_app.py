"""The application takes images of all formats, batches them, and reports errors in JSON."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis
import numpy as np
import pytest
from PIL import Image

from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.serving.app import App
from flaxres.serving.batches import Batches

from .clients import CROP, RAW, SIZE, Gate, app, ask, bomb, coloured, levels, png

GREEN = coloured("green")


@pytest.fixture(scope="module")
def served() -> App:
    return app()


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", "text/x;", None],
)
def test_an_image_is_recognised_by_its_content(served: App, content_type: str | None) -> None:
    status, (best,), _ = ask(served, GREEN, CONTENT_TYPE=content_type)
    assert status == 200
    assert list(best.items()) == [("green", 1.0), ("red", 0.0), ("blue", 0.0)]


def test_an_image_as_long_as_raw_pixels_is_an_image(served: App) -> None:
    unit = SIZE * SIZE * 3
    padded = GREEN + bytes(-len(GREEN) % unit)  # a PNG may be followed by anything
    assert len(padded) % unit == 0
    assert next(iter(ask(served, padded)[1][0])) == "green"


def test_raw_pixels_need_their_type_and_their_length(served: App) -> None:
    images = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    images[np.arange(3), ..., np.arange(3)] = 255
    status, rows, _ = ask(served, images.tobytes(), CONTENT_TYPE=f"{RAW}; charset=none")
    assert status == 200
    assert [next(iter(row)) for row in rows] == ["red", "green", "blue"]
    status, error, _ = ask(served, images.tobytes()[:-1], CONTENT_TYPE=RAW)
    assert status == 400
    assert "575 bytes of application/x-raw-rgb" in error["error"]
    assert "a multiple of 8 x 8 x 3 = 192" in error["error"]
    status, error, _ = ask(served, images.tobytes(), CONTENT_TYPE="application/octet-stream")
    assert status == 415
    assert RAW in error["error"]


def images() -> dict[str, bytes]:
    """Returns encoded images of many formats."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    turned = pixels.copy()
    turned.getexif()[274] = 6
    grey16 = Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16))
    encoded = {name: png(pixels.convert(name)) for name in ("RGB", "L", "LA", "RGBA", "P", "1")}
    for name, image in (("CMYK", pixels.convert("CMYK")), ("turned", turned)):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", exif=turned.getexif() if name == "turned" else b"")
        encoded[name] = buffer.getvalue()
    return encoded | {"16 bits": png(grey16), "long": png(pixels.resize((2000, 2)))}


@pytest.mark.parametrize("name", images())
def test_photographs_are_cropped_as_by_predict(served: App, name: str) -> None:
    data = images()[name]
    preprocess = Preprocess(SIZE, SIZE).for_photographs()
    expected = levels(preprocess.crop(data)[None])[0]
    (row,) = ask(served, data)[1]
    assert [row[name] for name in ("red", "green", "blue")] == expected.tolist()
    # The same image, opened by the caller.
    np.testing.assert_array_equal(
        preprocess.crop(Image.open(io.BytesIO(data))), preprocess.crop(data)
    )


def test_16_bits_of_grey_are_scaled(served: App) -> None:
    (row,) = ask(served, png(Image.new("I;16", (9, 9), 20_000)))[1]
    assert row["red"] == pytest.approx(20_000 / 65_535, abs=1 / 255)
    assert Preprocess(4, 4).crop(Image.new("I;16", (9, 9), 20_000))[0, 0, 0] == 78
    with pytest.raises(InputError, match="floating-point pixels: store the image with 8"):
        Preprocess(4, 4).crop(Image.new("F", (9, 9), 0.5))


def test_a_long_image_is_cropped_before_it_is_resized(served: App) -> None:
    status, (row,), _ = ask(served, png(Image.new("RGB", (60_000, 1), "blue")))
    assert (status, next(iter(row))) == (200, "blue")


def form(*parts: str) -> tuple[bytes, str]:
    """Returns the body and the content type of a form, with images of these colours as files."""
    lines = b'--B\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    for colour in parts:
        head = f'--B\r\nContent-Disposition: form-data; name="f"; filename="{colour}.png"'
        lines += f"{head}\r\nContent-Type: image/png\r\n\r\n".encode() + coloured(colour) + b"\r\n"
    return lines + b"--B--\r\n", 'multipart/form-data; boundary="B"'


def test_a_form_has_several_images(served: App) -> None:
    body, content_type = form("blue", "red")
    status, rows, _ = ask(served, body, "/predict", CONTENT_TYPE=content_type)
    assert status == 200
    assert [next(iter(row)) for row in rows] == ["blue", "red"]
    body, content_type = form()
    status, error, _ = ask(served, body, CONTENT_TYPE=content_type)
    assert (status, "the form has no file" in error["error"]) == (400, True)


def test_as_many_classes_as_asked_for(served: App) -> None:
    assert [len(ask(served, GREEN, f"/?top={top}")[1][0]) for top in (1, 2, 9)] == [1, 2, 3]


CASES: list[tuple[dict[str, Any], int, str]] = [
    ({"path": "/nothing"}, 404, "no path '/nothing': choose from /, /predict"),
    ({"method": "PUT"}, 405, "no method PUT for /: choose from GET, POST"),
    ({"path": "/predict", "method": "GET"}, 405, "choose from POST"),
    ({"CONTENT_LENGTH": None}, 411, "no Content-Length"),
    ({"CONTENT_LENGTH": ""}, 411, "no Content-Length"),
    ({"CONTENT_LENGTH": "abc"}, 400, "Content-Length='abc': the rule is a whole number, >= 0"),
    ({"CONTENT_LENGTH": "-1"}, 400, "Content-Length='-1': the rule"),
    ({"CONTENT_LENGTH": "1_0"}, 400, "Content-Length='1_0': the rule"),
    ({"CONTENT_LENGTH": str(10**12)}, 413, "the limit is 1,000,000; send a smaller image"),
    ({"CONTENT_LENGTH": "999"}, 400, f"the body ended after {len(GREEN)} of 999 bytes"),
    ({"body": b""}, 400, "the body is empty: send a JPEG, PNG"),
    ({"body": b"hello"}, 415, "5 bytes are no image: send a JPEG, PNG"),
    ({"body": png(Image.effect_noise((99, 99), 80))[:900]}, 400, "the image is damaged"),
    ({"body": bomb()}, 413, "the image has more than 100,000,000 pixels"),
    ({"CONTENT_TYPE": "multipart/form-data"}, 400, "without a boundary"),
    ({"body": bytes(65 * 192), "CONTENT_TYPE": RAW}, 413, "65 images at once: the limit is 64"),
    ({"path": "/?top=0"}, 400, "top='0': the rule is a whole number, > 0"),
    ({"path": "/?top=many"}, 400, "top='many': the rule"),
    ({"path": "/?tpo=3"}, 400, "unknown parameter 'tpo': the only one is top"),
]


@pytest.mark.parametrize(("given", "status", "message"), CASES)
def test_errors_are_json(served: App, given: dict[str, Any], status: int, message: str) -> None:
    code, content, headers = ask(served, **({"body": GREEN} | given))
    assert code == status
    assert list(content) == ["error"]
    assert message in content["error"]
    assert headers["Content-Type"].startswith("application/json")
    assert (headers.get("Allow") is not None) == (status == 405)


@hypothesis.given(
    hypothesis.strategies.binary(max_size=300),
    hypothesis.strategies.one_of(
        hypothesis.strategies.text(hypothesis.strategies.characters(max_codepoint=255)),
        hypothesis.strategies.sampled_from([RAW, "multipart/form-data; boundary*=utf-8''%"]),
    ),
)
@hypothesis.settings(deadline=None, max_examples=100)
def test_no_body_and_no_type_is_a_failure(served: App, data: bytes, content_type: str) -> None:
    start = data[: len(data) % 9]
    for body in (
        data,
        GREEN[:40] + data,
        b"--B\r\nfilename=\r\n\r\n" + data + b"\r\n--B--" + start,
    ):
        assert ask(served, body, CONTENT_TYPE=content_type)[0] in (200, 400, 413, 415)


def test_a_failure_of_the_network_is_told_and_outlived(capsys: pytest.CaptureFixture[str]) -> None:
    failures = iter([RuntimeError("out of memory")])

    def program(images: np.ndarray) -> np.ndarray:
        for error in failures:
            raise error
        return levels(images)

    served = app(program)
    errors = io.StringIO()
    assert ask(served, GREEN, **{"wsgi.errors": errors})[0] == 500
    assert "out of memory" in errors.getvalue()
    assert ask(served, GREEN)[0] == 200


def test_the_page_health_and_metrics() -> None:
    served = app()
    ask(served, GREEN)
    ask(served, b"nothing")
    status, page, headers = ask(served, method="GET")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    # Nothing is loaded from elsewhere.
    page = page.replace('href="data:,"', "")
    assert all(word not in page for word in ("http://", "https://", " src=", " href=", "@import"))
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert ask(served, method="HEAD")[:2] == (200, "")
    health = ask(served, path="/health", method="GET")[1]
    assert health == {
        "status": "ok",
        "size": SIZE,
        "classes": 3,
        "max_bytes": 1_000_000,
        "waiting": 0,
    }
    lines = ask(served, path="/metrics", method="GET")[1].splitlines()
    for line in (
        'flaxres_requests_total{status="200"} 4',
        'flaxres_requests_total{status="415"} 1',
        "flaxres_images_total 1",
        "flaxres_batches_total 1",
        "flaxres_waiting 0",
        'flaxres_request_seconds_bucket{le="+Inf"} 2',
        "flaxres_request_seconds_count 2",
    ):
        assert line in lines


def wait_for(batches: Batches, waiting: int) -> None:
    """Waits until so many images wait."""
    for _ in range(2000):
        if batches.waiting == waiting:
            return
        threading.Event().wait(0.005)
    pytest.fail(f"{batches.waiting} images wait, not {waiting}")


def test_waiting_images_run_in_one_padded_batch_and_the_queue_is_bounded() -> None:
    gate = Gate()
    served = app(gate, largest_batch=8, queue=5)
    names = ["red", "green", "blue", "red", "blue"]
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, served, GREEN)
        assert gate.entered.wait(20)
        rest = [pool.submit(ask, served, coloured(name)) for name in names[:4]]
        wait_for(served.batches, 4)
        assert ask(served, bytes(2 * SIZE * SIZE * 3), CONTENT_TYPE=RAW)[0] == 503
        rest.append(pool.submit(ask, served, coloured(names[4])))
        wait_for(served.batches, 5)
        status, content, headers = ask(served, GREEN)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "too many requests wait" in content["error"]
        gate.open.set()
        assert first.result()[0] == 200
        assert [next(iter(done.result()[1][0])) for done in rest] == names
    # Five images ran in a batch of eight, for which the program is compiled.
    assert gate.sizes == [1, 8]
    assert served.batches.sizes == (1, 2, 4, 8)


def test_requests_that_wait_for_a_thread_count() -> None:
    served = app(queue=5)
    served.backlog = lambda: 5
    assert ask(served, GREEN)[0] == 503
    served.backlog = lambda: 4
    assert ask(served, GREEN)[0] == 200


def test_a_request_may_fill_several_batches() -> None:
    served = app(largest_batch=4)
    images = np.random.default_rng(0).integers(0, 256, (11, SIZE, SIZE, 3), np.uint8)
    rows = ask(served, images.tobytes(), CONTENT_TYPE=RAW)[1]
    measured = np.array([[row["red"], row["green"], row["blue"]] for row in rows], np.float32)
    np.testing.assert_array_equal(measured, levels(images))
    assert list(rows[0].values()) == sorted(rows[0].values(), reverse=True)


def test_settings_are_checked() -> None:
    settings = json.loads(CROP.to_json())
    for change, message in (
        ({"size": 0}, "size=0: the rule is 1 to 4096"),
        ({"resize": 8.5}, "resize=8.5: the rule"),
        ({"interpolation": "nearest"}, "interpolation='nearest': choose from bilinear, bicubic"),
        ({"exif": 1}, "exif=1: the rule is true or false"),
        ({"mean": 0}, "one JSON object with the keys size, resize, interpolation, exif"),
    ):
        with pytest.raises(ValueError, match=message):
            type(CROP).from_json(json.dumps(settings | change))
