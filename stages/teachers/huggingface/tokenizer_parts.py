"""What a tokenizer is, part by part, from its files alone: no library is needed to compare two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillroom.storage.errors import GARBLED, FormatError
from stillroom.storage.files import read_json
from stillroom.storage.identity import digest

_FILES = (
    *("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"),
    *("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.model"),
)
"""Of tokenizers that were saved without a tokenizer.json."""
_SWITCHES = (
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"),
    *("add_bos_token", "add_eos_token", "split_special_tokens"),
)
"""Of tokenizer_config.json: what changes ids. Its other settings name files, lengths and classes."""
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def tokenizer_parts(folder: Path) -> dict[str, str]:
    """Digests of vocabulary, model, special tokens, normalizer, pre-tokenizer and so on.

    Equal for two folders exactly when their tokenizers give the same ids, or so it is meant: how
    texts are padded and cut, and how ids become text again, does not count. FileNotFoundError where
    the folder holds no tokenizer, FormatError where its tokenizer.json is none.
    """
    switches = {"special_tokens": digest(special_tokens(folder)), "switches": _switches(folder)}
    if (folder / "tokenizer.json").is_file():
        described = tokenizer_json(folder)
        model = {k: v for k, v in described["model"].items() if k != "vocab"}
        parts = ("normalizer", "pre_tokenizer", "post_processor")
        return {
            "vocabulary": digest(sorted(vocabulary(described).items())),
            "model": digest([model, _scores(described["model"])]),
            **{part: digest(described.get(part)) for part in parts},
            **switches,
        }
    found = {name: _file_digest(folder / name) for name in _FILES if (folder / name).is_file()}
    if not found:
        raise FileNotFoundError(
            f"no tokenizer in {folder}: neither tokenizer.json nor one of {', '.join(_FILES)}"
        )
    return found | switches


def tokenizer_json(folder: Path) -> dict[str, Any]:
    """The file, of which at least the vocabulary makes sense; else FormatError."""
    described = read_json(folder / "tokenizer.json")
    try:
        vocabulary(described)
    except GARBLED as error:
        raise FormatError(f"{folder / 'tokenizer.json'} describes no tokenizer: {error}") from error
    return described


def vocabulary(described: Mapping[str, Any]) -> dict[str, int]:
    """Token to id, added tokens included."""
    model = described["model"]
    vocab = model["vocab"]
    known: dict[str, int] = (
        {str(token): int(i) for token, i in vocab.items()}
        if isinstance(vocab, Mapping)
        else {str(token): i for i, (token, _) in enumerate(vocab)}
    )
    return known | {str(a["content"]): int(a["id"]) for a in described.get("added_tokens") or ()}


def special_tokens(folder: Path) -> dict[str, Any]:
    """Tokens by role (bos, eos, ...), and by id those that are added to the vocabulary."""
    config, listed = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    roles = {f"{role}_token": None for role in _ROLES}
    found = {role: _content(config.get(role, listed.get(role))) for role in roles}
    if (folder / "tokenizer.json").is_file():
        described = read_json(folder / "tokenizer.json")
        found["added"] = dict(sorted(_added(described.get("added_tokens") or ())))
    return found


def _added(tokens: Any) -> Iterator[tuple[str, Any]]:
    for token in tokens:
        yield str(token["id"]), {k: v for k, v in token.items() if k != "id"}


def _content(token: Any) -> Any:
    """A token as text: some versions write it with its settings."""
    return token.get("content") if isinstance(token, Mapping) else token


def _switches(folder: Path) -> str:
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    return digest({k: config[k] for k in _SWITCHES if config.get(k) is not None})


def _scores(model: Mapping[str, Any]) -> Any:
    """Of a unigram model, whose vocabulary is a list of tokens with scores."""
    vocab = model["vocab"]
    return None if isinstance(vocab, Mapping) else [score for _, score in vocab]


def _file_digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
