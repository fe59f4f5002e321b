"""Attention weights and projections, against working them out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stillroom.stages import ArrayRows, ModuleTeacher
from stillroom.stages.teachers.attention import sdpa_weights
from stillroom.stages.teachers.layers import LayerTaps
from stillroom.storage.errors import SignalError, UnknownSignalError
from tests.stages.builders import answers, taught

ROWS, TOKENS, HEADS, SIZE = 5, 7, 4, 16
DIM = SIZE // HEADS
X = torch.randn(ROWS, TOKENS, SIZE, generator=torch.Generator().manual_seed(1))


def heads(projected: torch.Tensor) -> torch.Tensor:
    """(n, tokens, heads * d) as (n, heads, tokens, d), number by number."""
    return torch.stack([projected[..., h * DIM : (h + 1) * DIM] for h in range(HEADS)], 1)


def weights_of(q: torch.Tensor, k: torch.Tensor, mask: Any = None) -> torch.Tensor:
    scores = torch.einsum("nhid,nhjd->nhij", q, k) / DIM**0.5
    found: torch.Tensor = scores if mask is None else scores.masked_fill(mask, -torch.inf)
    return found.softmax(-1)


class Fused(nn.Module):
    """Attention as timm has it: one projection for all three."""

    def __init__(self, how: str = "sdpa", names: tuple[str, ...] = ("qkv",)) -> None:
        super().__init__()
        torch.manual_seed(len(names))
        for name in names:
            setattr(self, name, nn.Linear(SIZE, SIZE * 3 // len(names)))
        self.names, self.how, self.num_heads = names, how, HEADS
        self.proj = nn.Linear(SIZE, SIZE)

    def projected(self, x: torch.Tensor) -> list[torch.Tensor]:
        whole = torch.cat([getattr(self, name)(x) for name in self.names], -1)
        return [heads(part) for part in whole.split(SIZE, -1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.projected(x)
        if self.how == "softmax":
            out = (q @ k.transpose(-2, -1) * DIM**-0.5).softmax(-1) @ v
        else:
            causal = self.how == "causal"
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        found: torch.Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return found


PLACES = {"w": "attention(0)", "q": "query(0)", "k": "key(0)", "v": "value(0)", "out": ""}


def read(module: nn.Module, *given: Any, places: Any = PLACES, **named: Any) -> dict[str, Any]:
    holder: nn.Module = nn.Sequential(module).eval()
    with torch.inference_mode():
        if given[1:] or named:  # through the holder only one argument goes
            places = {n: p.replace("(0)", "()").replace("()", "(a)") for n, p in places.items()}
            holder = Holder(module)
        found = LayerTaps(holder, places, "t").run(given, named)
        plain = holder(*given, **named)
    for name, place in places.items():
        if place == "":
            torch.testing.assert_close(found[name], plain, rtol=0, atol=0)
    return found


class Holder(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.a = module.eval()

    def forward(self, *given: Any, **named: Any) -> Any:
        output = self.a(*given, **named)
        return output[0] if isinstance(output, tuple) else output


NAMES = [
    ("qkv",),
    ("c_attn",),
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
]


@pytest.mark.parametrize("how", ["softmax", "sdpa", "causal"])
@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_projections_and_weights_are_those_worked_out_by_hand(
    names: tuple[str, ...], how: str
) -> None:
    module = Fused(how, names)
    found = read(module, X)
    with torch.inference_mode():
        q, k, v = module.projected(X)
    mask = torch.ones(TOKENS, TOKENS).triu(1).bool() if how == "causal" else None
    for name, expected in (("q", q), ("k", k), ("v", v)):
        assert found[name].shape == (ROWS, HEADS, TOKENS, DIM)
        assert torch.equal(found[name], expected)
    torch.testing.assert_close(found["w"], weights_of(q, k, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [None, 12], ids=["one matrix", "three"])
@pytest.mark.parametrize("asked", [{}, {"need_weights": False}, {"average_attn_weights": False}])
def test_torchs_own_attention_is_asked_for_weights_of_every_head(
    batch_first: bool, bias: bool, sizes: int | None, asked: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(
        SIZE, HEADS, bias=bias, batch_first=batch_first, kdim=sizes, vdim=sizes
    )
    if bias:
        nn.init.normal_(module.in_proj_bias)
    other = torch.randn(ROWS, 3, sizes or SIZE)
    pad = torch.zeros(ROWS, 3, dtype=torch.bool)
    pad[1, 2] = True
    inputs = (X, other, other)
    turned = [x if batch_first else x.transpose(0, 1) for x in inputs]
    found = read(module, *turned, key_padding_mask=pad, **asked)
    matrices = (
        module.in_proj_weight.chunk(3)
        if sizes is None
        else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    biases: Any = module.in_proj_bias.chunk(3) if bias else (0.0, 0.0, 0.0)
    q, k, v = (
        heads(x @ w.T + b).detach() for x, w, b in zip(inputs, matrices, biases, strict=True)
    )
    for name, expected in (("q", q), ("k", k), ("v", v)):
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
    expected = weights_of(q, k, pad[:, None, None])
    torch.testing.assert_close(found["w"], expected, rtol=1e-5, atol=1e-6)
    assert found["w"].shape == (ROWS, HEADS, TOKENS, 3)


def test_torchs_encoder_is_read_though_it_has_a_faster_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(SIZE, HEADS, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=True)
    layers = {"attn": "attention(layers.*.self_attn)", "q-{}": "query(layers.*.self_attn)"}
    teacher = ModuleTeacher("t", encoder, inputs=("x",), layers={**layers, "states": ""})
    rows = ArrayRows(range(ROWS), x=X.numpy())
    snapshot = taught(tmp_path / "c", rows, teacher)
    assert set(snapshot.signals) == {
        *(f"{s}-{i}" for s in ("attn", "q") for i in range(3)),
        "states",
    }
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode():
        states = X
        for number, block in enumerate(encoder.eval().layers):
            w, b = block.self_attn.in_proj_weight.chunk(3), block.self_attn.in_proj_bias.chunk(3)
            q, k = heads(states @ w[0].T + b[0]), heads(states @ w[1].T + b[1])
            for name, expected in (("q", q), ("attn", weights_of(q, k))):
                found = answers(snapshot, rows, f"{name}-{number}")
                np.testing.assert_allclose(found, expected.numpy(), rtol=2e-4, atol=1e-5)
            states = block(states)
    np.testing.assert_allclose(
        answers(snapshot, rows, "states"), states.numpy(), rtol=1e-3, atol=1e-5
    )


def test_masks_scales_and_shared_heads_of_torchs_function() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(2, n, 5, 8, generator=generator) for n in (4, 2))
    v = torch.eye(5).expand(
        2, 2, 5, 5
    )  # the output of values that are the unit matrix is the weights
    allowed = torch.rand(2, 1, 5, 5, generator=generator) > 0.3
    allowed[..., 0] = True
    added = torch.randn(2, 4, 5, 5, generator=generator)
    for mask in (None, allowed, added):
        for more in ({}, {"scale": 0.7}):
            given: dict[str, Any] = {"attn_mask": mask, "enable_gqa": True, **more}
            expected = functional.scaled_dot_product_attention(q, k, v, **given)
            found = sdpa_weights(q, k, v, **given)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    allowed[1, 0, 3] = False
    assert sdpa_weights(q[:, :2], k, v, allowed)[1, :, 3].abs().max() == 0


class Shared(Fused):
    """Eight queries, two keys: one projection that is not cut into three."""

    def __init__(self) -> None:
        super().__init__()
        self.num_kv_heads = 2


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Fused(), Fused("softmax")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.a(x))
        return out


def test_what_is_no_attention_is_named_with_the_way_out() -> None:
    cases: list[tuple[nn.Module, str, str]] = [
        (
            nn.Sequential(nn.Linear(16, 16), Fused()),
            "query(0)",
            r"'0' is a Linear.*known: 1|mean '1'",
        ),
        (nn.Sequential(nn.Linear(16, 16)), "attention(0)", "computes none in one call"),
        (nn.Sequential(Twice()), "attention(0)", "computes 2 of them"),
        (nn.Sequential(Shared()), "key(0)", "4 heads that share 2; expected"),
        (nn.Sequential(Fused()), "key(0:1)", "takes a module's name and nothing else"),
        (nn.Sequential(Fused()), "query(1)", "has no layer '1'"),
    ]
    for module, place, words in cases:
        with pytest.raises((UnknownSignalError, SignalError), match=words):
            LayerTaps(module, {"x": place}, "t").run((X,), {})
    lost = Fused()
    del lost.num_heads
    with pytest.raises(UnknownSignalError, match="how many heads Fused has is not known"):
        LayerTaps(nn.Sequential(lost), {"x": "key(0)"}, "t").run((X,), {})


def test_weights_are_float32_of_what_autocast_computes(tmp_path: Path) -> None:
    module = nn.Sequential(Fused())
    teacher = ModuleTeacher(
        "t", module, inputs=("x",), layers={"w": "attention(0)"}, precision="bfloat16"
    )
    found = teacher.load()({"x": X.numpy()})["w"]
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
