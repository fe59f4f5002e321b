"""What decides a checkpoint's answers is another identity and is named; where it lies is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillroom.stages.teachers.huggingface.agreement import (
    require_same_tokenizer,
    require_tokenizer_of,
)
from stillroom.stages.teachers.huggingface.encoder import EncoderTeacher
from stillroom.stages.teachers.huggingface.image_text import ImageTextTeacher
from stillroom.stages.teachers.huggingface.language import LanguageTeacher
from stillroom.stages.teachers.huggingface.pixels import Images
from stillroom.stages.teachers.huggingface.texts import Texts
from stillroom.stages.teachers.huggingface.vision import VisionTeacher
from stillroom.storage.errors import IdentityError
from stillroom.storage.identity import canonical, differences, digest
from tests.stages import hf_builders as hf
from tests.stages.builders import taught

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

CHAT = Texts(32, "cut", chat=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    hf.save_gpt2(root / "gpt2")
    hf.save_bert(root / "bert")
    hf.save_vit(root / "vit")
    hf.save_clip(root / "clip")
    return root


def teachers(root: Path) -> dict[str, Any]:
    return {
        "gpt2": LanguageTeacher("t", root / "gpt2", CHAT),
        "bert": EncoderTeacher("t", root / "bert", Texts(32)),
        "vit": VisionTeacher("t", root / "vit"),
        "clip": ImageTextTeacher("t", root / "clip", Texts(32)),
    }


@pytest.mark.parametrize("kind", ["gpt2", "bert", "vit", "clip"])
def test_a_moved_folder_is_the_same_teacher_and_no_path_is_told(
    folders: Path, tmp_path: Path, kind: str
) -> None:
    before = teachers(folders)[kind].identity()
    shutil.copytree(folders / kind, tmp_path / "elsewhere" / kind)
    hf.edit_json(tmp_path / "elsewhere" / kind / "config.json", _name_or_path="/elsewhere")
    assert teachers(tmp_path / "elsewhere")[kind].identity() == before
    assert json.loads(canonical(before)) == before
    assert str(folders) not in canonical(before)
    assert "elsewhere" not in canonical(before)


def test_what_bounds_memory_alone_is_no_part_of_a_teacher(folders: Path) -> None:
    gpt2 = teachers(folders)["gpt2"]
    other = replace(gpt2, tokens_at_once=7, positions_at_once=3, device="cpu", threads=2)
    assert other.identity() == gpt2.identity()


Change = Callable[[Any, Path], Any]
"""Of a teacher and the files in its folder; what is then the teacher."""


def weight(teacher: Any, folder: Path) -> Any:
    """Flip one bit of one number."""
    state = load_file(folder / "model.safetensors")
    state[max(state)].view(torch.int32).view(-1)[0] ^= 1
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return teacher


def template(teacher: Any, folder: Path) -> Any:
    """Change one character, wherever this version keeps it."""
    if (file := folder / "chat_template.jinja").exists():
        file.write_text(file.read_text().replace("assistant: ", "assistant; "))
        return teacher
    config = json.loads((folder / "tokenizer_config.json").read_text())
    changed = config["chat_template"].replace("assistant: ", "assistant; ")
    return set_("tokenizer_config.json", chat_template=changed)(teacher, folder)


def token(teacher: Any, folder: Path) -> Any:
    """Let two tokens change places."""
    described = json.loads((folder / "tokenizer.json").read_text())
    vocab = described["model"]["vocab"]
    one, other = list(vocab)[-2:]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return teacher


def cased(teacher: Any, folder: Path) -> Any:
    """No longer make letters small."""
    described = json.loads((folder / "tokenizer.json").read_text())
    described["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return teacher


def set_(name: str, **changes: Any) -> Change:
    def change(teacher: Any, folder: Path) -> Any:
        hf.edit_json(folder / name, **changes)
        return teacher

    return change


def with_(**changes: Any) -> Change:
    return lambda teacher, folder: replace(teacher, **changes)


def texts(**changes: Any) -> Change:
    return lambda teacher, folder: replace(teacher, texts=replace(teacher.texts, **changes))


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("gpt2", weight, "weights differ in transformer.wte.weight"),
        ("gpt2", template, "texts.chat_template changed"),
        ("gpt2", token, "tokenizer differ in vocabulary"),
        (
            "gpt2",
            set_("config.json", layer_norm_epsilon=1e-4),
            "config.layer_norm_epsilon: 1e-05 became",
        ),
        ("gpt2", set_("special_tokens_map.json", eos_token="x"), "special_tokens_map.eos_token"),
        ("gpt2", texts(max_tokens=31), "texts.max_tokens: 32 became 31"),
        ("gpt2", texts(too_long="error"), "texts.too_long: cut became error"),
        ("gpt2", texts(generation_prompt=True), "texts.generation_prompt: false became true"),
        ("gpt2", texts(chat_template="{{ messages }}"), "texts.chat_template changed"),
        ("gpt2", texts(chat_arguments={"a": 1}), "texts.chat_arguments.a: new"),
        ("gpt2", with_(precision="bfloat16"), "precision: float32 became bfloat16"),
        ("gpt2", with_(kind="masked"), "shift: 1 became 0"),
        ("gpt2", with_(attention="eager"), "attention: sdpa became eager"),
        ("gpt2", with_(inputs=("body",)), "inputs: text gone; body new"),
        ("bert", weight, "weights differ in pooler.dense.weight"),
        ("bert", cased, "tokenizer differ in normalizer"),
        ("bert", texts(special_tokens=False), "texts.special_tokens: true became false"),
        (
            "bert",
            with_(signals={"a": "attention:1"}),
            "attention: sdpa became eager",
        ),
        ("vit", set_("preprocessor_config.json", image_mean=[0.5]), "image_processor.image_mean"),
        ("vit", with_(images=Images("CHW")), "images.layout: HWC became CHW"),
        ("clip", set_("preprocessor_config.json", do_rescale=False), "image_processor.do_rescale"),
        ("clip", token, "tokenizer differ in vocabulary"),
    ],
)
def test_a_change_that_decides_numbers_is_another_identity_and_is_named(
    folders: Path, tmp_path: Path, kind: str, change: Change, words: str
) -> None:
    before = teachers(folders)[kind].identity()
    shutil.copytree(folders / kind, tmp_path / kind)
    now = change(teachers(tmp_path)[kind], tmp_path / kind).identity()
    assert digest(now) != digest(before)
    said = differences(before, now)
    assert any(words in each for each in said), said
    assert len(said) <= 2


def test_signals_alone_leave_a_teacher_what_it_is(folders: Path) -> None:
    bert = teachers(folders)["bert"]
    assert replace(bert, signals={"last": "last"}).identity() == bert.identity()


def test_tokenizers_that_agree_pass_whatever_wrote_them(folders: Path, tmp_path: Path) -> None:
    for kind in ("gpt2", "bert"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folders / kind)
        tokenizer.padding_side, tokenizer.model_max_length = "left", 7
        tokenizer(["a", "b c"], padding=kind == "bert", truncation=True, max_length=2)
        tokenizer.save_pretrained(tmp_path / kind)
        require_same_tokenizer(folders / kind, tmp_path / kind)


def test_tokenizers_that_differ_are_told_apart_by_ids_and_texts(
    folders: Path, tmp_path: Path
) -> None:
    def attempt(kind: str, *words: str) -> None:
        with pytest.raises(IdentityError) as caught:
            require_same_tokenizer(folders / kind, tmp_path / kind)
        for each in words:
            assert each in str(caught.value), str(caught.value)

    for kind in ("gpt2", "bert"):
        shutil.copytree(folders / kind, tmp_path / kind)
    token(None, tmp_path / "gpt2")
    attempt(
        "gpt2", "vocabulary: 2 of 299 ids differ: 297 is", "and", "use a recipe that compares no"
    )
    cased(None, tmp_path / "bert")
    attempt("bert", "normalizer differs", "of 11 probe texts differ", "from place")
    hf.save_word_pieces(tmp_path / "gpt2")
    attempt(
        "gpt2", "vocabulary: ", "model differs", "special tokens: cls_token is None and '[CLS]'"
    )
    with pytest.raises(FileNotFoundError, match="no tokenizer in nowhere"):
        require_same_tokenizer(folders / "bert", "nowhere")


def test_a_student_is_checked_against_the_cache_of_a_real_teacher(
    folders: Path, tmp_path: Path
) -> None:
    teacher = LanguageTeacher("lm", folders / "gpt2", Texts(64))
    snapshot = taught(tmp_path / "c", hf.rows(), teacher)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / "gpt2")
    tokenizer.save_pretrained(tmp_path / "student")
    require_tokenizer_of(snapshot, "lm", tmp_path / "student")
    token(None, tmp_path / "student")
    with pytest.raises(IdentityError, match="is not that of teacher 'lm': vocabulary differs"):
        require_tokenizer_of(snapshot, "lm", tmp_path / "student")
