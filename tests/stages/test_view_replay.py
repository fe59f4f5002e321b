"""A student is given exactly what the teacher saw, bit for bit, or an error that says what changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stages.loading import Loader
from stillroom.stages.views import boxes
from stillroom.stages.views import plan as view_plan
from stillroom.stages.views.boxes import Crop, Erase, Flip
from stillroom.stages.views.mixing import Cutmix, Mixup
from stillroom.stages.views.pixels import Colour, Mask, Noise
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.replay import Replay
from stillroom.stages.views.resizing import bilinear
from stillroom.stages.views.rows import ViewedRows
from stillroom.stages.views.teacher import ViewedTeacher
from stillroom.storage import Reader, RowsError, UnknownRowError
from stillroom.storage.errors import ViewError
from stillroom.storage.pairs import spelled
from tests.stages.builders import chosen, taught
from tests.stages.view_builders import EVERY, album, gaze, looker, photos, viewed

KEYS = [f"p{i}" for i in range(12)]
COLUMNS = ("image", "label", "partner.label", "weight", "mask")


@pytest.fixture(autouse=True)
def _fresh_code() -> Iterator[None]:
    """Tests here change transforms; what was noted of their code is forgotten."""
    kept = view_plan._code  # a test may still have another in its place when this ends
    yield
    kept.cache_clear()


STEPS = st.tuples(
    st.sampled_from([None, Crop((0.2, 1.0)), Crop(size=(5, 9)), Crop(resize="nearest")]),
    st.sampled_from([None, Flip(), Flip(1.0)]),
    st.sampled_from([None, Erase(), Erase(1.0, fill=3.0)]),
    st.sampled_from([None, Colour(), Colour((0, 3), (0, 3), (0, 3))]),
    st.sampled_from([None, Mask(1, 0.5), Mask(1, 0.9, fill=1.0)]),
    st.sampled_from([None, Noise(0.1), Noise(20.0)]),
    st.sampled_from([None, Mixup(0.2), Mixup(2.0, p=0.5)]),
    st.sampled_from([None, Cutmix(), Cutmix(0.5, p=0.5)]),
)
IMAGES = st.tuples(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.sampled_from(["u1", "f4"])
)


GIVEN = given(STEPS, IMAGES, st.sampled_from(["CHW", "HWC"]), st.randoms(use_true_random=False))


@settings(max_examples=6, deadline=None, derandomize=True)
@GIVEN
def test_replay_gives_what_the_teacher_saw_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, steps: Any, image: Any, layout: Any, random: Any
) -> None:
    _same_bits(tmp_path_factory.mktemp("cache"), steps, image, layout, random)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@GIVEN
def test_replay_gives_what_the_teacher_saw_for_many_plans(
    tmp_path_factory: pytest.TempPathFactory, steps: Any, image: Any, layout: Any, random: Any
) -> None:
    _same_bits(tmp_path_factory.mktemp("cache"), steps, image, layout, random)


def _same_bits(folder: Path, steps: Any, image: Any, layout: Any, random: Any) -> None:
    chosen_steps = [step for step in steps if step is not None] or [Flip()]
    random.shuffle(chosen_steps)
    height, width, channels, dtype = image
    shape = (height, width, channels) if layout == "HWC" else (channels, height, width)
    dtype = {"u1": "uint8", "f4": "float32"}[dtype]
    rows = album(5, image=photos(5, shape, dtype))
    plan = ViewPlan(tuple(chosen_steps), seed=random.randrange(2**63), layout=layout)
    snapshot = viewed(folder, plan, rows, plain=False, batch_size=2)
    shown = ViewedRows(rows, plan, views=2, plain=False)
    keys = [f"p{i}" for i in (3, 0, 4)]
    replay = Replay(chosen(rows, [4, 3, 2, 1, 0]), snapshot, keys, views=2, signals=["logits"])
    for view in (1, 2):
        order = np.array([2, 0, 1])
        found: Any = replay.read(order, view, [c for c in COLUMNS if replay.provides(c)])
        pairs = [(keys[i], view) for i in order]
        places = np.array([spelled(shown.keys).index(pair) for pair in pairs])
        seen: Any = shown.read(places, ["image"])["image"]
        assert found["image"].dtype == seen.dtype == dtype
        assert found["image"].shape == seen.shape == (3, *plan.after(shape))
        assert found["image"].tobytes() == seen.tobytes()
        # And the answer is the teacher's to exactly these bits.
        answer: Any = Reader(snapshot, ["logits"]).gather(pairs)["logits"]
        assert (answer == gaze(seen)["logits"]).all()


@pytest.fixture
def plan() -> ViewPlan:
    """Crops, flips and partners."""
    return ViewPlan((Crop((0.3, 1.0)), Flip(), Mixup(1.0)))


def _replayed(rows: Any, snapshot: Any, views: int = 2) -> None:
    replay = Replay(rows, snapshot, KEYS, views=views)
    for view in range(1, views + 1):
        replay.read(np.arange(12), view, ["image"])


def _moved(images: Any, box: Any, size: Any) -> Any:
    """Another library's resize, a pixel further to the left where it can."""
    box = box.copy()
    box[:, 1] = np.maximum(box[:, 1] - 1, 0)
    return REAL(images, box, size)


def _one_value(images: Any, box: Any, size: Any) -> Any:
    """Another library's resize, whose last bit differs in one pixel of one image."""
    made = REAL(images, box, size)
    made[3].reshape(-1)[-1] = np.nextafter(made[3].reshape(-1)[-1], np.float32(2))
    return made


REAL = bilinear


@pytest.mark.parametrize("other", [_moved, _one_value])
def test_a_library_that_moved_a_pixel_is_caught(
    tmp_path: Path, plan: ViewPlan, monkeypatch: pytest.MonkeyPatch, other: Any
) -> None:
    snapshot = viewed(tmp_path, plan)
    _replayed(album(), snapshot)
    monkeypatch.setattr(boxes, "bilinear", other)
    view_plan._code.cache_clear()
    with pytest.raises(
        ViewError, match=r"not what teacher 'looker' saw: \('p\d+', 1\).*code changed"
    ):
        _replayed(album(), snapshot)
    # The library's code is not known, only its version.
    monkeypatch.setattr(
        view_plan, "_code", lambda kinds: snapshot.identity("view")["views"]["code"]
    )
    with pytest.raises(ViewError, match="this machine computes otherwise"):
        _replayed(album(), snapshot)
    monkeypatch.setattr(np, "__version__", "9.9")
    with pytest.raises(ViewError, match=r"numpy.* became .*9\.9.*Teach this data set again"):
        _replayed(album(), snapshot)


def test_changed_images_and_changed_partners_are_caught(tmp_path: Path, plan: ViewPlan) -> None:
    snapshot = viewed(tmp_path, plan)
    replay = Replay(album(edited=[4]), snapshot, KEYS, views=2)
    involved = [i for i in range(12) if i == 4 or replay.partners[0][i] == 4]
    assert len(involved) > 1  # p4 is a partner of another row
    for i in range(12):
        if i not in involved:
            replay.read(np.array([i]), 1, ["image"])
            continue
        with pytest.raises(ViewError, match=rf"\('p{i}', 1\).*the row or its partner was changed"):
            replay.read(np.array([i]), 1, ["image"])
    mirrored = album(image=np.ascontiguousarray(photos(12)[..., ::-1]))
    with pytest.raises(ViewError, match=r"12 views are not .* 7 more"):
        _replayed(mirrored, snapshot)
    with pytest.raises(ViewError, match="another size"):
        _replayed(album(image=photos(12, (1, 8, 7))[:, :, :4]), snapshot)
    lower = photos(12)
    lower[5, 0, 0, 0] = np.nextafter(lower[5, 0, 0, 0], np.float32(0))
    with pytest.raises(RowsError, match="three axes"):
        _replayed(album(image=lower[:, 0]), snapshot)


def test_masks_for_images_of_another_size_are_refused(tmp_path: Path) -> None:
    snapshot = viewed(tmp_path, ViewPlan((Mask(1, 0.5),)))
    with pytest.raises(ViewError, match="another size than those that the teacher saw"):
        _replayed(album(image=photos(12, (1, 8, 8))), snapshot)


def test_what_is_missing_is_said_before_training(tmp_path: Path, plan: ViewPlan) -> None:
    snapshot = viewed(tmp_path, plan, only=KEYS[:8])
    with pytest.raises(UnknownRowError, match=r"8 of 8 rows .* \('p0', 3\)"):
        Replay(album(), snapshot, KEYS[:8], views=3)
    with pytest.raises(UnknownRowError, match=r"\('p8', 1\)"):
        Replay(album(), snapshot, KEYS, views=1)
    some = chosen(album(), [0, 1])
    with pytest.raises(RowsError, match="rows that views are mixed with are not in the data set"):
        Replay(some, snapshot, KEYS[:2], views=2)
    with pytest.raises(RowsError, match="'weights'"):
        Replay(album(), snapshot, KEYS[:8], views=2).require(["image", "weights"])
    heavy = Replay(album(weight=np.ones(12)), snapshot, KEYS[:8], views=2)
    with pytest.raises(RowsError, match="rename"):
        heavy.require(["image", "weight"])
    with pytest.raises(ValueError, match="at least 1"):
        Replay(album(), snapshot, KEYS[:8], views=0)


def test_a_cache_without_views_says_how_to_make_some(tmp_path: Path) -> None:
    snapshot = taught(tmp_path, album(), looker())
    for signals in ((), ("logits",)):
        with pytest.raises(
            ViewError, match=r"no views of .*ViewedRows\(rows, plan, views=\.\.\.\)"
        ):
            Replay(album(), snapshot, KEYS, views=1, signals=signals)


def test_of_two_teachers_both_must_have_seen_the_same(tmp_path: Path, plan: ViewPlan) -> None:
    viewed(tmp_path, plan, views=1)
    snapshot = viewed(tmp_path, plan, views=1, teacher=looker("second", version="2"))
    with pytest.raises(ViewError, match="nothing says whose are meant"):
        Replay(album(), snapshot, KEYS, views=1)
    names = ["looker/logits", "second/logits"]
    replay = Replay(album(), snapshot, KEYS, views=1, signals=names)
    assert replay.teachers == ("looker", "second")
    replay.read(np.arange(12), 1, ["image"])


def test_epochs_walk_through_the_views_with_the_answers_to_each(
    tmp_path: Path, plan: ViewPlan
) -> None:
    rows, snapshot = album(), viewed(tmp_path, plan, views=3)
    shown = ViewedRows(rows, plan, views=3)
    pairs = spelled(shown.keys)
    reader = Reader(snapshot, ["logits"])
    replay = Replay(rows, snapshot, KEYS, views=3, signals=reader.names)
    columns = ("image", "label", "partner.label", "partner.image", "weight")
    loader = Loader(rows, KEYS, columns, reader, batch_size=5, seed=1, replay=replay)
    used = []
    for epoch in range(5):
        for order, batch in loader.epoch(epoch):
            view = 1 + epoch % 3
            at = np.array([pairs.index((KEYS[i], view)) for i in order])
            seen: Any = shown.read(at, ["image", "view.parameters", "view.partner"])
            assert batch["row.image"].numpy().tobytes() == seen["image"].tobytes()
            assert (batch["teacher.logits"].numpy() == gaze(seen["image"])["logits"]).all()
            partner = np.array([KEYS.index(key) for key in seen["view.partner"]])
            assert batch["row.label"].tolist() == (order % 4).tolist()
            assert batch["row.partner.label"].tolist() == (partner % 4).tolist()
            assert (batch["row.partner.image"].numpy() == photos(12)[partner]).all()
            assert (batch["row.weight"].numpy() == seen["view.parameters"]["mix"]).all()
            used += [(KEYS[i], view) for i in order]
    assert len(set(used)) == 36
    first = next(loader.ordered())["row.image"].numpy()
    assert (first == replay.read(np.arange(5), 1, ["image"])["image"]).all()
    with pytest.raises(ValueError, match="other keys"):
        Loader(rows, KEYS[:3], columns, reader, batch_size=5, replay=replay)
    other = Reader(viewed(tmp_path, plan, views=1), ["logits"])
    with pytest.raises(ValueError, match="another snapshot"):
        Loader(rows, KEYS, columns, other, batch_size=5, replay=replay)


def test_identical_rows_with_other_views_are_never_served(tmp_path: Path, plan: ViewPlan) -> None:
    """Two plans of one teacher: the second's snapshot gives the second's views alone."""
    viewed(tmp_path, plan)
    other = ViewPlan(plan.transforms, seed=1)
    snapshot = viewed(tmp_path, other)
    assert ViewedTeacher(looker(), plan).identity() != ViewedTeacher(looker(), other).identity()
    replay = Replay(album(), snapshot, KEYS, views=2)
    assert replay.plan == other
    assert len(snapshot.sources) == 1
    replay.read(np.arange(12), 2, ["image"])


def test_every_transform_at_once_is_replayed(tmp_path: Path) -> None:
    snapshot = viewed(tmp_path, ViewPlan(EVERY), views=2)
    replay = Replay(album(), snapshot, KEYS, views=2, signals=["logits"])
    batch: Any = replay.read(np.arange(12), 2, COLUMNS)
    assert set(batch) == set(COLUMNS)
    assert ((batch["weight"] >= 0) & (batch["weight"] <= 1)).all()
