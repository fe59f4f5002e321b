"""Images as a model reads them: scaled and normalised in numpy, or by the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.teachers.huggingface.checkpoint import content_of, transformers_for
from stillroom.storage.errors import FormatError, MissingPackageError, RowsError
from stillroom.storage.files import read_json

_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class Images:
    """How a column of images becomes what a model is given.

    A column holds uint8 arrays of one shape. `processor="numpy"` scales and normalises them by the
    checkpoint's preprocessor_config.json and needs nothing but numpy; the images must have the size
    that the model reads. `processor="transformers"` runs the checkpoint's own image processor, its
    slow form on Pillow, which also resizes and crops.
    """

    layout: Literal["HWC", "CHW"] = "HWC"
    """The axes of an image in the column."""
    processor: Literal["numpy", "transformers"] = "numpy"
    """What prepares it."""

    def identity(self, folder: Path) -> dict[str, Any]:
        """The processor's settings, and versions of what computes with them."""
        import importlib.metadata

        used = ["numpy", *(["pillow"] if self.processor == "transformers" else [])]
        return {
            "images": {"layout": self.layout, "processor": self.processor},
            "image_processor": content_of(read_json(_settings(folder))),
            "image_libraries": {name: importlib.metadata.version(name) for name in used},
        }


class ImageReader:
    """What makes a model's input of a batch of images."""

    def __init__(self, images: Images, folder: Path, who: str) -> None:
        """MissingPackageError where the checkpoint's processor needs a package that is not there."""
        self._images, self._who = images, who
        self._settings = read_json(_settings(folder))
        self._processor: Any = None
        if images.processor == "transformers":
            self._processor = _processor(folder, who)

    def read(self, column: str, images: Any) -> NDArray[np.float32]:
        """(n, channels, height, width) float32; RowsError for what are no images of the right size."""
        if not isinstance(images, np.ndarray) or images.ndim != 4 or images.dtype != np.uint8:
            found = (
                f"{images.dtype} of shape {images.shape}" if hasattr(images, "dtype") else "none"
            )
            raise RowsError(
                f"{self._who}, column {column!r}: expected images as uint8 of shape "
                f"(rows, {', '.join(self._images.layout)}), found {found}"
            )
        moved = images if self._images.layout == "CHW" else images.transpose(0, 3, 1, 2)
        if self._processor is None:
            return normalised(np.ascontiguousarray(moved), self._settings, self._who)
        given = [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in moved]
        made = self._processor(given, return_tensors="np", input_data_format="channels_last")
        return np.asarray(made["pixel_values"], np.float32)


def normalised(
    images: NDArray[np.uint8], settings: Mapping[str, Any], who: str = ""
) -> NDArray[np.float32]:
    """(n, channels, height, width) images scaled, then (x - mean) / std for each channel.

    As an image processor of transformers does it. RowsError where it would resize or crop first.

    >>> normalised(np.full((1, 1, 2, 2), 255, np.uint8), {"image_mean": [0.5], "image_std": [0.5]})[0, 0, 0]
    array([1., 1.], dtype=float32)
    """
    height, width = images.shape[2:]
    expected = _size(settings)
    if expected is not None and expected != (height, width):
        raise RowsError(
            f"{who}: images are {height} x {width}, the model reads {expected[0]} x {expected[1]}; "
            'resize the column, or let the checkpoint do it: Images(processor="transformers")'
        )
    made = images.astype(np.float32)
    if settings.get("do_rescale", True):
        made *= np.float32(settings.get("rescale_factor", 1 / 255))
    if settings.get("do_normalize", True):
        mean, std = (
            _of_channels(settings, n, images.shape[1]) for n in ("image_mean", "image_std")
        )
        made = (made - mean) / std
    return made


def _of_channels(settings: Mapping[str, Any], name: str, channels: int) -> NDArray[np.float32]:
    values = np.asarray(settings[name], np.float32).reshape(-1)
    if len(values) not in (1, channels):
        raise RowsError(f"{name} has {len(values)} numbers, the images have {channels} channels")
    return values[:, None, None]


def _size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width behind resizing and cropping; None where images are taken as they are."""
    crops = settings.get("do_center_crop") and settings.get("crop_size")
    size = crops or (settings.get("do_resize", True) and settings.get("size"))
    if not size:
        return None
    if isinstance(size, int):
        return size, size
    if "height" in size:
        return int(size["height"]), int(size["width"])
    # Only the shorter side is said: a square image of that side is left as it is.
    return int(size["shortest_edge"]), int(size["shortest_edge"])


def _settings(folder: Path) -> Path:
    if not (folder / _FILE).is_file():
        raise FormatError(
            f"the checkpoint {folder} has no {_FILE}: it does not say what its images are"
        )
    return folder / _FILE


def _processor(folder: Path, who: str) -> Any:
    transformers = transformers_for(who)
    said = transformers.utils.logging
    before = said.get_verbosity()
    said.set_verbosity_error()
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=False
        )
    except (ImportError, ValueError) as error:
        raise MissingPackageError(
            f"{who}: the image processor of {folder} cannot be used here ({error}). Where it has a fast "
            'form only, install torchvision; or resize the column and use Images(processor="numpy")'
        ) from error
    finally:
        said.set_verbosity(before)
