"""A checkpoint's folder: what in it decides numbers, by content, and the model that it holds."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from stillroom.stages.teachers.weights import file_weights
from stillroom.storage.errors import FormatError, MissingPackageError, listed
from stillroom.storage.files import read_json
from stillroom.storage.identity import canonical, digest

Precision = Literal["float32", "float16", "bfloat16"]
Attention = Literal["sdpa", "eager"]

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which transformers looks for them: the first that is there is loaded."""
_NO_CONTENT = {
    *("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file"),
    *("_commit_hash", "transformers_version"),
}
"""Keys that say where and by what a folder was written."""
_LONGEST = 200
"""A setting that is spelled longer enters an identity as its digest."""
_RENAMED = (4, 56)
"""The release in which `torch_dtype` became `dtype`."""


def transformers_for(who: str) -> Any:
    """The package; MissingPackageError says who needs it and how to get it."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise _missing(who, error) from error


def _missing(who: str, error: ImportError) -> MissingPackageError:
    return MissingPackageError(
        f"{who} needs transformers, which is not to be had here ({error}): "
        "pip install 'stillroom[text]', on every machine that runs it"
    )


def checkpoint_folder(folder: str | Path, who: str) -> Path:
    """The folder; FileNotFoundError where there is none, as for a name on a hub."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{who}: no checkpoint at {path}: there is no {path / 'config.json'}. Name a folder that "
            "save_pretrained wrote or that was downloaded whole; nothing is fetched from a hub"
        )
    return path


def checkpoint_weights(folder: Path) -> Path:
    """The file of weights, or the index of several, that transformers loads from a folder."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"the checkpoint {folder} holds no weights: none of {', '.join(_WEIGHTS)}"
    )


def checkpoint_identity(folder: Path, who: str, libraries: Iterable[str] = ()) -> dict[str, Any]:
    """Weights tensor by tensor, the configuration, and versions of what computes with them."""
    try:
        versions = {n: importlib.metadata.version(n) for n in ("transformers", *libraries)}
    except ImportError as error:
        raise _missing(who, error) from error
    versions["torch"] = importlib.metadata.version("torch").split("+")[0]
    return {
        "weights": file_weights(checkpoint_weights(folder)),
        "config": content_of(read_json(folder / "config.json")),
        "libraries": versions,
    }


def content_of(settings: Any) -> Any:
    """Settings without what says where they lie; long lists and texts as their digests.

    >>> content_of({"_name_or_path": "/home/me", "hidden_size": 32})
    {'hidden_size': 32}
    """
    if isinstance(settings, dict):
        return {k: content_of(v) for k, v in settings.items() if k not in _NO_CONTENT}
    return settings if len(canonical(settings)) <= _LONGEST else digest(settings)


def load_model(
    folder: Path,
    kind: str,
    who: str,
    *,
    precision: Precision,
    attention: Attention,
    device: str,
    unread: Sequence[str] = (),
) -> Any:
    """The model of a folder, by transformers' class `kind`, in eval mode on its device.

    Its weights are held in `precision`, whatever the file holds. FormatError when the file lacks
    weights that the model has: transformers would draw them at random. `unread` begins the names of
    those that no signal needs; FormatError also where the model knows no such `attention`.
    """
    transformers = transformers_for(who)
    import torch

    release = tuple(int(n) for n in transformers.__version__.split(".")[:2])
    dtype = {"dtype" if release >= _RENAMED else "torch_dtype": getattr(torch, precision)}
    said = transformers.utils.logging
    before = said.get_verbosity()
    said.set_verbosity_error()  # what it warns of is an error here, or does not matter
    try:
        with torch.random.fork_rng(devices=[]):
            model, info = getattr(transformers, kind).from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation=attention,
                output_loading_info=True,
                **dtype,
            )
    except ValueError as error:
        if "attn_implementation" not in str(error):
            raise
        raise FormatError(
            f"{who}: the model in {folder} cannot compute its attention by {attention!r}; give the "
            'teacher attention="eager"'
        ) from error
    finally:
        said.set_verbosity(before)
    lacking = sorted(n for n in info["missing_keys"] if not n.startswith(tuple(unread)))
    if lacking:
        raise FormatError(
            f"{who}: {checkpoint_weights(folder)} lacks {len(lacking):,} weights of a "
            f"{type(model).__name__}, which would be drawn at random: {listed(lacking, 3)}. The "
            "checkpoint is of another kind of model, or incomplete"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()
