"""Convolutions in C++ equal XLA's, with derivatives of any order, wherever they are called.

They are compiled once, and a damaged or broken build is refused or replaced.
"""

import functools
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

import flaxres
from flaxres.cli import _process as cli
from flaxres.errors import InputError
from flaxres.ops import native
from flaxres.ops.convolution import convolution, direct
from tests.ops.native_cases import (
    CASES,
    Function,
    arrays,
    assert_alike,
    calls,
    needs_compiler,
    value,
)

pytestmark = needs_compiler


def gradients(f: Any) -> Function:
    return jax.grad(f, (0, 1))


def forward_over_reverse(f: Any) -> Function:
    return lambda x, kernel: jax.jvp(jax.grad(f, (0, 1)), (x, kernel), (x, kernel))


def reverse_over_reverse(f: Any) -> Function:
    return jax.grad(
        lambda x, kernel: sum((part**2).sum() for part in jax.grad(f, (0, 1))(x, kernel)), (0, 1)
    )


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (i % 2)) for i, case in enumerate(CASES)],
)
def test_it_is_xlas_convolution_to_any_order(
    shape: tuple[int, ...], size: int, stride: int
) -> None:
    native.use_native_convolutions()
    x, kernel = arrays(shape, size)
    ours, usual = (functools.partial(function, stride=stride) for function in (convolution, direct))
    assert calls(ours, x, kernel) == 1
    assert_alike(jax.jit(ours)(x, kernel), jax.jit(usual)(x, kernel))
    for transform in (gradients, forward_over_reverse, reverse_over_reverse):
        mine, theirs = transform(value(convolution, stride)), transform(value(direct, stride))
        assert_alike(jax.jit(mine)(x, kernel), jax.jit(theirs)(x, kernel))
    called = calls(gradients(value(convolution, stride)), x, kernel)
    assert called == (
        3 if shape[3] >= 12 else 2
    )  # the image's gradient has as many channels out as come in


def test_images_that_are_mapped_over_and_loops() -> None:
    native.use_native_convolutions()
    x, kernel = arrays((4, 9, 8, 16, 16), 3)
    mapped = jax.vmap(lambda x: convolution(x[None], kernel, 1)[0])
    assert_alike(mapped(x), direct(x, kernel, 1))

    def twice(function: Callable[..., jax.Array]) -> Any:
        return jax.jit(
            jax.grad(
                lambda x: jax.lax.scan(lambda y, _: (function(y, kernel, 1), None), x, length=2)[
                    0
                ].sum()
            )
        )(x)

    assert_alike(twice(convolution), twice(direct))


VECTORS = """
import sys, pytest
from flaxres.ops import native
option, *tests = sys.argv[1:]
native.processor_option = lambda: option
here = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
sys.exit(pytest.main(["-n0", "-m", "", *here, *tests]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("option", ["-march=x86-64-v3"])
def test_vectors_of_other_processors(option: str, tmp_path: pathlib.Path) -> None:
    if platform.machine() != "x86_64" or (
        option.endswith("v3") and "avx2" not in native.processor()
    ):
        pytest.skip("another processor")
    here = pathlib.Path(__file__).parent
    tests = [
        f"{__file__}::test_it_is_xlas_convolution_to_any_order",
        f"{here / 'test_batch_norm.py'}::test_it_is_the_plain_norm_to_any_order",
        f"{here / 'test_pool.py'}::test_native_code_pools_the_same",
    ]
    command = [sys.executable, "-c", VECTORS, option, *tests]
    environment = os.environ | {"FLAXRES_TESTS_COMPILED": str(tmp_path)}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "5 skipped" in done.stdout  # bfloat16, of which these processors know nothing


@pytest.mark.slow
def test_a_network_trains_as_without() -> None:
    model = flaxres.create_model("resnet20", num_classes=10)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 32, 32, 3)), jnp.float32)
    variables = model.init(jax.random.key(0), images)

    def loss(params: Any) -> Any:
        logits, new = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.square(logits).mean(), new

    without = jax.jit(jax.value_and_grad(lambda params: loss(params), has_aux=True))(
        variables["params"]
    )
    native.use_native_convolutions()
    step = jax.value_and_grad(lambda params: loss(params), has_aux=True)
    # No gradient of the images; a norm behind each convolution is two calls, its gradient as well.
    assert calls(step, variables["params"]) == 3 * 19 - 1 + 4 * 19
    for a, b in zip(
        jax.tree.leaves(jax.jit(step)(variables["params"])), jax.tree.leaves(without), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_what_they_are_not_for_is_computed_as_without() -> None:
    """A 1x1 convolution that can't call them is a product on CPU, as are its gradients.

    This holds for one that is mapped over kernels, too.
    """
    native.use_native_convolutions()
    x, kernel = arrays((8, 6, 5, 24, 32), 1)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    for stride in (1, 2):
        ours, usual = (
            jax.grad(value(function, stride), (0, 1)) for function in (convolution, direct)
        )
        split = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        program = jax.jit(ours, in_shardings=split).lower(x, kernel)
        assert (
            program.as_text().count("stablehlo.convolution")
            == program.as_text().count("custom_call @flaxres")
            == 0
        )
        assert_alike(program.compile()(*map(jax.device_put, (x, kernel), split)), usual(x, kernel))
        many = jnp.stack([kernel, 2 * kernel])
        assert_alike(
            jax.jit(jax.vmap(ours, (None, 0)))(x, many), jax.vmap(usual, (None, 0))(x, many)
        )
        assert_alike(
            jax.jit(jax.vmap(ours))(x[:, None], jnp.stack(8 * [kernel])),
            jax.vmap(usual)(x[:, None], jnp.stack(8 * [kernel])),
        )


def test_only_programs_that_can_call_them_do() -> None:
    native.use_native_convolutions()
    x, kernel = arrays((8, 8, 8, 16, 32), 3)
    plain = functools.partial(convolution, stride=1)
    assert calls(plain, x, kernel) == 1
    for other in (
        calls(plain, x, kernel, platform="cuda"),
        calls(plain, x.astype(jnp.float16), kernel.astype(jnp.float16)),
        calls(plain, x, kernel[..., :8]),
    ):
        assert other == 0
    # XLA divides programs for several devices among them; in `shard_map` each device has its own.
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(x, NamedSharding(mesh, P("data")))
    assert calls(plain, split, kernel) == 0
    assert_alike(jax.jit(plain)(split, kernel), direct(x, kernel, 1))
    shards = jax.shard_map(
        jax.grad(value(convolution, 1), (0, 1)),
        mesh=mesh,
        in_specs=(P("data"), P()),
        out_specs=(P("data"), P()),
    )
    assert calls(shards, x, kernel) == 3
    assert_alike(jax.jit(shards)(x, kernel), jax.grad(value(direct, 1), (0, 1))(x, kernel))
    exported = jax.export.export(jax.jit(plain))(x, kernel).serialize()
    assert_alike(jax.export.deserialize(exported).call(x, kernel), direct(x, kernel, 1))


BITS = """
import hashlib, os, sys
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]))
import jax, jax.numpy as jnp, numpy as np
import flaxres
from flaxres.ops.convolution import convolution
flaxres.use_native_convolutions()
digest, rng = hashlib.sha256(), np.random.default_rng(0)
for n, size, channels, features, stride in (
    (24, 16, 16, 16, 1), (3, 40, 20, 32, 2), (2, 7, 64, 128, 1), (20, 7, 192, 256, 1)
):
    x = jnp.asarray(1e-20 * rng.normal(size=(n, size, size, channels)), jnp.float32)
    kernel = jnp.asarray(1e-20 * rng.normal(size=(3, 3, channels, features)), jnp.float32)
    loss = lambda x, kernel: (1e30 * convolution(x, kernel, stride) ** 2).sum()
    step = jax.jit(jax.grad(loss, (0, 1)))
    assert step.lower(x, kernel).as_text().count("custom_call @flaxres") == 3
    for _ in range(3):
        values = convolution(1e20 * x, kernel, stride), convolution(x, kernel, stride)
        for part in (*values, *step(x, kernel), *step(1e20 * x, 1e20 * kernel)):
            digest.update(np.asarray(part).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores and Linux",
)
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    """Numbers too small to be normal are among them: threads must agree on what these are."""
    environment = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", BITS]
    said = [
        subprocess.run(
            [*command, str(cores)], env=environment, check=True, capture_output=True, text=True
        ).stdout
        for cores in (1, 2, 2)
    ]
    assert said[0] == said[1] == said[2]


@pytest.mark.slow
def test_it_is_built_once_and_again_where_the_file_was_cut(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    build = native.build
    monkeypatch.setattr(
        native, "OPTIONS", ("-O0", *native.OPTIONS[:1], *native.OPTIONS[2:])
    )  # compiles in less time
    monkeypatch.setattr(
        native, "build", lambda *arguments: built.append(arguments) or build(*arguments)
    )  # type: ignore[func-returns-value]
    source, compiler = "pool.cc", native.find_compiler()
    made = native.library(source, "float32", compiler, "1.0", tmp_path)
    assert native.library(source, "float32", compiler, "1.0", tmp_path) == made
    assert len(built) == 1
    content = made.read_bytes()
    made.write_bytes(content[: len(content) // 2])
    assert native.library(source, "float32", compiler, "1.0", tmp_path) == made
    assert len(built) == 2
    assert native.sound(made)
    other = native.library(source, "float32", compiler, "1.1", tmp_path)
    assert sorted(tmp_path.glob("*.so")) == sorted([made, other])
    assert native.library(source, "float32", [*compiler, "-g0"], "1.1", tmp_path) not in (
        made,
        other,
    )


CACHE = """
import jax.numpy as jnp, numpy as np, flaxres
from flaxres.ops import native
from flaxres.ops.convolution import convolution, direct
native.OPTIONS = ("-O0", *native.OPTIONS[:1], *native.OPTIONS[2:])  # compiles in less time
print(flaxres.use_native_convolutions())
x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
np.testing.assert_array_equal(convolution(x, kernel, 1), direct(x, kernel, 1))
"""


@pytest.mark.parametrize("writable", [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_cache_is_the_users_own_and_done_without_where_there_is_none(
    tmp_path: pathlib.Path, writable: bool
) -> None:
    cache = tmp_path / "cache"
    if not writable:
        cache.write_text("a file")
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    said = subprocess.run(
        [sys.executable, "-c", CACHE], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert said.strip() == native.said([*native.find_compiler(), "--version"]).partition("\n")[0]
    if writable:
        folder = cache / "flaxres" / "native"
        assert sorted(path.suffix for path in folder.iterdir()) == (3 * [".sha256"] + 3 * [".so"])
        assert folder.stat().st_mode & 0o777 == 0o700


def test_refusals_name_the_compiler_and_the_fix(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.load.cache_clear()
    broken = tmp_path / "broken"
    broken.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo broken 1.0 && exit\n"
        "echo norm.cc:1: error: no luck >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    for compiler, complaint in (
        ("no-such-compiler -g", "CXX='no-such-compiler -g' is not a program"),
        (str(broken), "no luck"),
        ("false", "fails"),
    ):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(InputError, match=complaint) as refused:
            native.use_native_convolutions()
        assert "install g++" in str(refused.value)
        assert "\n" not in str(refused.value)
    assert native.compiled_by == ""
    assert not list((tmp_path / "cache").glob("flaxres/native/*"))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\)"):
        native.use_native_convolutions()
    cli.use_compiler()  # goes on, and says so where code is asked for
    assert native.compiler() == ""
    assert capsys.readouterr().err.startswith("flaxres: no C++ compiler")
    monkeypatch.setenv("FLAXRES_NATIVE_CONVOLUTIONS", "0")
    cli.use_compiler()
    assert native.compiler() == ""
    assert capsys.readouterr().err == ""
