"""What every recipe in the folder promises; a new one is tested by being there."""

from __future__ import annotations

import copy
import importlib
import json
from typing import Any

import pytest
import torch
from ray import cloudpickle

from stillroom.stages import Head, Recipe, Term, recipes, term
from stillroom.stages.objectives.features import squared_error
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.recipes import UnknownRecipeError

ROWS, CLASSES = 6, 5
every = pytest.mark.parametrize("name", recipes.names())
SHAPES = {
    "student.logits": (CLASSES,),
    "teacher.logits": (CLASSES,),
    "student.feature": (3, 2),
    "teacher.feature": (4,),
}


def tensors(recipe: Recipe) -> dict[str, Any]:
    """Random inputs for whatever it reads, heads applied."""
    made = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {}
    for name in sorted(recipe.names):
        if name == "row.label":
            found[name] = torch.randint(CLASSES, (ROWS,), generator=made)
        elif not name.startswith("head."):
            shape = SHAPES.get(name, (4,))
            found[name] = torch.randn(ROWS, *shape, generator=made).requires_grad_()
    torch.manual_seed(0)
    for head in recipe.heads:
        module = head.build(tuple(found[head.input].shape[1:]), tuple(found[head.like].shape[1:]))
        found[f"head.{head.name}"] = module(found[head.input])
    return found


def test_there_are_recipes() -> None:
    assert {"kd", "fitnet", "labels"} <= set(recipes.names())


@every
def test_its_name_is_its_files_and_it_is_described(name: str) -> None:
    assert recipes.find(name).name == name
    about = recipes.module(name).__doc__
    assert about is not None
    assert len(about.splitlines()[0]) > 20


@every
def test_it_survives_being_sent_to_a_worker(name: str) -> None:
    recipe = recipes.find(name)
    assert recipe.reads is not None  # so that cached fields are sent as well
    sent = cloudpickle.loads(cloudpickle.dumps(recipe))  # type: ignore[no-untyped-call]
    assert sent == recipe
    assert sent.identity() == recipe.identity()
    assert copy.deepcopy(recipe) == recipe


@every
def test_its_identity_is_plain_json_and_the_same_every_time(name: str) -> None:
    identity = recipes.find(name).identity()
    assert json.loads(json.dumps(identity)) == identity == recipes.find(name).identity()


@every
def test_what_it_reads_is_what_its_terms_take(name: str) -> None:
    recipe = recipes.find(name)

    class Noted(dict[str, Any]):
        taken: set[str]

        def __getitem__(self, key: str) -> Any:
            self.taken.add(key)
            return super().__getitem__(key)

    given = Noted(tensors(recipe))
    given.taken = set()
    for one in recipe.terms:
        one(given)
    taken = given.taken | {n for head in recipe.heads for n in (head.input, head.like)}
    assert {n[8:] for n in taken if n.startswith("teacher.")} == set(recipe.reads)
    assert {n[4:] for n in taken if n.startswith("row.")} == set(recipe.columns)
    assert {n[8:] for n in taken if n.startswith("student.")} == set(recipe.outputs)


@every
def test_it_is_finite_and_teaches_the_student_alone(name: str) -> None:
    recipe = recipes.find(name)
    given = tensors(recipe)
    losses = [one.weight * one(given) for one in recipe.terms]
    assert all(loss.shape == (ROWS,) for loss in losses)
    total = torch.stack([loss.mean() for loss in losses]).sum()
    assert total.isfinite()
    total.backward()
    for key, tensor in given.items():
        if key.startswith("student."):
            assert tensor.grad is not None, key
            assert tensor.grad.isfinite().all()
            assert tensor.grad.abs().sum() > 0, key
        elif key.startswith("teacher."):
            assert tensor.grad is None, key


def test_an_unknown_recipe_is_told_the_nearest() -> None:
    with pytest.raises(UnknownRecipeError, match="no recipe 'fitnets'; did you mean 'fitnet'"):
        recipes.find("fitnets")


def test_names_are_listed_without_importing_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert "kd" in recipes.names()


def test_kd_is_the_mixture_of_soft_targets_and_labels() -> None:
    recipe = recipes.find("kd", alpha=0.3, temperature=2.0)
    given = tensors(recipe)
    found = sum(one.weight * one(given) for one in recipe.terms)
    soft = kl(given["student.logits"], given["teacher.logits"], temperature=2.0)
    hard = cross_entropy(given["student.logits"], given["row.label"])
    torch.testing.assert_close(found, 0.3 * soft + 0.7 * hard)


def test_kd_with_soft_targets_alone_reads_no_label() -> None:
    alone = recipes.find("kd", alpha=1.0)
    assert (alone.columns, len(alone.terms)) == ((), 1)
    assert recipes.find("kd", alpha=0.5).columns == ("label",)
    for alpha in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\]"):
            recipes.find("kd", alpha=alpha)


def test_settings_and_code_are_part_of_a_recipes_identity() -> None:
    plain = recipes.find("kd").identity()
    assert recipes.find("kd", temperature=2.0).identity() != plain
    assert recipes.find("kd", alpha=0.8).identity() != plain
    assert Recipe("another-name", recipes.find("kd").terms).identity() == plain


def test_a_term_checks_its_arguments_at_once() -> None:
    with pytest.raises(TypeError, match=r"logits\.kl\(.*unexpected keyword argument 'temprature'"):
        term(kl, "student.logits", "teacher.logits", temprature=4.0)
    with pytest.raises(TypeError, match=r"logits\.kl\(.*missing a required argument: 'teacher'"):
        term(kl, "student.logits")
    with pytest.raises(TypeError, match="too many positional"):
        term(squared_error, "a", "b", "c")
    with pytest.raises(TypeError, match="use a module-level function"):
        term(lambda student: student, "student.logits")


def test_a_term_shows_itself_as_it_would_be_written() -> None:
    one = term(kl, "student.logits", "teacher.logits", weight=0.9, temperature=4.0)
    assert repr(one) == "0.9 * kl(student.logits, teacher.logits, temperature=4.0)"
    assert isinstance(one, Term)


def test_a_recipe_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="'empty' has no terms"):
        Recipe("empty", ())
    for name in ("logits", "pupil.logits", "student."):
        with pytest.raises(ValueError, match=f"'bad': {name!r} should be one of student.NAME"):
            Recipe("bad", (term(squared_error, name, "teacher.logits"),))
    hint = term(squared_error, "head.hint", "teacher.feature")
    with pytest.raises(ValueError, match=r"uses 'head.hint' but has no such head"):
        Recipe("bad", (hint,))
    head = Head("hint", squared_error, "student.inner", like="teacher.feature")  # type: ignore[arg-type]
    assert Recipe("good", (hint,), (head,)).outputs == ("inner",)
