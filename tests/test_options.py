"""Options of passes: ``pass.key = value``, converted to the type that the pass declares, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt.errors import UsageError
from graphopt.options import build_passes, chosen_names, convert, describe_options
from graphopt.passes.base import Candidate, Context, PassReport


@dataclass(frozen=True)
class Tidy:
    name: ClassVar[str] = "tidy"
    summary: ClassVar[str] = "tidy up"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        return PassReport(0)


@dataclass(frozen=True)
class Shrink:
    ratio: float = 0.5
    steps: int = 3
    bias: bool = True
    observer: Literal["minmax", "entropy"] = "minmax"
    keep: tuple[str, ...] = ()
    limit: int | None = None
    name: ClassVar[str] = "shrink"
    summary: ClassVar[str] = "shrink"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        return iter(())


REGISTRY = {"shrink": Shrink, "tidy": Tidy}


def build(options: dict[str, Any]) -> Any:
    return build_passes(["tidy", "shrink"], options, REGISTRY)


def test_passes_are_made_in_the_order_of_their_names_with_their_defaults() -> None:
    assert build({}) == (Tidy(), Shrink())


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        *(("ratio", "0.25", 0.25), ("ratio", 1, 1.0), ("steps", "4", 4), ("bias", "off", False), ("bias", True, True)),
        *(("observer", "entropy", "entropy"), ("keep", "a, b", ("a", "b")), ("keep", ["a"], ("a",))),
        *(("limit", "none", None), ("limit", "7", 7), ("limit", None, None)),
    ],
)
def test_a_value_is_converted_to_the_declared_type(key: str, text: Any, value: Any) -> None:
    found = getattr(build({f"shrink.{key}": text})[1], key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        pytest.param("shrink.ratio", "half", "'half' is not a number", id="not a number"),
        pytest.param("shrink.steps", "2.5", "'2.5' is not a whole number", id="not whole"),
        pytest.param("shrink.steps", True, "True is not a whole number", id="bool is no number"),
        pytest.param("shrink.bias", "maybe", "'maybe' is not true or false", id="not a bool"),
        pytest.param("shrink.observer", "mse", "'mse' is not one of minmax, entropy", id="not a choice"),
        pytest.param("shrink.limit", "x", "'x' is not a whole number or none", id="not a union"),
        pytest.param(
            "shrink.size", "1", "no option 'size'; it has bias, keep, limit, observer, ratio, steps", id="key"
        ),
        pytest.param("tidy.size", "1", "the pass tidy has no option 'size'; it has no options", id="no options"),
        pytest.param("shrnk.ratio", "1", "the passes are shrink, tidy", id="unknown pass"),
        pytest.param("ratio", "1", "write PASS.KEY=VALUE", id="no pass"),
    ],
)
def test_a_wrong_option_is_refused_with_what_there_is(option: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"option '{option}': .*{message}"):
        build({option: value})


def test_an_option_of_a_pass_that_does_not_run_is_refused() -> None:
    with pytest.raises(UsageError, match="shrink is not part of this run"):
        build_passes(["tidy"], {"shrink.ratio": "1"}, REGISTRY)


def test_names_are_the_recipe_the_chosen_ones_or_without_the_skipped() -> None:
    recipe = ("tidy", "shrink", "tidy")
    assert chosen_names(recipe, None, (), REGISTRY) == ["tidy", "shrink", "tidy"]
    assert chosen_names(recipe, None, ["tidy"], REGISTRY) == ["shrink"]
    assert chosen_names(recipe, ["shrink"], (), REGISTRY) == ["shrink"]
    assert chosen_names(recipe, [], (), REGISTRY) == []


@pytest.mark.parametrize(("only", "skip"), [(["tidi"], ()), (None, ["tidi"])])
def test_an_unknown_pass_is_refused_with_those_there_are(only: list[str] | None, skip: list[str]) -> None:
    with pytest.raises(UsageError, match="unknown pass 'tidi'; there are: shrink, tidy"):
        chosen_names(("tidy",), only, skip, REGISTRY)


def test_a_recipe_that_names_an_unknown_pass_is_the_profiles_fault() -> None:
    with pytest.raises(UsageError, match="the target's recipe names the unknown pass 'prune'"):
        chosen_names(("prune",), None, (), REGISTRY)


def test_options_are_described_in_words() -> None:
    assert describe_options(Shrink)["ratio"] == ("a number", 0.5)
    assert describe_options(Shrink)["keep"] == ("a list of a text, separated by commas", ())


def test_a_type_that_cannot_be_written_as_text_must_be_given_as_a_value() -> None:
    assert convert(Tidy(), Tidy) == Tidy()
    with pytest.raises(ValueError, match="tidy"):
        convert("tidy", Tidy)
