"""The loader as a data source of any trainer: which rows, on which rank, and where it goes on."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stillroom.stages import ArrayRows, loader
from stillroom.stages.feeding.ahead import NAME, ahead
from stillroom.stages.feeding.feed import Feed
from stillroom.stages.loading import Loader
from stillroom.storage import Reader, Snapshot
from stillroom.storage.errors import RowsError
from tests.stages.builders import data, plain, taught
from tests.stages.loader_builders import KEYS, ROWS, equal, flat, places, threads

# More processes than cores are not wrong, only slower.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
shared_cache = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return taught(tmp_path_factory.mktemp("loader") / "c", data(ROWS), plain(signals=("logits",)))


@shared_cache
@given(
    rows=st.integers(1, ROWS),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 7),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
)
def test_ranks_share_every_epoch_and_none_waits(
    snapshot: Snapshot,
    rows: int,
    batch_size: int,
    world_size: int,
    seed: int,
    epoch: int,
    drop_last: bool,
    shuffle: bool,
) -> None:
    def feed(rank: int) -> Feed:
        return loader(
            *(snapshot, ["logits"]),
            keys=KEYS[:rows],
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            shuffle=shuffle,
            prefetch=0,
        )

    together = batch_size * world_size
    if rows < (together if drop_last else world_size):
        with pytest.raises(RowsError, match="rows were chosen, and one batch of"):
            feed(0)
        return
    ranks = []
    for rank in range(world_size):
        made = feed(rank)
        made.set_epoch(epoch)
        ranks.append(places(made))
        assert len(ranks[-1]) == len(made)
        assert made.epoch == epoch + 1
    assert len({len(rank) for rank in ranks}) == 1
    met = [place for rank in ranks for place in flat(rank)]
    assert len(met) == len(set(met))
    if drop_last:
        assert len(met) == rows // together * together
        assert all(len(batch) == batch_size for rank in ranks for batch in rank)
    else:
        assert sorted(met) == list(range(rows))
        assert all(len(batch) == batch_size for rank in ranks for batch in rank[:-1])
        last = [len(rank[-1]) for rank in ranks]
        assert max(last) - min(last) <= 1
        assert min(last) >= min(2, batch_size, rows // world_size)
        assert max(last) <= batch_size + 2
    # Together, ranks take what one process with as large batches takes: in the same order.
    order = np.arange(rows)
    if shuffle:
        order = np.random.default_rng([seed, epoch]).permutation(rows)
    assert flat([flat(step) for step in zip(*ranks, strict=True)]) == order[: len(met)].tolist()


@shared_cache
@given(
    rows=st.integers(2, ROWS),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 99),
    stop=st.integers(0, 80),
    prefetch=st.integers(0, 3),
    other=st.tuples(st.integers(1, 9), st.integers(1, 3)),
)
def test_it_goes_on_bit_by_bit_wherever_it_stopped(
    snapshot: Snapshot,
    rows: int,
    batch_size: int,
    world_size: int,
    seed: int,
    stop: int,
    prefetch: int,
    other: tuple[int, int],
) -> None:
    keys = KEYS[ROWS - rows :]

    def feed(rank: int = 0, size: int = batch_size, world: int = world_size) -> Feed:
        sizes = {"batch_size": size, "rank": rank, "world_size": world}
        how: Any = {"keys": keys, "seed": seed, "prefetch": prefetch, **sizes}
        return loader(
            snapshot, ["logits"], rows=data(ROWS), columns=["image"], compare=False, **how
        )

    if rows < world_size:
        return
    whole = feed()
    batches = [batch for _ in range(2) for batch in whole]
    stop %= len(batches)
    first = feed()
    for _ in range(2):
        if not stop:
            break
        for batch in first:
            stop -= 1
            assert equal(batch, batches.pop(0))
            if not stop:
                break
    state = json.loads(json.dumps(first.state_dict()))
    assert state == feed(world_size - 1).state_dict() | {n: state[n] for n in ("epoch", "rows")}
    second = feed()
    second.load_state_dict(state)
    rest = [batch for _ in range(2 - state["epoch"]) for batch in second]
    assert len(rest) == len(batches)
    assert all(equal(*pair) for pair in zip(rest, batches, strict=True))
    # With other sizes the same rows are left, each once.
    left = np.random.default_rng([seed, state["epoch"]]).permutation(rows)[state["rows"] :]
    others = [feed(rank, *other) for rank in range(other[1])] if rows >= other[1] else []
    if others and len(left) < other[1]:
        with pytest.raises(RowsError, match="are left of this epoch"):
            others[0].load_state_dict(state)
        return
    met = []
    for one in others:
        one.load_state_dict(state)
        met += flat(places(one))
        assert one.epoch == state["epoch"] + 1
    if others:
        assert sorted(met) == sorted(left.tolist())


def test_order_is_the_one_that_students_train_in(snapshot: Snapshot) -> None:
    reader = Reader(snapshot, ["logits"])
    theirs = Loader(data(ROWS), KEYS, ("image",), reader, batch_size=7, seed=5)
    mine = loader(snapshot, ["logits"], rows=data(ROWS), columns=["image"], batch_size=7, seed=5)
    assert len(mine) == len(theirs)
    for epoch in (0, 1, 2):
        for batch, (chosen, tensors) in zip(mine, theirs.epoch(epoch), strict=True):
            assert equal(batch, {**tensors, "batch.index": torch.from_numpy(chosen)})


def test_epochs_follow_each_other_and_a_left_one_begins_anew(snapshot: Snapshot) -> None:
    feed = loader(snapshot, ["logits"], batch_size=16)
    orders = [places(feed) for _ in range(3)]
    assert len({str(order) for order in orders}) == 3
    feed.set_epoch(1)
    iterator = iter(feed)
    taken = [next(iterator)["batch.index"].tolist() for _ in range(2)]
    assert taken == orders[1][:2]
    assert feed.state_dict()["rows"] == 32
    assert places(feed) == orders[1]
    # The one that was left goes on by itself and moves nothing.
    assert [batch["batch.index"].tolist() for batch in iterator] == orders[1][2:]
    assert feed.epoch == 2
    feed.set_epoch(0)
    feed.load_state_dict(feed.state_dict(batches=3))
    feed.set_epoch(0)  # as trainers say before every epoch
    assert places(feed) == orders[0][3:]
    assert feed.state_dict(batches=len(feed))["epoch"] == 2
    with pytest.raises(ValueError, match="expected 0 to 4, found 5"):
        feed.state_dict(batches=5)


@pytest.mark.parametrize("workers", [2])
def test_processes_of_a_dataloader_give_every_row_once(snapshot: Snapshot, workers: int) -> None:
    how: Any = {"rows": data(ROWS), "columns": ["image"], "batch_size": 8}
    feed = loader(snapshot, ["logits"], **how)
    expected = [list(feed), list(feed)]
    feed.set_epoch(0)
    through: Any = DataLoader(feed, batch_size=None, num_workers=workers)
    assert len(through) == len(feed)
    own = loader(snapshot, ["logits"], workers=workers, **how)
    for epoch in (0, 1):
        feed.set_epoch(epoch)
        for made in (through, own):
            batches = list(made)
            assert all(equal(*pair) for pair in zip(batches, expected[epoch], strict=True))
        assert own.epoch == epoch + 1
    for number, _ in enumerate(own):
        if number == 2:
            break
    second = loader(snapshot, ["logits"], workers=workers, **how)
    second.load_state_dict(own.state_dict())
    own.set_epoch(2)
    assert places(second) == places(own)[3:]


def test_a_left_iterator_leaves_no_thread(snapshot: Snapshot) -> None:
    feed = loader(snapshot, ["logits"], batch_size=4, prefetch=3)
    assert not threads()
    for _ in feed:
        assert threads() == [NAME]
        break
    gc.collect()
    assert not threads()

    def trip() -> None:
        for _ in feed:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trip()
    gc.collect()
    assert not threads()
    iterator: Any = iter(feed)
    next(iterator)
    iterator.close()
    assert not threads()
    list(feed)
    assert not threads()


def test_only_as_much_is_made_ahead_as_was_asked_for() -> None:
    made, closed = [], threading.Event()

    def source() -> Any:
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            closed.set()

    taking = ahead(source(), 2)
    assert next(taking) == 0
    taking.close()
    assert len(made) <= 3
    assert closed.is_set()
    assert list(ahead(source(), 1)) == list(range(100))


class Failing(ArrayRows):
    """Rows of which one cannot be read."""

    def read(self, places: Any, columns: Sequence[str]) -> Any:
        if 7 in places:
            raise RowsError("row 7 is broken")
        return super().read(places, columns)


@pytest.mark.parametrize("how", [{"prefetch": 0}, {"prefetch": 3}, {"workers": 2}])
def test_errors_arrive_where_the_batch_would_have(snapshot: Snapshot, how: Any) -> None:
    rows = Failing(KEYS, image=data(ROWS).read(np.arange(ROWS), ["image"])["image"])
    how = {"columns": ["image"], "batch_size": 3, "shuffle": False, **how}
    feed = loader(snapshot, ["logits"], rows=rows, **how)
    met: list[int] = []

    def take() -> None:
        for batch in feed:
            met.extend(batch["batch.index"].tolist())

    with pytest.raises(RowsError, match="row 7 is broken"):
        take()
    assert met == [0, 1, 2, 3, 4, 5]
    assert feed.state_dict()["rows"] == 6
    gc.collect()
    assert not threads()


def test_a_state_of_another_order_is_refused(snapshot: Snapshot) -> None:
    state = loader(snapshot, ["logits"], seed=1).state_dict()
    for other, name in (
        (loader(snapshot, ["logits"], seed=2), "seed"),
        (loader(snapshot, ["logits"], seed=1, keys=KEYS[1:]), "keys"),
        (loader(snapshot, ["logits"], seed=1, keys=KEYS[::-1]), "keys"),
        (loader(snapshot, ["logits"], seed=1, shuffle=False), "seed"),
    ):
        with pytest.raises(RowsError, match=f"its {name} is "):
            other.load_state_dict(state)
    same = loader(snapshot, ["logits"], seed=1)
    for wrong in ({"rows": ROWS}, {"rows": -1}, {"epoch": -1}, {"rows": "3"}, {"epoch": None}):
        with pytest.raises(RowsError, match="the state"):
            same.load_state_dict({**state, **wrong})
    same.load_state_dict(state)


@pytest.fixture
def one_process() -> Iterator[None]:
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_ranks_are_those_of_torch_distributed(snapshot: Snapshot) -> None:
    """Of one process; `test_loader_trainers.py` begins two."""
    feed = loader(snapshot, ["logits"], batch_size=10)
    assert len(feed) == 6
    assert sorted(flat(places(feed))) == list(range(ROWS))
    assert len(loader(snapshot, ["logits"], batch_size=10, rank=1, world_size=2)) == 3
