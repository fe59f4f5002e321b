"""One pass of a model: its base model's outputs whatever stands on top, and what signals take of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.teachers.huggingface.sources import Source
from stillroom.storage.errors import UnknownSignalError

HIDDEN, ATTENTION = r"[0-9]+|all", r"[0-9]+"
UNIT = r"(unit)?"
LAYERS: Mapping[str, str] = {"hidden": HIDDEN, "last": "", "attention": ATTENTION}
"""Of any model made of layers, for each row and token."""
POOLED: Mapping[str, str] = {"mean": UNIT, "cls": UNIT, "pooler": UNIT}
"""Of any, for each row."""


@contextmanager
def inference(threads: int) -> Iterator[None]:
    """No gradients, and so many CPU threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def wanted(sources: Iterable[Source]) -> dict[str, bool]:
    """What the model is told to give beside its last states."""
    whats = {source.what for source in sources}
    named = {"hidden": "output_hidden_states", "attention": "output_attentions"}
    # Only what is read: models without attention take no word about it.
    return {"return_dict": True, **{flag: True for what, flag in named.items() if what in whats}}


def run(model: Any, **given: Any) -> tuple[Any, Any]:
    """The model's output, and that of its base model: the same object where there is no head.

    A head's own output may leave out the last states and pools of what it stands on.
    """
    found: list[Any] = []
    base = model.base_model
    hook = base.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        whole = model(**given)
    finally:
        hook.remove()
    return whole, found[-1] if found else whole


def states(base: Any, source: Source, who: str) -> Any:
    """(n, tokens, d) of one layer or of the last, (n, tokens, layers, d) of all.

    hidden:0 are the embeddings, hidden:k what block k gives, as transformers numbers them; `last` is
    behind the model's final norm, where it has one.
    """
    import torch

    if source.what == "last":
        return _there(base, "last_hidden_state", "last", who)
    if source.option == "all":
        return torch.stack(_there(base, "hidden_states", "hidden", who), dim=2)
    return _numbered(_there(base, "hidden_states", "hidden", who), source.layer, "hidden", who)


def attention(base: Any, source: Source, who: str) -> Any:
    """(n, heads, tokens, tokens): attention:k is inside block k, from 1; rows of it sum to one."""
    each = _there(base, "attentions", "attention", who)
    return _numbered((None, *each), source.layer, "attention", who)


def pooled(base: Any, source: Source, mask: Any, who: str) -> Any:
    """(n, d): the mean of the last states over what `mask` (n, tokens) has, the first, or the pooler's.

    `:unit` makes each of length one. float32.
    """
    if source.what == "pooler":
        made = _there(base, "pooler_output", "pooler", who).float()
        made = made.reshape(len(made), -1)
    else:
        last = _there(base, "last_hidden_state", source.what, who).float()
        if last.ndim == 4:  # of a convolutional model: (n, channels, height, width)
            last = last.flatten(2).transpose(1, 2)
        made = last[:, 0] if source.what == "cls" else mean(last, mask)
    return unit(made) if source.option == "unit" else made


def mean(last: Any, mask: Any = None) -> Any:
    """(n, d) means over the tokens of (n, tokens, d) at which `mask` is 1; over all without one."""
    if mask is None:
        return last.mean(1)
    there = mask.to(last.dtype)[..., None]
    return (last * there).sum(1) / there.sum(1)


def unit(vectors: Any) -> Any:
    """Each of length one along the last axis."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def array_of(tensor: Any) -> NDArray[Any]:
    """As numpy has it; half floats, of which numpy lacks one, as float32, which holds them exactly."""
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()
    found: NDArray[Any] = np.asarray(tensor.cpu().numpy())
    return found


def _there(output: Any, name: str, what: str, who: str) -> Any:
    found = getattr(output, name, None)
    if found is None:
        known = [n for n, v in output.items() if v is not None] if hasattr(output, "items") else []
        raise UnknownSignalError(
            f"{who}: the model gives no {name}, read for {what!r}; it gives "
            f"{', '.join(known) or 'no output of that kind'}"
        )
    return found


def _numbered(each: Any, layer: int, what: str, who: str) -> Any:
    first = 1 if each[0] is None else 0
    if not first <= layer < len(each):
        raise UnknownSignalError(
            f"{who} has no {what}:{layer}; the first is {what}:{first}, the last {what}:{len(each) - 1}"
        )
    return each[layer]


Device = Callable[[NDArray[Any]], Any]


def placer(device: Any) -> Device:
    """Puts arrays on a model's device."""
    import torch

    return lambda array: torch.as_tensor(array).to(device)
