"""The records behave as the dataclasses they are documented to be."""

# The classes under test are not known before the tests run.
# mypy: allow-subclassing-any

import gc
import inspect
import operator
import pydoc
import re
import sys
import typing
import weakref
from collections.abc import Hashable
from typing import Any

import pytest
import twin
from comparing import DEFAULTS, FIELDS, error_of, plain_hint


def test_arguments_by_position(record: Any, record_name: str, values: Any) -> None:
    assert vars(record(*values)) == dict(zip(FIELDS[record_name], values, strict=True))


def test_arguments_by_keyword_in_any_order(record: Any, record_name: str, values: Any) -> None:
    keywords = dict(zip(FIELDS[record_name], values, strict=True))
    built = record(**dict(reversed(keywords.items())))
    assert list(vars(built).items()) == list(keywords.items())


def test_defaults(record: Any, record_name: str, values: Any) -> None:
    required = len(FIELDS[record_name]) - len(DEFAULTS[record_name])
    built = record(*values[:required])
    expected = {
        **dict(zip(FIELDS[record_name], values[:required], strict=False)),
        **DEFAULTS[record_name],
    }
    assert vars(built) == expected
    assert [type(value) for value in vars(built).values()] == [type(v) for v in expected.values()]


def test_values_are_kept_as_they_are(record: Any, record_name: str) -> None:
    given = [object() for _ in FIELDS[record_name]]
    built = record(*given)
    assert all(a is b for a, b in zip(vars(built).values(), given, strict=True))


@pytest.mark.parametrize("given", range(8))
def test_wrong_number_of_arguments(record: Any, model: Any, values: Any, given: int) -> None:
    required = len(values) - len(DEFAULTS[model.__name__])
    arguments = (*values, "more", "even more", "most")[:given]
    if required <= given <= len(values):
        assert repr(record(*arguments)) == repr(model(*arguments))
    else:
        assert error_of(record, *arguments) == error_of(model, *arguments)


def test_missing_arguments_beside_keywords(record: Any, model: Any, record_name: str) -> None:
    for field in FIELDS[record_name]:
        if len(FIELDS[record_name]) - len(DEFAULTS[record_name]) > 1:
            text = error_of(record, **{field: 1})
            assert text == error_of(model, **{field: 1})
            assert "missing" in text


def test_argument_given_twice(record: Any, model: Any, record_name: str, values: Any) -> None:
    for index, field in enumerate(FIELDS[record_name]):
        arguments = values[: max(index + 1, len(values) - len(DEFAULTS[record_name]))]
        text = error_of(record, *arguments, **{field: "again"})
        assert text == error_of(model, *arguments, **{field: "again"})
        assert f"got multiple values for argument '{field}'" in text


@pytest.mark.parametrize("keyword", ["surprise", "servise", "max_retry", "self_", "", "ä"])
def test_unexpected_argument(record: Any, model: Any, values: Any, keyword: str) -> None:
    text = error_of(record, *values, **{keyword: 1})
    assert text == error_of(model, *values, **{keyword: 1})
    assert "got an unexpected keyword argument" in text
    # Which complaint comes first, when there is more than one, is Python's choice too.
    assert error_of(record, **{keyword: 1}) == error_of(model, **{keyword: 1})
    more = (*values, 1)
    assert error_of(record, *more, **{keyword: 1}) == error_of(model, *more, **{keyword: 1})


def test_keywords_must_be_strings(record: Any, values: Any) -> None:
    odd: Any = {1: 2}
    with pytest.raises(TypeError, match="keywords must be strings"):
        record(*values, **odd)


def test_str_subclass_as_keyword(record: Any, record_name: str, values: Any) -> None:
    class Text(str):
        __slots__ = ()

    keywords = {Text(key): value for key, value in zip(FIELDS[record_name], values, strict=True)}
    assert record(**keywords) == record(*values)


def test_init_again(record: Any, record_name: str, values: Any) -> None:
    built = record(*values)
    built.extra = 1
    assert built.__init__(*reversed(values)) is None
    assert vars(built) == {
        **dict(zip(FIELDS[record_name], reversed(values), strict=True)),
        "extra": 1,
    }


def test_object_without_init(record: Any, model: Any) -> None:
    bare, model_bare = record.__new__(record), model.__new__(model)
    assert vars(bare) == {}
    if model is twin.PortManagerConfig:  # Every field falls back to its default.
        assert repr(bare) == repr(model_bare) == repr(record())
        assert bare == record()
    else:
        assert error_of(repr, bare) == error_of(repr, model_bare)
        assert error_of(lambda: bare == record.__new__(record)) == error_of(
            lambda: model_bare == model.__new__(model)
        )


def test_repr(record: Any, record_name: str, values: Any) -> None:
    inside = ", ".join(f"{field}='<{field}>'" for field in FIELDS[record_name])
    assert repr(record(*values)) == str(record(*values)) == f"{record_name}({inside})"


def test_repr_of_a_record_inside_itself(
    record: Any, model: Any, record_name: str, values: Any
) -> None:
    texts = []
    for cls in (record, model):
        built = cls(*values)
        setattr(built, FIELDS[record_name][0], built)
        setattr(built, FIELDS[record_name][1], [built])
        texts.append(repr(built))
    assert texts[0] == texts[1]
    assert texts[0].startswith(
        f"{record_name}({FIELDS[record_name][0]}=..., {FIELDS[record_name][1]}=[...], "
    )
    # The guard against recursion is gone afterwards.
    assert repr(record(*values)) == repr(model(*values))


def test_repr_passes_errors_on(record: Any, values: Any) -> None:
    class Sour:
        def __repr__(self) -> str:
            raise LookupError("sour")

    built = record(Sour(), *values[1:])
    for _ in range(2):
        assert error_of(repr, built) == "LookupError: sour"


def test_equality_by_fields(record: Any, record_name: str, values: Any) -> None:
    built = record(*values)
    assert built == record(*values)
    assert (built != record(*values)) is False
    for index in range(len(values)):
        other = [*values]
        other[index] = "other"
        assert built != record(*other), FIELDS[record_name][index]
        assert (built == record(*other)) is False
    built.extra = 1
    assert built == record(*values), "an attribute that is no field does not count"


def test_equality_within_one_class_only(record: Any, values: Any) -> None:
    built = record(*values)

    class Sub(record):
        pass

    for other in (values, vars(built), None, object(), Sub(*values)):
        assert built.__eq__(other) is NotImplemented
        assert built != other
        assert other != built
    assert Sub(*values) == Sub(*values)


def test_equality_asks_the_other_side(record: Any, values: Any) -> None:
    class Everything:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    assert record(*values) == Everything()


def test_equality_of_odd_values(record: Any, model: Any, values: Any) -> None:
    class Sour:
        def __eq__(self, other: object) -> bool:
            raise LookupError("sour")

        __hash__ = None  # type: ignore[assignment]

    class Vague:
        def __eq__(self, other: object) -> Any:
            return "perhaps"

        __hash__ = None  # type: ignore[assignment]

    nan = float("nan")
    for odd in (nan, Vague(), [nan]):
        for index in range(len(values)):
            arguments = (*values[:index], odd, *values[index + 1 :])
            # Whether one NaN equals itself here has changed between versions of Python.
            assert bool(record(*arguments) == record(*arguments)) is bool(
                model(*arguments) == model(*arguments)
            )
    built, other = record(Sour(), *values[1:]), record(Sour(), *values[1:])
    assert error_of(lambda: built == other) == "LookupError: sour"
    # Fields are compared in their order, and no further than needed.
    assert record("a", *values[1:-1], Sour()) != record("b", *values[1:-1], Sour())


@pytest.mark.parametrize("method", ["__lt__", "__le__", "__gt__", "__ge__"])
def test_no_order(record: Any, values: Any, method: str) -> None:
    built = record(*values)
    assert getattr(built, method)(built) is NotImplemented


def test_text_of_comparison_errors(record: Any, model: Any, values: Any) -> None:
    ours, theirs = record(*values), model(*values)
    for compare in (operator.lt, operator.le, operator.gt, operator.ge):
        for right in (ours, 1):
            text = error_of(compare, ours, right)
            assert text == error_of(compare, theirs, theirs if right is ours else 1)
            assert text.startswith("TypeError: ")
    assert error_of(sorted, [ours, ours]) == error_of(sorted, [theirs, theirs])


def test_unhashable(record: Any, model: Any, values: Any) -> None:
    assert record.__hash__ is None
    assert not isinstance(record(*values), Hashable)
    assert error_of(hash, record(*values)) == error_of(hash, model(*values))
    # Some versions of Python name the module of the class, too.
    text = error_of(lambda: {record(*values)}).replace(f"{record.__module__}.", "")
    assert text == error_of(lambda: {model(*values)}).replace(f"{model.__module__}.", "")


def test_mutable(record: Any, record_name: str, values: Any) -> None:
    built = record(*values)
    for field in FIELDS[record_name]:
        setattr(built, field, field.upper())
        assert getattr(built, field) == field.upper()
    assert built == record(*(field.upper() for field in FIELDS[record_name]))


def test_deleted_fields_fall_back_to_defaults(
    record: Any, model: Any, record_name: str, values: Any
) -> None:
    built, other = record(*values), model(*values)
    for field in FIELDS[record_name]:
        delattr(built, field)
        delattr(other, field)
        if field in DEFAULTS[record_name]:
            assert getattr(built, field) == DEFAULTS[record_name][field]
        else:
            assert error_of(getattr, built, field) == error_of(getattr, other, field)
        assert error_of(delattr, built, field) == error_of(delattr, other, field)
    assert vars(built) == {}


def test_class_attributes_are_the_defaults(record: Any, model: Any, record_name: str) -> None:
    for field in FIELDS[record_name]:
        if field in DEFAULTS[record_name]:
            assert getattr(record, field) == DEFAULTS[record_name][field]
        else:
            assert not hasattr(record, field)
            assert error_of(getattr, record, field) == error_of(getattr, model, field)


def test_new_attributes(record: Any, values: Any) -> None:
    built = record(*values)
    built.extra = [1]
    assert vars(built)["extra"] == [1]
    assert "extra" in dir(built)
    assert "extra" not in repr(built)
    del built.extra
    assert not hasattr(built, "extra")


def test_vars_is_the_storage(record: Any, record_name: str, values: Any) -> None:
    built = record(*values)
    vars(built)[FIELDS[record_name][0]] = "written"
    assert getattr(built, FIELDS[record_name][0]) == "written"
    built.__dict__ = dict.fromkeys(FIELDS[record_name], 7)
    assert built == record(*[7] * len(values))
    assert error_of(setattr, built, "__dict__", 1).startswith("TypeError: __dict__ must be set")


def test_class_can_be_patched(record: Any, values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "added", property(lambda self: "seen"), raising=False)
    monkeypatch.setattr(record, "__repr__", lambda self: "patched")
    built = record(*values)
    assert (built.added, repr(built)) == ("seen", "patched")


def test_weak_references(record: Any, values: Any) -> None:
    built = record(*values)
    gone: list[Any] = []
    reference = weakref.ref(built, gone.append)
    assert reference() is built
    del built
    assert reference() is None
    assert gone == [reference]


def test_cycles_are_collected(record: Any, record_name: str, values: Any) -> None:
    built = record(*values)
    setattr(built, FIELDS[record_name][0], [built])
    reference = weakref.ref(built)
    del built
    gc.collect()
    assert reference() is None


def test_match_by_position(implementation: Any) -> None:
    allocation = implementation.PortAllocation("api", 1, 2, "allocated")
    match allocation:
        case implementation.PortAllocation(service, 1, port, "allocated", None):
            assert (service, port) == ("api", 2)
        case _:
            pytest.fail("positional patterns do not match")
    match allocation:
        case implementation.PortAllocation("api", 1, 3):
            pytest.fail("matches in spite of another port")
        case implementation.PortAllocation(status="allocated", requested_port=wanted):
            assert wanted == 1
        case _:
            pytest.fail("keyword patterns do not match")


def test_match_args(record: Any, record_name: str) -> None:
    assert record.__match_args__ == FIELDS[record_name]
    assert type(record.__match_args__) is tuple


def test_signature(record: Any, model: Any, record_name: str) -> None:
    for ours, theirs in ((record, model), (record.__init__, model.__init__)):
        got, expected = inspect.signature(ours), inspect.signature(theirs)
        assert [(p.name, p.kind, p.default) for p in got.parameters.values()] == [
            (p.name, p.kind, p.default) for p in expected.parameters.values()
        ]
        assert got.return_annotation is expected.return_annotation
    bound = inspect.signature(record).bind(*FIELDS[record_name])
    assert tuple(bound.arguments) == FIELDS[record_name]


def test_type_hints(record: Any, model: Any, record_name: str) -> None:
    got, expected = typing.get_type_hints(record), typing.get_type_hints(model)
    assert list(got) == list(expected) == list(FIELDS[record_name])
    assert {k: plain_hint(v) for k, v in got.items()} == {
        k: plain_hint(v) for k, v in expected.items()
    }
    assert list(inspect.get_annotations(record)) == list(FIELDS[record_name])


def test_class_is_found_where_it_says(record: Any, record_name: str) -> None:
    assert (record.__name__, record.__qualname__) == (record_name, record_name)
    assert getattr(sys.modules[record.__module__], record_name) is record
    assert type(record) is type
    assert record.__mro__ == (record, object)


def test_help(record: Any, record_name: str) -> None:
    assert record.__doc__
    text = pydoc.render_doc(record, renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    assert f"class {record_name}(builtins.object)" in text
    assert f"{record_name}({FIELDS[record_name][0]}" in re.sub(r"[\s|]", "", text)
    for field in DEFAULTS[record_name]:
        assert f"{field} = {DEFAULTS[record_name][field]}" in text
