"""Records under dataclasses' functions, copy and pickle, and against arbitrary values."""

# The classes under test are not known before the tests run.
# mypy: allow-subclassing-any

import copy
import dataclasses
import pickle
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest
import twin
from comparing import DEFAULTS, FIELDS, RELAXED, error_of, plain_hint
from hypothesis import given, settings
from hypothesis import strategies as st

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def test_fields(record: Any, model: Any, record_name: str) -> None:
    got = dataclasses.fields(record)
    assert got == dataclasses.fields(record(*FIELDS[record_name]))
    assert tuple(field.name for field in got) == FIELDS[record_name]
    for ours, theirs in zip(got, dataclasses.fields(model), strict=True):
        assert type(ours) is dataclasses.Field
        assert plain_hint(ours.type) == plain_hint(theirs.type)
        for detail in ("default", "default_factory", "init", "repr", "hash", "compare"):
            assert getattr(ours, detail) == getattr(theirs, detail), detail
        assert (ours.kw_only, dict(ours.metadata)) == (False, {})
    assert list(record.__dataclass_fields__) == list(FIELDS[record_name])


def test_is_dataclass(record: Any, values: Any) -> None:
    for either in (record, record(*values)):
        assert dataclasses.is_dataclass(either)


def test_parameters_are_those_of_a_plain_dataclass(record: Any, model: Any) -> None:
    assert repr(record.__dataclass_params__) == repr(model.__dataclass_params__)


def test_asdict(record: Any, record_name: str, values: Any) -> None:
    built = record(*values)
    built.extra = 1
    expected = dict(zip(FIELDS[record_name], values, strict=True))
    assert list(dataclasses.asdict(built).items()) == list(expected.items())
    assert list(dataclasses.asdict(built, dict_factory=list)) == list(expected.items())


def test_asdict_goes_into_values(record: Any, record_name: str, values: Any) -> None:
    first, second = FIELDS[record_name][:2]
    inner = record(*values)
    shared = ["a"]
    outer = record([inner], {"key": (inner, shared)}, *values[2:])
    got = dataclasses.asdict(outer)
    assert got[first] == [dataclasses.asdict(inner)]
    assert got[second] == {"key": (dataclasses.asdict(inner), ["a"])}
    assert got[second]["key"][1] is not shared


def test_astuple(record: Any, values: Any) -> None:
    assert dataclasses.astuple(record(*values)) == values
    nested = record(record(*values), *values[1:])
    assert dataclasses.astuple(nested) == (values, *values[1:])
    assert dataclasses.astuple(nested, tuple_factory=list)[0] == list(values)


def test_functions_for_objects_refuse_the_class(record: Any, model: Any) -> None:
    for function in (dataclasses.asdict, dataclasses.astuple, dataclasses.replace):
        assert error_of(function, record) == error_of(function, model)


def test_replace(record: Any, record_name: str, values: Any) -> None:
    built = record(*values)
    built.extra = 1
    for index, field in enumerate(FIELDS[record_name]):
        changed = dataclasses.replace(built, **{field: "new"})
        assert type(changed) is record
        assert changed == record(*values[:index], "new", *values[index + 1 :])
        assert not hasattr(changed, "extra")
    assert built == record(*values)


def test_replace_of_what_is_no_field(record: Any, model: Any, values: Any) -> None:
    text = error_of(dataclasses.replace, record(*values), surprise=1)
    assert text == error_of(dataclasses.replace, model(*values), surprise=1)
    assert "unexpected keyword argument 'surprise'" in text


@pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace came with Python 3.13")
def test_copy_replace(record: Any, model: Any, record_name: str, values: Any) -> None:
    built = record(*values)
    replace: Any = getattr(copy, "replace")  # noqa: B009 - unknown to older versions
    changed = replace(built, **{FIELDS[record_name][1]: "new"})
    assert type(changed) is record
    assert changed == record(values[0], "new", *values[2:])
    assert error_of(replace, built, surprise=1) == error_of(replace, model(*values), surprise=1)


def test_copy(record: Any, values: Any) -> None:
    inner = ["kept"]
    built = record(inner, *values[1:])
    built.extra = inner
    copied = copy.copy(built)
    assert type(copied) is record
    assert copied is not built
    assert vars(copied) == vars(built)
    assert vars(copied) is not vars(built)
    assert copied.extra is inner
    del copied.extra
    assert built.extra is inner


def test_deepcopy(record: Any, record_name: str, values: Any) -> None:
    built = record(["deep"], *values[1:])
    built.extra = built
    copied = copy.deepcopy(built)
    first = FIELDS[record_name][0]
    assert copied.extra is copied
    assert copied == built
    assert getattr(copied, first) is not getattr(built, first)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickle(record: Any, record_name: str, values: Any, protocol: int) -> None:
    built = record(datetime(2024, 2, 29, 12), *values[1:])
    built.extra = (built, None)
    del vars(built)[FIELDS[record_name][-1]]
    restored = pickle.loads(pickle.dumps(built, protocol))
    assert type(restored) is record
    assert restored.extra[0] is restored
    assert list(vars(restored)) == list(vars(built))
    assert getattr(restored, FIELDS[record_name][0]) == datetime(2024, 2, 29, 12)
    # pickle in plain Python goes another way than the accelerated one.
    dumped = pickle._dumps(built, protocol)  # type: ignore[attr-defined]
    assert list(vars(pickle._loads(dumped))) == list(vars(built))  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_class_is_pickled_by_reference(record: Any, protocol: int) -> None:
    assert pickle.loads(pickle.dumps(record, protocol)) is record


def test_unpickling_does_not_call_init(
    record: Any, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(record):
        made = 0

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            type(self).made += 1

    monkeypatch.setattr(sys.modules[__name__], "Counting", Counting, raising=False)
    Counting.__qualname__ = "Counting"
    built = Counting(*values)
    for protocol in PROTOCOLS:
        assert pickle.loads(pickle.dumps(built, protocol)) == built
    assert copy.deepcopy(copy.copy(built)) == built
    assert Counting.made == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickle_between_processes(native: Any, protocol: int) -> None:
    records = [getattr(native, name)(*fields) for name, fields in FIELDS.items()]
    records[0].extra = records[1]
    code = (
        "import pickle, sys\n"
        "records = pickle.load(sys.stdin.buffer)\n"
        "records.append(repr(records))\n"
        f"sys.stdout.buffer.write(pickle.dumps(records, {protocol}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(records, protocol),
        stdout=subprocess.PIPE,
        check=True,
    )
    *restored, text = pickle.loads(done.stdout)
    assert restored == records
    assert restored[0].extra is restored[1]
    assert text == repr(records)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates()
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)


@st.composite
def arguments(draw: st.DrawFn) -> tuple[str, list[Any], dict[str, Any]]:
    """The name of a record and arguments that fit it, some by position and some by name."""
    name = draw(st.sampled_from([*FIELDS]))
    by_position = draw(st.integers(0, len(FIELDS[name])))
    keywords = {
        field: draw(anything)
        for field in draw(st.permutations(FIELDS[name][by_position:]))
        if field not in DEFAULTS[name] or draw(st.booleans())
    }
    return name, [draw(anything) for _ in range(by_position)], keywords


@settings(RELAXED, max_examples=150)
@given(arguments(), arguments())
def test_like_the_twin_whatever_the_values(
    implementation: Any,
    some: tuple[str, list[Any], dict[str, Any]],
    others: tuple[str, list[Any], dict[str, Any]],
) -> None:
    got, expected = [], []
    for name, by_position, keywords in (some, others):
        got.append(getattr(implementation, name)(*by_position, **keywords))
        expected.append(getattr(twin, name)(*by_position, **keywords))
    assert repr(got) == repr(expected)
    assert (got[0] == got[1]) == (expected[0] == expected[1])
    assert (got[0] == got[0]) == (expected[0] == expected[0])
    assert (got[0] == copy.deepcopy(got[0])) == (expected[0] == copy.deepcopy(expected[0]))
    for ours, theirs in zip(got, expected, strict=True):
        # By their text, since a NaN is in none of them equal to itself.
        assert repr(dataclasses.asdict(ours)) == repr(dataclasses.asdict(theirs))
        assert repr(dataclasses.astuple(ours)) == repr(dataclasses.astuple(theirs))
        assert repr(vars(ours)) == repr(vars(theirs))
        assert repr(pickle.loads(pickle.dumps(ours))) == repr(ours)


@settings(RELAXED, max_examples=100)
@given(
    st.sampled_from([*FIELDS]),
    st.lists(st.integers(), max_size=7),
    st.lists(st.sampled_from([*{f for fields in FIELDS.values() for f in fields}]), unique=True),
)
def test_arguments_fit_or_fail_like_the_twins(
    implementation: Any, name: str, by_position: list[int], names: list[str]
) -> None:
    keywords = dict.fromkeys(names, 0)
    outcomes = []
    for cls in (getattr(implementation, name), getattr(twin, name)):
        try:
            outcomes.append(repr(cls(*by_position, **keywords)))
        except TypeError as error:
            outcomes.append(f"TypeError: {error}")
    assert outcomes[0] == outcomes[1]
