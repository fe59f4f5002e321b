"""What recipes bring beside terms: streams, passes, states, steps, heads, tables, answers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stillroom.stages import Answer, Controller, Evaluation, Fit, Head, Recipe, classification, term
from stillroom.stages.fitting import TrainingError
from stillroom.stages.objectives.features import squared_error
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.parts import Seen
from stillroom.stages.training import plan_train
from stillroom.storage import Snapshot, UnknownSignalError
from stillroom.storage.errors import RowsError
from tests.stages.builders import SPLITS, data, network, plain, pupil, student, taught, trained

FEW = {**SPLITS, "few": SPLITS["train"][:5], "held": SPLITS["train"][30:]}
LABELLED = Recipe(
    "halves",
    (
        term(cross_entropy, "student.logits", "row.label", where="batch.labelled"),
        term(kl, "student.logits", "teacher.logits", where="batch.main"),
    ),
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A teacher of `logits` and `feature` over all 60 rows."""
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=network())


def losses(record: Any) -> list[float]:
    return [point["loss"] for point in record.content["curve"]]


def test_labels_of_rows_outside_their_stream_are_never_used(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    split = {**FEW, "main": FEW["train"][5:]}
    learner = student("a", recipe=LABELLED, split="main", beside={"labelled": "few"})
    (first,) = trained(tmp_path / "a", [learner], snapshot, splits=split)
    wrong = np.where(np.arange(60) < 5, data().read(np.arange(60), ["label"])["label"], 0)
    wrong[40:] = data().read(np.arange(40, 60), ["label"])["label"]
    (second,) = trained(tmp_path / "b", [learner], snapshot, rows=data(label=wrong), splits=split)
    assert losses(first) == losses(second)
    assert first.content["beside"] == {"labelled": "few"}


def test_a_stream_or_table_that_is_not_given_is_said_before_training(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    with pytest.raises(ValueError, match=r"needs a stream of rows 'labelled'.*beside="):
        student(recipe=LABELLED)
    lost = student(recipe=LABELLED, beside={"labelled": "fwe"})
    with pytest.raises(RowsError, match="no split 'fwe'; did you mean 'few'"):
        trained(tmp_path, [lost], snapshot, splits=FEW)
    with pytest.raises(ValueError, match=r"reads table.classes, an array about no row"):
        trained(tmp_path, [student(recipe=TABLED)], snapshot)


def toward(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """A loss with an array about no row."""
    return (logits @ classes).square().mean(-1)


TABLED = Recipe("tabled", (term(toward, "student.logits", "table.classes"),))


def test_a_changed_table_makes_its_students_stale_and_no_others(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    students = [student("t", recipe=TABLED), student("k")]
    how: dict[str, Any] = {"splits": SPLITS, "evaluation": Evaluation("test", classification)}
    vectors = np.eye(4, dtype=np.float32)
    trained(tmp_path, students, snapshot, tables={"classes": vectors})
    again = partial(plan_train, students, data(), snapshot, folder=tmp_path, **how)
    assert again(tables={"classes": vectors.copy()}).names == ()
    assert again(tables={"classes": vectors * 2}).names == ("t",)


def test_a_mask_chooses_rows_and_a_loss_outside_may_be_anything() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, float("inf")]], requires_grad=True)
    some = {"student.logits": logits, "row.label": torch.zeros(2).long()}
    one = term(cross_entropy, "student.logits", "row.label", where="batch.some")
    mean = one.mean({**some, "batch.some": torch.tensor([True, False])})
    torch.testing.assert_close(mean, torch.tensor(2.0).log())
    none = one.mean(
        {
            "student.logits": torch.zeros(2, 2),
            "row.label": some["row.label"],
            "batch.some": torch.zeros(2, dtype=torch.bool),
        }
    )
    assert none == 0
    with pytest.raises(ValueError, match=r"losses of shape \(2,\), and batch.some is \(3,\)"):
        one.mean({**some, "batch.some": torch.ones(3, dtype=torch.bool)})


def test_a_student_runs_again_on_what_a_pass_is_given(tmp_path: Path, snapshot: Snapshot) -> None:
    recipe = Recipe(
        "twice",
        (
            term(kl, "student.logits", "teacher.logits"),
            term(kl, "student.logits@other", "student.logits"),
        ),
        passes={"other": ("row.image",)},
    )
    assert recipe.outputs == ("logits",)
    (twice,) = trained(tmp_path, [student(recipe=recipe)], snapshot)
    (once,) = trained(tmp_path, [student("o", recipe=Recipe("o", recipe.terms[:1]))], snapshot)
    # The same input gives the same logits: the second term is zero.
    np.testing.assert_allclose(losses(twice), losses(once), rtol=1e-5)
    with pytest.raises(ValueError, match="has no pass 'other'"):
        replace(recipe, passes={})


def begin(rate: float) -> dict[str, float]:
    return {"weight": 1.0, "seen": 0.0}


def halve(state: dict[str, Any], seen: Seen, rate: float) -> dict[str, Any]:
    assert set(seen.losses) == {"soft"}
    assert seen.steps == 15
    assert not seen.losses["soft"].requires_grad
    return {"weight": state["weight"] * rate, "seen": seen.step}


def test_a_controller_changes_its_state_after_every_step(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    soft = term(kl, "student.logits", "teacher.logits", weight="state.weight", name="soft")
    recipe = Recipe("paced", (soft,), controller=Controller(begin, halve, {"rate": 0.5}))
    (paced,) = trained(tmp_path, [student(recipe=recipe)], snapshot)
    # Fifteen halvings: the weighted loss falls much faster than the unweighted one could.
    assert losses(paced)[2] < losses(paced)[0] / 500
    with pytest.raises(ValueError, match=r"uses 'state.weight' but has no controller"):
        Recipe("paced", (soft,))


def ahead(learning: Any, rate: float) -> Any:
    """An update that looks one step ahead, as bilevel methods do."""
    tensors = learning.complete()
    loss = learning.loss(tensors)
    named = dict(learning.module.named_parameters())
    slopes = torch.autograd.grad(loss, list(named.values()), create_graph=True)
    moved = {n: p - rate * g for (n, p), g in zip(named.items(), slopes, strict=True)}
    later = learning.loss(learning.complete(parameters=moved))
    learning.own["calls"] = learning.own.get("calls", 0) + 1
    learning.descend(later)
    return later


def test_a_recipe_may_bring_its_own_step(tmp_path: Path, snapshot: Snapshot) -> None:
    soft = (term(kl, "student.logits", "teacher.logits"),)
    still = Recipe("still", soft, step=partial(ahead, rate=0.0))
    (mine,) = trained(tmp_path, [student("still", recipe=still)], snapshot)
    (plain_one,) = trained(tmp_path, [student("plain", recipe=Recipe("p", soft))], snapshot)
    np.testing.assert_allclose(losses(mine), losses(plain_one), rtol=1e-5)
    (looking,) = trained(
        tmp_path, [student("far", recipe=replace(still, step=partial(ahead, rate=0.1)))], snapshot
    )
    assert losses(looking) != losses(mine)


def counted(learning: Any) -> torch.Tensor:
    """Closed form: nothing is optimised, the answer is the mean of what the teacher said."""
    module, said = learning.module, learning.tensors["teacher.logits"]
    module.total += said.sum(0)
    module.rows += len(said)
    rows: torch.Tensor = module.rows.float()
    return rows


class Mean(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.total = torch.nn.Buffer(torch.zeros(4))
        self.rows = torch.nn.Buffer(torch.zeros(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (self.total / self.rows.clamp_min(1)).expand(len(image), 4)


def test_a_student_without_parameters_is_computed_in_closed_form(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    recipe = Recipe("mean", (), step=counted, takes=("teacher.logits",))
    assert (recipe.reads, recipe.outputs) == (("logits",), ())
    learner = student(recipe=recipe, build=Mean, layers={"logits": ""}, fit=Fit(epochs=1))
    (record,) = trained(tmp_path, [learner], snapshot)
    stored = load_file(record.weights)
    assert stored["rows"] == 40
    assert record.metrics["nll"] > 0


def linear(given: tuple[int, ...], wanted: tuple[int, ...]) -> Any:
    return torch.nn.Linear(given[0], 4)


def mixed(first: torch.Tensor, second: torch.Tensor, *, share: float) -> torch.Tensor:
    return share * first + (1 - share) * second


def right(answer: torch.Tensor, label: torch.Tensor) -> float:
    return (answer.argmax(-1) == label).double().mean().item()


FUSED = Recipe(
    "fused",
    (
        term(cross_entropy, "student.logits", "row.label"),
        term(squared_error, "head.second", "teacher.logits"),
    ),
    heads=(Head("second", linear, "student.feature", like="teacher.logits", kept=True),),
    answer=Answer(
        mixed,
        ("student.logits", "head.second"),
        settings={"share": 0.5},
        grid={"share": (0.0, 0.25, 0.5, 1.0)},
        score=right,
    ),
)


def test_an_answer_is_tuned_on_validation_rows_and_never_on_test_rows(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    (plainly,) = trained(tmp_path / "a", [student(recipe=FUSED)], snapshot, splits=FEW)
    assert plainly.content["answer"] == {"share": 0.5}
    tuned = student(recipe=FUSED, validation="held")
    (first,) = trained(tmp_path / "b", [tuned], snapshot, splits=FEW)
    label = np.array(data().read(np.arange(60), ["label"])["label"])
    label[40:] = (label[40:] + 1) % 4  # other labels on the test rows
    (second,) = trained(tmp_path / "c", [tuned], snapshot, rows=data(label=label), splits=FEW)
    assert first.content["answer"] == second.content["answer"]
    assert first.metrics["accuracy"] != second.metrics["accuracy"]


def test_a_kept_head_is_stored_and_gives_the_recorded_metrics(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    (record,) = trained(tmp_path, [student(recipe=FUSED)], snapshot)
    heads, module = load_file(record.heads), pupil()
    module.load_state_dict(load_file(record.weights))
    module.eval()
    rows = data().read(np.arange(40, 60), ["image", "label"])
    with torch.inference_mode():
        image = torch.from_numpy(rows["image"])
        second = module[:3](image) @ heads["second.weight"].T + heads["second.bias"]
        answer = mixed(module(image), second, share=0.5)
    assert right(answer, torch.from_numpy(rows["label"])) == pytest.approx(
        record.metrics["accuracy"]
    )


def test_a_recipe_is_given_the_teacher_that_its_student_names(
    tmp_path: Path,
) -> None:
    taught(tmp_path / "both", teacher=network())
    snapshot = taught(tmp_path / "both", teacher=plain("other"))
    with pytest.raises(UnknownSignalError, match=r"signals=\{'logits': '\w+/logits'\}"):
        trained(tmp_path, [student()], snapshot)
    one = student("one", signals={"logits": "net/logits"})
    other = student("other", signals={"logits": "other/logits"})
    first, second = trained(tmp_path, [one, other], snapshot)
    assert (first.content["reads"], second.content["reads"]) == (["net/logits"], ["other/logits"])
    alone = taught(tmp_path / "c", teacher=network())
    (same,) = trained(tmp_path / "alone", [student("alone")], alone)
    assert losses(same) == losses(first) != losses(second)


def test_a_student_starts_from_weights_that_are_part_of_its_identity(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    (first,) = trained(tmp_path, [student()], snapshot)
    on = student("on", start=first.weights)
    (second,) = trained(tmp_path, [on], snapshot)
    assert losses(second)[0] < losses(first)[0]
    assert second.content["identity"]["student"]["start"].keys() == load_file(first.weights).keys()
    with pytest.raises(TrainingError, match=r"cannot start from .* of another architecture"):
        trained(tmp_path, [replace(on, build=partial(pupil, 3))], snapshot)


def test_a_moving_average_lies_between_the_weights_of_its_steps(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    fit = Fit(epochs=2, batch_size=8, average=0.9)
    (record,) = trained(tmp_path, [student(fit=fit)], snapshot)
    last, average = load_file(record.weights), load_file(record.average)
    assert last.keys() == average.keys()
    torch.manual_seed(0)
    start = pupil().state_dict()
    for name, tensor in average.items():
        assert (tensor - start[name]).norm() < (last[name] - start[name]).norm()
    (without,) = trained(tmp_path / "b", [student(fit=replace(fit, average=0.0))], snapshot)
    assert losses(without) == losses(record)
    assert not without.average.exists()


@pytest.mark.parametrize("fit", [
    Fit(epochs=2, optimizer="sgd", schedule="cosine", learning_rate=0.05),
    Fit(epochs=2, optimizer="adam", clip=0.1),
])  # fmt: skip
def test_other_optimisers_learn_too_and_are_part_of_the_identity(
    tmp_path: Path, snapshot: Snapshot, fit: Fit
) -> None:
    (record,) = trained(tmp_path, [student(fit=replace(fit, batch_size=8))], snapshot)
    assert losses(record)[1] < losses(record)[0]
    assert Fit(epochs=2).identity() == {
        k: v for k, v in fit.identity().items() if k in Fit().identity()
    } | {"schedule": "onecycle", "learning_rate": 4e-3}
    assert fit.identity().keys() > Fit().identity().keys() or fit.clip == 0


def test_classes_of_a_sparse_signal_are_read_as_they_are_stored(tmp_path: Path) -> None:
    snapshot = taught(tmp_path / "c", teacher=network(encodings={"logits": "topk(2)"}))
    recipe = Recipe(
        "sparse",
        (term(gathered, "student.logits", "teacher.logits.indices", "teacher.logits.values"),),
    )
    assert (recipe.reads, recipe.parts) == (("logits",), ("logits",))
    (record,) = trained(tmp_path / "s", [student(recipe=recipe)], snapshot)
    assert losses(record)[-1] < losses(record)[0]


def gathered(logits: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    assert indices.shape == values.shape == (len(logits), 2)
    return (logits.gather(-1, indices.long()) - values).square().mean(-1)
