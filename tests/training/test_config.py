"""Shipped configs are valid; invalid ones are refused by name before anything is compiled."""

import ast
import dataclasses
import inspect
import itertools
import pathlib
from typing import Any

import pytest

import flaxres
from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.config import recipes
from flaxres.config.check import check, check_devices
from flaxres.config.files import from_json, load_config, to_json
from flaxres.config.settings import SETTINGS, differences, flat
from flaxres.errors import InputError

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").rglob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_sound_and_survives_json(
    path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = load_config(str(path))
    check(config)
    (tmp_path / "config.json").write_text(to_json(config))
    assert from_json(tmp_path / "config.json") == config


def test_every_setting_is_declared_with_a_help_text() -> None:
    assert SETTINGS.keys() == flat(Config()).keys()
    fields = 0
    for section in dataclasses.fields(Config):
        source = inspect.getsource(type(getattr(Config(), section.name)))
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in itertools.pairwise(body.body):
            if isinstance(field, ast.AnnAssign):
                name = f"{section.name}.{ast.unparse(field.target)}"
                assert isinstance(text, ast.Expr), f"{name}: add a help text below it"
                assert isinstance(text.value, ast.Constant), f"{name}: add a help text below it"
                # `--help` keeps the line breaks, in terminals of 80 columns.
                lines = str(text.value.value).split("\n")
                longest = max(len(line.strip()) for line in lines)
                assert longest <= 68, f"{name}: lines of help texts have at most 68 columns"
                fields += 1
    assert fields == len(SETTINGS)


def test_a_setting_that_only_measures_may_differ_for_evaluation_alone() -> None:
    old, new = Config(), Config(data=DataConfig(eval_flip=True))
    assert differences(old, new) == ["data.eval_flip: False -> True"]
    assert differences(old, new, measuring=True) == []


def test_recipes_go_by_name_in_any_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = load_config("cifar10/resnet20")
    assert (
        named
        == load_config("configs/cifar10/resnet20.py")
        == load_config(str(recipes.folder() / "cifar10/resnet20.py"))
    )
    with pytest.raises(
        InputError, match="unknown config file 'cifar10/resnet2O': did you mean .*cifar10/resnet20"
    ):
        load_config("cifar10/resnet2O")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Config(model=ModelConfig(name="resnet5O")),
            "unknown model.name 'resnet5O': did you mean .*resnet50",
        ),
        (
            Config(optim=OptimConfig(schedule="cosin")),
            "unknown optim.schedule 'cosin': did you mean cosine",
        ),  # type: ignore[arg-type]
        (
            Config(optim=OptimConfig(learning_rate="fast")),
            "optim.learning_rate='fast' is of type str: the rule is a finite float",
        ),  # type: ignore[arg-type]
        (Config(data=DataConfig(crop_scale=(0.5,))), "crop_scale"),  # type: ignore[arg-type]
        (
            Config(augment=AugmentConfig(flip=1)),
            "augment.flip=1 is of type int: the rule is True or False",
        ),  # type: ignore[arg-type]
        (
            Config(train=TrainConfig(eval_every_epochs=float("inf"))),
            "train.eval_every_epochs=inf is of type float: the rule is a finite float",
        ),
        (Config(optim=OptimConfig(momentum=1.0)), r"optim.momentum=1.0: the rule is in \[0, 1\)"),
        (
            Config(data=DataConfig(mean=(123.7, 116.3, 103.5))),
            r"data.mean=\(123.7, 116.3, 103.5\): the rule is each in \[0, 1\]",
        ),
        (Config(optim=OptimConfig(schedule="step")), "give the epochs of the steps"),
        (Config(optim=OptimConfig(milestones=(3.0, 2.0))), "the rule is > 0, ascending, each once"),
        (Config(train=TrainConfig(batch_size=0)), "train.batch_size=0: the rule is > 0"),
        (
            Config(model=ModelConfig(bn_group=48)),
            "model.bn_group=48 must divide train.batch_size=256",
        ),
        (Config(data=DataConfig(resident=True)), "set data.crop='centre'"),
        (Config(data=DataConfig(eval_resize=100)), "the crop must fit inside"),
        (Config(augment=AugmentConfig(flip=False, flip_alternates=True)), "set augment.flip=True"),
        (
            Config(augment=AugmentConfig(flip_alternates=True), data=DataConfig(repeats=2)),
            "set data.repeats=1",
        ),
    ],
)
def test_broken_configs_are_refused(config: Config, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(config)


def test_batches_that_the_devices_do_not_divide_are_refused() -> None:
    with pytest.raises(
        InputError, match="train.batch_size=100 is not divisible by the 8 devices: try 96 or 104"
    ):
        check_devices(Config(train=TrainConfig(batch_size=100)), 8)
    with pytest.raises(InputError, match="train.devices=9: there are 8"):
        check_devices(Config(train=TrainConfig(devices=9)), 8)
    assert (
        check_devices(Config(train=TrainConfig(batch_size=100, eval_batch_size=4, devices=4)), 8)
        == 4
    )


def test_differences_name_the_fields_that_matter() -> None:
    old = Config()
    new = dataclasses.replace(
        old, optim=OptimConfig(learning_rate=0.3), train=TrainConfig(log_every_steps=7)
    )
    assert differences(old, new) == ["optim.learning_rate: 0.1 -> 0.3"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"model": 3}',
        '{"model": {"nme": 1}}',
        '{"modl": {}}',
        '{"optim": {"momentum": "x"}}',
    ],
)
def test_a_damaged_config_file_is_refused(text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError):
        from_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("section", "value", "kind"),
    [("model", "resnet18", "ModelConfig"), ("train", {"epochs": 1}, "TrainConfig")],
)
def test_a_section_of_another_type_is_refused(section: str, value: Any, kind: str) -> None:
    config = Config(**{section: value})
    for function in (check, lambda config: flaxres.fit(config, "never-made")):
        with pytest.raises(InputError, match=rf"^{section}=.*: the rule is a {kind}, as in Config"):
            function(config)
    assert not pathlib.Path("never-made").exists()
