"""Shipped recipes, by name: the files of configs/, which the wheel carries inside the package."""

import pathlib


def folder() -> pathlib.Path:
    """Returns the folder of the shipped recipes: in the wheel inside the package, in a clone
    beside it."""
    package = pathlib.Path(__file__).parents[1]
    shipped = package / "configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Lists the shipped recipes.

    Returns:
      Names such as 'digits' or 'imagenet/resnet50', sorted.

    Example:

      >>> "cifar10/resnet20" in names()
      True
    """
    files = folder().rglob("*.py")
    return sorted(file.relative_to(folder()).with_suffix("").as_posix() for file in files)


def find(name: str) -> pathlib.Path | None:
    """Returns the file of the recipe `name`, None where there is none.

    `name` may be a name of `names()` or the path of the file in a clone,
    'configs/imagenet/resnet50.py'.
    """
    bare = name.removeprefix("configs/").removesuffix(".py")
    return folder() / f"{bare}.py" if bare in names() else None


def summary(name: str) -> str:
    """Returns the first line of a recipe's docstring, without quotes."""
    text = (folder() / f"{name}.py").read_text(encoding="utf-8")
    return text.partition('"""')[2].partition('"""')[0].strip().partition("\n")[0]
