"""The networks that `flaxres.nnx` exports by name, as functions with signatures and docstrings."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

from flax import nnx

from flaxres.models import named, resnet
from flaxres.nnx.networks import ResNet

Attributes = ParamSpec("Attributes")

if TYPE_CHECKING:

    class _Signature(resnet.ResNet):
        """The attributes of a ResNet and `rngs`, as the arguments of a function."""

        rngs: nnx.Rngs = dataclasses.field(kw_only=True)
else:
    _Signature = resnet.ResNet

DOCSTRING = """Creates a {title} as a module of Flax's NNX.

    Args:
      num_classes: outputs of the head; 0 returns the pooled features.
      rngs: `rngs.params()` is the key of the parameters.
      **attributes: other attributes of `flaxres.ResNet`.

    Returns:
      A `flaxres.nnx.ResNet`, in training mode.

    Raises:
      InputError: `rngs` is no `nnx.Rngs`.
      TypeError: an attribute is unknown.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> small = {{"depths": {depths}, "num_classes": 5}}
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.{name}(**small, rngs=nnx.Rngs(0)))
      >>> model.{head}.bias.shape
      (5,)
    """


def _named(
    create: Callable[..., resnet.ResNet], signature: Callable[Attributes, Any]
) -> Callable[Attributes, ResNet]:
    """Returns the NNX form of a named Linen network, with `rngs` among its arguments."""
    del signature  # only for the types
    own: Any = inspect.signature(create)
    name = create.__name__

    def create_nnx(*arguments: Attributes.args, **attributes: Attributes.kwargs) -> ResNet:
        rngs: Any = attributes.pop("rngs", None)
        bound = own.bind(*arguments, **attributes)
        bound.apply_defaults()
        return ResNet(rngs=rngs, **bound.arguments)

    keyword = inspect.Parameter("rngs", inspect.Parameter.KEYWORD_ONLY, annotation=nnx.Rngs)
    parameters = [*own.parameters.values(), keyword]
    parameters.sort(key=lambda parameter: parameter.kind)
    create_nnx.__name__ = create_nnx.__qualname__ = name
    create_nnx.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=ResNet
    )
    create_nnx.__doc__ = DOCSTRING.format(
        title=name.replace("ResNet", "ResNet-"),
        name=name,
        head=own.parameters["head_name"].default,
        depths=(1,) * len(own.parameters["depths"].default),
    )
    return create_nnx


ResNet18 = _named(named.ResNet18, _Signature)
ResNet34 = _named(named.ResNet34, _Signature)
ResNet50 = _named(named.ResNet50, _Signature)
ResNet101 = _named(named.ResNet101, _Signature)
ResNet152 = _named(named.ResNet152, _Signature)
ResNet200 = _named(named.ResNet200, _Signature)
ResNet20 = _named(named.ResNet20, _Signature)
ResNet32 = _named(named.ResNet32, _Signature)
ResNet44 = _named(named.ResNet44, _Signature)
ResNet56 = _named(named.ResNet56, _Signature)
ResNet110 = _named(named.ResNet110, _Signature)
ResNet1202 = _named(named.ResNet1202, _Signature)
