"""WebDataset's tars: written by tarfile in every format, cut anywhere, with hostile members."""

from __future__ import annotations

import gzip
import importlib
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray import cloudpickle

from stillroom.stages import ArrayRows, Decode, TarRows
from stillroom.stages.data import tar_index
from stillroom.stages.data.tar_fields import read_npy
from stillroom.stages.data.tar_index import find_shards, read_index, split_name
from stillroom.storage.errors import RowsError
from tests.stages.containers import npy, write_tar
from tests.stages.test_image_rows import JPEG, encoded, picture

quick = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def members(rows: range) -> list[tuple[str, bytes]]:
    """Image, class, caption, notes and an array of each row."""
    found = []
    for i in rows:
        key = f"some/{i:04}"
        found += [
            (f"{key}.PNG", encoded(picture(i))),
            (f"{key}.cls", f"{i % 3}\n".encode()),
            (f"{key}.txt", f"row {i} é".encode()),
            (f"{key}.json", b'{"a": [1, null]}'),
            (f"{key}.box.npy", npy(np.arange(4, dtype="f4") + i)),
        ]
    return found


def in_memory(rows: range) -> ArrayRows:
    """The same rows."""
    return ArrayRows(
        [f"some/{i:04}" for i in rows],
        **{
            "png": [encoded(picture(i)) for i in rows],
            "cls": np.array([i % 3 for i in rows]),
            "txt": [f"row {i} é" for i in rows],
            "json": ['{"a": [1, null]}' for _ in rows],
            "box.npy": np.arange(4, dtype="f4") + np.array(rows, "f4")[:, None],
        },
    )


@pytest.mark.parametrize("form", FORMATS)
def test_members_of_one_name_are_a_row(tmp_path: Path, form: int) -> None:
    write_tar(tmp_path / "a-000.tar", members(range(5)), form)
    write_tar(tmp_path / "a-001.tar", members(range(5, 9))[::-1], form)
    rows = TarRows(f"{tmp_path}/a-{{000..001}}.tar")
    assert sorted(rows.columns) == sorted(in_memory(range(1)).columns)
    order = [0, 1, 2, 3, 4, 8, 7, 6, 5]
    assert rows.keys.to_pylist() == [f"some/{i:04}" for i in order]
    expected = in_memory(range(9))
    for column in rows.columns:
        hashed = expected.hashes([column])[order]
        np.testing.assert_array_equal(rows.hashes([column]), hashed, err_msg=column)
        found, wanted = (
            rows.read(np.array([8, 1]), [column]),
            expected.read(np.array([5, 1]), [column]),
        )
        assert str(found) == str(wanted)
    np.testing.assert_array_equal(
        rows.hashes(rows.columns), expected.hashes(expected.columns)[order]
    )


def test_columns_can_be_named_and_images_decoded(tmp_path: Path) -> None:
    mixed = [("0.jpg", JPEG), ("0.cls", b"1"), ("1.png", encoded(picture(2))), ("1.cls", b"2")]
    path = write_tar(tmp_path / "a.tar", mixed)
    ways = {"image": "jpg;png", "label": "cls"}
    rows = TarRows(path, columns=ways, decode={"image": Decode((6, 7))})
    image: Any = rows.read(np.arange(2), ["image"])["image"]
    assert image.shape == (2, 6, 7, 3)
    np.testing.assert_array_equal(image[0], Decode((6, 7))(JPEG))
    raw = TarRows(path, columns=ways)
    assert (rows.hashes(["label"]) == raw.hashes(["label"])).all()
    assert (rows.hashes(["image"]) != raw.hashes(["image"])).all()
    with pytest.raises(
        RowsError, match=r"row '0' .*no field 'png', but cls, jpg; name with columns="
    ):
        TarRows(path)
    with pytest.raises(RowsError, match="no row has a field 'jpge'; did you mean 'jpg'"):
        TarRows(path, columns=["jpge"])
    with pytest.raises(ValueError, match="'x': jpg, cls are not of one kind"):
        TarRows(path, columns={"x": "jpg;cls"})
    with pytest.raises(ValueError, match="decode= names 'label', no column of images"):
        TarRows(path, columns=ways, decode={"label": Decode()})


def test_folders_lists_and_ranges_of_tars_are_found(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "_c.tar", "d-08.tar", "d-09.tar", "d-10.tar", "e.txt"):
        write_tar(tmp_path / name, members(range(1)))
    names = [path.name for path in find_shards(tmp_path)]
    assert names == ["a.tar", "b.tar", "d-08.tar", "d-09.tar", "d-10.tar"]
    assert [p.name for p in find_shards(f"{tmp_path}/d-{{08..10}}.tar")] == names[2:]
    with pytest.raises(FileNotFoundError, match=r"no tar at .*d-11"):
        find_shards(f"{tmp_path}/d-{{10..11}}.tar")
    with pytest.raises(ValueError, match="no range of shards"):
        find_shards("{5..1}.tar")
    with pytest.raises(RowsError, match=r"a\.tar is named more than once"):
        find_shards([tmp_path / "a.tar", tmp_path])
    (tmp_path / "none").mkdir()
    with pytest.raises(RowsError, match=r"holds no \.tar file"):
        find_shards(tmp_path / "none")


def test_an_index_is_kept_until_a_tar_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", members(range(3)))
    write_tar(tmp_path / "b.tar", [*members(range(3, 5)), ("nodot", b"")])
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:8000])
    indexed: list[str] = []

    def counted(path: Path) -> Any:
        indexed.append(path.name)
        return read_index(path)

    monkeypatch.setattr(tar_index, "read_index", counted)

    def opened() -> tuple[Any, ...]:
        rows = TarRows(tmp_path, index=tmp_path / "index.json", broken="skip")
        said = rows.keys.to_pylist(), rows.skipped, rows.left_out, rows.fingerprint(rows.columns)
        read = sorted(indexed)
        indexed.clear()
        return said, read

    first, read = opened()
    assert (read, len(first[1])) == (["a.tar", "b.tar"], 2)
    assert opened() == (first, [])
    write_tar(tmp_path / "b.tar", members(range(3, 6)))
    second, read = opened()
    assert (read, len(second[0])) == (["b.tar"], 6)
    (tmp_path / "index.json").write_text('{"format": 1, "shards": [{"path": 3}]}')
    assert opened() == (second, ["a.tar", "b.tar"])
    assert opened() == (second, [])


def test_keys_in_two_places_are_named_with_both(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "a.tar", members(range(3)))
    other = write_tar(tmp_path / "b.tar", members(range(2, 4)))
    with pytest.raises(
        RowsError, match=r"'some/0002' \(.*a\.tar, byte [\d,]+ and .*b\.tar, byte 512\)"
    ):
        TarRows([one, other], broken="skip")
    apart = [("x.a", b"1"), ("y.a", b"2"), ("x.b", b"3")]
    with pytest.raises(RowsError, match=r"1 keys stand .* 'x' \(.*byte 512 and .*byte 2,560\)"):
        TarRows(write_tar(tmp_path / "c.tar", apart), columns=["a"], broken="skip")
    twice = write_tar(tmp_path / "d.tar", [("x.a", b"1"), ("x.a", b"2")])
    with pytest.raises(RowsError, match=r"row 'x' .*: more than one field 'a'"):
        TarRows(twice)


def test_compressed_and_other_files_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members(range(2)))
    for name, content, said in [
        ("a.tar.gz", gzip.compress(path.read_bytes()), r"a\.tar\.gz is compressed \(gzip\)"),
        ("b.tar", gzip.compress(path.read_bytes()), r"b\.tar is compressed \(gzip\)"),
        ("c.tar", b"", r"c\.tar is empty, 0 bytes"),
        ("d.tar", b"no tar at all" * 99, r"d\.tar is no tar"),
        ("e.tar", b"short", r"e\.tar is no tar"),
        ("f.tar", bytes(10240), r"f\.tar: no member is named key\.field"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RowsError, match=said):
            TarRows(tmp_path / name, broken="skip")


def test_hostile_names_are_only_keys_and_other_members_are_listed(tmp_path: Path) -> None:
    given = [
        ("../../up.txt", b"a"),
        ("/etc/abs.txt", b"b"),
        ("__notes__/x.txt", b""),
        ("nodot", b""),
    ]
    given += [(".hidden.txt", b""), ("d/.x.txt", b""), ("./here.txt", b"c")]
    (tmp_path / "in").mkdir()
    path = write_tar(tmp_path / "in" / "a.tar", given)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder.txt")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    before = sorted(tmp_path.rglob("*"))
    rows = TarRows(path)
    assert rows.keys.to_pylist() == ["../../up", "/etc/abs", "./here"]
    assert rows.read(np.arange(3), ["txt"]) == {"txt": ["a", "b", "c"]}
    assert {name.rpartition(": ")[2]: why for name, why in rows.left_out.items()} == {
        "__notes__/x.txt": "notes about the tar, by its name",
        "nodot": "its name has no key and field: key.field",
        ".hidden.txt": "its name has no key and field: key.field",
        "d/.x.txt": "its name has no key and field: key.field",
        "link.txt": "no plain file",
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_declared_sizes_are_not_believed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.txt", b"x"), ("b.txt", b"y")], tarfile.GNU_FORMAT)
    whole = path.read_bytes()
    for size in (2**40, -1024, -(2**40)):
        member = tarfile.TarInfo("b.txt")
        member.size = size
        head = member.tobuf(tarfile.GNU_FORMAT)
        path.write_bytes(whole[:1024] + head + whole[1536:])
        with pytest.raises(RowsError, match=r"a\.tar.*'b\.txt' at byte 1,024"):
            TarRows(path)
        rows = TarRows(path, broken="skip")
        assert rows.keys.to_pylist() == ["a"]
        assert str(path) in rows.skipped
    array = npy(np.zeros(3))
    vast = array.replace(b"(3,), }" + b" " * 13, b"(3000000000000000,)}")
    assert len(vast) == len(array)
    with pytest.raises(RowsError, match=r"float64 of shape \(3000000000000000,\), .* holds 24"):
        read_npy(vast)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.cls", b"three", r"column 'cls': b'three' is no whole number"),
        ("x.cls", b"9" * 40, r"column 'cls': b'9+'\.\.\. is no whole number of 64 bits"),
        ("x.txt", b"\xff\xfe", r"column 'txt': it is no UTF-8"),
        ("x.json", b'{"a": ', r"column 'json': it is no JSON"),
        ("x.json", b"[" * 100_000, r"column 'json': it is no JSON"),
        (
            "x.npy",
            npy(np.zeros(3))[:-1],
            r"column 'npy': it says float64 of shape \(3,\), 24 bytes",
        ),
        ("x.npy", b"\x93NUMPY", r"column 'npy': it is no \.npy"),
        ("x.jpg", JPEG[:200], r"column 'jpg': the image cannot be decoded"),
    ],
    ids=range(8),
)
def test_a_field_that_is_not_what_it_says_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    field = name.rpartition(".")[2]
    good = {"cls": b"1", "txt": b"a", "json": b"{}", "npy": npy(np.zeros(3)), "jpg": JPEG}[field]
    path = write_tar(tmp_path / "a.tar", [(f"a.{field}", good), (name, content)])
    decode = {"jpg": Decode()} if field == "jpg" else None
    with pytest.raises(RowsError, match=rf"row 'x' \(.*a\.tar, byte [\d,]+\): {reason}"):
        TarRows(path, decode=decode).read(np.arange(2), [field])
    rows = TarRows(path, broken="skip")
    assert rows.keys.to_pylist() == ["a"]
    assert re.search(reason, rows.skipped["x"])
    alone = write_tar(tmp_path / "b.tar", [(f"a.{field}", good)])
    np.testing.assert_array_equal(rows.hashes([field]), TarRows(alone).hashes([field]))


def test_python_objects_are_not_unpickled(tmp_path: Path) -> None:
    import io

    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    path = write_tar(tmp_path / "a.tar", [("x.npy", file.getvalue()), ("x.pyd", b"cos\nsystem\n.")])
    with pytest.raises(RowsError, match=r"it holds object; .* would have to be unpickled"):
        TarRows(path).read(np.array([0]), ["npy"])
    assert TarRows(path).read(np.array([0]), ["pyd"]) == {"pyd": [b"cos\nsystem\n."]}


WHOLE = [(f"k{i}.{field}", bytes([i]) * (300 * i)) for i in range(5) for field in ("a", "b")]


@quick
@given(st.integers(1, 10_239), st.sampled_from(FORMATS))
def test_a_tar_that_ends_anywhere_is_never_taken_for_whole(
    tmp_path: Path, end: int, form: int
) -> None:
    path = write_tar(tmp_path / "a.tar", WHOLE, form)
    content = path.read_bytes()
    complete = TarRows(path)
    hashes = complete.hashes(["a", "b"])
    last = max(i for i, byte in enumerate(content) if byte) + 1
    path.write_bytes(content[:end])
    if end >= -(-last // 512) * 512 + 512:
        assert TarRows(path).keys.equals(complete.keys)  # all members and a block that ends them
        return
    with pytest.raises(RowsError, match=r"a\.tar"):
        TarRows(path)
    try:
        rows = TarRows(path, columns=["a", "b"], broken="skip")
    except RowsError:
        assert end < 4 * 512  # there is not even one row
        return
    assert str(path) in rows.skipped
    left = rows.keys.to_pylist()
    assert left == complete.keys.to_pylist()[: len(left)]
    np.testing.assert_array_equal(rows.hashes(["a", "b"]), hashes[: len(left)])


NAMES = st.text("ab./é_", min_size=1, max_size=8).filter(lambda n: not n.endswith("/"))


@quick
@given(st.lists(NAMES, max_size=12, unique=True), st.sampled_from(FORMATS))
def test_names_are_cut_as_webdataset_cuts_them(tmp_path: Path, names: list[str], form: int) -> None:
    expected: dict[str, list[str]] = {}
    for name in names:
        found = re.match(
            r"^((?:.*/|)[^.]+)[.]([^/]*)$", name
        )  # webdataset.tariterators.base_plus_ext
        cut = split_name(name)
        if cut is None:
            # What is taken by it and not here: no field, or a key that is a folder with nothing behind it.
            assert found is None or not found[2] or found[1].endswith("/")
        else:
            assert found is not None
            assert (found[1], found[2].lower()) == cut
            expected.setdefault(cut[0], []).append(cut[1])
    path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names], form)
    try:
        rows = TarRows(path, broken="skip")
    except RowsError:
        return
    assert {*rows.keys.to_pylist(), *rows.skipped} == expected.keys()


def test_a_tar_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members(range(3)))
    before = TarRows(path, trust="mtime").fingerprint(["txt"])
    rows = TarRows(path)
    sent = cloudpickle.dumps(rows)  # type: ignore[no-untyped-call]
    assert encoded(picture(1)) not in sent
    os.utime(path, ns=(1, 1))
    for use in (lambda: rows.read(np.array([1]), ["txt"]), lambda: rows.hashes(["txt"])):
        with pytest.raises(RowsError, match="the tar changed since these rows were opened"):
            use()
    assert TarRows(path, trust="mtime").fingerprint(["txt"]) != before
    assert TarRows(path).fingerprint(["txt"]) == TarRows(path).fingerprint(["txt"])
    path.unlink()
    with pytest.raises(RowsError, match="the tar cannot be read: No such file"):
        rows.read(np.array([1]), ["txt"])


@pytest.mark.slow
def test_webdataset_itself_reads_and_writes_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    webdataset = importlib.import_module("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/a-%03d.tar", maxcount=7, verbose=0) as sink:
        for i in range(20):
            row = {"__key__": f"some/{i:04}", "jpg": encoded(picture(i), "JPEG"), "cls": i % 3}
            sink.write({**row, "txt": f"row {i} é", "box.npy": np.arange(4, dtype="f4") + i})
    rows = TarRows(tmp_path)
    itself = list(webdataset.WebDataset(f"{tmp_path}/a-{{000..002}}.tar", shardshuffle=False))
    assert rows.keys.to_pylist() == [row["__key__"] for row in itself]
    batch: Any = rows.read(np.arange(20), rows.columns)
    assert batch["jpg"] == [row["jpg"] for row in itself]
    assert batch["txt"] == [row["txt"].decode() for row in itself]
    assert batch["cls"].tolist() == [int(row["cls"]) for row in itself]
    np.testing.assert_array_equal(batch["box.npy"][:, 0], np.arange(20))
