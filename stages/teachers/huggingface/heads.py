"""A language model without its head's full output: the states that the head is given, and the head.

What is called for is (tokens, vocabulary), which for long texts is the largest thing there is. So the
head is shown one position of a pass, and then those that are asked for, some at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillroom.stages.teachers.huggingface import running
from stillroom.stages.teachers.huggingface.reading import Group
from stillroom.storage.errors import SignalError

_LOUD = 64.0
"""By what a state is multiplied to try its head: a softcap leaves small logits nearly as they are."""


@dataclass(frozen=True)
class Spoken:
    """What one pass says of its tokens, row after row and without padding, before logits are made."""

    given: Any
    """(tokens, d) states that the head is given; None where they are not known."""
    whole: Any
    """(tokens, V) logits, where they are not the head's own output; else None."""
    head: Any
    who: str

    def states(self) -> Any:
        """(tokens, d); SignalError where the model has no head that is known."""
        if self.given is None:
            raise SignalError(
                f"{self.who}: this model does not say which layer makes its logits; there is no 'state' "
                "to read. Read 'logits', or 'last'"
            )
        return self.given

    def logits(self, some: slice) -> Any:
        """(some, V)"""
        return self.head(self.given[some]) if self.whole is None else self.whole[some]


class HeadedModel:
    """A model whose head is left out of its pass, where the head is the last thing in it."""

    def __init__(self, model: Any, who: str) -> None:
        """Try on one token whether the head's output is the model's."""
        import torch

        self._model, self._who = model, who
        self._head = model.get_output_embeddings()
        self._last, self._loud = self._head is not None, _LOUD
        if self._last:
            token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
            whole, _, given = self._pass(input_ids=token, attention_mask=token + 1)
            made = None if given is None else self._head(given * _LOUD)
            self._last = made is not None and torch.equal(made.float(), whole.logits.float())
        self._loud = 1.0

    def run(self, group: Group, **how: Any) -> tuple[Any, Spoken]:
        """The base model's output, and what makes the logits."""
        whole, base, given = self._pass(**group.inputs, **how)
        given = None if given is None else group.own(given)
        logits = None if self._last else group.own(whole.logits)
        return base, Spoken(given, logits, self._head, self._who)

    def _pass(self, **inputs: Any) -> tuple[Any, Any, Any]:
        found: list[Any] = []

        def shown(module: Any, given: tuple[Any, ...]) -> Any:
            found.append(given[0])
            return (given[0][:1, -1:] * self._loud, *given[1:]) if self._last else None

        hook = None if self._head is None else self._head.register_forward_pre_hook(shown)
        try:
            whole, base = running.run(self._model, **inputs)
        finally:
            if hook is not None:
                hook.remove()
        return whole, base, found[-1] if found else None

    def constants(self, name: str) -> dict[str, Any]:
        """Weight and bias of the head; bfloat16 as uint16.

        SignalError for any other name, and where the model changes what its head gives.
        """
        import torch

        mine = [n for n, m in self._model.named_modules(remove_duplicate=False) if m is self._head]
        if name not in mine:
            known = f"it is {mine[0]!r}" if mine else "this model does not say which it is"
            raise SignalError(f"{self._who}: {name!r} is not the head; {known}")
        if not self._last:
            raise SignalError(
                f"{self._who}: the model changes what its head {name!r} gives (a softcap, a scale), so "
                "states and head do not decode to its logits. Store 'logits', as topk(k) or sampled(k)"
            )
        given = {key: getattr(self._head, key, None) for key in ("weight", "bias")}
        found: dict[str, Any] = {}
        for key, tensor in given.items():
            if tensor is not None:
                held = tensor.detach().cpu()
                bits = held.dtype == torch.bfloat16
                found[key] = held.view(torch.int16).numpy().view("uint16") if bits else held.numpy()
        return found
