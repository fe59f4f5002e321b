"""Tokens: rows of many positions, some shorter than others; what is padding counts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillroom.stages.measures.needed import needed, shaped

if TYPE_CHECKING:
    from torch import Tensor


def tagging(
    tensors: Mapping[str, Any],
    *,
    logits: str = "student.logits",
    tags: str = "row.tags",
    length: str = "row.length",
    ignored: int = -100,
) -> dict[str, Any]:
    """A class for each token: `accuracy`, `f1` and `nll` over all tokens that are there.

    Reads logits (n, tokens, classes), tags (n, tokens) of whole numbers, and `length`: (n,) tokens of
    each row, or (n, tokens) which of them are there. Tokens with the tag `ignored` are left out too.
    `f1` is the mean over classes of 2 TP / (2 TP + FP + FN), without classes that are neither tag nor
    answer; `nll` the mean negative log-likelihood in nats.
    """
    metrics = needed("torchmetrics.functional.classification")
    answers = shaped(tensors, logits, 3, "(n, tokens, classes)")
    tag = shaped(tensors, tags, 2, "(n, tokens)").long()
    kept = present(tensors, length, tag) & (tag != ignored)
    answers, tag = answers[:, : tag.shape[1]][kept].double(), tag[kept]
    if not len(tag):
        raise ValueError(f"there is no token to measure: {length} and {tags} leave out all of them")
    choice, count = answers.argmax(-1), answers.shape[-1]
    nll = -answers.log_softmax(-1).gather(-1, tag[:, None]).mean()
    return {
        "accuracy": (choice == tag).double().mean().item(),
        "f1": metrics.multiclass_f1_score(choice, tag, count, average="macro").item(),
        "nll": nll.item(),
    }


def language(
    tensors: Mapping[str, Any],
    *,
    logits: str = "student.logits",
    tokens: str = "row.tokens",
    length: str = "row.length",
    shift: int = 1,
) -> dict[str, Any]:
    """How well the next token is foreseen: `perplexity`, exp of the mean `nll` in nats over all tokens
    that are there, and `accuracy`.

    Reads logits (n, tokens, vocabulary), tokens (n, tokens) of whole numbers, and `length`: (n,) tokens
    of each row, or (n, tokens) which of them are there. The logits at a position are for the token
    `shift` positions later, as language models are trained; 0 where they are for the position's own.
    """
    import torch

    text = needed("torchmetrics.functional.text")
    answers = shaped(tensors, logits, 3, "(n, tokens, vocabulary)")
    token = shaped(tensors, tokens, 2, "(n, tokens)").long()
    kept = present(tensors, length, token)[:, shift:]
    answers, token = answers[:, : token.shape[1] - shift], token[:, shift:]
    if not kept.any():
        raise ValueError(f"there is no token to foresee: {length} leaves out all of them")
    # One row of all: the mean is over tokens, however long their rows are.
    answers, token = answers[kept][None].double(), token[kept][None]
    perplexity: Tensor = text.perplexity(answers, token)
    return {
        "perplexity": perplexity.item(),
        "nll": torch.log(perplexity).item(),
        "accuracy": (answers.argmax(-1) == token).double().mean().item(),
    }


def present(tensors: Mapping[str, Any], length: str, of: Tensor) -> Tensor:
    """(n, tokens) bool: which of the positions of a tensor (n, tokens) are there."""
    import torch

    if length not in tensors:
        raise ValueError(
            f"the evaluation reads {length}, how many tokens of a row are there, which is not given; "
            "name it: length='row.COLUMN'"
        )
    given = tensors[length]
    if given.ndim == 2:
        marked: Tensor = given[:, : of.shape[1]].bool()
        return marked
    there: Tensor = torch.arange(of.shape[1]) < given[:, None]
    return there
