"""Files of any content are read, or refused in one line, and nothing else happens."""

import contextlib
import io
import json
import pathlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

import flaxres
from flaxres.cli._options import parse_run
from flaxres.config.files import from_json, to_json
from flaxres.config.schema import Config
from flaxres.config.settings import flat
from flaxres.data.datasets import open_or_prepare
from flaxres.data.decode import CentreCrop
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.inference.predict import class_names
from flaxres.serving.crop import UnreadableError
from flaxres.weights.names import leaves
from flaxres.weights.transfer import torch_from_variables, variables_from_torch

ROOT = pathlib.Path(__file__).parents[1]
FUZZ = settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@contextlib.contextmanager
def read_or_refused() -> Any:
    """No error but a refusal."""
    with contextlib.suppress(InputError):
        yield


@FUZZ
@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(content=b"[" * 100_000)
def test_a_config_file_of_a_run(content: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with read_or_refused():
        assert isinstance(from_json(tmp_path / "config.json"), Config)


@FUZZ
@given(name=st.sampled_from(sorted(flat(Config()))), value=JSON)
def test_one_changed_value_of_a_config_file(name: str, value: Any, tmp_path: pathlib.Path) -> None:
    sections = json.loads(to_json(Config()))
    section, field = name.split(".")
    sections[section][field] = value
    (tmp_path / "config.json").write_text(json.dumps(sections))
    with read_or_refused():
        assert isinstance(from_json(tmp_path / "config.json"), Config)


@FUZZ
@given(
    words=st.lists(
        st.sampled_from(
            ["--optim.learning-rate", "--model.bn-group", "--train.devices", "--data.crop", "--x"]
        )
        | st.text(max_size=5),
        max_size=4,
    )
)
def test_the_command_line(words: list[str]) -> None:
    if {"-h", "--help"} & set(words):
        return
    with read_or_refused():
        assert isinstance(
            parse_run(words, str(ROOT / "configs" / "digits.py"), "train.py", "")[0], Config
        )


@pytest.fixture(scope="module")
def variables() -> Any:
    import jax

    model = flaxres.ResNet(depths=(1,), widths=(8,), stem_width=8, num_classes=3)
    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))


@FUZZ
@given(data=st.data(), name=st.text(max_size=12), shape=st.lists(st.integers(0, 3), max_size=5))
def test_names_and_shapes_of_weights(
    data: st.DataObject, name: str, shape: list[int], variables: Any
) -> None:
    model = flaxres.ResNet(depths=(1,), widths=(8,), stem_width=8, num_classes=3)
    changed = torch_from_variables(variables)
    victim = data.draw(st.sampled_from(sorted(changed)))
    array = changed.pop(victim)
    changed[data.draw(st.sampled_from([name, victim, f"module.{victim}", "fc.weight"]))] = (
        data.draw(st.sampled_from([array, np.zeros(shape, np.float32)]))
    )
    with read_or_refused():
        read = variables_from_torch(changed, model, adapt=data.draw(st.booleans()))
        assert shapes(read) == shapes(variables)


def shapes(variables: Any) -> dict[str, Any]:
    return {"/".join(path): np.shape(leaf) for path, leaf in leaves(variables)}


@FUZZ
@given(
    header=st.binary(max_size=100) | JSON.map(lambda value: json.dumps({"a": value}).encode()),
    size=st.none() | st.integers(0, 2**64 - 1),
)
def test_the_header_of_safetensors(header: bytes, size: int | None, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if size is None else size) + header + bytes(64))
    with pytest.raises(InputError):
        flaxres.load_weights(path, flaxres.ResNet20())


@FUZZ
@given(
    content=st.binary(max_size=60)
    | st.lists(st.text(max_size=5), max_size=5).map(
        lambda lines: "\n".join(lines).encode(errors="replace")
    )
)
def test_lists_of_classes(content: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with read_or_refused():
        assert len(class_names(str(path), 3, False)) == 3


@FUZZ
@given(data=st.binary(max_size=200))
def test_bytes_that_may_be_an_image(data: bytes) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (200, 10, 10)).save(buffer, "JPEG")
    sound, transform = buffer.getvalue(), CentreCrop(8, 8)
    for content in (
        data,
        sound[: len(sound) // 2] + data + sound[len(sound) // 2 :],
        sound[: len(data)] + data + sound[2 * len(data) :],
    ):
        with contextlib.suppress(UnreadableError):
            assert transform(content, transform.numbers(np.zeros(1, np.uint32))[0]).shape == (
                8,
                8,
                3,
            )


@pytest.fixture
def shard(data_dir: str) -> Any:
    (source,) = open_or_prepare("digits", ["test"], data_dir=data_dir)
    path = pathlib.Path(source.files[0][0])
    sound = path.read_bytes()
    yield source, path, sound
    path.write_bytes(sound)


@FUZZ
@given(at=st.integers(0, 2**31), new=st.binary(min_size=1, max_size=40))
def test_records_of_a_shard_that_was_overwritten(
    at: int, new: bytes, shard: tuple[Source, pathlib.Path, bytes], data_dir: str
) -> None:
    _, path, sound = shard
    at %= len(sound)
    path.write_bytes(sound[:at] + new + sound[at + len(new) :])
    with read_or_refused():
        (source,) = open_or_prepare("digits", ["test"], data_dir=data_dir)
        for record in range(0, len(source), 50):
            image, label = source.read(record)
            assert isinstance(image, bytes)
            assert isinstance(label, int)
