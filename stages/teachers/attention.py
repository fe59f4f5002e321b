"""Inside attention modules: queries, keys and values as projected, and the weights that come of them.

Shapes: weights (n, heads, tokens, tokens that are attended to), each row of them summing to one; queries,
keys and values (n, heads, tokens, head_dim), keys and values with their own number of heads where
several queries share one. They are what the projections give: before rotary positions, norms of
queries and keys, and scaling by 1 / sqrt(head_dim).

- torch.nn.MultiheadAttention: weights are asked of the module in a second call, one for each head
  (its faster paths compute none), so the first call's output, which goes on, is not touched by it.
- Modules with projections of their own, Linear layers q_proj, k_proj, v_proj, or query, key, value, or
  to_q, to_k, to_v, or q_lin, k_lin, v_lin; or one for all three (qkv, qkv_proj, Wqkv, c_attn, to_qkv),
  whose last axis is cut into three equal parts, queries first, each cut into heads one after another.
- Weights of such a module are those that it computes: the softmax over four axes while it runs, or that
  of torch's scaled_dot_product_attention, worked out again from the same arguments in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stillroom.stages.teachers.places import Spot
from stillroom.storage.errors import UnknownSignalError, listed, nearest

if TYPE_CHECKING:
    from torch import nn

_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("q_lin", "k_lin", "v_lin"),
)
_FUSED = ("qkv", "qkv_proj", "Wqkv", "c_attn", "to_qkv")
_QKV = ("query", "key", "value")
_HEAD_DIM = ("head_dim", "attention_head_size", "dim_head", "key_value_proj_dim")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_SHARED = ("num_kv_heads", "num_key_value_heads", "n_kv_heads")


class AttentionTaps:
    """What is read from inside attention modules, by the place that it was asked for."""

    def __init__(self, modules: Mapping[str, nn.Module], spots: set[Spot], owner: str) -> None:
        """UnknownSignalError for a module without the projections that are to be read."""
        self._modules, self._owner = modules, owner
        self._spots = sorted(spots, key=str)
        self.found: dict[Spot, Any] = {}
        self._weights: dict[str, list[Any]] = {}
        self._inside: list[str] = []
        for spot in self._spots:
            if spot.part != "attention" and not _is_torchs(modules[spot.layer]):
                self._projection(spot)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hooks are set and torch's shortcuts around attention modules are off while this is open."""
        import torch

        self.found, self._weights, self._inside = {}, {}, []
        hooks = [hook for spot in self._spots for hook in self._hooked(spot)]
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with _watch(self._inside, self._weights):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for hook in hooks:
                hook.remove()

    def of(self, spot: Spot) -> Any:
        """What was read; UnknownSignalError where nothing was."""
        weights = self._weights.get(spot.layer, [])
        if spot.part == "attention" and not _is_torchs(self._modules[spot.layer]):
            if len(weights) != 1:
                what = "none" if not weights else f"{len(weights)} of them"
                raise UnknownSignalError(
                    f"{self._owner}: {spot} needs attention weights (n, heads, tokens, tokens), and "
                    f"layer {spot.layer!r} ({_kind(self._modules[spot.layer])}) computes {what} in one "
                    "call, by softmax or by scaled_dot_product_attention; name the module that "
                    "computes them once"
                )
            return weights[0]
        if spot not in self.found:
            raise UnknownSignalError(
                f"{self._owner}: layer {spot.layer!r}, read by {spot}, did not run in the forward pass"
            )
        return self.found[spot]

    def _hooked(self, spot: Spot) -> list[Any]:
        module = self._modules[spot.layer]
        if _is_torchs(module):
            read = self._torchs_weights if spot.part == "attention" else self._torchs_projection
            return [module.register_forward_hook(read(spot), with_kwargs=True)]
        if spot.part != "attention":
            inner = self._projection(spot)
            return [inner.register_forward_hook(self._own_projection(spot))]

        def enter(module: nn.Module, arguments: Any) -> None:
            self._inside.append(spot.layer)
            self._weights[spot.layer] = []

        def leave(module: nn.Module, arguments: Any, output: Any) -> None:
            self._inside.pop()

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def _torchs_weights(self, spot: Spot) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, named: Any, output: Any) -> None:
            given = inspect.signature(module.forward).bind(*arguments, **named).arguments
            given |= {"need_weights": True, "average_attn_weights": False}
            self.found[spot] = module.forward(**given)[1]

        return hook

    def _torchs_projection(self, spot: Spot) -> Callable[..., None]:
        from torch.nn import functional

        at = _QKV.index(spot.part)

        def hook(module: Any, arguments: Any, named: Any, output: Any) -> None:
            given = inspect.signature(module.forward).bind(*arguments, **named).arguments
            if module.in_proj_weight is not None:
                weight = module.in_proj_weight.chunk(3)[at]
            else:
                weight = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)[at]
            bias = None if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[at]
            projected = functional.linear(given[spot.part], weight, bias)
            if not module.batch_first:
                projected = projected.transpose(0, 1)
            self.found[spot] = _in_heads(projected, module.head_dim)

        return hook

    def _projection(self, spot: Spot) -> nn.Module:
        module, at = self._modules[spot.layer], _QKV.index(spot.part)
        for names in (*_SEPARATE, *((name,) * 3 for name in _FUSED)):
            if all(callable(getattr(module, name, None)) for name in names):
                found: nn.Module = getattr(module, names[at])
                return found
        able = [name for name, m in self._modules.items() if name and _is_torchs(m)]
        able += [
            name
            for name, m in self._modules.items()
            if any(all(hasattr(m, n) for n in names) for names in _SEPARATE)
            or any(hasattr(m, n) for n in _FUSED)
        ]
        raise UnknownSignalError(
            f"{self._owner}: {spot} reads a torch.nn.MultiheadAttention, or a module with Linear layers "
            f"{', '.join(_SEPARATE[0])} (also {', '.join(_SEPARATE[1])} and others) or one of "
            f"{', '.join(_FUSED)}; {spot.layer!r} is a {_kind(module)}. {nearest(spot.layer, able)}"
        )

    def _own_projection(self, spot: Spot) -> Callable[..., None]:
        module, at = self._modules[spot.layer], _QKV.index(spot.part)
        fused = any(self._projection(spot) is getattr(module, name, None) for name in _FUSED)

        def hook(inner: nn.Module, arguments: Any, output: Any) -> None:
            size, axes = output.shape[-1], output.dim()
            heads, shared = _number(module, _HEADS), _number(module, _SHARED)
            uneven = fused and (size % 3 or shared not in (None, heads))
            if axes != 3 or uneven or getattr(module, "multi_query", False):
                raise UnknownSignalError(
                    f"{self._owner}: {spot}: the projection gives {tuple(output.shape)}"
                    f"{f', {heads} heads that share {shared}' if uneven else ''}; expected (n, tokens, "
                    f"{'3 x ' if fused else ''}heads x head_dim). Read the projection itself, as "
                    f"'{spot.layer}.name', and cut it in your own way"
                )
            part = output.chunk(3, -1)[at] if fused else output
            head_dim = _number(module, _HEAD_DIM)
            if head_dim is None and heads:
                head_dim = part.shape[-1] // heads
            if not head_dim:
                raise UnknownSignalError(
                    f"{self._owner}: {spot}: how many heads {_kind(module)} has is not known; it has "
                    f"none of the attributes {listed((*_HEAD_DIM[:2], *_HEADS[:3]))}"
                )
            self.found[spot] = _in_heads(part, head_dim)

        return hook


def _is_torchs(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.MultiheadAttention)


def _kind(module: Any) -> str:
    return type(module).__name__


def _number(module: Any, names: tuple[str, ...]) -> int | None:
    """The first of these attributes that is a number."""
    found = (getattr(module, name, None) for name in names)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)


def _in_heads(projected: Any, head_dim: int) -> Any:
    """(n, tokens, heads * head_dim) as (n, heads, tokens, head_dim), in memory of its own."""
    return projected.unflatten(-1, (-1, head_dim)).transpose(1, 2).clone()


@contextmanager
def _watch(inside: list[str], weights: dict[str, list[Any]]) -> Iterator[None]:
    """Keep the attention weights that are computed while a module of `inside` runs."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    softmaxes = (torch.softmax, torch.Tensor.softmax, functional.softmax, torch.special.softmax)

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if inside:
                if func is functional.scaled_dot_product_attention:
                    weights[inside[-1]].append(sdpa_weights(*args, **(kwargs or {})))
                elif func in softmaxes and result.dim() == 4:
                    weights[inside[-1]].append(result.clone())
            return result

    with Watch():
        yield


def sdpa_weights(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The weights (..., tokens, tokens) float32 inside torch's scaled_dot_product_attention:
    softmax(query @ key.T * scale + mask), scale 1 / sqrt(head_dim) unless given; no dropout.

    What may attend to nothing has weights of zero.
    """
    import torch

    with torch.autocast(query.device.type, enabled=False):
        query, key = query.float(), key.float()
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = query @ key.transpose(-2, -1) * scale
        if is_causal:
            ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill(~ones.tril(), float("-inf"))
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, float("-inf"))
            else:
                scores = scores + attn_mask.float()
        none = (scores == float("-inf")).all(-1, keepdim=True)
        return scores.softmax(-1).masked_fill(none, 0.0)
