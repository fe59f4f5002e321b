"""Whether two tokenizers agree, so that a student's ids mean what the teacher's ids mean.

A recipe that compares distributions over tokens, or copies a head, needs that: ids are positions in
the vocabulary, and a token more or less at one place shifts everything behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.stages.teachers.huggingface.checkpoint import transformers_for
from stillroom.stages.teachers.huggingface.tokenizer_parts import tokenizer_parts
from stillroom.storage.cache import Cache
from stillroom.storage.errors import FormatError, IdentityError, UnknownSignalError, listed, nearest
from stillroom.storage.segment import Segment
from stillroom.storage.snapshot import Snapshot

PROBES = (
    "The still room, in which things are distilled once.",
    "  two  spaces\tand a tab\nand a line ",
    "UPPER lower MiXeD",
    "naïve café, Zürich, fiancée; cafe\u0301",
    "don't won't can't I'll",
    "3.14159 1,000,000 2026-11-25",
    "def f(x):\n    return x ** 2",
    "日本語 中文 한국어 العربية",
    "🙂👍🏽 \u200b\ufeff",
    "<s> </s> [CLS] [MASK] <|endoftext|> <pad>",
    "",
)
"""Texts on which tokenizers that differ tend to show it."""
_NAMED = 3


def require_same_tokenizer(
    one: str | Path, other: str | Path, probes: Sequence[str] = PROBES
) -> None:
    """IdentityError where the tokenizers of two folders differ in anything that decides ids.

    Compared are vocabularies id by id, special tokens by role, normalizer, pre-tokenizer, model and
    post-processor as `tokenizers` describes them, and the ids of the probes with and without special
    tokens. Both are loaded, so folders of different form (vocab.txt, tokenizer.json) can be compared.
    """
    a, b = (_loaded(folder) for folder in (one, other))
    found = vocabulary_differences(a.get_vocab(), b.get_vocab())
    found += _role_differences(a.special_tokens_map, b.special_tokens_map)
    mine, theirs = (_described(tokenizer) for tokenizer in (a, b))
    found += [f"{part} differs" for part in mine if mine[part] != theirs.get(part)]
    found += _probe_differences(a, b, probes)
    if found:
        raise IdentityError(
            f"the tokenizers of {one} and {other} do not agree: {'; '.join(found)}. Give the student "
            "the teacher's tokenizer, or use a recipe that compares no token ids"
        )


def require_tokenizer_of(
    where: Cache | Snapshot | Segment, teacher: str, tokenizer: str | Path
) -> None:
    """IdentityError where a folder's tokenizer is not that of a teacher whose answers are stored.

    Only files are read: neither the teacher nor its tokenizer need to be at hand, nor transformers.
    Of a cache its newest snapshot counts. UnknownSignalError where the teacher is not there,
    FormatError where it reads no texts.
    """
    identity = _identity(where, teacher)
    known = identity.get("tokenizer")
    if not isinstance(known, Mapping):
        raise FormatError(
            f"the identity of teacher {teacher!r} names no tokenizer, so none can be compared with it; "
            "teachers of stillroom.stages.teachers.huggingface that read texts do"
        )
    mine = tokenizer_parts(Path(tokenizer))
    if ("vocabulary" in known) != ("vocabulary" in mine):
        raise IdentityError(
            f"the tokenizer of {tokenizer} is saved in another form than that of teacher {teacher!r}: "
            f"{_form(mine)}, the teacher's in {_form(known)}, so files cannot be compared. Load it with "
            "AutoTokenizer, save it with save_pretrained, and name that folder"
        )
    changed = [name for name in sorted({**known, **mine}) if known.get(name) != mine.get(name)]
    if changed:
        raise IdentityError(
            f"the tokenizer of {tokenizer} is not that of teacher {teacher!r}: "
            f"{listed(changed, len(changed))} {'differs' if len(changed) == 1 else 'differ'}. Give the "
            "student the teacher's tokenizer; require_same_tokenizer(teacher's folder, this one) says "
            "which ids"
        )


def vocabulary_differences(one: Mapping[str, int], other: Mapping[str, int]) -> list[str]:
    """In words how two vocabularies (token to id) differ, id by id; empty where they do not.

    >>> vocabulary_differences({"a": 0, "b": 1}, {"a": 0, "c": 1, "d": 2})
    ["vocabulary: 2 of 3 ids differ: 1 is 'b' and 'c', 2 is none and 'd'"]
    """
    # Several tokens may share an id.
    mine, theirs = _by_id(one), _by_id(other)
    every = sorted({*mine, *theirs})
    changed = [i for i in every if mine.get(i) != theirs.get(i)]
    if not changed:
        return []
    words = [f"{i} is {_named(mine.get(i))} and {_named(theirs.get(i))}" for i in changed]
    count = f"{len(changed):,} of {len(every):,} ids differ"
    return [f"vocabulary: {count}: {listed(words, _NAMED)}"]


def _by_id(vocabulary: Mapping[str, int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for token, i in sorted(vocabulary.items()):
        found.setdefault(i, []).append(token)
    return found


def _named(tokens: Sequence[str] | None) -> str:
    return " or ".join(map(repr, tokens)) if tokens else "none"


def _role_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    roles = [role for role in sorted({*one, *other}) if one.get(role) != other.get(role)]
    words = [f"{role} is {one.get(role)!r} and {other.get(role)!r}" for role in roles]
    return [f"special tokens: {listed(words, _NAMED)}"] if words else []


def _probe_differences(one: Any, other: Any, probes: Sequence[str]) -> list[str]:
    words = []
    for probe in probes:
        for special in (True, False):
            mine, theirs = (
                each(probe, add_special_tokens=special, verbose=False)["input_ids"]
                for each in (one, other)
            )
            if mine != theirs:
                at = next(
                    (i for i, (m, t) in enumerate(zip(mine, theirs, strict=False)) if m != t),
                    min(len(mine), len(theirs)),
                )
                ends = [each[at : at + _NAMED] for each in (mine, theirs)]
                words.append(f"{probe!r} from place {at} on is {ends[0]} and {ends[1]}")
                break
    count = f"ids of {len(words):,} of {len(probes):,} probe texts differ"
    return [f"{count}: {listed(words, 1)}"] if words else []


def _loaded(folder: str | Path) -> Any:
    tokenizer_parts(Path(folder))  # says what is missing; a name on a hub is no folder
    transformers = transformers_for(f"comparing the tokenizer of {folder}")
    return transformers.AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )


def _described(tokenizer: Any) -> dict[str, Any]:
    """What of a tokenizer is no vocabulary; nothing of one that is written in Python."""
    if not tokenizer.is_fast:
        return {}
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = {k: v for k, v in described["model"].items() if k != "vocab"}
    parts = ("normalizer", "pre_tokenizer", "post_processor")
    return {"model": model, **{part: described.get(part) for part in parts}}


def _form(parts: Mapping[str, str]) -> str:
    return "tokenizer.json" if "vocabulary" in parts else ", ".join(n for n in parts if "." in n)


def _identity(where: Cache | Snapshot | Segment, teacher: str) -> dict[str, Any]:
    if isinstance(where, Segment):
        if where.teacher != teacher:
            raise UnknownSignalError(
                f"{where.path} holds answers of {where.teacher!r}, not of {teacher!r}"
            )
        return where.identity
    snapshot = where.snapshot() if isinstance(where, Cache) else where
    for source in snapshot.sources:
        if source.teacher == teacher and source.signals:
            return snapshot.identity(f"{teacher}/{next(iter(source.signals))}")
    known = [source.teacher for source in snapshot.sources]
    raise UnknownSignalError(
        f"{snapshot!r} serves no teacher {teacher!r}; {nearest(teacher, known)}"
    )
