"""Language models: what is stored of a token is what plain transformers code says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stillroom.pipeline import RayRunner
from stillroom.stages.teachers.huggingface.cut_rows import cut_rows
from stillroom.stages.teachers.huggingface.language import LanguageTeacher
from stillroom.stages.teachers.huggingface.rows import as_attention
from stillroom.stages.teachers.huggingface.texts import Texts
from stillroom.storage import Reader
from stillroom.storage.errors import FormatError, RowsError, SignalError, UnknownSignalError
from stillroom.storage.ragged import Ragged
from tests.stages import hf_builders as hf
from tests.stages.builders import taught, tree

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

ALL = (
    "logits",
    "logsumexp",
    "logprob",
    "state",
    "last",
    "hidden:1",
    "hidden:all",
    "attention:2",
    "ids",
)
KINDS: dict[str, tuple[str, Any]] = {
    "gpt2": ("causal", hf.save_gpt2),
    "llama": ("causal", hf.save_llama),
    "gemma2": (
        "causal",
        lambda f: hf.save_llama(f, "Gemma2", head_dim=8, final_logit_softcapping=2.0),
    ),
    "mild": (
        "causal",
        lambda f: hf.save_llama(f, "Gemma2", head_dim=8, final_logit_softcapping=900.0),
    ),
    "cohere": ("causal", lambda f: hf.save_llama(f, "Cohere", logit_scale=0.5)),
    "bert": ("masked", lambda f: hf.save_bert(f, "BertForMaskedLM")),
}
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, (_, save) in KINDS.items():
        save(root / name)
    return {name: root / name for name in KINDS}


def teacher(folder: Path, *signals: str, **changes: Any) -> LanguageTeacher:
    given = {"texts": Texts(64), "kind": KINDS.get(folder.name, ("causal",))[0], **changes}
    named = {s.replace(":", "-"): s for s in signals} or {"logits": "logits", "ids": "ids"}
    return LanguageTeacher("lm", folder, signals=given.pop("signals", named), **given)


def said(folder: Path, *signals: str, rows: Any = hf.TEXTS, **changes: Any) -> dict[str, Any]:
    return dict(teacher(folder, *signals, **changes).load()({"text": list(rows)}))


def plain(folder: Path, text: str) -> tuple[NDArray[Any], Any]:
    """One text through the model as its own documentation has it."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    kind = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}[
        KINDS[folder.name][0]
    ]
    model = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        out = model(**tokens, output_hidden_states=True, output_attentions=True)
    return tokens["input_ids"][0].numpy(), out


@pytest.mark.parametrize("kind", KINDS)
def test_every_signal_is_what_plain_code_gives_for_the_text_alone(
    folders: dict[str, Path], kind: str
) -> None:
    found = said(folders[kind], *ALL, tokens_at_once=60, positions_at_once=7)
    for row, text in enumerate(hf.TEXTS):
        ids, out = plain(folders[kind], text)
        mine = {name: values[row] for name, values in found.items()}
        np.testing.assert_array_equal(mine["ids"], ids)
        logits = out.logits[0].float()
        np.testing.assert_allclose(mine["logits"], logits, **CLOSE)
        np.testing.assert_allclose(mine["logsumexp"], torch.logsumexp(logits, -1), **CLOSE)
        spoken = torch.log_softmax(logits, -1)
        if KINDS[kind][0] == "causal":  # element t predicts token t + 1, the last predicts none
            expected = [float(spoken[t, ids[t + 1]]) for t in range(len(ids) - 1)]
        else:
            expected = [float(spoken[t, ids[t]]) for t in range(len(ids))]
        assert len(mine["logprob"]) == len(expected)
        np.testing.assert_allclose(mine["logprob"], expected, **CLOSE)
        np.testing.assert_allclose(mine["last"], out.hidden_states[-1][0], **CLOSE)
        np.testing.assert_allclose(mine["hidden-1"], out.hidden_states[1][0], **CLOSE)
        stacked = torch.stack(out.hidden_states)[:, 0].transpose(0, 1)
        np.testing.assert_allclose(mine["hidden-all"], stacked, **CLOSE)
        np.testing.assert_allclose(as_attention(mine["attention-2"]), out.attentions[1][0], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_beside_a_text_changes_rounding_alone(
    folders: dict[str, Path], kind: str
) -> None:
    answer: Any = teacher(folders[kind], "logits", "last").load()
    together = answer({"text": list(hf.TEXTS)})
    for row, text in enumerate(hf.TEXTS):
        alone = answer({"text": [text]})
        for name in alone:
            assert np.abs(together[name][row] - alone[name][0]).max() < 1e-4
    first, other = answer({"text": ["the", hf.TEXTS[5]]}), answer({"text": ["the", hf.TEXTS[1]]})
    assert np.abs(first["logits"][0] - other["logits"][0]).max() < 1e-4
    assert (
        np.abs(together["logits"][0] - together["logits"][1][:1]).max() > 0.1
    )  # noise is far below


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_the_head_is_never_shown_more_positions_than_at_once(
    folders: dict[str, Path], kind: str
) -> None:
    answer: Any = teacher(folders[kind], "logsumexp", "logprob", positions_at_once=5).load()
    shown: list[int] = []
    head = answer._headed._head
    head.register_forward_hook(lambda module, given, output: shown.append(output.numel()))
    found: Any = answer({"text": list(hf.TEXTS)})
    assert max(shown) == 5 * head.weight.shape[0]
    assert len(shown) > len(found["logsumexp"].values) / 5


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_states_and_the_head_in_a_cache_decode_to_the_logits(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    head = "cls.predictions.decoder" if kind == "bert" else "lm_head"
    asked = {"signals": {"logits": "state"}, "encodings": {"logits": f"head({head})"}}
    snapshot = taught(tmp_path / "c", hf.rows(), teacher(folders[kind], **asked))
    found = Reader(snapshot, ["logits"]).gather(hf.rows().keys)["logits"]
    expected = said(folders[kind], "logits")["logits"]
    assert isinstance(found, Ragged)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_allclose(np.asarray(found.values, "f4"), expected.values, **CLOSE)


def test_a_head_that_does_not_make_the_logits_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def attempt(kind: str, name: str) -> None:
        asked = {"signals": {"logits": "state"}, "encodings": {"logits": f"head({name})"}}
        taught(tmp_path / kind / name, hf.rows(), teacher(folders[kind], **asked))

    for kind in ("gemma2", "mild", "cohere"):
        with pytest.raises(SignalError, match="the model changes what its head 'lm_head' gives"):
            attempt(kind, "lm_head")
    with pytest.raises(SignalError, match="'transformer' is not the head; it is 'lm_head'"):
        attempt("gpt2", "transformer")


def test_logits_of_tokens_are_stored_in_every_sparse_encoding(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    encodings = {"few": "topk(5)", "drawn": "sampled(20)", "small": "packed(topk(5))"}
    asked = {
        "signals": {**dict.fromkeys(encodings, "logits"), "lse": "logsumexp"},
        "encodings": encodings,
    }
    snapshot = taught(tmp_path / "c", hf.rows(), teacher(folders["gpt2"], **asked))
    reader = Reader(snapshot, [*encodings, "lse"])
    found = reader.parts(snapshot.positions(hf.rows().keys))
    expected = said(folders["gpt2"], "logits")["logits"]
    for row, logits in enumerate(expected):
        spoken = torch.log_softmax(torch.as_tensor(logits), -1).numpy()
        best = np.sort(np.argsort(-spoken)[:, :5])
        for name in ("few", "small"):
            np.testing.assert_array_equal(np.sort(found[name]["indices"][row]), best)
        values = np.take_along_axis(spoken, found["few"]["indices"][row].astype(int), -1)
        np.testing.assert_allclose(found["few"]["values"][row], values, atol=5e-3)
        np.testing.assert_allclose(found["few"]["logsumexp"][row], found["lse"][""][row], rtol=1e-5)
        assert (found["drawn"]["counts"][row].sum(-1) == 20).all()


def test_long_texts_are_refused_or_cut_and_counted(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        RowsError, match=r"4 of 8 texts of a batch have more than 16 tokens, 'the still"
    ):
        said(folders["bert"], "logits", texts=Texts(16))
    cut = teacher(folders["bert"], "logits", "ids", texts=Texts(16, "cut"))
    snapshot = taught(tmp_path / "c", hf.rows(), cut)
    found: dict[str, Any] = Reader(snapshot).gather(hf.rows().keys)
    whole = [plain(folders["bert"], text)[0] for text in hf.TEXTS]
    np.testing.assert_array_equal(found["length"], [len(ids) for ids in whole])
    np.testing.assert_array_equal(found["tokens"], [min(len(ids), 16) for ids in whole])
    for mine, ids in zip(found["ids"], whole, strict=True):
        expected = ids if len(ids) <= 16 else [*ids[:15], ids[-1]]  # the last token is [SEP] still
        np.testing.assert_array_equal(mine, expected)
    long = {f"t{i}" for i, ids in enumerate(whole) if len(ids) > 16}
    assert long
    assert set(cut_rows(snapshot, "lm").to_pylist()) == long


def test_conversations_are_written_by_the_template(folders: dict[str, Path]) -> None:
    talk = [{"role": "user", "content": "the room"}, {"role": "assistant", "content": "distilled"}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["gpt2"])
    for prompted in (False, True):
        texts = Texts(64, chat=True, generation_prompt=prompted)
        found = said(folders["gpt2"], "ids", rows=[json.dumps(talk)], texts=texts)
        expected = tokenizer.apply_chat_template(talk, add_generation_prompt=prompted)
        np.testing.assert_array_equal(found["ids"][0], expected)
    own: dict[str, Any] = {
        "chat_template": "{{ messages[0].content }}{{ more }}",
        "chat_arguments": {"more": "!"},
    }
    mine = Texts(64, chat=True, **own)
    found = said(folders["gpt2"], "ids", rows=[json.dumps(talk)], texts=mine)
    assert tokenizer.decode(found["ids"][0]) == "the room!"
    with pytest.raises(RowsError, match=r"column 'text': 'the still room of .* is no conversation"):
        said(folders["gpt2"], "ids", texts=mine)


def test_a_template_that_is_lacking_or_reads_the_date_is_refused(tmp_path: Path) -> None:
    hf.save_gpt2(tmp_path)
    dated = Texts(64, chat=True, chat_template="{{ strftime_now('%d') }}")
    with pytest.raises(FormatError, match="may print today's date"):
        teacher(tmp_path, texts=dated).identity()
    hf.save_byte_pairs(tmp_path, template=None)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    for ask in (LanguageTeacher.identity, LanguageTeacher.load):
        with pytest.raises(FormatError, match="has no chat template; give chat_template"):
            ask(teacher(tmp_path, texts=Texts(64, chat=True)))


def test_a_text_without_a_token_is_named(folders: dict[str, Path]) -> None:
    answer = teacher(folders["gpt2"]).load()
    with pytest.raises(RowsError, match=r"1 of 3 texts of a batch have no token, such as ''; drop"):
        answer({"text": ["a", "", "b"]})
    with pytest.raises(RowsError, match="column 'text' holds other things"):
        answer({"text": np.zeros((2, 3))})


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_texts_of_one_token_have_no_log_probability_of_a_next_one(
    folders: dict[str, Path], kind: str
) -> None:
    answer = teacher(
        folders[kind], "logprob", "logits", texts=Texts(64, special_tokens=False)
    ).load()
    found: Any = answer({"text": ["a", "a"]})
    assert found["logits"].lengths.tolist() == [1, 1]
    assert found["logprob"].lengths.tolist() == ([0, 0] if kind == "gpt2" else [1, 1])
    assert found["logprob"].values.dtype == np.float32


def test_a_checkpoint_that_does_not_fit_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        FormatError, match=r"max_tokens=65, but the model of .* has only 64 positions"
    ):
        teacher(folders["gpt2"], texts=Texts(65)).load()
    hf.save_byte_pairs(tmp_path / "other")
    with pytest.raises(FormatError, match=r"knows 299 tokens, the model of .* has embeddings for"):
        teacher(folders["bert"], texts=Texts(64, tokenizer=tmp_path / "other")).load()
    hf.save_bert(tmp_path / "bert")
    with pytest.raises(
        FormatError, match=r"lacks \d+ weights of a BertForMaskedLM, which would be drawn"
    ):
        teacher(tmp_path / "bert", kind="masked").load()
    with pytest.raises(UnknownSignalError, match="'lm' has no hidden:3; the first is hidden:0"):
        said(folders["gpt2"], "hidden:3")


def test_a_softcap_that_half_precision_hides_is_noticed(folders: dict[str, Path]) -> None:
    whole: Any = teacher(folders["mild"], "logits", precision="bfloat16").load()
    assert not whole._headed._last
    plain: Any = teacher(folders["llama"], "logits", precision="bfloat16").load()
    assert plain._headed._last


def test_half_precision_is_stored_as_the_floats_it_is(folders: dict[str, Path]) -> None:
    exact = said(folders["gpt2"], "logits", "last")
    half = said(folders["gpt2"], "logits", "last", precision="bfloat16")
    for name in exact:
        assert half[name].values.dtype == np.float32
        assert 0 < np.abs(half[name].values - exact[name].values).max() < 0.5
    bits = half["last"].values.view(np.uint32)
    assert (bits & 0xFFFF == 0).all()


def test_ray_workers_give_the_same_cache(
    folders: dict[str, Path], tmp_path: Path, ray_runner: RayRunner
) -> None:
    asked = teacher(folders["gpt2"], "logits", "ids", encodings={"logits": "topk(4)"})
    taught(tmp_path / "one", hf.rows(), asked, shard_rows=2)
    taught(tmp_path / "many", hf.rows(), asked, shard_rows=2, runner=ray_runner)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")
