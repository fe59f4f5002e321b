"""Packing: texts that share a sequence are answered as each alone, or the model is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.pipeline import LocalRunner
from stillroom.stages import audit
from stillroom.stages.teachers.huggingface.language import LanguageTeacher
from stillroom.stages.teachers.huggingface.packing import Packing, packs
from stillroom.stages.teachers.huggingface.texts import Texts
from stillroom.storage import Cache
from stillroom.storage.errors import FormatError, UnsteadyError
from stillroom.storage.identity import differences
from tests.stages import hf_builders as hf
from tests.stages.builders import taught, tree

installed = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=40)
SIGNALS = ("logits", "logsumexp", "logprob", "state", "hidden:1", "last", "attention:2", "ids")
SAVED: dict[str, tuple[Any, Any]] = {
    "gpt2": ("causal", hf.save_gpt2),
    "llama": ("causal", hf.save_llama),
    "bert": ("masked", lambda folder: hf.save_bert(folder, "BertForMaskedLM")),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(LENGTHS, st.integers(20, 30), st.integers(1, 200))
def test_every_row_lies_in_one_sequence_and_none_is_longer_than_its_room(
    lengths: list[int], room: int, most: int
) -> None:
    counts = np.array(lengths, np.int64)
    found = packs(counts, room)
    assert sorted(row for pack in found for row in pack.tolist()) == list(range(len(lengths)))
    assert max(int(counts[pack].sum()) for pack in found) <= room
    fill = sorted(int(counts[pack].sum()) for pack in found)
    assert len(fill) < 2 or fill[0] + fill[1] > room  # two that fit together are never apart
    groups = list(Packing(room, True).groups(counts, most))
    assert [p.tolist() for group in groups for p in group] == [p.tolist() for p in found]
    for group in groups:
        longest = max(int(counts[pack].sum()) for pack in group)
        assert len(group) == 1 or longest * len(group) <= most


@pytest.mark.parametrize("causal", [True, False])
def test_a_token_sees_its_own_text_alone(causal: bool) -> None:
    lengths = [np.array([2, 3]), np.array([4])]
    given = Packing(5, causal).inputs(lengths, torch.float16, "cpu")
    assert given["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]
    mask = given["attention_mask"]
    sees = mask.bool() if not causal else mask[:, 0] == 0
    block = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], *[[0, 0, 1, 1, 1]] * 3]
    other = [*[[1, 1, 1, 1, 0]] * 4, [0, 0, 0, 0, 1]]
    expected = torch.tensor([block, other]).bool()
    assert torch.equal(sees, expected.tril() if causal else expected)
    if causal:
        assert mask.dtype == torch.float16
        assert mask.min() == torch.finfo(torch.float16).min


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, (_, save) in SAVED.items():
        save(root / name)
    return {name: root / name for name in SAVED}


def teacher(folder: Path, *signals: str, **changes: Any) -> LanguageTeacher:
    named = {s.replace(":", "-"): s for s in signals or ("logits", "ids")}
    settings = {"kind": SAVED.get(folder.name, ("causal",))[0], "packing": "packed", **changes}
    texts = settings.pop("texts", Texts(60))
    return LanguageTeacher("lm", folder, texts, signals=named, **settings)


@pytest.mark.slow
@installed
@pytest.mark.parametrize("kind", SAVED)
def test_packed_texts_are_answered_as_each_alone(folders: dict[str, Path], kind: str) -> None:
    packed: Any = teacher(folders[kind], *SIGNALS, positions_at_once=7).load()
    shown: list[tuple[int, ...]] = []
    packed._read.model.register_forward_pre_hook(
        lambda module, args, given: shown.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    together = packed({"text": list(hf.TEXTS)})
    counts = together["ids"].lengths
    assert sum(n for n, _ in shown) < len(counts) / 2  # they do share sequences
    assert all(longest <= 60 for _, longest in shown)
    alone: Any = teacher(folders[kind], *SIGNALS, packing="none").load()
    assert together.keys() == alone({"text": ["a"]}).keys()
    for row, text in enumerate(hf.TEXTS):
        for name, values in alone({"text": [text]}).items():
            assert together[name][row].shape == values[0].shape
            assert together[name][row].dtype == values[0].dtype
            np.testing.assert_allclose(together[name][row], values[0], rtol=1e-4, atol=1e-4)
    turned = packed({"text": list(hf.TEXTS[::-1])})
    for name, values in together.items():
        for row in range(len(hf.TEXTS)):
            np.testing.assert_allclose(
                values[row], turned[name][len(hf.TEXTS) - 1 - row], rtol=1e-4, atol=1e-4
            )


@pytest.mark.slow
@installed
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SAVED)
def test_a_packed_cache_is_steady_faithful_and_the_same_for_any_workers(
    folders: dict[str, Path], tmp_path: Path, kind: str, precision: Any
) -> None:
    asked = teacher(folders[kind], "logits", "logprob", "last", precision=precision)
    rows = hf.rows([*hf.TEXTS, *(text.title() for text in hf.TEXTS if len(text) < 40)])
    snapshot = taught(tmp_path / "c", rows, asked, shard_rows=6, batch_size=6)
    assert audit(Cache(tmp_path / "c"), rows, asked, runner=LocalRunner(), batch_size=6).faithful
    taught(tmp_path / "d", rows, asked, shard_rows=6, batch_size=6)
    assert tree(tmp_path / "c") == tree(tmp_path / "d")
    # The live band of an unpacked teacher holds what was packed as well.
    plain = LanguageTeacher(**{**vars(asked), "packing": "none"})
    changed = differences(asked.identity(), plain.identity())
    assert len(changed) == 1
    assert "packing" in changed[0]
    again = taught(tmp_path / "c", rows, plain, shard_rows=6, batch_size=6)
    assert again.number == snapshot.number + 1


@pytest.mark.slow
@installed
def test_packing_is_said_in_the_identity_and_none_is_as_before(folders: dict[str, Path]) -> None:
    said = [teacher(folders["gpt2"], packing=p).identity()["texts"] for p in ("none", "packed")]
    assert [texts.pop("packing") for texts in said] == ["none", "packed"]
    assert said[0] == said[1]


def windowed(folder: Path) -> Any:
    return hf.save_llama(folder, "Gemma2", head_dim=8, sliding_window=8)


def recurrent(folder: Path) -> Any:
    size = len(hf.save_byte_pairs(folder))
    settings = {"vocab_size": size, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    return hf.save_model(folder, "MambaForCausalLM", "MambaConfig", **settings)


def padded_positions(folder: Path) -> Any:
    size = len(hf.save_byte_pairs(folder))
    settings: dict[str, Any] = {"vocab_size": size, "hidden_size": 16, "num_hidden_layers": 1}
    settings |= {"num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.3}
    return hf.save_model(folder, "RobertaForMaskedLM", "RobertaConfig", **settings)


def two_masks(folder: Path) -> Any:
    size = len(hf.save_byte_pairs(folder))
    ends = ("pad", "eos", "bos", "cls", "sep")
    settings = {"vocab_size": size, "hidden_size": 16, "num_hidden_layers": 1}
    settings |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}
    settings |= {f"{end}_token_id": 0 for end in ends}
    return hf.save_model(folder, "ModernBertForMaskedLM", "ModernBertConfig", **settings)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of that model's own file
@pytest.mark.slow
@installed
@pytest.mark.parametrize(
    ("save", "kind", "attention", "why"),
    [
        (windowed, "causal", "sdpa", r"its states differ by \d.* from those of each text alone"),
        (padded_positions, "masked", "sdpa", r"its states differ by .* may be\. Give the teacher"),
        (recurrent, "causal", "eager", "it takes no position_ids"),
        (two_masks, "masked", "sdpa", "given that mask it fails"),
    ],
    ids=["window", "positions", "recurrent", "fails"],
)
def test_a_model_that_does_not_keep_texts_apart_is_refused(
    tmp_path: Path, save: Any, kind: Any, attention: Any, why: str
) -> None:
    save(tmp_path)
    asked = teacher(tmp_path, kind=kind, attention=attention)
    with pytest.raises(FormatError, match=why) as raised:
        asked.load()
    assert 'packing="none", where each text is a sequence of its own' in str(raised.value)
    unpacked = LanguageTeacher(**{**vars(asked), "packing": "none"})
    assert unpacked.load()({"text": ["a", "rows"]}).keys() == {"logits", "ids"}


@pytest.mark.slow
@installed
def test_a_window_that_is_as_long_as_the_texts_is_no_matter(tmp_path: Path) -> None:
    windowed(tmp_path)
    found: Any = teacher(tmp_path, texts=Texts(8)).load()({"text": ["a", "rows", "the"]})
    alone: Any = teacher(tmp_path, texts=Texts(8), packing="none").load()({"text": ["the"]})
    np.testing.assert_allclose(found["logits"][2], alone["logits"][0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@installed
def test_a_mask_that_lets_texts_see_each_other_would_be_noticed_while_teaching(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line of defence, where a model obeys on drawn tokens and not on the data's."""
    given = Packing.inputs

    def open_mask(self: Packing, *args: Any) -> Any:
        return {**given(self, *args), "attention_mask": None}

    asked = teacher(folders["gpt2"])
    monkeypatch.setattr(
        "stillroom.stages.teachers.huggingface.language.require_apart", lambda *_: None
    )
    monkeypatch.setattr(Packing, "inputs", open_mask)
    with pytest.raises(UnsteadyError, match="depends on the other rows of its batch"):
        taught(tmp_path / "c", hf.rows(), asked)
