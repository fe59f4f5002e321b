"""Settings from defaults, files, --set and flags: which wins, what is refused, how it is said."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from stillroom.storage.errors import SettingsError
from stillroom.workflows.settings import settings_of
from stillroom.workflows.settings_words import as_config, origins, settings_help


class Kind(enum.Enum):
    CNN = "cnn"
    MLP = "mlp"


@dataclass(frozen=True)
class Fit:
    """How it learns."""

    epochs: int = 12
    """Rounds over
    the data."""
    rate: float = 1e-3
    steps: tuple[int, ...] = (3, 5)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError("epochs must be positive")


class Net(BaseModel):
    width: int
    kind: Literal["cnn", "mlp"] = "cnn"
    fit: Fit = Fit(epochs=7)


@dataclass(frozen=True)
class Loss:
    weights: dict[str, float] = field(default_factory=lambda: {"kd": 1.0})


def flow(  # type: ignore[no-untyped-def]
    *,
    rows: int = 10,
    name: str = "a",
    loud: bool = False,
    share: float | None = None,
    kind: Kind = Kind.CNN,
    folder: Path = Path("here"),
    names: tuple[str, ...] = (),
    sizes: list[int] | None = None,
    fit: Fit = Fit(epochs=3),
    net: Net | None = None,
    nets: list[Net] = [],  # noqa: B006
    loss: Loss = Loss(),
    free: Mapping[str, Any] = {},
    bounded: Annotated[int, Field(ge=1, description="How many at least")] = 1,
    plain=2,
) -> list[Any]:
    """Does nothing.

    rows (int): of the data; name: of
        the run; loud: says more.
    """
    return []


def given(*arguments: str) -> dict[str, Any]:
    return dict(settings_of(flow, arguments).values)


def refused(*arguments: str) -> list[str]:
    with pytest.raises(SettingsError) as error:
        settings_of(flow, arguments)
    first, *lines = str(error.value).split("\n  ")
    assert first == "settings of flow:"
    return lines


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--rows 3", "rows", 3),
        ("--rows=3", "rows", 3),
        ("--rows -3", "rows", -3),
        ("--rows 1 --rows 2", "rows", 2),
        ("--plain 5", "plain", 5),
        ("--name 007", "name", "007"),
        ("--name null", "name", "null"),
        ("--name=", "name", ""),
        ("--name=a=b", "name", "a=b"),
        ("--set name=true", "name", "true"),
        ("--loud", "loud", True),
        ("--loud --no-loud", "loud", False),
        ("--loud=false", "loud", False),
        ("--set loud=true", "loud", True),
        ("--share 1e-2", "share", 0.01),
        ("--share 0.5 --share null", "share", None),
        ("--kind mlp", "kind", Kind.MLP),
        ("--folder a/b", "folder", Path("a/b")),
        ("--names a --names no", "names", ("a", "no")),
        ("--set names=[a,no,'1']", "names", ("a", "no", "1")),
        ("--set names=[a] --names b", "names", ("b",)),
        ("--sizes 1 --sizes 2", "sizes", [1, 2]),
        ("--set sizes=null", "sizes", None),
        ("--fit.epochs 5", "fit", Fit(5)),
        ("--fit.rate 1e-4 --set fit.steps=[1]", "fit", Fit(3, 1e-4, (1,))),
        ("--net.width 4", "net", Net(width=4)),
        ("--net.width 4 --net.fit.epochs 1", "net", Net(width=4, fit=Fit(1))),
        ("--net.width 4 --set net=null", "net", Net(width=4)),
        ("--set net.width=4 --set net=null", "net", None),
        ("--set net=null --set net.width=4", "net", Net(width=4)),
        ("--loss.weights.fitnet 2", "loss", Loss({"kd": 1.0, "fitnet": 2.0})),
        ("--set free.a.b=1 --set free.a.c=[1,x]", "free", {"a": {"b": 1, "c": [1, "x"]}}),
        ("--bounded 4", "bounded", 4),
    ],
)
def test_what_a_command_line_means(arguments: str, name: str, value: Any) -> None:
    values = given(*arguments.split(" "))
    assert values == {**given(), name: value}
    assert type(values[name]) is type(value)


def test_nothing_given_is_the_defaults_themselves() -> None:
    defaults = flow.__kwdefaults__ or {}
    assert len(defaults) == 15
    assert all(given()[name] is default for name, default in defaults.items())


def test_flags_win_over_set_over_files_over_defaults(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("rows: 1\nname: file\nfit:\n  epochs: 1\n  rate: 1\nnames: [a, b]\n")
    second.write_text("rows: 2\nfit: {rate: 2}\n")
    files = ("--config", str(first), f"--config={second}")
    settings = settings_of(
        flow, ("--fit.rate", "4", "--set", "fit.rate=3", "--set", "rows=3", *files)
    )
    values = settings.values
    assert (values["rows"], values["name"], values["names"]) == (3, "file", ("a", "b"))
    assert values["fit"] == Fit(1, 4.0, (3, 5))
    said = origins(settings)
    assert said["rows"] == "--set rows"
    assert said["name"] == f"{first}:2"
    assert said["fit.epochs"] == f"{first}:4"
    assert said["fit.rate"] == "--fit.rate"
    assert said["fit.steps"] == said["loud"] == "default"


def test_every_mistake_is_said_at_once_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(
        "rwos: 3\nrows: many\nfit:\n  epoch: 2\n  rate: fast\n"
        "nets:\n  - width: 1\n  - {widht: 2, kind: rnn}\nkind: cat\nloss: {weights: {kd: x}}\n"
    )
    assert refused(
        *("--config", str(file), "--set", "fit.steps=[1,x]", "--set", "rows.a=1", "--set", "rows"),
        *("--nmae", "x", "--no-rows", "--share", "all", "--bounded", "0", "--name"),
    ) == [
        "--set rows: expected PATH=VALUE, such as fit.epochs=20",
        "--nmae: unknown; did you mean '--name' or '--names'?",
        "--no-rows: unknown; did you mean '--rows'?",
        "--name: a value is missing",
        f"{file}:1: rwos: unknown; did you mean 'rows'?",
        f"{file}:4: fit.epoch: unknown; did you mean 'epochs'?",
        f"{file}:8: nets.1.widht: unknown; did you mean 'width'?",
        "--set rows.a: rows is int, which has no parts",
        f"{file}:2: rows: Input should be a valid integer, unable to parse string as an integer, "
        "found 'many'",
        "--share: Input should be a valid number, unable to parse string as a number, found 'all'",
        f"{file}:9: kind: Input should be 'cnn' or 'mlp', found 'cat'",
        f"{file}:5: fit.rate: Input should be a valid number, unable to parse string as a number, "
        "found 'fast'",
        "--set fit.steps: fit.steps.1: Input should be a valid integer, unable to parse string as an "
        "integer, found 'x'",
        f"{file}:8: nets.1.width: required, and not given",
        f"{file}:8: nets.1.kind: Input should be 'cnn' or 'mlp', found 'rnn'",
        f"{file}:10: loss.weights.kd: Input should be a valid number, unable to parse string as a "
        "number, found 'x'",
        "--bounded: Input should be greater than or equal to 1, found '0'",
    ]


def test_a_check_of_the_whole_names_the_parts_that_were_given() -> None:
    assert refused("--fit.epochs", "0") == ["fit (--fit.epochs): epochs must be positive"]
    assert refused("--net.kind", "cnn") == ["net.width: required, and not given"]


def test_a_mapping_may_be_said_in_one_flag() -> None:
    assert given("--fit", "{epochs: 4, rate: 2}")["fit"] == Fit(4, 2.0)
    assert refused("--fit", "{epochs: 4, rat: 2}") == ["--fit.rat: unknown; did you mean 'rate'?"]
    (words,) = refused("--fit", "{epochs:4}")  # YAML wants a space behind the colon
    assert "4}" in words or "required" in words or "unknown" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--net.width",), "--net.width: a value is missing"),
        (("--net.widht", "3"), "did you mean '--net.width'"),
        (("--fit.", "3"), "--fit.: unknown"),
        (("--", "3"), "--: unknown"),
        (("-r", "3"), "-r: unknown"),
        (("stray",), "stray: unknown"),
        (("--set", "=3"), "unknown"),
        (("--set", "nets.0.width=3"), "--set nets.0.width: nets.0 is"),
        (("--set", "fit.steps=[1"), "--set fit.steps:1: not YAML"),
        (("--config", "none.yaml"), "no file none.yaml"),
        (("--config",), "--config: a value is missing"),
        (("--loud=maybe",), "--loud: Input should be a valid boolean"),
        (("--set", "schema=2"), "--set schema: unknown"),
    ],
)
def test_odd_command_lines_are_refused(arguments: tuple[str, ...], words: str) -> None:
    assert words in "\n".join(refused(*arguments))


def test_what_is_required_is_said() -> None:
    def needs(*, rows: int, net: Net) -> list[Any]:
        return []

    with pytest.raises(SettingsError) as error:
        settings_of(needs, ())
    assert "--rows: required (int), and not given" in str(error.value)
    assert "--net: required (Net), and not given" in str(error.value)
    assert settings_of(needs, ("--rows", "1", "--net.width", "2")).values["net"] == Net(width=2)


def varied(**settings: int) -> list[Any]:
    return []


def with_schema(*, schema: int = 1) -> list[Any]:
    return []


def unread(*, rows: Nowhere = 1) -> list[Any]:  # type: ignore[name-defined]  # noqa: F821
    return []


class Opaque:
    pass


def opaque(*, thing: Opaque = Opaque()) -> list[Any]:  # noqa: B008
    return []


@pytest.mark.parametrize(
    ("workflow", "arguments", "words"),
    [
        (varied, (), r"takes \*\*settings: int, which no setting can name"),
        (with_schema, (), "has a setting `schema`, which in a file is its version"),
        (unread, (), "types of unread's settings cannot be read: name 'Nowhere' is not defined"),
        (opaque, ("--thing", "x"), "thing is Opaque, which no flag or file can say"),
    ],
)
def test_signatures_that_cannot_be_settings(
    workflow: Any, arguments: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        settings_of(workflow, arguments)


def test_names_of_pydantics_own_are_ordinary_settings() -> None:
    def odd(*, copy: int = 1, json: str = "", model_config: int = 2, _hidden: int = 3) -> list[Any]:
        return []

    values = settings_of(odd, ("--copy", "4", "--model-config", "5", "--set", "_hidden=6")).values
    assert values == {"copy": 4, "json": "", "model_config": 5, "_hidden": 6}


def test_help_says_types_texts_and_defaults() -> None:
    lines = {
        line.split()[0]: " ".join(line.split())
        for line in settings_help(flow, ("--name",)).split("\n")
    }
    assert lines["Settings"] == "Settings of flow: Does nothing."
    assert lines["--rows"] == "--rows of the data; int; default 10"
    assert lines["--set"] == "--set name=... of the run; text; default a"
    assert lines["--loud,"] == "--loud, --no-loud says more; default false"
    assert lines["--share"] == "--share float or null; default null"
    assert lines["--kind"] == "--kind cnn or mlp; default cnn"
    assert lines["--names"] == "--names text, several times; default []"
    assert lines["--fit.epochs"] == "--fit.epochs Rounds over the data; int; default 3"
    assert lines["--net.width"] == "--net.width int; required where net is given"
    assert lines["--net.kind"] == "--net.kind cnn or mlp; default cnn"
    assert lines["--net.fit.epochs"] == "--net.fit.epochs Rounds over the data; int; default 7"
    assert lines["--loss.weights.NAME"].endswith("default {kd: 1.0}")
    assert lines["--bounded"] == "--bounded How many at least; int; default 1"


def test_what_config_show_prints_is_the_same_settings(tmp_path: Path) -> None:
    arguments = (
        *("--rows", "3", "--share", "1e-5", "--kind", "mlp", "--names", "no", "--names", 'a "b"'),
        *(
            "--net.width",
            "2",
            "--set",
            "nets=[{width: 1}, {width: 2, kind: mlp}]",
            "--name",
            "null",
        ),
        *("--set", "free={a: {}, 'b c': [1, null, 1.5, .inf], true: 'true'}", "--no-loud"),
    )
    settings = settings_of(flow, arguments)
    file = tmp_path / "flow.yaml"
    file.write_text(as_config(settings))
    again = settings_of(flow, ("--config", str(file)))
    assert again.values == settings.values
    assert "rows: 3" in file.read_text()
    assert set(origins(again).values()) == {
        f"{file}:{number}"
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if not line.startswith("schema") and not line.rstrip().endswith(":")
    }
