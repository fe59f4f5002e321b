"""Texts: how they become tokens, said whole, because all of it decides a teacher's numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.teachers.huggingface.checkpoint import content_of, transformers_for
from stillroom.stages.teachers.huggingface.tokenizer_parts import tokenizer_parts
from stillroom.storage.errors import FormatError, RowsError
from stillroom.storage.files import read_json
from stillroom.storage.identity import digest

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """How a column of texts becomes tokens.

    Each text is a sequence of its own, unless a teacher packs several into one (`packing`), where
    none sees another. Shorter ones of a batch are padded on the right with what the attention mask
    hides. So what stands beside a row changes its numbers by rounding alone. What is too long is cut
    at its end, special tokens kept.
    """

    max_tokens: int
    """The most tokens of a text, special ones included."""
    too_long: Literal["error", "cut"] = "error"
    """A longer text is refused, or cut. Where it is cut, `tokens` and `length` are stored as well."""
    special_tokens: bool = True
    """Whether the tokenizer adds its own: [CLS], </s> and the like. Not to conversations, whose
    template writes them."""
    chat: bool = False
    """Whether the column holds conversations, each a JSON list of {"role": ..., "content": ...}."""
    chat_template: str | None = None
    """What writes a conversation as text (Jinja); None: the tokenizer's own."""
    chat_arguments: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of the template, plain JSON, such as the date that it prints."""
    generation_prompt: bool = False
    """Whether the template ends with the beginning of an answer."""
    tokenizer: str | Path | None = None
    """Folder of the tokenizer, where that is not the checkpoint's."""

    def identity(self, checkpoint: Path, packing: str = "none") -> dict[str, Any]:
        """`tokenizer` part by part, its settings, and `texts`: every choice above but the folder."""
        folder = self.folder(checkpoint)
        files = [folder / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
        config = [read_json(file) if file.is_file() else {} for file in files]
        config[0].pop("chat_template", None)
        chat: dict[str, Any] = {}
        if self.chat:
            chat = {
                "chat_template": digest(self._template(folder)),
                "chat_arguments": dict(self.chat_arguments),
                "generation_prompt": self.generation_prompt,
            }
        return {
            "tokenizer": tokenizer_parts(folder),
            "tokenizer_config": content_of(config[0]),
            "special_tokens_map": content_of(config[1]),
            "texts": {
                "max_tokens": self.max_tokens,
                "too_long": self.too_long,
                "special_tokens": self.special_tokens and not self.chat,
                "padding": "right",
                "packing": packing,
                **chat,
            },
        }

    def folder(self, checkpoint: Path) -> Path:
        """Where the tokenizer's files lie."""
        return checkpoint if self.tokenizer is None else Path(self.tokenizer)

    def _template(self, folder: Path) -> Any:
        """The template, or where a tokenizer has several all of them; FormatError where none is."""
        template: Any = self.chat_template
        if template is None and (file := folder / "chat_template.jinja").is_file():
            template = file.read_text(encoding="utf-8")
        if template is None and (file := folder / "tokenizer_config.json").is_file():
            template = read_json(file).get("chat_template")
        if not template:
            raise FormatError(f"the tokenizer in {folder} has no chat template; give chat_template")
        if "strftime_now" in json.dumps(template) and not self.chat_arguments:
            raise FormatError(
                f"the chat template of {folder} may print today's date, so that tomorrow's rows would "
                "be told another: name the argument it reads, such as chat_arguments={'date_string': "
                "'26 Jul 2024'}, or give a chat_template without one"
            )
        return template


@dataclass(frozen=True)
class Tokens:
    """Some texts as a model reads them."""

    ids: Sequence[Int64s]
    """Of each text, those that are kept."""
    types: Sequence[Int64s] | None
    """The token type of each, where the tokenizer's model is given them."""
    lengths: Int64s
    """(n,) how many each had before any were cut off."""

    @property
    def kept(self) -> Int64s:
        """(n,) how many each has."""
        return np.array([len(ids) for ids in self.ids], np.int64)


class TextReader:
    """A loaded tokenizer and what is to be done with it."""

    def __init__(self, texts: Texts, checkpoint: Path, who: str) -> None:
        """Load it; FormatError for conversations without a template."""
        self._texts, self._who = texts, who
        folder = texts.folder(checkpoint)
        self.tokenizer = transformers_for(who).AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        self.tokenizer.truncation_side = "right"
        if texts.chat:
            texts._template(folder)

    def read(self, column: str, texts: Any) -> Tokens:
        """The tokens of a column of a batch.

        RowsError for a text that is too long and not to be cut, for one without a token, and for what
        is no text or no conversation.
        """
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RowsError(f"{self._who} reads texts; column {column!r} holds other things")
        written = self._written(column, texts) if self._texts.chat else texts
        most = self._texts.max_tokens
        read = self._tokenized(written)
        lengths = np.array([len(each) for each in read["input_ids"]], np.int64)
        long = np.flatnonzero(lengths > most)
        if len(long) and self._texts.too_long == "error":
            raise RowsError(
                f"{self._who}, column {column!r}: {len(long):,} of {len(texts):,} texts of a batch have "
                f"more than {most:,} tokens, {_quoted(texts[long[0]])} has {lengths[long[0]]:,}. Raise "
                'max_tokens, cut them with too_long="cut", or split them into rows'
            )
        if len(long):
            cut = self._tokenized([written[i] for i in long], truncation=True, max_length=most)
            for name, each in cut.items():
                for i, kept in zip(long, each, strict=True):
                    read[name][i] = kept
        if len(empty := np.flatnonzero(lengths == 0)):
            raise RowsError(
                f"{self._who}, column {column!r}: {len(empty):,} of {len(texts):,} texts of a batch have "
                f"no token, such as {_quoted(texts[empty[0]])}; drop these rows"
            )
        found = {name: [np.array(e, np.int64) for e in each] for name, each in read.items()}
        return Tokens(found["input_ids"], found.get("token_type_ids"), lengths)

    def _tokenized(self, texts: list[str], **how: Any) -> dict[str, list[list[int]]]:
        """input_ids and, where the tokenizer gives them to its model, token_type_ids."""
        found = self.tokenizer(
            texts,
            add_special_tokens=self._texts.special_tokens and not self._texts.chat,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids="token_type_ids" in self.tokenizer.model_input_names,
            verbose=False,
            **{"truncation": False, **how},
        )
        return dict(found.items())

    def _written(self, column: str, texts: Sequence[str]) -> list[str]:
        return [
            self.tokenizer.apply_chat_template(
                conversation(text, f"{self._who}, column {column!r}"),
                chat_template=self._texts.chat_template,
                add_generation_prompt=self._texts.generation_prompt,
                tokenize=False,
                **self._texts.chat_arguments,
            )
            for text in texts
        ]


def conversation(text: str, who: str) -> list[dict[str, Any]]:
    """The messages that a text spells; RowsError for anything else.

    >>> conversation('[{"role": "user", "content": "hi"}]', "")
    [{'role': 'user', 'content': 'hi'}]
    """
    try:
        messages: Any = json.loads(text)
    except ValueError:
        messages = None
    sound = isinstance(messages, list) and messages
    if not sound or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise RowsError(
            f"{who}: {_quoted(text)} is no conversation; expected a JSON list such as "
            '[{"role": "user", "content": "..."}]'
        )
    found: list[dict[str, Any]] = messages
    return found


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
