"""A timm model as a teacher: built by its name, shown images as timm shows them, weights from a file.

timm needs torchvision, and that one must fit the torch beside it; both are imported only where a
teacher is made or loaded (extra `timm`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.teachers.weights import Weights
from stillroom.storage.errors import MissingPackageError, RowsError, UnknownSignalError, nearest

if TYPE_CHECKING:
    from torch import nn

SAYS = {"logits": ":logits", "pooled": ":pooled", "features": ":features"}
"""What can be read beside any layer: the classifier's answer (n, classes); what it is given, (n, d); and
what `forward_features` gives: tokens (n, tokens, d) of transformers, with class and register tokens in
front, maps (n, d, h, w) of convolutional nets."""
_SHOWN = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def timm_teacher(
    name: str,
    model: str,
    weights: Weights,
    *,
    layers: Mapping[str, str] | None = None,
    inputs: Sequence[str] = ("image",),
    created: Mapping[str, Any] | None = None,
    shown: Mapping[str, Any] | None = None,
    **more: Any,
) -> ModuleTeacher:
    """A ModuleTeacher of timm's `model`, with the state dict that `weights` holds in timm's own names.

    `layers` are places of SAYS or any of ModuleTeacher, such as `{"attn": "attention(blocks.*.attn)"}`;
    without any the logits alone. The one column of `inputs` holds images: uint8 (n, h, w, 3) or
    (n, h, w), or encoded ones as bytes. They are resized, cropped and normalised by timm with the
    configuration of the model's pretrained weights, in which `shown` replaces input_size,
    interpolation, mean, std, crop_pct or crop_mode; all of it is part of the identity, as are `created`
    (arguments of timm.create_model, such as num_classes) and the versions of timm, torchvision and
    Pillow. `more` is passed to ModuleTeacher. Nothing is downloaded.

    Raises MissingPackageError where timm cannot be imported, UnknownSignalError for a model that it
    does not have or a setting that it does not know.
    """
    timm = _timm()
    if not timm.is_model(model):
        raise UnknownSignalError(f"timm has no model {model!r}; {_similar(timm, model)}")
    given = dict(shown or {})
    if unknown := sorted(given.keys() - set(_SHOWN)):
        raise UnknownSignalError(
            f"teacher {name!r}: images are not shown by {unknown[0]!r}; {nearest(unknown[0], _SHOWN)}"
        )
    known = timm.get_pretrained_cfg(model)
    settings = timm.data.resolve_data_config(given, pretrained_cfg=known.to_dict() if known else {})
    return ModuleTeacher(
        name,
        partial(timm_model, model, **(created or {})),
        weights=weights,
        inputs=tuple(inputs),
        layers={"logits": SAYS["logits"]} if layers is None else layers,
        prepare=partial(as_shown, **{key: settings[key] for key in _SHOWN}),
        libraries=("timm", "torchvision", "pillow"),
        **more,
    )


def timm_model(model: str, **created: Any) -> nn.Module:
    """The model without weights, whose forward gives {"logits", "pooled", "features"}."""
    built: Any = _timm().create_model(model, pretrained=False, **created)

    def forward(image: Any) -> dict[str, Any]:
        features = built.forward_features(image)
        return {
            "features": features,
            "pooled": built.forward_head(features, pre_logits=True),
            "logits": built.forward_head(features),
        }

    built.forward = forward  # names of layers and weights stay timm's own
    module: nn.Module = built
    return module


def as_shown(
    *,
    input_size: Sequence[int],
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float,
    crop_mode: str,
    **columns: Any,
) -> Any:
    """(n, channels, h, w) float32: the images of the one column as timm's evaluation shows them."""
    import torch

    (images,) = columns.values()
    settings = (tuple(input_size), interpolation, tuple(mean), tuple(std), crop_pct, crop_mode)
    transform = _transform(*settings)
    return torch.stack([transform(_picture(image)) for image in images])


@lru_cache(maxsize=8)
def _transform(*settings: Any) -> Any:
    _timm()
    from timm.data import create_transform

    return create_transform(**dict(zip(_SHOWN, settings, strict=True)), is_training=False)


def _picture(image: Any) -> Any:
    from PIL import Image

    if isinstance(image, bytes):
        return Image.open(BytesIO(image)).convert("RGB")
    array = image.numpy() if hasattr(image, "numpy") else image
    if str(array.dtype) != "uint8" or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise RowsError(
            f"an image of timm is uint8 (h, w, 3) or (h, w), or encoded bytes; found {array.dtype} "
            f"{tuple(array.shape)}"
        )
    return Image.fromarray(array).convert("RGB")


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except (ImportError, RuntimeError) as error:
        # torchvision raises RuntimeError where it was built for another torch.
        raise MissingPackageError(
            f"timm cannot be imported ({error}). Install stillroom[timm], with the torchvision that "
            "belongs to this torch (its release notes name it)"
        ) from error
    return timm


def _similar(timm: Any, model: str) -> str:
    return nearest(model, timm.list_models()) if model else "name one of timm.list_models()"
