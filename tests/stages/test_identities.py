"""What decides a teacher's numbers makes another identity, and nothing else does."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stillroom.stages import FunctionTeacher, ModuleTeacher
from stillroom.stages.teachers.assets import asset_digests
from stillroom.stages.teachers.weights import file_weights, load_state
from stillroom.storage import Cache
from stillroom.storage.errors import FormatError, IdentityError
from stillroom.storage.identity import differences, digest
from tests.stages.builders import Heard, answers, data, images, net, taught

SCALE = 2.0
TEMPLATE = "{{ role }}: {{ text }}"


def normalised(image: Any, assets: Any, mean: tuple[float, ...], std: float = 1.0) -> Any:
    """Preprocessing with constants of every kind."""
    shift = json.loads(assets["normalisation"].read_bytes())["shift"]
    return (image - torch.tensor(mean)) / std * SCALE + shift + len(assets["chat_template"])


@pytest.fixture
def made(tmp_path: Path) -> ModuleTeacher:
    """A teacher with everything that an identity can hold."""
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "norm.json").write_text('{"shift": 1}')
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return ModuleTeacher(
        "t",
        partial(net, 16),
        weights=tmp_path / "w.safetensors",
        prepare=partial(normalised, mean=(0.5,) * 8),
        libraries=("safetensors",),
        assets={
            "normalisation": tmp_path / "norm.json",
            "tokenizer": str(tmp_path / "tokenizer"),
            "chat_template": TEMPLATE.encode(),
        },
    )


def changed(teacher: ModuleTeacher, **changes: Any) -> ModuleTeacher:
    given = {name: getattr(teacher, name) for name in teacher.__dataclass_fields__}
    return ModuleTeacher(**{**given, **changes})


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


Change = Callable[[ModuleTeacher, Path], ModuleTeacher]


def flipped(teacher: ModuleTeacher, folder: Path) -> ModuleTeacher:
    flip(folder / "w.safetensors", 8 * (folder / "w.safetensors").stat().st_size - 1)
    return teacher


def retemplated(teacher: ModuleTeacher, folder: Path) -> ModuleTeacher:
    template = TEMPLATE.replace(":", ";").encode()
    return changed(teacher, assets={**teacher.assets, "chat_template": template})


def rewritten(name: str, text: str) -> Change:
    def change(teacher: ModuleTeacher, folder: Path) -> ModuleTeacher:
        (folder / name).write_text(text)
        return teacher

    return change


def with_(**changes: Any) -> Change:
    return lambda teacher, folder: changed(teacher, **changes)


OTHER_MEAN = partial(normalised, mean=(0.5,) * 7 + (0.25,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flipped, r"weights differ in 2\.\w+"),
        (retemplated, "assets differ in chat_template"),
        (rewritten("norm.json", '{"shift": 2}'), "assets differ in normalisation"),
        (rewritten("tokenizer/vocab.txt", "a\nc\n"), "assets differ in tokenizer/vocab.txt"),
        (rewritten("tokenizer/merges.txt", ""), "assets: tokenizer/merges.txt new"),
        (with_(prepare=OTHER_MEAN), r"mean of normalised: \[0\.5.* became \[.*0\.25\]"),
        (
            with_(prepare=partial(normalised, mean=(0.5,) * 8, std=2.0)),
            "std of normalised: new",
        ),
        (with_(precision="bfloat16"), "precision: float32 became bfloat16"),
        (with_(module=partial(net, 17)), r"arguments of net: \[16\] became \[17\]"),
        (with_(inputs=("other",)), "inputs: image gone; other new"),
        (with_(libraries=("numpy", "safetensors")), r"numpy \d.* new"),
        (with_(assets={}), "assets: gone"),
    ],
)
def test_what_decides_the_numbers_is_another_identity_and_is_named(
    made: ModuleTeacher, tmp_path: Path, change: Change, words: str
) -> None:
    before = made.identity()
    assert digest(made.identity()) == digest(before)
    after = change(made, tmp_path).identity()
    assert digest(after) != digest(before)
    (found,) = differences(before, after)
    assert re.fullmatch(words, found), found


def test_a_constant_of_the_module_is_part_of_the_identity(
    made: ModuleTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made.identity()
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert differences(before, made.identity()) == ["SCALE of normalised: 2.0 became 3.0"]


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_another_version_of_a_library_is_another_identity(
    made: ModuleTeacher, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version
    before = made.identity()
    was = real(package).split("+")[0]
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "99.1" if name == package else real(name)
    )
    assert differences(before, made.identity()) == [f"{package} {was} became 99.1"]


def test_where_files_lie_and_how_a_run_is_set_up_do_not_count(
    made: ModuleTeacher, tmp_path: Path
) -> None:
    before = digest(made.identity())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    weights = shutil.move(tmp_path / "w.safetensors", elsewhere / "model-00001.safetensors")
    template = elsewhere / "prompt.txt"
    template.write_text(TEMPLATE)
    assets = {
        "chat_template": template,
        "normalisation": shutil.move(tmp_path / "norm.json", elsewhere / "n"),
        "tokenizer": shutil.move(tmp_path / "tokenizer", elsewhere / "words"),
    }
    moved = changed(made, weights=weights, assets=assets, name="other", device="cpu", threads=2)
    assert digest(moved.identity()) == before


def test_teachers_of_two_identities_are_never_mixed(made: ModuleTeacher, tmp_path: Path) -> None:
    teacher = changed(made, assets={**made.assets, "chat_template": b"12"})
    other = changed(made, assets={**made.assets, "chat_template": b"1"})
    first = taught(tmp_path / "c", teacher=teacher)
    heard = Heard()
    second = taught(tmp_path / "c", teacher=other, listen=heard, batch_size=60)
    assert heard.taught == 60
    assert "the teacher changed (assets differ in chat_template)" in second.why
    assert len({segment.digest for segment in Cache(tmp_path / "c").segments()}) == 2

    def expected(length: int) -> Any:
        shown = (torch.from_numpy(images(60)) - 0.5) * 2 + 1 + length
        with torch.inference_mode():
            return net()(shown).numpy()

    for snapshot, length in ((first, 2), (second, 1)):
        np.testing.assert_allclose(answers(snapshot, data()), expected(length), rtol=1e-4)
    heard = Heard()  # back to what was answered before, in other batches
    taught(tmp_path / "c", teacher=teacher, listen=heard, batch_size=7, shard_rows=60)
    assert heard.taught == 0


def shifted(image: Any, assets: Any) -> dict[str, Any]:
    return {"logits": image + float(assets["shift"].read_text())}


def test_a_function_gets_its_assets_and_is_identified_by_them(tmp_path: Path) -> None:
    def teacher() -> FunctionTeacher:
        assets = {"shift": tmp_path / "shift"}
        return FunctionTeacher("f", shifted, ("image",), ("logits",), assets=assets)

    (tmp_path / "shift").write_text("1")
    np.testing.assert_array_equal(
        answers(taught(tmp_path / "c", teacher=teacher()), data()), images(60) + 1
    )
    (tmp_path / "shift").write_text("2")
    snapshot = taught(tmp_path / "c", teacher=teacher())
    assert "assets differ in shift" in snapshot.why
    np.testing.assert_array_equal(answers(snapshot, data()), images(60) + 2)


def test_a_teacher_without_assets_keeps_the_identity_that_it_had() -> None:
    assert "assets" not in FunctionTeacher("f", shifted, ("image",), ("logits",)).identity()
    assert "assets" not in ModuleTeacher("m", net).identity()


@pytest.mark.parametrize(
    ("role", "prepare", "error", "message"),
    [
        (
            "a/b",
            lambda p: p.write_text(""),
            FormatError,
            "asset 'a/b': name its role without a slash",
        ),
        ("", lambda p: p.write_text(""), FormatError, "asset '': name its role"),
        ("a", lambda p: None, FileNotFoundError, "no asset 'a' at .*asset"),
        ("a", lambda p: p.mkdir(), FormatError, "asset 'a': the folder .* holds no files"),
        (
            "a",
            lambda p: (p.mkdir(), (p / "to").symlink_to(p.parent)),
            FormatError,
            "asset 'a': .*to is a link to another folder",
        ),
    ],
)
def test_an_asset_that_cannot_be_hashed_is_named(
    tmp_path: Path, role: str, prepare: Any, error: type[Exception], message: str
) -> None:
    prepare(tmp_path / "asset")
    with pytest.raises(error, match=message):
        asset_digests({role: tmp_path / "asset"})


def sharded(folder: Path, state: dict[str, torch.Tensor], parts: int) -> Path:
    """The state in several files with the index that Hugging Face writes."""
    names = list(state)
    where: dict[str, str] = {}
    for part in range(parts):
        name = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        some = names[part::parts]
        save_file({n: state[n] for n in some}, folder / name)
        where |= dict.fromkeys(some, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_one_file_or_many_are_the_same_weights(tmp_path: Path, parts: int) -> None:
    state = net().state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    (tmp_path / "model").mkdir()
    index = sharded(tmp_path / "model", state, parts)
    files = sorted((tmp_path / "model").glob("*.safetensors"), reverse=True)
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in files:
        shutil.copy(file, bare / file.name[6:])
    expected = file_weights(tmp_path / "whole.safetensors")
    for weights in (index, index.parent, str(index.parent), bare, files, list(map(str, files))):
        assert file_weights(weights) == expected
        found = load_state(weights)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)
    teacher = ModuleTeacher("m", partial(net, 16), weights=index)
    live = teacher.load()({"image": images(60)})["logits"]
    with torch.inference_mode():
        np.testing.assert_array_equal(live, net()(torch.from_numpy(images(60))).numpy())


def test_files_that_are_no_set_of_weights_are_named(tmp_path: Path) -> None:
    state = net().state_dict()
    index = sharded(tmp_path, state, 2)
    other = save_file(state, tmp_path / "again.safetensors") or tmp_path / "again.safetensors"
    with pytest.raises(FormatError, match=r"again\.safetensors holds tensors that another file"):
        file_weights([index, other])
    file_weights(tmp_path)  # the index says which files
    (tmp_path / "other.index.json").write_text(index.read_text())
    with pytest.raises(FormatError, match="holds several sets of weights"):
        file_weights(tmp_path)
    for content in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../a.pt"}}'):
        (tmp_path / "other.index.json").write_text(content)
        with pytest.raises(FormatError, match=r"other\.index\.json is no index of weights"):
            file_weights(tmp_path / "other.index.json")
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00001-of-00002"):
        file_weights(index)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"holds no \.safetensors file"):
        file_weights(tmp_path / "empty")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_no_flipped_bit_of_a_file_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, draw: Any
) -> None:
    path = tmp_path_factory.mktemp("flips") / "w.safetensors"
    save_file(net().state_dict(), path)
    before = file_weights(path)
    flip(path, draw.draw(st.integers(0, 8 * path.stat().st_size - 1)))
    with suppress(FormatError):
        assert file_weights(path) != before


def test_weights_that_change_after_the_plan_are_never_stored_under_the_old_identity(
    tmp_path: Path, made: ModuleTeacher
) -> None:
    assert made.weights is not None
    path, sound = Path(str(made.weights)), Path(str(made.weights)).read_bytes()

    def spoil(event: Any) -> None:
        path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))

    with pytest.raises(IdentityError, match=r"not the one that was planned: weights differ in "):
        taught(tmp_path / "c", teacher=made, listen=spoil)
    assert list(tmp_path.glob("c/segments/*/receipts/*")) == []
    path.write_bytes(sound)
    assert taught(tmp_path / "c", teacher=made).rows == 60
