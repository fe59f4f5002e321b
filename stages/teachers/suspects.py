"""Find what makes a module random, or its answer to a row depend on the rest of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_OVER_BATCH = ("BatchNorm", "InstanceNorm")


def suspects(module: nn.Module, run: Callable[[], Any]) -> list[str]:
    """What one forward pass does that a teacher must not, in words, each with the module that does it.

    Layers in training mode (`eval` does not reach those that a module switches on itself), and
    calls inside a module's own code: dropout that is told to train (as torch's functional.dropout is
    unless it is told otherwise), random numbers, batch figures.
    """
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    dropouts = {
        *(functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d),
        *(functional.alpha_dropout, functional.feature_alpha_dropout, torch.dropout),
    }
    drawing = {
        *(
            torch.rand,
            torch.randn,
            torch.randint,
            torch.randperm,
            torch.rand_like,
            torch.randn_like,
        ),
        *(torch.bernoulli, torch.multinomial, torch.normal, torch.Tensor.bernoulli_),
        *(
            torch.Tensor.normal_,
            torch.Tensor.uniform_,
            torch.Tensor.random_,
            functional.gumbel_softmax,
        ),
    }
    found: dict[str, None] = {}
    names = {m: name for name, m in module.named_modules()}
    running: list[nn.Module] = [module]

    def where() -> str:
        name = names.get(running[-1], "")
        kind = type(running[-1]).__name__
        return f"in {name} ({kind})" if name else f"in the forward of {kind}"

    def enter(module: nn.Module, arguments: Any) -> None:
        running.append(module)
        kind = type(module).__name__
        if module.training and isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            found[f"training-mode {kind}: {names[module]}"] = None
        if module.training and any(word in kind for word in _OVER_BATCH):
            found[f"training-mode {kind}: {names[module]}"] = None

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        running.pop()

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            inside = isinstance(running[-1], nn.modules.dropout._DropoutNd)
            if func in dropouts and not inside and _training(args, kwargs):
                found[f"dropout with training=True {where()}"] = None
            if func is functional.scaled_dot_product_attention and _given(
                args, kwargs, 4, "dropout_p"
            ):
                found[f"attention with dropout_p > 0 {where()}"] = None
            if func in drawing:
                found[f"{func.__name__} {where()}"] = None
            if (
                func is functional.batch_norm
                and _given(args, kwargs, 5, "training")
                and not (running[-1].training and "BatchNorm" in type(running[-1]).__name__)
            ):
                found[f"batch_norm over the batch's own figures {where()}"] = None
            return func(*args, **kwargs)

    hooks: list[Any] = [m.register_forward_pre_hook(enter) for m in names]
    hooks += [m.register_forward_hook(leave) for m in names]
    try:
        with Watch():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(found)


def _given(args: tuple[Any, ...], kwargs: dict[str, Any], at: int, name: str) -> Any:
    return args[at] if len(args) > at else kwargs.get(name)


def _training(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Of dropout(input, p, training): on unless it is told otherwise, and nothing with p = 0."""
    p, training = _given(args, kwargs, 1, "p"), _given(args, kwargs, 2, "training")
    return (p is None or p > 0) and (training is None or bool(training))
