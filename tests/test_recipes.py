"""What every recipe in the folder promises; a new one is tested by being there."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle

from stillroom.stages import Head, Recipe, Term, recipes, term
from stillroom.stages.objectives.features import squared_error
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.proving.proof import Proof
from stillroom.stages.recipes import UnknownRecipeError
from stillroom.stages.shapes import random_tensors
from stillroom.workflows.proving import run_proof

every = pytest.mark.parametrize("name", recipes.names())
proved = pytest.mark.parametrize(
    "name", [n for n in recipes.names() if n not in ("labels", "fitnet")]
)
"""All but the baselines."""


def tensors(recipe: Recipe) -> dict[str, Any]:
    """Random tensors of the shapes that it declares, states as its controller starts, heads applied."""
    found: dict[str, Any] = random_tensors(recipe.shapes)
    rows = 6
    found["batch.index"], found["batch.progress"] = torch.arange(rows), torch.tensor(0.5)
    for place, name in enumerate(("main", *recipe.streams)):
        found.setdefault(f"batch.{name}", torch.arange(rows) % (1 + len(recipe.streams)) == place)
    if recipe.controller is not None:
        start = recipe.controller.start(**recipe.controller.settings)
        found |= {f"state.{n}": torch.as_tensor(v, dtype=torch.float64) for n, v in start.items()}
    for name, tensor in found.items():
        if not name.startswith("state.") and tensor.is_floating_point():
            tensor.requires_grad_()
    torch.manual_seed(0)
    for head in recipe.heads:
        module = head.built(found)
        if not head.own_step:
            found[f"head.{head.name}"] = module(*(found[name] for name in head.inputs))
    return found


def test_there_are_recipes() -> None:
    assert {"kd", "fitnet", "labels"} <= set(recipes.names())


@every
def test_its_name_is_its_files_and_it_is_described(name: str) -> None:
    assert recipes.find(name).name.replace("-", "_") == name
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
def test_it_declares_the_shape_of_every_name_that_it_takes(name: str) -> None:
    recipe = recipes.find(name)
    assert recipe.shapes
    known = {
        n for n in recipe.names if n.partition(".")[0] in ("student", "teacher", "row", "table")
    }
    assert known == set(recipe.shapes) - {n for n in recipe.shapes if n.startswith("batch.")}


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
        one.weighted(one.mean(given), given)
    assert given.taken == {n for one in recipe.terms for n in one.names}


@every
def test_it_is_finite_and_teaches_the_student_alone(name: str) -> None:
    recipe = recipes.find(name)
    if not recipe.terms:
        return  # it has a step of its own, which its proof runs
    given = tensors(recipe)
    total = torch.stack([one.weighted(one.mean(given), given) for one in recipe.terms]).sum()
    assert total.shape == ()
    assert total.isfinite()
    total.backward()
    read = {n for one in recipe.terms for n in one.names}
    read |= {n for h in recipe.heads if f"head.{h.name}" in read for n in h.inputs}
    for key, tensor in given.items():
        if key.startswith(("teacher.", "table.", "row.", "state.")):
            assert tensor.grad is None, key
    learned = [given[n] for n in read if n.startswith("student.")]
    assert learned
    assert all(t.grad is None or t.grad.isfinite().all() for t in learned)
    assert any(t.grad is not None and t.grad.abs().sum() > 0 for t in learned)


@every
def test_its_defaults_are_those_that_its_docstring_states(name: str) -> None:
    """`Defaults: alpha 0.9, temperature 4.0` in the module's docstring."""
    found = recipes.module(name)
    _, _, stated = str(found.__doc__).partition("Defaults:")
    for parameter in inspect.signature(found.recipe).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY, parameter
        said = re.search(rf"\b{parameter.name} (\S+?)(?=[,.;:]?(?:\s|$))", stated)
        assert said, f"the docstring states no default of {parameter.name}"
        assert said[1] in (
            str(parameter.default),
            f"{parameter.default:g}" if isinstance(parameter.default, float) else "",
        ), parameter


@proved
def test_its_proof_runs_from_a_cache_with_the_teacher_away(name: str, tmp_path: Path) -> None:
    found = run_proof(name, tmp_path, seeds=1, smoke=True)
    assert found["claims"]
    assert json.loads(json.dumps(found)) == found
    assert isinstance(recipes.module(name).PROOF, Proof)


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
    found = torch.stack([one.weighted(one(given), given) for one in recipe.terms]).sum(0)
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
