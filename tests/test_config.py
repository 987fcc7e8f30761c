"""Config resolution: every mistake gets a message that says what to do."""

from typing import Literal

import pytest

from dit.cli import parse_labels
from dit.config import fingerprint, fit, literal, names, parse_spec, resolve
from dit.sections import override
from dit.types import UserError


def test_names_are_the_modules_with_a_build():
    assert names("diffusion.paths") == ["cosine", "ddpm", "edm", "linear"]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("liner", {}, r"no paths 'liner': did you mean 'linear'\? expected one of cosine, ddpm"),
        ("__init__", {}, "expected one of"),
        ("../evil", {}, "expected one of"),
        ("linear", {"t_maks": 1}, r"unknown keyword 't_maks': did you mean 't_max'\?.*t_min"),
        ("linear", {"t_max": float("nan")}, "got t_max=nan; expected a finite number"),
        ("linear", {"t_max": "one"}, "got t_max='one' of type str; expected a number in"),
        ("ddpm", {"timesteps": 1.5}, "got timesteps=1.5; expected a whole number"),
        ("ddpm", {"beta_end": 2.0}, r"got beta_end=2.0; expected a number in \(0, 1\)"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        resolve("diffusion.paths", name, **kwargs)


def test_a_missing_keyword_is_named():
    with pytest.raises(UserError, match=r"missing 'times', 'weight': objectives 'denoise' takes"):
        resolve("objectives", "denoise")


def test_whole_numbers_serve_as_floats():
    assert isinstance(resolve("diffusion.paths", "linear", t_max=1).t_max, float)


def test_fingerprint_ignores_order_and_sees_values():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


@pytest.mark.parametrize(
    "key", ["room", "what", "build", "at", "wired", "given", "self", "kwargs", ""]
)
def test_no_keyword_of_a_spec_is_taken_for_one_of_ours(key):
    with pytest.raises(UserError, match=f"unknown keyword '{key}': "):
        resolve("sampling.solvers", **parse_spec(f"heun:{key}=1"))


@pytest.mark.parametrize("text", ["ddim:eta=1,eta=0", "ddim:name=heun"])
def test_a_keyword_of_a_spec_is_given_once(text):
    with pytest.raises(UserError, match="twice in"):
        parse_spec(text)


def test_none_is_text_where_only_text_fits():
    """``--config.model.remat=none`` and ``--config.weight.name=none`` name choices called so."""
    assert fit(literal("none"), str, "model.remat", "it") == "none"
    assert fit(literal("none"), str | None, "model.block", "it") is None
    with pytest.raises(UserError, match="NoneType"):
        fit(literal("none"), int, "steps", "it")
    assert override({}, {"weight.name": literal("none")})["weight"] == {"name": "none"}


@pytest.mark.parametrize(
    ("text", "hint", "wanted"),
    [
        ("drift,fall", tuple[Literal["drift", "fall"], ...], ("drift", "fall")),
        ("fall", tuple[Literal["drift", "fall"], ...], ("fall",)),
        ("red apple, key", tuple[str, ...], ("red apple", "key")),
        ("extend:frames=3,weight=2", tuple[str, ...], ("extend:frames=3,weight=2",)),
        ("a,b", str | tuple[str, ...], "a,b"),
        ("a,b", str | None, "a,b"),
        ("(1,2)", tuple[float, float], (1.0, 2.0)),
    ],
)
def test_a_tuple_of_words_is_typed_as_such(text, hint, wanted):
    assert fit(literal(text), hint, "kinds", "it") == wanted


@pytest.mark.parametrize("text", ["", "red apple,", ",key"])
def test_no_word_of_a_tuple_is_empty(text):
    with pytest.raises(UserError, match=f"got kinds='{text}' of type str"):
        fit(text, tuple[str, ...], "kinds", "it")


def test_words_that_are_none_of_a_tuples_are_refused():
    with pytest.raises(UserError, match="got kinds='drift,fly' of type str"):
        fit("drift,fly", tuple[Literal["drift", "fall"], ...], "kinds", "it")


def test_specs_and_labels():
    assert parse_spec("ddim:eta=0.5,clip=true") == {"name": "ddim", "eta": 0.5, "clip": True}
    assert parse_spec("3", number="cfg:scale") == {"name": "cfg", "scale": 3}
    assert literal("(1, 2)") == (1, 2)
    assert parse_labels("0,2,5-7", 10) == [0, 2, 5, 6, 7]
    for text, message in [
        ("3,10", "got label 10; expected numbers from 0 to 9"),
        ("-1", "expected whole numbers"),
        ("a", "got label 'a'"),
        ("", "got labels ''"),
    ]:
        with pytest.raises(UserError, match=message):
            parse_labels(text, 10)
    with pytest.raises(UserError, match="name:key=value"):
        parse_spec("ddim:eta")
