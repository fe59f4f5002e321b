"""Small checkpoints of the kinds that Hugging Face folders hold, with random weights, made on the spot."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows

TEXTS = (
    "the still room of a great house",
    "in which things are distilled once",
    "and from which everyone draws",
    "for the rest of the year",
    "a",
    "one teacher answers for every row and many students read what it said in any order",
    "rows",
    "what is stale is computed again and nothing else is",
)
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def rows(texts: Sequence[str] = TEXTS) -> ArrayRows:
    """Rows t0, t1, ... with a column of texts."""
    return ArrayRows([f"t{i}" for i in range(len(texts))], text=list(texts))


def photos(count: int = 5, side: int = 16) -> NDArray[np.uint8]:
    """(count, side, side, 3) uint8."""
    made: NDArray[np.uint8] = np.random.default_rng(1).integers(
        0, 256, (count, side, side, 3), dtype=np.uint8
    )
    return made


def save_word_pieces(folder: Path) -> Any:
    """A WordPiece tokenizer as BERT has it, trained on the texts."""
    tokenizers = importlib.import_module("tokenizers")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = tokenizers.BertWordPieceTokenizer()
    made.train_from_iterator(TEXTS, vocab_size=120, special_tokens=special, show_progress=False)
    ends = (("[SEP]", made.token_to_id("[SEP]")), ("[CLS]", made.token_to_id("[CLS]")))
    made._tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    names = ("pad", "unk", "cls", "sep", "mask")
    return _saved(made, folder, dict(zip(names, special, strict=True)))


def save_byte_pairs(folder: Path, template: str | None = TEMPLATE, size: int = 300) -> Any:
    """A byte-level BPE tokenizer as GPT-2 has it, with no token for padding."""
    tokenizers = importlib.import_module("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, vocab_size=size, special_tokens=["<end>"], show_progress=False)
    return _saved(made, folder, {"eos": "<end>"}, chat_template=template)


def _saved(made: Any, folder: Path, special: dict[str, str], **more: Any) -> Any:
    transformers = importlib.import_module("transformers")
    tokens = {f"{role}_token": token for role, token in special.items()}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, model_max_length=64, **tokens, **more
    )
    fast.save_pretrained(folder)
    return fast


def save_model(folder: Path, kind: str, config: str, **settings: Any) -> Any:
    """A model of a configuration, with weights that are drawn under a fixed seed."""
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    torch.manual_seed(4)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):  # drawn as zeros, which would hide whether they are read
                weight.normal_(std=0.1)
    model.save_pretrained(folder)
    return model


def save_bert(folder: Path, kind: str = "BertModel", **changes: Any) -> Any:
    """Two layers of width 16, four heads, and its tokenizer."""
    vocabulary = len(save_word_pieces(folder))
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "initializer_range": 0.5,
        **changes,
    }
    return save_model(folder, kind, "BertConfig", **settings)


def save_gpt2(folder: Path, **changes: Any) -> Any:
    """Two layers of width 16 with a tied head, and its tokenizer."""
    vocabulary = len(save_byte_pairs(folder))
    settings: dict[str, Any] = {"vocab_size": vocabulary, "n_embd": 16, "n_layer": 2, "n_head": 2}
    settings |= {"n_positions": 64, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0}
    return save_model(folder, "GPT2LMHeadModel", "GPT2Config", **settings, **changes)


def save_llama(folder: Path, kind: str = "Llama", **changes: Any) -> Any:
    """Two layers of width 16 with a head of its own, and its tokenizer; also Gemma2, Cohere."""
    vocabulary = len(save_byte_pairs(folder))
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": None,
        **changes,
    }
    return save_model(folder, f"{kind}ForCausalLM", f"{kind}Config", **settings)


def save_vit(folder: Path, kind: str = "ViTForImageClassification", side: int = 16) -> Any:
    """Two layers over four patches, five classes, and its image processor."""
    transformers = importlib.import_module("transformers")
    size = {"height": side, "width": side}
    transformers.ViTImageProcessor(size=size, image_mean=[0.5, 0.4, 0.3]).save_pretrained(folder)
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"intermediate_size": 24, "image_size": side, "patch_size": 8, "num_labels": 5}
    return save_model(folder, kind, "ViTConfig", initializer_range=0.3, **settings)


def save_resnet(folder: Path) -> Any:
    """Two stages of convolutions, five classes, and an image processor."""
    transformers = importlib.import_module("transformers")
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    settings = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5}
    return save_model(
        folder, "ResNetForImageClassification", "ResNetConfig", layer_type="basic", **settings
    )


def save_clip(folder: Path) -> Any:
    """Towers of two layers, a space of eight numbers, image processor and tokenizer."""
    transformers = importlib.import_module("transformers")
    vocabulary = len(save_byte_pairs(folder))
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"intermediate_size": 24}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    text = {**tower, **ends, "vocab_size": vocabulary, "max_position_embeddings": 64}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    return save_model(
        folder, "CLIPModel", "CLIPConfig", text_config=text, vision_config=vision, projection_dim=8
    )


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
