"""Classes derived from the records: plain ones, with their own ways, and further dataclasses."""

# The classes under test are not known before the tests run.
# mypy: allow-subclassing-any

import copy
import dataclasses
import inspect
import pickle
import sys
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from comparing import DEFAULTS, FIELDS, error_of


def both(record: Any, model: Any, make: Any) -> tuple[Any, Any]:
    """The same subclass of the class under test and of the twin's."""
    return make(record), make(model)


def test_plain(record: Any, model: Any, record_name: str, values: Any) -> None:
    def make(base: Any) -> Any:
        class Plain(base):
            def describe(self) -> str:
                return f"{getattr(self, FIELDS[record_name][0])}!"

        return Plain

    ours, theirs = both(record, model, make)
    built = ours(*values)
    assert isinstance(built, record)
    assert built.describe() == f"{values[0]}!"
    assert repr(built) == repr(theirs(*values))
    assert "make.<locals>.Plain(" in repr(built)
    assert error_of(ours, surprise=1) == error_of(theirs, surprise=1)
    assert error_of(ours, *values, 1) == error_of(theirs, *values, 1)
    assert dataclasses.replace(built, **{FIELDS[record_name][1]: 5}) == ours(
        values[0], 5, *values[2:]
    )
    assert type(copy.copy(built)) is ours


def test_own_init(record: Any, values: Any) -> None:
    class Short(record):
        def __init__(self, note: str, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.note = note

    built = Short("n", *values)
    assert built.note == "n"
    assert [*vars(built).values()] == [*values, "n"]
    assert [*inspect.signature(Short).parameters] == ["note", "arguments"]


def test_own_init_that_leaves_the_fields_out(record: Any, model: Any, record_name: str) -> None:
    def make(base: Any) -> Any:
        class Empty(base):
            def __init__(self) -> None:
                pass

        return Empty

    ours, theirs = both(record, model, make)
    assert vars(ours()) == {}
    if record_name == "PortManagerConfig":
        assert repr(ours()) == repr(theirs())
        assert ours().max_retries == 10
    else:
        assert error_of(repr, ours()) == error_of(repr, theirs())


def test_own_new(record: Any, values: Any) -> None:
    class Counted(record):
        count: ClassVar[int] = 0

        def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
            cls.count += 1
            return super().__new__(cls)

    assert Counted(*values) == Counted(*values)
    assert Counted.count == 2


def test_slots_beside_the_fields(record: Any, values: Any) -> None:
    class Slotted(record):
        __slots__ = ("fast",)

    built = Slotted(*values)
    built.fast = 1
    assert "fast" not in vars(built)
    assert pickle_through(Slotted, built).fast == 1


def pickle_through(cls: Any, built: Any) -> Any:
    """Pickle an object of a class that was made within a test."""
    module = sys.modules[__name__]
    cls.__module__, cls.__qualname__ = __name__, cls.__name__
    setattr(module, cls.__name__, cls)
    try:
        return pickle.loads(pickle.dumps(built))
    finally:
        delattr(module, cls.__name__)


def test_defaults_of_a_plain_subclass(record: Any, model: Any, record_name: str) -> None:
    """Another default needs the decorator; a class attribute alone is no default of __init__."""

    def make(base: Any) -> Any:
        last = FIELDS[record_name][-1]
        return type("Other", (base,), {last: "other"})

    ours, theirs = both(record, model, make)
    required = [*FIELDS[record_name]][: len(FIELDS[record_name]) - len(DEFAULTS[record_name])]
    assert repr(ours(*required)) == repr(theirs(*required))
    assert "other" not in repr(ours(*required))
    assert getattr(ours, FIELDS[record_name][-1]) == "other"


def test_property_in_place_of_a_field(record: Any, record_name: str, values: Any) -> None:
    first = FIELDS[record_name][0]

    class Guarded(record):
        def read(self) -> Any:
            return f"read {self.stored}"

        def write(self, value: Any) -> None:
            self.stored = f"wrote {value}"

    setattr(Guarded, first, property(Guarded.read, Guarded.write))
    built = Guarded(*values)
    assert getattr(built, first) == f"read wrote {values[0]}"
    assert vars(built)["stored"] == f"wrote {values[0]}"
    assert first not in vars(built)
    assert f"({first}='read wrote {values[0]}', " in repr(built)
    assert built == Guarded(*values)
    assert built != Guarded("other", *values[1:])
    assert dataclasses.asdict(built)[first] == f"read wrote {values[0]}"


def test_property_without_a_setter(record: Any, model: Any, record_name: str, values: Any) -> None:
    def make(base: Any) -> Any:
        return type("Fixed", (base,), {FIELDS[record_name][1]: property(lambda self: 1)})

    ours, theirs = both(record, model, make)
    text = error_of(ours, *values)
    assert text == error_of(theirs, *values)
    assert text.startswith("AttributeError: ")


def test_own_setattr(record: Any, record_name: str, values: Any) -> None:
    class Logged(record):
        seen: ClassVar[list[Any]] = []

        def __setattr__(self, name: str, value: Any) -> None:
            self.seen.append((name, value))
            super().__setattr__(name, value)

        def __delattr__(self, name: str) -> None:
            self.seen.append(name)
            super().__delattr__(name)

    built = Logged(*values)
    assert Logged.seen == list(zip(FIELDS[record_name], values, strict=True))
    built.extra = 1
    del built.extra
    assert Logged.seen[-2:] == [("extra", 1), "extra"]


def test_setattr_that_refuses(record: Any, record_name: str, values: Any) -> None:
    class Closed(record):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == FIELDS[record_name][1]:
                raise LookupError(name)
            super().__setattr__(name, value)

    assert error_of(Closed, *values) == f"LookupError: {FIELDS[record_name][1]}"


def test_own_getattribute(record: Any, record_name: str, values: Any) -> None:
    class Loud(record):
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            return value.upper() if isinstance(value, str) else value

    assert f"{FIELDS[record_name][0]}='{values[0].upper()}'" in repr(Loud(*values))
    assert Loud(*values) == Loud(*(value.upper() for value in values))


def test_post_init_needs_the_decorator(record: Any, values: Any) -> None:
    class Plain(record):
        def __post_init__(self) -> None:
            self.done = True

    assert not hasattr(Plain(*values), "done")
    decorated = dataclass(Plain)
    assert decorated(*values).done is True


def test_post_init_patched_in(
    record: Any, model: Any, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cls in (record, model):
        monkeypatch.setattr(cls, "__post_init__", lambda self: 1 / 0, raising=False)
        assert cls(*values) == cls(*values)


def test_dataclass_with_new_fields(record: Any, model: Any, record_name: str, values: Any) -> None:
    def make(base: Any) -> Any:
        @dataclass
        class Wider(base):
            tag: str = "none"
            more: list[int] = field(default_factory=list)

        return Wider

    # A new field without a default can only follow fields without one.
    ours, theirs = both(record, model, make)
    names = [*FIELDS[record_name], "tag", "more"]
    assert [f.name for f in dataclasses.fields(ours)] == names
    assert [*inspect.signature(ours).parameters] == names
    assert [p.default for p in inspect.signature(ours).parameters.values()][:-1] == [
        p.default for p in inspect.signature(theirs).parameters.values()
    ][:-1]
    assert [*typing.get_type_hints(ours)] == names
    assert ours.__match_args__ == tuple(names)
    built = ours(*values, more=[1])
    assert (built.tag, built.more) == ("none", [1])
    assert repr(built) == repr(theirs(*values, more=[1]))
    assert built == ours(*values, "none", [1])
    assert built != ours(*values, "some", [1])
    assert built != record(*values)
    assert dataclasses.asdict(built) == {
        **dict(zip(FIELDS[record_name], values, strict=True)),
        "tag": "none",
        "more": [1],
    }
    assert dataclasses.replace(built, tag="new").tag == "new"
    assert error_of(ours, surprise=1) == error_of(theirs, surprise=1)
    assert error_of(ours, *values, "a", [], 1) == error_of(theirs, *values, "a", [], 1)
    assert ours(*values).more is not ours(*values).more
    assert pickle_through(ours, built) == built
    assert [f.name for f in dataclasses.fields(record)] == [*FIELDS[record_name]]
    assert [*inspect.signature(record).parameters] == [*FIELDS[record_name]]


def test_dataclass_with_a_required_field(record: Any, model: Any) -> None:
    def make(base: Any) -> Any:
        @dataclass
        class Needs(base):
            tag: str

        return Needs

    assert error_of(make, record) == error_of(make, model)
    assert "non-default argument 'tag' follows default argument" in error_of(make, record)


def test_dataclass_with_keyword_only_fields(record: Any, model: Any, values: Any) -> None:
    def make(base: Any) -> Any:
        @dataclass(kw_only=True)
        class Named(base):
            tag: str

        return Named

    ours, theirs = both(record, model, make)
    assert ours(*values, tag="t").tag == "t"
    assert error_of(ours, *values) == error_of(theirs, *values)
    assert error_of(ours, *values, "t") == error_of(theirs, *values, "t")


def test_dataclass_with_another_default(record: Any, record_name: str, values: Any) -> None:
    last = FIELDS[record_name][-1]
    other: Any = dataclass(type("Other", (record,), {"__annotations__": {last: int}, last: 99}))
    required = len(values) - len(DEFAULTS[record_name])
    assert getattr(other(*values[:required]), last) == 99
    assert [f.name for f in dataclasses.fields(other)] == [*FIELDS[record_name]]


def test_frozen_dataclass_is_refused(record: Any, model: Any) -> None:
    def make(base: Any) -> Any:
        @dataclass(frozen=True)
        class Frozen(base):
            tag: str = "none"

        return Frozen

    assert error_of(make, record) == error_of(make, model)
    assert "cannot inherit frozen dataclass from a non-frozen one" in error_of(make, record)


def test_ordered_and_hashable_dataclasses(record: Any, values: Any) -> None:
    @dataclass(order=True, unsafe_hash=True)
    class Ordered(record):
        tag: int = 0

    assert Ordered(*values, 1) < Ordered(*values, 2)
    assert hash(Ordered(*values, 1)) == hash(Ordered(*values, 1))
    assert {Ordered(*values, 1): "found"}[Ordered(*values, 1)] == "found"


def test_dataclass_with_slots(record: Any, model: Any, values: Any) -> None:
    def make(base: Any) -> Any:
        @dataclass(slots=True)
        class Slotted(base):
            tag: int = 0

        return Slotted

    ours, theirs = both(record, model, make)
    assert ours.__slots__ == theirs.__slots__
    assert ours(*values, 3).tag == 3
    assert vars(ours(*values, 3)) == vars(theirs(*values, 3))
    assert pickle_through(ours, ours(*values, 3)).tag == 3


def test_init_var_and_post_init(record: Any, values: Any) -> None:
    @dataclass
    class Derived(record):
        factor: dataclasses.InitVar[int] = 2
        result: int = field(init=False, default=0)

        def __post_init__(self, factor: int) -> None:
            self.result = factor * 21

    assert Derived(*values).result == 42
    assert Derived(*values, factor=1).result == 21


def test_mixed_with_another_class(record: Any, values: Any) -> None:
    class Named:
        def name(self) -> str:
            return type(self).__name__

    class Both(Named, record):
        pass

    class Deeper(Both):
        pass

    assert Deeper(*values).name() == "Deeper"
    assert Deeper(*values) == Deeper(*values)
    assert Deeper.__mro__ == (Deeper, Both, Named, record, object)


def test_generic_and_abstract(record: Any, values: Any) -> None:
    item = typing.TypeVar("item")

    class Holder(record, typing.Generic[item]):
        pass

    assert Holder[int](*values) == Holder(*values)
