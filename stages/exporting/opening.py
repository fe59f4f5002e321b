"""An exported student opened again: for inference in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.stages.exporting.described import (
    HEAD,
    TABLE,
    WEIGHTS,
    ExportError,
    import_path,
    read_description,
    spelled,
)
from stillroom.storage.errors import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.exporting.whole import Whole
    from stillroom.stages.recipe import Recipe


def load_student(
    folder: str | Path, build: Callable[[], Any], recipe: Recipe | None = None
) -> Whole:
    """An exported student as a module in evaluation mode, from its weights and your code.

    It is called with the columns that `student.json` lists as inputs, in that order, each a tensor
    (n, ...) of the dtype said there, and gives {output: tensor}. `build` makes the architecture;
    nothing is imported by a name that a file holds, and nothing is unpickled. A student with kept heads
    or with an answer needs the `recipe` that it was trained with, whose code they are.

    >>> load_student("export/cnn4-kd", partial(cnn, 4))(image)["logits"]  # doctest: +SKIP

    FormatError for a folder that is no exported student or was changed; ExportError for a build of
    another architecture, and for a recipe without the parts that are needed.
    """
    place = Path(folder)
    said = read_description(place)
    return opened(place, said, build, recipe)


def opened(
    folder: Path, said: Mapping[str, Any], build: Callable[[], Any], recipe: Recipe | None
) -> Whole:
    """The same of a description that was read already."""
    from safetensors.torch import load_file

    from stillroom.stages.exporting.whole import Whole, load_into

    parts = split_state(load_file(folder / WEIGHTS))
    what, made = f"the weights in {folder}", spelled(import_path(build))
    module = load_into(build(), parts[""].get("", {}), what, made)
    if recipe is None and (said["heads"] or said["answer"]):
        raise ExportError(
            f"student {said['student']!r} was trained with recipe {said['recipe']!r}, whose heads or "
            "answer it needs: load_student(folder, build, recipe=recipes.find(...)), with its settings"
        )
    heads, answer = {}, None
    for head in said["heads"]:
        assert recipe is not None
        known = {each.name: each for each in recipe.heads}
        if (name := head["name"]) not in known:
            raise ExportError(
                f"student {said['student']!r} needs head {name!r} of recipe {said['recipe']!r}; "
                f"{recipe.name!r} has none: {nearest(name, known)}"
            )
        shapes = [tuple(shape) for shape in head["shapes"]]
        one = isinstance(known[name].input, str)
        built = known[name].build(shapes[0] if one else tuple(shapes), tuple(head["like"]))
        state = parts[HEAD].get(name, {})
        heads[name] = load_into(
            built, state, f"{what}, of head {name!r},", f"recipe {recipe.name!r}"
        )
    if said["answer"]:
        if recipe is None or recipe.answer is None:
            raise ExportError(
                f"student {said['student']!r} needs the answer of recipe {said['recipe']!r}; the "
                "recipe that was given has none"
            )
        answer = recipe.answer
    return Whole(
        module,
        heads,
        {name: state[""] for name, state in parts[TABLE].items()},
        student=said["student"],
        inputs=said["student_inputs"],
        columns=[given["name"] for given in said["inputs"]],
        layers={name: said["layers"][name] for name in said["needs"]},
        given={head["name"]: head["inputs"] for head in said["heads"]},
        outputs=[made["name"] for made in said["outputs"]],
        answer=None if answer is None else answer.function,
        answered=(answer.name, answer.inputs, said["answer"]["settings"])
        if answer
        else ("", (), {}),
    )


def joined_state(
    module: Mapping[str, Tensor],
    heads: Mapping[str, Mapping[str, Tensor]],
    tables: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Everything in one file: the module's tensors by their own names, `head:NAME.KEY`, `table:NAME`."""
    state = dict(module)
    for name, tensors in heads.items():
        state |= {f"{HEAD}:{name}.{key}": tensor for key, tensor in tensors.items()}
    return state | {f"{TABLE}:{name}": tensor for name, tensor in tables.items()}


def split_state(
    state: Mapping[str, Tensor], owners: Sequence[str] = (HEAD, TABLE)
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """What `joined_state` joined, by owner and name: the module's under "" and "", a table under ""."""
    found: dict[str, dict[str, dict[str, Tensor]]] = {"": {}, **{owner: {} for owner in owners}}
    for name, tensor in state.items():
        owner, colon, rest = name.partition(":")
        if not colon or owner not in owners:
            found[""].setdefault("", {})[name] = tensor
        else:
            whose, _, key = rest.partition(".")
            found[owner].setdefault(whose, {})[key] = tensor
    return found
