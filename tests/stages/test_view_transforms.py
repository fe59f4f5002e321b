"""Numbers for views never change, transforms do what they say, and impossible plans are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stages.views import plan as view_plan
from stillroom.stages.views.boxes import Crop, Erase, Flip
from stillroom.stages.views.mixing import Cutmix, Mixup
from stillroom.stages.views.numbers import Numbers, key_words, noise
from stillroom.stages.views.pixels import Colour, Mask, Noise
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.resizing import bilinear, nearest
from stillroom.storage.errors import ViewError
from tests.stages.view_builders import EVERY, SHAPE, photos

quick = settings(max_examples=40, deadline=None, derandomize=True)


def _numbers(rows: int, view: int = 1, seed: int = 0) -> Numbers:
    return Numbers.of(seed, key_words(pa.array(range(rows))), np.full(rows, view, np.int32))


def test_the_generator_never_changes() -> None:
    numbers = Numbers.of(7, key_words(pa.array(["a", "é"])), np.array([1, 2], np.int32))
    assert numbers.word("crop").tolist() == [2946784522655019528, 3327595051761188622]
    assert key_words(pa.array([3])).tolist() == [2092789425003139053]
    assert noise(np.array([5], np.uint64), 2).tolist() == [
        [0.27073484659194946, 0.5290794968605042]
    ]


def test_numbers_are_spread_as_they_should_be() -> None:
    numbers = _numbers(100_000)
    uniform = numbers.uniform("one")
    assert abs(uniform.mean() - 1 / 2) < 0.004
    assert abs(uniform.var() - 1 / 12) < 0.002
    others = [_numbers(100_000, view=2), _numbers(100_000, seed=1)]
    for other in (
        numbers.uniform("two"),
        numbers.uniform("one", 1),
        *(o.uniform("one") for o in others),
    ):
        assert abs(np.corrcoef(uniform, other)[0, 1]) < 0.02
    for alpha in (0.05, 0.2, 1.0, 4.0, 300.0):
        drawn = numbers.beta("mix", alpha).astype(np.float64)
        assert (drawn * 2**16 % 1 == 0).all()
        assert abs(drawn.mean() - 0.5) < 0.006
        assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    flat = np.sort(numbers.beta("mix", 1.0))
    assert np.abs(flat - np.linspace(0, 1, len(flat))).max() < 0.008  # Beta(1, 1) is uniform
    bell = noise(numbers.word("noise")[:1000], 300)
    assert abs(bell.mean()) < 0.01
    assert bell.std() == pytest.approx(1, abs=0.01)
    assert abs((bell > 1).mean() - 0.1587) < 0.004  # as of a normal distribution


def test_the_hash_of_a_tensor_never_changes() -> None:
    plan, x = ViewPlan((Mask(1),)), np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    kept = np.array([[True, False, True, True, False, False]])
    assert plan.seen(x, None).tobytes().hex() == "b8f044eb9918946e86f98b8883b0519a"
    assert plan.seen(x, kept).tobytes().hex() == "81b5ba5a3157879ac4c1048c75b33a03"
    assert plan.seen(x.astype("u1"), None).tobytes().hex() == "f947facd90f1ae72264a58f0cdc07b8b"


def test_pieces_of_a_batch_are_what_the_batch_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, x = ViewPlan(EVERY), photos(9)
    drawn = _drawn(plan, 9, SHAPE)
    whole = plan.apply(x, drawn, x[::-1])
    for size in (1, 500, 2000):
        monkeypatch.setattr(view_plan, "_TOGETHER_BYTES", size)
        assert plan.apply(x, drawn, x[::-1]).tobytes() == whole.tobytes()
    assert plan.apply(x[:0], drawn[:0], x[:0]).shape == (0, *SHAPE)


IMAGES = st.tuples(
    st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3]),
    st.sampled_from(["uint8", "float32"]),
)  # fmt: skip


@quick
@given(IMAGES, st.tuples(st.integers(1, 9), st.integers(1, 9)), st.data())
def test_resizing_is_the_formula_it_states(
    image: tuple[Any, ...], size: tuple[int, int], data: st.DataObject
) -> None:
    n, height, width, channels, dtype = image
    x = photos(n, (height, width, channels), dtype)
    box = np.zeros((n, 4), np.int32)
    for row in box:
        tall, wide = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        top, left = (
            data.draw(st.integers(0, height - tall)),
            data.draw(st.integers(0, width - wide)),
        )
        row[:] = top, left, tall, wide
    smooth, sharp = bilinear(x, box, size), nearest(x, box, size)
    assert smooth.dtype == sharp.dtype == x.dtype
    one = np.float32(1)
    for k, i, j, c in np.ndindex(smooth.shape):
        top, left, tall, wide = box[k].tolist()
        down, along = (
            min(max((2 * p + 1) * length / (2 * out) - 0.5, 0), length - 1)
            for p, length, out in ((i, tall, size[0]), (j, wide, size[1]))
        )
        a, b = int(down), int(along)
        f, g = np.float32(down - a), np.float32(along - b)
        near = x[k, top : top + tall, left : left + wide, c].astype(np.float32)
        lower, further = min(a + 1, tall - 1), min(b + 1, wide - 1)
        left_of = (one - f) * near[a, b] + f * near[lower, b]
        right_of = (one - f) * near[a, further] + f * near[lower, further]
        value = (one - g) * left_of + g * right_of
        expected = np.rint(value).astype(dtype) if dtype == "uint8" else value
        assert smooth[k, i, j, c] == expected
        at = (2 * i + 1) * tall // (2 * size[0]), (2 * j + 1) * wide // (2 * size[1])
        assert sharp[k, i, j, c] == x[k, top + at[0], left + at[1], c]


def _drawn(plan: ViewPlan, rows: int, shape: tuple[int, ...], view: int = 1) -> Any:
    return plan.draw(key_words(pa.array(range(rows))), np.full(rows, view, np.int32), shape)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_each_transform_does_what_its_parameters_say(dtype: str) -> None:
    x = photos(200, (9, 7, 3), dtype)
    top_value = 255 if dtype == "uint8" else 1

    def made(step: Any, partner: Any = None) -> tuple[Any, Any]:
        plan = ViewPlan((step,), layout="HWC")
        drawn = _drawn(plan, len(x), x.shape[1:])
        return plan.apply(x, drawn, partner), drawn

    flipped, drawn = made(Flip())
    assert 70 < drawn["flip"].sum() < 130
    for image, view, toss in zip(x, flipped, drawn["flip"], strict=True):
        assert (view == (image[:, ::-1] if toss else image)).all()
    erased, drawn = made(Erase(p=0.7, fill=top_value))
    assert (drawn["erase"][:, 2] > 0).any()
    for image, view, (top, left, tall, wide) in zip(
        x, erased, drawn["erase"].tolist(), strict=True
    ):
        expected = image.copy()
        expected[top : top + tall, left : left + wide] = top_value
        assert (view == expected).all()
    coloured, drawn = made(Colour())
    assert ((drawn["colour"] >= 0.59) & (drawn["colour"] <= 1.41)).all()
    for image, view, (bright, contrast, colour) in zip(x, coloured, drawn["colour"], strict=True):
        v = np.clip(image.astype(float) * bright, 0, top_value)
        v = np.clip(
            v * contrast + (1 - contrast) * (v @ [0.299, 0.587, 0.114]).mean(), 0, top_value
        )
        v = np.clip(
            v * colour + (1 - colour) * (v @ [0.299, 0.587, 0.114])[..., None], 0, top_value
        )
        np.testing.assert_allclose(view, v, atol=0.51 if dtype == "uint8" else 1e-6)
    noisy, drawn = made(Noise(0.02 * top_value))
    assert 0 < np.abs(noisy.astype(float) - x).max() < 0.1 * top_value + 1
    other = x[::-1]
    mixed, drawn = made(Mixup(1.0), other)
    for a, b, view, w in zip(x, other, mixed, drawn["mix"], strict=True):
        expected = a * w + b * (1 - w)
        assert (view == (np.rint(expected) if dtype == "uint8" else expected)).all()
    cut, drawn = made(Cutmix(), other)
    weight = ViewPlan((Cutmix(),), layout="HWC").weight(drawn, x.shape[1:])
    for a, b, view, box, w in zip(x, other, cut, drawn["cut"].tolist(), weight, strict=True):
        top, left, tall, wide = box
        expected = a.copy()
        expected[top : top + tall, left : left + wide] = b[top : top + tall, left : left + wide]
        assert (view == expected).all()
        assert w == np.float32(1 - tall * wide / 63)


def test_masks_keep_the_stated_number_of_patches() -> None:
    x = photos(50, (3, 8, 12))
    for ratio, left in ((0.75, 6), (0.5, 12), (0.9, 3)):
        plan = ViewPlan((Mask(2, ratio, fill=-1.0),))
        drawn = _drawn(plan, 50, (3, 8, 12))
        kept = plan.kept(drawn, (3, 8, 12))
        assert kept is not None
        assert kept.shape == (50, 24)
        assert (kept.sum(1) == left).all()
        assert len(np.unique(kept, axis=0)) > 40
        whole = kept.reshape(50, 1, 4, 6).repeat(2, 2).repeat(2, 3)
        assert (plan.apply(x, drawn, None) == np.where(whole, x, -1)).all()
        unfilled = ViewPlan((Mask(2, ratio),))
        assert (unfilled.apply(x, drawn, None) == x).all()


def test_crops_stay_in_their_ranges_and_views_at_rest_change_nothing() -> None:
    plan = ViewPlan((Crop((0.25, 0.5), (0.5, 2.0), size=(5, 4)),), layout="HWC")
    drawn = _drawn(plan, 2000, (40, 60, 1))["crop"].astype(float)
    share = drawn[:, 2] * drawn[:, 3] / 2400
    assert 0.22 < share.min() < 0.28
    assert 0.47 < share.max() < 0.53
    ratio = drawn[:, 3] / drawn[:, 2]
    assert 0.45 < ratio.min() < 0.55
    assert 1.8 < ratio.max() < 2.2
    narrow = _drawn(ViewPlan((Crop((0.9, 1.0), (4.9, 5.0)),)), 100, (1, 8, 8))["crop"]
    assert ((narrow[:, :2] >= 0) & (narrow[:, :2] + narrow[:, 2:] <= 8)).all()  # never fits: cut
    plan, x = ViewPlan(EVERY), photos(5)
    rest = _drawn(plan, 5, SHAPE, view=0)
    assert (plan.apply(x, rest, x[::-1]) == x).all()
    assert (plan.weight(rest, SHAPE) == 1).all()


def test_a_plan_with_both_kinds_of_mixing_tosses_for_each_view() -> None:
    plan = ViewPlan((Mixup(1.0), Cutmix()))
    drawn = _drawn(plan, 1000, SHAPE)
    mixed, cut = drawn["mix"] < 1, drawn["cut"][:, 2] > 0
    assert not (mixed & cut).any()
    assert 400 < mixed.sum() < 600
    assert cut.sum() > 300


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ViewPlan(()),
        lambda: ViewPlan([Flip()]),  # type: ignore[arg-type]
        lambda: ViewPlan((Flip(), Flip(0.1))),
        lambda: ViewPlan((3,)),  # type: ignore[arg-type]
        lambda: ViewPlan((Flip(),), seed=-1),
        lambda: ViewPlan((Flip(),), layout="HW"),  # type: ignore[arg-type]
        lambda: Crop((0.5, 0.1)),
        lambda: Crop((0.0, 1.0)),
        lambda: Crop(size=(0, 4)),
        lambda: Crop(size=(10**9, 10**9)),
        lambda: Crop(resize="cubic"),  # type: ignore[arg-type]
        lambda: Flip(2),
        lambda: Erase(area=(0.1, float("nan"))),
        lambda: Colour(contrast=(-1, 1)),
        lambda: Mask(0),
        lambda: Noise(float("nan")),
        lambda: Mixup(0),
        lambda: Cutmix("a"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|found|needs"):
        wrong()


@pytest.mark.parametrize(
    ("field", "value"),
    [("crop", (0, 0, 9, 6)), ("crop", (-1, 0, 4, 4)), ("crop", (0, 0, 0, 0)), ("erase", (7, 0, 2, 1)),
     ("cut", (0, 6, 1, 1)), ("cut", (0, 2**31 - 1, 1, 1))],
)  # fmt: skip
def test_parameters_outside_the_image_are_refused(field: str, value: Any) -> None:
    plan, x = ViewPlan(EVERY), photos(2)
    drawn = _drawn(plan, 2, SHAPE)
    drawn[field][1] = value
    with pytest.raises(ViewError, match=r"outside|empty"):
        plan.apply(x, drawn, x)


@pytest.mark.parametrize("change", [
    {"transforms": [{"kind": "warp"}]}, {"transforms": [{"kind": "flip", "q": 1}]}, {"transforms": []},
    {"transforms": [{"kind": "crop", "size": [10**9, 10**9]}]}, {"transforms": 3}, {"seed": "a"},
    {"layout": "WHC"}, {"transforms": [{"kind": []}]}, {"transforms": [{"kind": "flip", "p": None}]},
])  # fmt: skip
def test_plans_that_nobody_wrote_are_refused(change: dict[str, Any]) -> None:
    plan = ViewPlan(EVERY)
    assert ViewPlan.from_json(plan.identity()) == plan
    wrongs: list[Any] = [{**plan.to_json(), **change}, None, [], {}]
    for wrong in wrongs:
        with pytest.raises(ViewError, match="does not know"):
            ViewPlan.from_json(wrong)
