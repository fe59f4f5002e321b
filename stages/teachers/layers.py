"""Read what a module and its inner layers give, or are given, by name, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from stillroom.stages.teachers.attention import AttentionTaps
from stillroom.stages.teachers.places import INPUT, Spot
from stillroom.storage.errors import SignalError, UnknownSignalError, nearest

if TYPE_CHECKING:
    from torch import nn


class LayerTaps:
    """Forward hooks on named modules: `run` returns what each of them gave.

    A place is a module's name as torch spells it ("" is the whole module), with `:key` behind it
    where the output is a dict, a tuple or an object with attributes. `name:input` is what the module
    is given, its first argument: `lm_head:input` is the hidden state behind the last norm, whatever
    the architecture calls that. `attention(name)`, `query(name)`, `key(name)`, `value(name)` are read
    from inside an attention module (`attention.py`). A module that runs several times in a pass is
    read the last time.
    """

    def __init__(
        self,
        module: nn.Module,
        places: Mapping[str, str],
        owner: str,
        compiled: Callable[[nn.Module], Callable[..., Any]] | None = None,
    ) -> None:
        """UnknownSignalError names a module that is not there and the nearest.

        `compiled` makes what is called in the module's place. Then hooks stay, as they are part of what
        is compiled.
        """
        self._module, self._owner = module, owner
        self._spots = {name: Spot.of(place) for name, place in places.items()}
        modules = dict(module.named_modules(remove_duplicate=False))
        for spot in self._spots.values():
            if spot.layer not in modules:
                known = [name for name in modules if name]
                raise UnknownSignalError(
                    f"{owner} has no layer {spot.layer!r}; {nearest(spot.layer, known)}"
                )
        plain = [spot for spot in self._spots.values() if not spot.part]
        outputs = {spot.layer for spot in plain if spot.key != INPUT and spot.layer}
        inputs = {spot.layer for spot in plain if spot.key == INPUT}
        self._tapped = {layer: modules[layer] for layer in sorted(outputs)}
        self._fed = {layer: modules[layer] for layer in sorted(inputs)}
        inside = {spot for spot in self._spots.values() if spot.part}
        self._attention = AttentionTaps(modules, inside, owner) if inside else None
        self._given: dict[str, Any] = {}
        self._inputs: dict[str, Any] = {}
        self._call: Callable[..., Any] = module
        self._stay = compiled is not None
        if compiled is not None:
            if inside:
                raise SignalError(
                    f"{owner}: {min(map(str, inside))} is read while a module runs, which a compiled "
                    "one hides; leave `compiled` empty, or do not ask for it"
                )
            self._hooks()
            self._call = compiled(module)

    def run(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        """One forward pass; {name: tensor} for every place."""
        with ExitStack() as stack:
            if not self._stay:
                # Set and removed around each pass: the module may be the caller's own, and stays as
                # it was.
                for hook in self._hooks():
                    stack.callback(hook.remove)
            if self._attention is not None:
                stack.enter_context(self._attention.reading())
            self._let_go()  # of a pass that failed
            output = self._call(*arguments, **named)
        self._given[""] = output
        try:
            return {name: self._pick(name, spot) for name, spot in self._spots.items()}
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._given.clear()
        self._inputs.clear()

    def _hooks(self) -> list[Any]:
        given, inputs = self._given, self._inputs

        def keep_input(layer: str) -> Any:
            def hook(module: nn.Module, arguments: Any, named: Any) -> None:
                inputs[layer] = _copied(next(iter([*arguments, *named.values()]), None))

            return hook

        def keep(layer: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                given[layer] = _copied(output)

            return hook

        hooks: list[Any] = [m.register_forward_hook(keep(n)) for n, m in self._tapped.items()]
        return hooks + [
            m.register_forward_pre_hook(keep_input(n), with_kwargs=True)
            for n, m in self._fed.items()
        ]

    def _pick(self, name: str, spot: Spot) -> Any:
        if spot.part and self._attention is not None:
            return self._attention.of(spot)
        layer, key = spot.layer, spot.key
        given = self._inputs if key == INPUT else self._given
        if layer not in given:
            raise UnknownSignalError(
                f"{self._owner}: layer {layer!r}, read for {name!r}, did not run in the forward pass"
            )
        output = given[layer]
        if key and key != INPUT:
            try:
                if isinstance(output, Mapping):
                    output = output[key]
                else:
                    output = output[int(key)] if key.isdigit() else getattr(output, key)
            except (KeyError, IndexError, AttributeError, TypeError):
                known = _places(output)
                raise UnknownSignalError(
                    f"{self._owner}: the output of layer {layer!r} has no {key!r}; "
                    f"{nearest(key, [str(k) for k in known])}"
                ) from None
        if not hasattr(output, "detach"):
            kind = type(output).__name__
            inside = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
            if key == INPUT:
                raise UnknownSignalError(
                    f"{self._owner}: layer {layer!r} is given a {kind}{inside} first, not a tensor; "
                    f"read {name!r} from another layer"
                )
            raise UnknownSignalError(
                f"{self._owner}: layer {layer!r} gives a {kind}{inside}, not a tensor; "
                f"pick one as '{layer}:key' for {name!r}"
            )
        return output


def _copied(output: Any) -> Any:
    """A layer's tensors as they are now: an in-place layer behind it would overwrite them."""
    if hasattr(output, "clone"):
        return output.clone()
    if isinstance(output, dict):
        return {key: _copied(value) for key, value in output.items()}
    if type(output) in (tuple, list):
        return [_copied(value) for value in output]
    return output


def _places(output: Any) -> list[Any]:
    """What can be picked from an output, for messages."""
    if isinstance(output, Mapping):
        return list(output)
    if isinstance(output, list | tuple):
        return list(range(len(output)))
    return [] if hasattr(output, "detach") else list(getattr(output, "__dict__", {}))
