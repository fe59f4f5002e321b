"""`stillroom recipes` and `stillroom prove`, for the folder's methods and for anybody's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillroom.stages import recipes
from stillroom.stages.proving.proof import Claim
from stillroom.workflows.proving import NoProofError, judged, keep, proof_of, run_proof, verdict
from stillroom.workflows.recipe_commands import recipes_app
from stillroom.workflows.recipe_words import newest, page

OWN = '''
"""A method of somebody's own (2026).

Defaults: weight 2.
"""
from stillroom.stages import Recipe, term
from stillroom.stages.objectives.logits import kl
from stillroom.stages.proving.proof import Claim, Proof


def recipe(*, weight: float = 2.0) -> Recipe:
    return Recipe("own", (term(kl, "student.logits", "teacher.logits", weight=weight),),
                  shapes={"student.logits": "float n c", "teacher.logits": "float n c"})


def _prove(bench):
    bench.note("own", accuracy=0.8 + bench.seed / 100)
    bench.note("plain", accuracy=0.7 + bench.seed / 50)


PROOF = Proof(_prove, data="nothing at all", claims=(Claim("own", "plain"),))
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe in a module of a third party."""
    (tmp_path / "somebodys").mkdir()
    (tmp_path / "somebodys" / "__init__.py").write_text("")
    (tmp_path / "somebodys" / "method.py").write_text(OWN)
    (tmp_path / "somebodys" / "broken.py").write_text("import not_there_at_all\n")
    (tmp_path / "somebodys" / "empty.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "somebodys.method"


def test_an_own_module_is_found_shown_and_proved(own: str, tmp_path: Path) -> None:
    assert recipes.find(own, weight=3.0).terms[0].weight == 3
    shown = CliRunner().invoke(recipes_app, ["show", own])
    assert "A method of somebody's own" in shown.stdout
    assert "student.logits  float n c" in shown.stdout
    found = run_proof(own, tmp_path / "f", seeds=3)
    (claim,) = found["claims"]
    assert claim["difference"]["mean"] == pytest.approx(0.09)
    assert claim["verdict"] == "holds"
    assert found["arms"]["own"]["accuracy"] == pytest.approx([0.8, 0.81, 0.82])


def test_what_is_no_recipe_is_said_with_the_way_out(own: str) -> None:
    with pytest.raises(recipes.UnknownRecipeError, match=r"no module 'somebodys\.methd'"):
        recipes.find("somebodys.methd")
    with pytest.raises(
        recipes.UnknownRecipeError, match=r"'somebodys.empty' has no function recipe"
    ):
        recipes.find("somebodys.empty")
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        recipes.find("somebodys.broken")
    with pytest.raises(NoProofError, match=r"'labels' has no PROOF; add to its module PROOF ="):
        proof_of("labels")


def test_runs_are_kept_one_after_another_and_the_page_shows_the_last(
    own: str, tmp_path: Path
) -> None:
    first = run_proof(own, tmp_path / "f", seeds=2)
    place = keep({**first, "recipe": "kd"}, tmp_path / "proofs")
    keep({**first, "recipe": "kd", "seeds": 7}, tmp_path / "proofs")
    keep({**first, "recipe": "kd", "smoke": True}, tmp_path / "proofs")
    assert len(json.loads(place.read_text())["runs"]) == 3
    last = newest(tmp_path / "proofs", "kd")
    assert last is not None
    assert last["seeds"] == 7
    written = page(tmp_path / "proofs")
    assert "| **kd** | logits | `logits` | own > plain in accuracy |" in written
    assert "| holds |" in written
    assert "(7 seeds" in written


def test_a_run_is_kept_where_proofs_are_and_a_smoke_test_never(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prove = [sys.executable, "-c", "from stillroom.workflows.cli import main; main()", "prove", own]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = partial(subprocess.run, cwd=tmp_path, env=environment, check=True)
    run([*prove, "--seeds", "2"])
    assert not (tmp_path / "docs").exists()
    (tmp_path / "docs" / "proofs").mkdir(parents=True)
    run([*prove, "--smoke"])
    assert not list(tmp_path.glob("docs/proofs/*"))
    run([*prove, "--seeds", "2"])
    run([*prove, "--seeds", "3"])
    kept = json.loads((tmp_path / "docs" / "proofs" / "own.json").read_text())
    assert [r["seeds"] for r in kept["runs"]] == [2, 3]


@pytest.mark.parametrize(
    ("low", "high", "margin", "said"),
    [
        (0.01, 0.02, 0.0, "holds"),
        (-0.01, 0.02, 0.0, "no difference here"),
        (-0.02, -0.01, 0.0, "contrary here"),
        (-0.005, 0.02, 0.01, "holds"),
        (-0.03, -0.02, 0.01, "contrary here"),
    ],
)
def test_an_interval_decides_a_claim(low: float, high: float, margin: float, said: str) -> None:
    assert verdict({"mean": (low + high) / 2, "low": low, "high": high}, margin) == said


def test_smaller_may_be_better_and_differences_are_paired_by_seed() -> None:
    measured = {"a": {"error": [1.0, 2.0, 3.0]}, "b": {"error": [1.5, 2.5, 3.5]}}
    found = judged(Claim("a", "b", "error", larger=False), measured)
    assert found["difference"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert found["verdict"] == "holds"
    with pytest.raises(NoProofError, match="names the arm 'aa'; did you mean 'a'"):
        judged(Claim("aa", "b", "error"), measured)
    with pytest.raises(NoProofError, match="arm 'b' has no metric 'eror'; did you mean 'error'"):
        judged(Claim("b", "a", "eror"), measured)


def test_the_page_of_recipes_is_the_one_that_is_committed() -> None:
    folder = Path(__file__).parents[2] / "docs"
    assert (folder / "recipes.md").read_text() == page(folder / "proofs"), (
        "docs/recipes.md is not what the recipes and docs/proofs say: "
        ".venv/bin/stillroom recipes page > docs/recipes.md"
    )


def test_a_proof_that_was_kept_is_of_the_claims_that_the_recipe_makes() -> None:
    for name in recipes.names():
        proof: Any = getattr(recipes.module(name), "PROOF", None)
        run = newest(Path(__file__).parents[2] / "docs" / "proofs", recipes.find(name).name)
        if proof is not None and run is not None:
            made = [(c.better, c.than, c.metric, c.margin) for c in proof.claims]
            kept = [(c["better"], c["than"], c["metric"], c["margin"]) for c in run["claims"]]
            assert made == kept, f"{name}: run stillroom prove {name} --keep docs/proofs again"
