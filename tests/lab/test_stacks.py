"""The claims about stacks of dense layers, at small size and with a margin.

They would not hold if the stacks were joined otherwise.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres.cli import main
from flaxres.cli._lab import LAB
from flaxres.lab import EXPERIMENTS, block, claims, gradients, lesion, norm, width
from flaxres.lab.claims import Claim
from flaxres.lab.report import Experiment, Settings, conduct, summary
from flaxres.lab.stacks import KINDS, Stack, digits, norms
from flaxres.lab.tuned import tuned

IMAGES, LABELS = digits("train")


def ratio(stack: Stack, seed: int = 0) -> float:
    """Returns the norm of the gradient at the first joint, divided by that at the last one."""
    with jax.enable_x64(True):
        params = stack.initialise(jax.random.key(seed), 64, jnp.float64)
        _, arriving = jax.jit(stack.gradient_norms)(
            params, IMAGES[:32].astype(np.float64), LABELS[:32]
        )
        return float(arriving[0] / arriving[-1])


@pytest.mark.parametrize("seed", range(3))
def test_plain_gradients_vanish_and_others_do_not(seed: int) -> None:
    assert ratio(Stack("plain", 60), seed) < 1e-7
    for kind in KINDS[1:]:
        assert ratio(Stack(kind, 60), seed) > 0.1, kind


@pytest.mark.slow
def test_the_claims_of_the_gradients_hold(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "DEPTHS", (30, 100, 1000))
    (result,) = gradients.run(Settings(tmp_path), print)
    assert all(claim.holds for claim in gradients.claims(result)), gradients.claims(result)
    deepest = result.at_birth["Glorot's initialisation, no norm", "plain", 1000]
    assert (deepest.arriving > 0).all()
    assert deepest.ratio < 1e-140
    assert len(gradients.rows(result)) == 3 * 4 * (30 + 100 + 1000) + 4 * 3 * 50


def test_norms_do_not_underflow() -> None:
    with jax.enable_x64(True):
        measured = norms(jnp.asarray([[[3e-200, 4e-200]], [[0.0, 0.0]], [[3.0, 4.0]]], jnp.float64))
    np.testing.assert_allclose(measured, [5e-200, 0, 5], rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_batch_norm_makes_plain_gradients_explode(seed: int) -> None:
    plain = ratio(Stack("plain", 60, True, "he"), seed)
    residual = ratio(Stack("preactivation", 60, True, "he"), seed)
    assert plain > 1e4
    assert 1 / 100 < residual < 100


def test_a_stack_is_its_formula() -> None:
    x = IMAGES[:4]
    for kind in KINDS:
        stack = Stack(kind, 4)
        params = jax.tree.map(np.asarray, stack.initialise(jax.random.key(1), 64))
        y = x @ params["first"]
        layers = params["layers"]
        relu = lambda z: np.maximum(z, 0)  # noqa: E731
        if kind == "dense":
            for i in range(4):
                y = np.concatenate([y, relu(y) @ layers[i][: y.shape[1]]], 1)
            y = relu(y)
        for a, b in zip(layers[::2], layers[1::2], strict=True) if kind != "dense" else ():
            shortcut = y if kind == "residual" else 0
            y = (
                y + relu(relu(y) @ a) @ b
                if kind == "preactivation"
                else relu(relu(y @ a) @ b + shortcut)
            )
        y = relu(y) if kind == "preactivation" else y
        np.testing.assert_allclose(stack(params, x), y @ params["head"], rtol=2e-5, atol=2e-5)
        if kind != "dense":  # all blocks bypassed leave the first projection
            bare = x @ params["first"]
            bare = relu(bare) if kind == "preactivation" else bare
            np.testing.assert_allclose(
                stack(params, x, jnp.zeros(2)), bare @ params["head"], rtol=2e-5, atol=2e-5
            )


def test_what_arrives_is_the_gradient_by_the_output_of_each_block() -> None:
    stack = Stack("residual", 6)
    params = stack.initialise(jax.random.key(2), 64)
    _, arriving = stack.gradient_norms(params, IMAGES[:8], LABELS[:8])

    def tail(x: jax.Array, blocks: int) -> jax.Array:
        """Returns the loss as a function of the output of the first `blocks` blocks."""
        rest = Stack("residual", 6 - 2 * blocks)
        layers = params["layers"][2 * blocks :]
        return rest.loss(params | {"first": jnp.eye(64), "layers": layers}, x, LABELS[:8])

    x = IMAGES[:8] @ params["first"]
    for blocks in (1, 2):
        a, b = params["layers"][2 * blocks - 2 : 2 * blocks]
        x = stack.residual(x, a, b)
        np.testing.assert_allclose(
            arriving[blocks - 1], jnp.linalg.norm(jax.grad(tail)(x, blocks)), rtol=1e-4
        )


def test_the_command_knows_every_experiment() -> None:
    assert [*EXPERIMENTS, "all"] == [*LAB]


def test_the_block_falls_back_to_the_identity(tmp_path: pathlib.Path) -> None:
    (result,) = block.run(Settings(tmp_path), print)
    assert result.distance["residual"][0] == 0
    assert result.distance["plain"][0] == 1
    assert result.gradient_error < 1e-12
    assert all(claim.holds for claim in block.claims(result))
    # With larger weights both move away.
    assert (np.diff(result.distance["residual"]) > 0).all()


def test_training_a_deep_plain_stack_fails_and_a_residual_one_does_not() -> None:
    losses = {
        kind: gradients.training(Stack(kind, 40), [0], IMAGES, LABELS, 60)[0][1]
        for kind in ("plain", "residual")
    }
    assert losses["plain"][-10:].mean() > 2.2
    assert losses["residual"][-10:].mean() < 1.5


@pytest.mark.slow
def test_most_blocks_of_a_deep_residual_stack_can_be_bypassed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesion, "BLOCKS", 60)
    monkeypatch.setattr(lesion, "BYPASSED", 40)
    counts, ranked, random = lesion.thought_experiment(
        Settings(tmp_path, scale=0.7), "preactivation", print
    )
    half, most = list(counts).index(30), list(counts).index(40)
    assert ranked[0] > 0.94
    assert ranked[half] > 0.85
    assert ranked[most] > 0.8
    assert random.mean(0)[half] > 0.8
    assert ranked[-1] < 0.8  # and not nearly all of them


def test_an_experiment_writes_a_picture_a_table_and_its_numbers(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = conduct("block", block.EXPERIMENT, Settings(tmp_path / "lab"))
    assert (tmp_path / "lab" / "block.png").stat().st_size > 20_000
    table = (tmp_path / "lab" / "block.csv").read_text().splitlines()
    assert table[0] == "seed,kind,scale,distance,gradient"
    assert len(table) == 1 + 2 * len(block.SCALES)
    assert json.loads((tmp_path / "lab" / "block.json").read_text()) == facts
    assert "holds: A residual block falls back" in capsys.readouterr().err
    assert summary([facts]).count("| yes |") == 3
    claim = Claim("so", "it", 1.0, None, False)
    failing = Experiment("", block.run, block.draw, block.rows, lambda _: [claim])
    refuted = conduct("block", failing, Settings(tmp_path / "lab"))
    assert refuted["claims"][0]["holds"] == [False]
    assert "| no |" in summary([refuted])


def test_seeds_are_repetitions_of_one(tmp_path: pathlib.Path) -> None:
    """Each experiment measures with several seeds what it measures with each alone."""
    both = Settings(tmp_path / "both", seed=3, seeds=2, scale=0.05)
    alone = [Settings(tmp_path / str(seed), seed=seed, scale=0.05) for seed in (3, 4)]
    facts = conduct("block", block.EXPERIMENT, both)
    apart = [conduct("block", block.EXPERIMENT, one) for one in alone]
    assert facts["seeds"] == [3, 4]
    assert facts["results"] == [fact["results"][0] for fact in apart]
    for claim, *others in zip(facts["claims"], *(fact["claims"] for fact in apart), strict=True):
        assert claim["residual"] == [other["residual"][0] for other in others]
        assert claim["holds"] == [True, True]
    text = summary([facts])
    assert text.count("| 2 of 2 |") == 3
    assert "Seeds 3 to 4" in text
    rows = (tmp_path / "both" / "block.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * len(block.SCALES)


def test_stacks_of_several_seeds_are_trained_as_those_of_one() -> None:
    stack = Stack("residual", 10)
    first, second = gradients.training(stack, [5, 6], IMAGES, LABELS, 20)
    (norms_alone, losses_alone), *_ = gradients.training(stack, [6], IMAGES, LABELS, 20)
    np.testing.assert_allclose(second[1], losses_alone, rtol=1e-3)
    np.testing.assert_allclose(second[0][0].arriving, norms_alone[0].arriving, rtol=1e-3)
    assert not np.allclose(first[1], second[1], rtol=0.05)
    scores = tuned(Stack("plain", 4), [0, 1, 2], 0.1, rates=(0.03,))
    (alone,) = tuned(Stack("plain", 4), [2], 0.1, rates=(0.03,))
    assert dataclasses.astuple(scores[2]) == pytest.approx(dataclasses.astuple(alone), rel=1e-3)


def test_the_rate_is_the_one_that_fits_the_training_split_best() -> None:
    stack = Stack("residual", 4, norm=True, init="he")
    slow, fast = (tuned(stack, [0], 0.1, rates=(rate,))[0] for rate in (1e-5, 0.1))
    assert fast.loss < slow.loss
    (best,) = tuned(stack, [0], 0.1, rates=(1e-5, 0.1))
    assert best.rate == 0.1
    assert best.top1 == pytest.approx(fast.top1, abs=0.01)


@pytest.mark.slow
def test_depth_needs_skip_connections_and_norms_and_width_does_not(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(width, "DEPTHS", (4, 64))
    monkeypatch.setattr(norm, "DEPTHS", (norm.SHALLOW, norm.MIDDLE, norm.DEEP))
    settings = Settings(tmp_path)
    for name in ("width", "norm"):
        facts = conduct(name, EXPERIMENTS[name], settings)
        assert all(all(claim["holds"]) for claim in facts["claims"]), facts["claims"]
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("values", "powers", "expected"),
    [
        ((1.0, 3.0), False, "2 ± 1.4"),
        ((1e-9, 1e-7), True, "1e-08 (factor 26)"),
        ((0.0, 0.0), True, "0"),
        ((-1.0, 1.0), True, "0 ± 1.4"),
        ((1.0, None), False, "not finite in 1 of 2"),
        ((float("inf"),), True, "not finite"),
        (None, False, ""),
    ],
)
def test_values_of_seeds_are_summed_up(values: Any, powers: bool, expected: str) -> None:
    assert claims.text(values, powers) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lab gradient --out X", "unknown experiment 'gradient': did you mean gradients?"),
        ("lab block", "--out"),
        ("lab block --out X --data mnist", "--data='mnist'"),
        ("lab block --out X --scale 0", "--scale=0.0: the rule is > 0"),
        ("lab block --out X --seeds 0", "--seeds=0: the rule is >= 1"),
        ("lab block --out X --seed -1", "--seed=-1: the rule is >= 0"),
        ("lab features --out X --weights w.safetensors", "go together"),
        ("lab block --out FILE/x", "can't be written"),
    ],
)
def test_mistakes_are_one_line(
    words: str, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    words = words.replace("FILE", str(tmp_path / "file")).replace("X", str(tmp_path / "x"))
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
