"""Shipped recipes, by name: the files of configs/, which the wheel carries inside the package."""

import ast
import pathlib
import re


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

    Examples:
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


def docstring(name: str) -> str:
    """Returns the docstring of the recipe `name`: its command, settings, source and cost."""
    text = (folder() / f"{name}.py").read_text(encoding="utf-8")
    return str(ast.get_docstring(ast.parse(text)))


def describe(name: str) -> tuple[str, str, str]:
    """Describes the recipe `name` in three sentences.

    Returns:
      Its summary, its expected result with the source of the figure, and its cost, which is
      empty for recipes that state none.

    Examples:
      >>> describe("cifar10/resnet20")[0]
      "ResNet-20 on CIFAR-10: the paper's recipe (He et al. 2016, section 4.2)."
    """
    text = docstring(name)
    sentences = {}
    for key in ("Expected", "Cost"):
        match = re.search(rf"{key}[^:.]*: (.*?)\.(?:\s|$)", text, re.DOTALL)
        sentences[key] = " ".join(match[1].split()) if match else ""
    return text.partition("\n")[0], sentences["Expected"], sentences["Cost"]
