"""Folders of image files: real files, links, hidden names, cut and hostile images."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from ray import cloudpickle

from stillroom.stages import ArrayRows, Decode, FunctionTeacher, ImageFolderRows
from stillroom.stages.data import image_rows
from stillroom.stages.data.images import check_image
from stillroom.stages.events import RowsSkipped
from stillroom.storage.errors import RowsError
from tests.stages.builders import Heard, taught


def picture(seed: int, height: int = 12, width: int = 10) -> Any:
    """A picture of noise."""
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Any, form: str = "PNG", **how: Any) -> bytes:
    """A picture as the content of a file."""
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """These files below a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


FORMS = {"png": "PNG", "JPG": "JPEG", "bmp": "BMP", "webp": "WEBP", "tiff": "TIFF", "gif": "GIF"}
CLASSED = {
    f"{'zebra' if i % 2 else 'é cat/tabby'}/{i}.{end}": encoded(picture(i), form)
    for i, (end, form) in enumerate(FORMS.items())
}


def test_class_folders_are_rows_as_arrays_in_memory_are(tmp_path: Path) -> None:
    rows = ImageFolderRows(write(tmp_path, CLASSED))
    keys = sorted(CLASSED)
    assert rows.keys.to_pylist() == keys
    assert (rows.columns, rows.classes) == (("image", "label", "class_name"), ("zebra", "é cat"))
    label = np.array([int("é" in key) for key in keys])
    name = [rows.classes[i] for i in label]
    expected = ArrayRows(keys, image=[CLASSED[k] for k in keys], label=label, class_name=name)
    for column in rows.columns:
        np.testing.assert_array_equal(rows.hashes([column]), expected.hashes([column]))
    np.testing.assert_array_equal(rows.hashes(rows.columns), expected.hashes(expected.columns))
    at = np.array([3, 0, 3])
    assert rows.read(at, ["image"])["image"] == expected.read(at, ["image"])["image"]
    np.testing.assert_array_equal(rows.read(at, ["label"])["label"], label[at])


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(picture(i)) for i in range(3)}
    rows = ImageFolderRows(write(tmp_path, files))
    assert (rows.columns, rows.classes, len(rows)) == (("image",), (), 3)
    assert ImageFolderRows(write(tmp_path, CLASSED), labels=False).columns == ("image",)


def test_decoded_images_are_those_of_pillow(tmp_path: Path) -> None:
    folder = write(tmp_path, CLASSED)
    rows = ImageFolderRows(folder, decode=Decode())
    found: Any = rows.read(np.arange(6), ["image"])["image"]
    assert (found.shape, found.dtype) == ((6, 12, 10, 3), np.uint8)
    for key, image in zip(rows.keys.to_pylist(), found, strict=True):
        np.testing.assert_array_equal(
            image, np.asarray(Image.open(io.BytesIO(CLASSED[key])).convert("RGB"))
        )
    small: Any = ImageFolderRows(folder, decode=Decode((5, 4), "L", "box")).read(
        np.array([2]), ["image"]
    )["image"]
    plain = Image.open(io.BytesIO(CLASSED[rows.keys[2].as_py()])).convert("L")
    np.testing.assert_array_equal(small[0], np.asarray(plain.resize((4, 5), Image.Resampling.BOX)))


def test_hashes_cover_bytes_and_settings_and_no_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, CLASSED)
    ways = [
        None,
        Decode(),
        Decode(mode="L"),
        Decode((4, 4)),
        Decode((4, 5)),
        Decode((4, 4), resize="box"),
    ]
    made = [ImageFolderRows(folder, decode=way) for way in ways]
    hashes = {bytes(rows.hashes(["image"])[0]) for rows in made}
    assert len(hashes) == len({rows.fingerprint(["image"]) for rows in made}) == len(ways)
    monkeypatch.setattr(Decode, "__call__", lambda *_: pytest.fail("an image was decoded"))
    again = ImageFolderRows(folder, decode=Decode((4, 4)))
    np.testing.assert_array_equal(again.hashes(["image"]), made[3].hashes(["image"]))


def test_a_fingerprint_sees_what_is_trusted(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", CLASSED)

    def prints(path: Path) -> tuple[str, str]:
        content = ImageFolderRows(path).fingerprint(["image", "label"])
        return content, ImageFolderRows(path, trust="mtime").fingerprint(["image", "label"])

    before = prints(folder)
    moved = Path(shutil.copytree(folder, tmp_path / "b"))
    assert prints(moved) == before  # copytree keeps times
    path = moved / "zebra" / "1.JPG"
    state, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    edited = prints(moved)
    assert edited[0] != before[0]
    assert edited[1] == before[1]  # as documented
    os.utime(path, ns=(0, 5))
    assert prints(moved)[1] != before[1]
    path.rename(path.with_name("other.JPG"))
    assert len({before, edited, prints(moved)}) == 3


def test_what_is_sent_to_a_worker_is_names_and_not_images(tmp_path: Path) -> None:
    rows = ImageFolderRows(write(tmp_path, CLASSED), decode=Decode((3, 3)))
    rows.hashes(["image"])
    sent = cloudpickle.dumps(rows)  # type: ignore[no-untyped-call]
    assert not any(content in sent for content in CLASSED.values())
    again: ImageFolderRows = cloudpickle.loads(sent)
    np.testing.assert_array_equal(again.hashes(rows.columns), rows.hashes(rows.columns))
    np.testing.assert_array_equal(
        again.read(np.array([4]), ["image"])["image"], rows.read(np.array([4]), ["image"])["image"]
    )


def test_links_are_followed_and_other_names_are_listed(tmp_path: Path) -> None:
    content = encoded(picture(1))
    elsewhere = write(tmp_path / "elsewhere", {"x.png": content})
    names = {
        "a/1.png": content,
        "a/.2.png": b"",
        "a/notes.txt": b"",
        ".git/3.png": b"",
        "a/png": b"",
    }
    folder = write(tmp_path / "rows", names)
    (folder / "empty").mkdir()
    (folder / "a" / "link.png").symlink_to(elsewhere / "x.png")
    (folder / "b").symlink_to(elsewhere)
    rows = ImageFolderRows(folder)
    assert rows.keys.to_pylist() == ["a/1.png", "a/link.png", "b/x.png"]
    assert rows.classes == ("a", "b")
    assert rows.left_out == {
        ".git": "a hidden name",
        "a/.2.png": "a hidden name",
        "a/notes.txt": "no image by its ending",
        "a/png": "no image by its ending",
        "empty/": "a folder without images",
    }
    (folder / "b2").symlink_to(folder)
    with pytest.raises(RowsError, match="rows/b2 is a link to a folder that it lies in"):
        ImageFolderRows(folder)


def test_classes_can_be_given_and_keep_their_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path, {f"{n}/x.png": encoded(picture(1)) for n in "bd"})
    rows = ImageFolderRows(folder, classes=["a", "b", "c", "d"])
    assert rows.read(np.arange(2), ["label"])["label"].tolist() == [1, 3]  # type: ignore[union-attr]
    with pytest.raises(RowsError, match="d is no class; known: a, b"):
        ImageFolderRows(folder, classes=["a", "b"])
    with pytest.raises(ValueError, match="classes= names b more than once"):
        ImageFolderRows(folder, classes=["b", "b", "d"])
    write(folder, {"beside.png": encoded(picture(1))})
    with pytest.raises(
        RowsError, match=r"holds images \(beside.png\) beside folders of images \(b\)"
    ):
        ImageFolderRows(folder)
    with pytest.raises(RowsError, match=r"beside.png lies in no class folder"):
        ImageFolderRows(folder, labels=True)
    assert len(ImageFolderRows(folder, labels=False)) == 3


def test_nothing_and_no_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no images at"):
        ImageFolderRows(tmp_path / "none")
    write(tmp_path, {"x.txt": b""})
    with pytest.raises(RowsError, match=r"holds no image .* 1 other names lie in it"):
        ImageFolderRows(tmp_path)
    with pytest.raises(RowsError, match=r"x\.txt is no folder"):
        ImageFolderRows(tmp_path / "x.txt")
    with pytest.raises(ValueError, match="trust 'mtim'; did you mean 'mtime'"):
        ImageFolderRows(tmp_path, trust="mtim")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="broken='ignore'; known: skip, stop"):
        ImageFolderRows(write(tmp_path, CLASSED), broken="ignore")  # type: ignore[arg-type]
    for wrong in ((0, 4), (4,), (4.0, 4)):
        with pytest.raises(ValueError, match="expected \\(height, width\\) in pixels"):
            Decode(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resize 'bicubi'; did you mean 'bicubic'"):
        Decode(resize="bicubi")  # type: ignore[arg-type]


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


JPEG = encoded(picture(5, 40, 40), "JPEG")
BROKEN: list[tuple[bytes, str]] = [
    (JPEG[: len(JPEG) // 2], "cannot be decoded: image file is truncated"),
    (JPEG[:-9], "cannot be decoded"),
    (JPEG[:20], "cannot be decoded"),
    (b"", "an empty file, 0 bytes"),
    (b"<html>not found</html>", "no image that Pillow knows"),
    (encoded(picture(1))[:-40], "cannot be decoded"),
    (bomb(100_000, 100_000), r"larger than PIL.Image.MAX_IMAGE_PIXELS allows"),
    (bomb(10_000, 10_000), r"larger than PIL.Image.MAX_IMAGE_PIXELS allows"),
    (bomb(3, 2_000_000_000), r"larger than PIL.Image.MAX_IMAGE_PIXELS allows"),
]


@pytest.mark.parametrize(("content", "reason"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_image_stops_or_is_skipped_by_name(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    folder = write(tmp_path, {**CLASSED, "zebra/bad.jpg": content})
    with pytest.raises(RowsError, match=rf"row 'zebra/bad\.jpg' \(.*bad\.jpg\): .*{reason}"):
        ImageFolderRows(folder, decode=Decode((4, 4))).read(np.arange(7), ["image"])
    for decode in (None, Decode()):
        rows = ImageFolderRows(folder, decode=decode, broken="skip")
        assert rows.keys.to_pylist() == sorted(CLASSED)
        assert rows.classes == ("zebra", "é cat")
        (key,) = rows.skipped
        assert key == "zebra/bad.jpg"
        assert re.search(reason, rows.skipped[key])
        (folder / key).rename(tmp_path / "aside")
        plain = ImageFolderRows(folder, decode=decode)
        np.testing.assert_array_equal(rows.hashes(rows.columns), plain.hashes(plain.columns))
        assert rows.fingerprint(["image"]) == plain.fingerprint(["image"])
        (tmp_path / "aside").rename(folder / key)


def test_every_cut_of_a_jpeg_is_noticed() -> None:
    check_image(JPEG)
    for end in [*range(0, len(JPEG), 97), len(JPEG) - 3]:
        with pytest.raises(RowsError):
            check_image(JPEG[:end])


def test_an_image_of_another_size_is_named_with_the_first(tmp_path: Path) -> None:
    folder = write(tmp_path, {**CLASSED, "zebra/wide.png": encoded(picture(1, 12, 30))})
    rows = ImageFolderRows(folder, decode=Decode())
    with pytest.raises(
        RowsError, match=r"'image' is \|u1\(12, 10, 3\) in .* \|u1\(12, 30, 3\) in .*wide"
    ):
        rows.read(np.arange(7), ["image"])
    rows = ImageFolderRows(folder, decode=Decode(), broken="skip")
    said = "column 'image' is |u1(12, 30, 3), most rows have |u1(12, 10, 3)"
    assert rows.skipped == {"zebra/wide.png": said}
    assert len(ImageFolderRows(folder, decode=Decode((12, 10)), broken="skip").skipped) == 0


def test_links_to_nothing_pipes_and_odd_names_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, CLASSED)
    (folder / "zebra" / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "zebra" / "pipe.png")
    (Path(os.fsdecode(bytes(folder) + b"/zebra/\xff.png"))).write_bytes(encoded(picture(1)))
    with pytest.raises(
        RowsError, match=r"row 'zebra/gone.png' .*: a link to .*nothing, where nothing is"
    ):
        ImageFolderRows(folder)
    rows = ImageFolderRows(folder, broken="skip")
    assert len(rows) == 6
    assert rows.skipped["zebra/pipe.png"] == "no plain file"
    assert "no UTF-8" in rows.skipped[r"'zebra/\udcff.png'"]


def test_wide_channels_and_a_switched_off_guard_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deep = encoded(Image.fromarray(np.full((3, 3), 40_000, np.uint16)))
    check_image(deep)
    with pytest.raises(RowsError, match="has mode I;16, more than 8 bits a channel"):
        Decode()(deep)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RowsError, match="LOAD_TRUNCATED_IMAGES was switched on"):
        Decode()(JPEG)


@pytest.mark.parametrize("change", ["edited", "gone"])
def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path, change: str) -> None:
    rows = ImageFolderRows(write(tmp_path, CLASSED))
    path = tmp_path / "zebra" / "3.webp"
    path.write_bytes(b"other") if change == "edited" else path.unlink()
    with pytest.raises(
        RowsError, match=r"row 'zebra/3.webp' .*: it (changed since|cannot be read)"
    ):
        rows.read(np.arange(6), ["image"])
    with pytest.raises(RowsError, match=r"row 'zebra/3\.webp'"):
        rows.hashes(["image"])


def test_what_was_found_broken_is_remembered_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "rows", {**CLASSED, "zebra/bad.jpg": JPEG[:99]})
    checked: list[int] = []

    def counted(content: bytes) -> None:
        checked.append(len(content))
        check_image(content)

    monkeypatch.setattr(image_rows, "check_image", counted)

    def skipped() -> tuple[list[Any], int]:
        checked.clear()
        rows = ImageFolderRows(folder, broken="skip", remember=tmp_path / "broken.json")
        return list(rows.skipped), len(checked)

    assert skipped() == (["zebra/bad.jpg"], 7)
    assert skipped() == (["zebra/bad.jpg"], 0)
    (folder / "zebra" / "bad.jpg").write_bytes(JPEG)
    assert skipped() == ([], 7)
    (tmp_path / "broken.json").write_text('{"state": 1}')
    assert skipped() == ([], 7)
    with pytest.raises(ValueError, match="it needs broken='skip'"):
        ImageFolderRows(folder, remember=tmp_path / "broken.json")


def lightness(image: Any) -> dict[str, Any]:
    return {"logits": image.reshape(len(image), -1)[:, :4].astype("f4")}


def test_skipped_rows_are_heard_of_and_taught_when_they_can_be_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "rows", {**CLASSED, "zebra/bad.jpg": JPEG[:99]})
    teacher = FunctionTeacher("t", lightness, ("image",), ("logits",))

    def teach_once() -> tuple[int, list[Any]]:
        heard = Heard()
        rows = ImageFolderRows(folder, decode=Decode((4, 4)), broken="skip")
        taught(tmp_path / "c", rows, teacher, listen=heard)
        said = [e for e in heard.events if isinstance(e, RowsSkipped)]
        return heard.taught, [(e.rows, list(e.reasons)) for e in said]

    assert teach_once() == (6, [(1, ["zebra/bad.jpg"])])
    assert teach_once() == (0, [(1, ["zebra/bad.jpg"])])
    (folder / "zebra" / "bad.jpg").write_bytes(JPEG)
    assert teach_once() == (1, [])
