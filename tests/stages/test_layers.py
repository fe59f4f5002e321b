"""Taps: what modules give and are given, as it was at that moment."""

from __future__ import annotations

from typing import Any

import pytest

from stillroom.storage.errors import UnknownSignalError


def test_what_a_module_is_given_is_read_before_it_can_change_it() -> None:
    import torch
    from torch import nn

    from stillroom.stages.teachers.layers import LayerTaps

    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    places = {"relu": "1:input", "linear": "0", "after": "1", "whole": ":input", "out": ""}
    x = torch.randn(5, 3)
    found = LayerTaps(module, places, "t").run((x,), {})
    assert torch.equal(found["relu"], found["linear"])
    assert (found["relu"] < 0).any()
    assert torch.equal(found["after"], found["linear"].relu())
    assert torch.equal(found["whole"], x)
    assert torch.equal(found["out"], module(x))
    assert not module[1]._forward_pre_hooks

    class Named(nn.Module):
        def forward(self, *, states: Any) -> Any:
            return {"states": states}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Named()

        def forward(self, x: Any) -> Any:
            self.inner(states={"a": x})
            return self.inner(states=x)

    found = LayerTaps(Outer(), {"x": "inner:input"}, "t").run((x,), {})
    assert torch.equal(found["x"], x)

    class Wrong(Outer):
        def forward(self, x: Any) -> Any:
            return self.inner(states={"a": x})

    with pytest.raises(UnknownSignalError, match="'inner' is given a dict with a first"):
        LayerTaps(Wrong(), {"x": "inner:input"}, "t").run((x,), {})
