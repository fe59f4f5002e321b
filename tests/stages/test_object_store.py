"""A cache in an object store: a real S3 server on loopback, also when it misbehaves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.storage import Cache, Reader
from stillroom.storage.errors import (
    BusyError,
    CorruptShardError,
    MirrorError,
    NotACacheError,
    StoreUnreachableError,
    StoreUnsupportedError,
)
from stillroom.storage.lazy import dask_array
from stillroom.storage.mirror import Mirror
from stillroom.storage.objects import ObjectPlace
from stillroom.storage.removing import remove_tree
from stillroom.storage.testing import assert_rows_equal
from tests.stages.builders import (
    Heard,
    answers,
    data,
    every_kind,
    images,
    plain,
    student,
    taught,
    trained,
)
from tests.stages.builders import tree as local_tree
from tests.storage.s3_server import Proxy, proxy, s3_server

CREDENTIALS = {"access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"}
PATIENCE: dict[str, Any] = {"timeout": "1", "max_retries": "20", "retry_timeout": "60"}


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of an S3 server."""
    with s3_server() as port:
        yield port


@pytest.fixture
def faulty(server: int) -> Iterator[Proxy]:
    """A proxy before it."""
    with proxy(server) as running:
        yield running


def bucket(port: int, tmp_path: Path, limit_bytes: int = 2**30, **options: Any) -> ObjectPlace:
    """A prefix of its own for each test, with a mirror of its own."""
    given = {**CREDENTIALS, "endpoint": f"http://127.0.0.1:{port}", **options}
    mirror = Mirror(tmp_path / "mirror", limit_bytes)
    return ObjectPlace.at(f"s3://caches/{tmp_path.name}/c", mirror=mirror, options=given)


def tree(place: ObjectPlace) -> dict[str, bytes]:
    """Every object that is a function of teacher and rows alone, by its path in the cache."""
    found = {str(p).removeprefix(f"{place}/"): p for p in place.below()}
    skipped = {"made", "leases"}
    return {n: p.read_bytes() for n, p in found.items() if not skipped & set(n.split("/"))}


@pytest.mark.parametrize("how", ["local", "ray"])
def test_a_store_holds_the_bytes_that_a_folder_would(
    server: int, tmp_path: Path, how: str, request: pytest.FixtureRequest
) -> None:
    rows, teacher = every_kind()
    place = bucket(server, tmp_path)
    given = {"runner": request.getfixturevalue("ray_runner")} if how == "ray" else {}
    stored = taught(place, rows, teacher, **given)
    local = taught(tmp_path / "c", rows, teacher)
    assert tree(place) == local_tree(tmp_path / "c")
    order = np.random.default_rng(0).permutation(23)
    mine, theirs = Reader(stored).gather(order), Reader(local).gather(np.arange(23))
    for name in theirs:
        assert_rows_equal(mine[name], theirs[name], order.tolist())
    for name, parts in Reader(stored).stored(order).items():
        assert parts.keys() == Reader(local).stored(order)[name].keys()
    np.testing.assert_array_equal(dask_array(stored, "wide").compute(), theirs["wide"])
    assert "s3://caches" in repr(Cache(place))


def test_increments_and_reruns_work_as_in_a_folder(server: int, tmp_path: Path) -> None:
    place = bucket(server, tmp_path)
    first = taught(place)
    before = tree(place)
    heard = Heard()
    assert taught(place, listen=heard).number == first.number
    assert (heard.taught, tree(place)) == (0, before)
    edited = data(edited=[7])
    second = taught(place, edited, listen=heard)
    assert (heard.taught, second.number) == (1, 2)
    assert before.items() <= tree(place).items()
    np.testing.assert_array_equal(answers(first, data()), answers(Cache(place).snapshot(1), data()))
    third = taught(place, edited, plain("other", ["feature"]))
    assert set(third.signals) == {"logits", "feature"}


def test_a_cut_off_run_is_continued_in_a_store(server: int, tmp_path: Path) -> None:
    class Cut(RuntimeError):
        pass

    def stop(event: Any) -> None:
        heard(event)
        if heard.taught == 30:
            raise Cut

    heard, place = Heard(), bucket(server, tmp_path)
    with pytest.raises(Cut):
        taught(place, listen=stop)
    again = Heard()
    taught(place, listen=again)
    assert again.taught == 30
    taught(tmp_path / "whole")
    assert tree(place) == local_tree(tmp_path / "whole")


def test_students_train_from_a_store_as_from_a_folder(server: int, tmp_path: Path) -> None:
    snapshots = [taught(bucket(server, tmp_path)), taught(tmp_path / "c")]
    records = [
        trained(tmp_path / f"s{i}", [student()], snapshot)[0]
        for i, snapshot in enumerate(snapshots)
    ]
    assert records[0].weights.read_bytes() == records[1].weights.read_bytes()


def test_reading_asks_the_store_for_each_shard_once_and_never_for_a_listing(
    faulty: Proxy, tmp_path: Path
) -> None:
    place = bucket(faulty.port, tmp_path)
    taught(place)
    faulty.seen.clear()
    reader = Reader(Cache(place).snapshot(1))
    listings = [path for method, path in faulty.seen if "list-type" in path]
    assert len(listings) == 1  # which snapshots there are
    faulty.seen.clear()
    assert len(reader.gather(["r0", "r1"])["logits"]) == 2
    assert [method for method, _ in faulty.seen] == ["GET"]  # one of six shards
    orders = [np.random.default_rng(i).permutation(60) for i in range(20)]
    for order in orders:
        reader.take(order)
    assert len(faulty.seen) == 6
    assert not [path for _, path in faulty.seen if "list-type" in path]
    again = Reader(Cache(place).snapshot(1))
    faulty.seen.clear()
    np.testing.assert_array_equal(again.take(orders[0])["logits"], images(60)[orders[0], :4] * 2)
    assert faulty.seen == []  # all of it is in the mirror


def test_a_mirror_smaller_than_the_cache_keeps_its_limit_and_serves_any_order(
    server: int, tmp_path: Path
) -> None:
    rows, teacher = every_kind()
    taught(bucket(server, tmp_path), rows, teacher)
    sizes = [len(p.read_bytes()) for p in bucket(server, tmp_path).below()]
    limit = max(sizes) + 1000
    assert limit < sum(sizes) / 2
    remove_tree(tmp_path / "mirror")
    reader = Reader(Cache(bucket(server, tmp_path, limit)).snapshot())
    expected = Reader(taught(tmp_path / "c", rows, teacher)).gather(np.arange(23))
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(23)
        for name, found in reader.gather(order).items():
            assert_rows_equal(found, expected[name], order.tolist())
        kept = sum(p.stat().st_size for p in (tmp_path / "mirror").iterdir())
        assert kept <= limit
    with pytest.raises(MirrorError, match=r"STILLROOM_MIRROR_BYTES, or teach with fewer rows"):
        Reader(Cache(bucket(server, tmp_path, 50)).snapshot())


def test_a_spoilt_copy_is_fetched_again_and_a_spoilt_object_is_named(
    server: int, tmp_path: Path
) -> None:
    place = bucket(server, tmp_path)
    expected = answers(taught(place), data())
    for path in (tmp_path / "mirror").iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    np.testing.assert_array_equal(answers(Cache(place).snapshot(), data()), expected)
    (victim,) = [p for p in place.below() if str(p).endswith("logits/c/2/0")]
    content = bytearray(victim.read_bytes())
    content[9] ^= 4
    victim.put(bytes(content))
    remove_tree(tmp_path / "mirror")
    reader = Reader(Cache(place).snapshot())
    assert len(reader.gather(["r0", "r59"])["logits"]) == 2
    with pytest.raises(CorruptShardError, match=r"s3://caches/.*logits/c/2/0.*checksum"):
        reader.gather(["r25"])
    victim.remove()
    with pytest.raises(CorruptShardError, match=r"s3://caches/.*logits/c/2/0 is missing"):
        reader.gather(["r25"])


@pytest.mark.parametrize("seed", range(1))
def test_errors_silence_slowness_and_lost_answers_change_nothing(
    faulty: Proxy, tmp_path: Path, seed: int
) -> None:
    place = bucket(faulty.port, tmp_path, **PATIENCE)
    faulty.random.seed(seed)
    faulty.rates = {"error": 0.1, "slow": 0.05, "silence": 0.01, "lost": 0.1, "cut": 0.05}
    snapshot = taught(place, data())
    edited = taught(place, data(edited=[3]))
    mine = answers(snapshot, data()), answers(edited, data(edited=[3]))
    faulty.rates = {}
    assert sum(faulty.struck.values()) > 20
    taught(tmp_path / "c", data())
    taught(tmp_path / "c", data(edited=[3]))
    assert tree(place) == local_tree(tmp_path / "c")
    np.testing.assert_array_equal(mine[0], images(60)[:, :4] * 2)
    np.testing.assert_array_equal(mine[1][4:], mine[0][4:])


def test_a_store_that_is_down_is_named_and_nothing_is_harmed(faulty: Proxy, tmp_path: Path) -> None:
    place = bucket(faulty.port, tmp_path, timeout="1", max_retries="2", retry_timeout="2")
    taught(place)
    before = tree(place)
    faulty.rates = {"error": 1.0}
    started = time.monotonic()
    with pytest.raises(StoreUnreachableError, match=r"s3://caches/.*AWS_ENDPOINT_URL"):
        taught(place, data(edited=[1]))
    assert time.monotonic() - started < 30
    faulty.rates = {}
    assert tree(place) == before
    assert taught(place, data(edited=[1])).number == 2


def test_the_same_teacher_is_refused_and_another_goes_on(server: int, tmp_path: Path) -> None:
    place = bucket(server, tmp_path)
    digest = taught(place).sources[0].digest
    with Cache(place).writing(digest):
        with pytest.raises(BusyError, match=r"s3://caches/\S+/c is busy: teaching .* by process"):
            taught(place, data(edited=[1]))
        taught(place, data(), plain("other", ["feature"], version="2"))
    assert taught(place, data(edited=[1])).number == 3


def test_a_place_without_a_cache_says_so(server: int, tmp_path: Path) -> None:
    with pytest.raises(NotACacheError, match="s3://caches/"):
        Cache(bucket(server, tmp_path))
    (bucket(server, tmp_path) / "something").put(b"else")
    with pytest.raises(NotACacheError, match=r"no cache\.json"):
        Cache.at(bucket(server, tmp_path))


def test_a_fork_is_told_that_it_cannot_reach_the_store(server: int, tmp_path: Path) -> None:
    place = bucket(server, tmp_path)
    assert not place.exists()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            place.exists()
        except StoreUnsupportedError as error:
            code = 7 if "multiprocessing_context='spawn'" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert not place.exists()


def test_urls_name_places_with_settings_from_the_environment(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("STILLROOM_MIRROR", str(tmp_path / "mirror"))
    url = f"s3://caches/{tmp_path.name}/by-url"
    snapshot = taught(url)
    assert answers(snapshot, data()).shape == (60, 4)
    assert list((tmp_path / "mirror").iterdir())
    assert str(Cache(url).path) == url
