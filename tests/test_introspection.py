"""What tools see of the methods: signatures, kinds, help and what mock makes of them."""

# The classes under test are not known before the tests run.
# mypy: allow-subclassing-any

import asyncio
import copy
import functools
import inspect
import pickle
import pydoc
import re
import typing
import warnings
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec, patch

import pytest
import twin
from comparing import error_of, plain_hint

SIGNATURES = {
    "is_port_available": "(self, port, host='127.0.0.1')",
    "find_available_port": "(self, start_port, end_port=None, host='127.0.0.1')",
    "allocate_port": "(self, service_name)",
    "allocate_all_ports": "(self)",
    "get_port_status": "(self)",
    "wait_for_port": "(self, port, timeout=30.0, check_interval=1.0, host='127.0.0.1')",
    "save_configuration": "(self, file_path=None)",
    "cleanup": "(self)",
    "get_port": "(self, service_name)",
    "get_allocated_ports": "(self)",
    "release_port": "(self, service_name)",
    "release_all_ports": "(self)",
    "get_environment_variables": "(self)",
    "start_port_monitoring": "(self, service_name, interval=5.0, loop=None)",
    "stop_port_monitoring": "(self, service_name)",
}
METHODS = [*SIGNATURES]
ASYNC = METHODS[: METHODS.index("get_port")]
SYNC = METHODS[METHODS.index("get_port") :]
# What the extension has beyond the documented service.
ADDITIONS = {"bind_port", "get_port_owner", "wait_for_listener", "wait_for_ports"}


def iscoroutinefunction(function: Any) -> tuple[bool, bool]:
    """The answers of inspect and of asyncio."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return inspect.iscoroutinefunction(function), asyncio.iscoroutinefunction(function)


def bare(signature: inspect.Signature) -> str:
    """A signature without annotations, which may be spelled in several ways."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(parameters))


@pytest.fixture
def cls(implementation: Any) -> Any:
    return implementation.PortManager


@pytest.fixture
def manager(make_manager: Callable[..., Any]) -> Any:
    return make_manager()


def test_public_methods(cls: Any, implementation: Any) -> None:
    methods = {name for name in dir(cls) if name[0] != "_" and callable(getattr(cls, name))}
    assert methods >= {*METHODS}
    assert methods - {*METHODS} <= (ADDITIONS if implementation.name == "native" else set())


@pytest.mark.parametrize("name", METHODS)
def test_signature(cls: Any, manager: Any, name: str) -> None:
    got, expected = (inspect.signature(getattr(c, name)) for c in (cls, twin.PortManager))
    assert bare(got) == SIGNATURES[name]
    assert [(p.name, p.kind, p.default) for p in got.parameters.values()] == [
        (p.name, p.kind, p.default) for p in expected.parameters.values()
    ]
    bound = inspect.signature(getattr(manager, name))
    assert bare(bound) == SIGNATURES[name].replace("self, ", "").replace("self", "")


@pytest.mark.parametrize("name", METHODS)
def test_type_hints(cls: Any, manager: Any, name: str) -> None:
    expected = typing.get_type_hints(getattr(twin.PortManager, name))
    for owner in (cls, manager):
        got = typing.get_type_hints(getattr(owner, name))
        assert list(got) == list(expected)
        if "loop" in got:  # To name the class of event loops would take an import of asyncio.
            assert {type(None)} < {*typing.get_args(got["loop"])}
            got["loop"] = expected["loop"]
        assert {k: plain_hint(v) for k, v in got.items()} == {
            k: plain_hint(v) for k, v in expected.items()
        }
    annotations = inspect.signature(getattr(cls, name)).return_annotation
    assert plain_hint(annotations) == plain_hint(
        inspect.signature(getattr(twin.PortManager, name)).return_annotation
    )


def test_signatures_of_constructor_and_singleton(implementation: Any) -> None:
    assert bare(inspect.signature(implementation.PortManager)) == "(config=None)"
    assert bare(inspect.signature(implementation.get_port_manager)) == "(config=None)"
    hints = typing.get_type_hints(implementation.get_port_manager)
    assert plain_hint(hints["return"]) == "PortManager"
    assert plain_hint(hints["config"]) == frozenset({"PortManagerConfig", "NoneType"})


@pytest.mark.parametrize("name", METHODS)
def test_coroutine_functions(cls: Any, manager: Any, name: str) -> None:
    class Sub(cls):
        pass

    function, method = getattr(cls, name), getattr(manager, name)
    expected = (name in ASYNC,) * 2
    assert iscoroutinefunction(function) == expected
    assert iscoroutinefunction(method) == expected
    assert iscoroutinefunction(getattr(Sub, name)) == expected
    assert inspect.iscoroutinefunction(functools.partial(method)) == expected[0]
    assert inspect.iscoroutinefunction(functools.partial(function, manager)) == expected[0]
    assert not inspect.isasyncgenfunction(function)
    assert not inspect.isgeneratorfunction(function)


@pytest.mark.parametrize("name", METHODS)
def test_kinds(cls: Any, manager: Any, name: str) -> None:
    function, method = getattr(cls, name), getattr(manager, name)
    for predicate in (
        inspect.isfunction,
        inspect.ismethod,
        inspect.isroutine,
        inspect.isbuiltin,
        inspect.ismethoddescriptor,
        inspect.isdatadescriptor,
        callable,
    ):
        expected = getattr(twin.PortManager, name)
        assert predicate(function) == predicate(expected), predicate
        assert predicate(method) == predicate(expected.__get__(object())), predicate


@pytest.mark.parametrize("name", METHODS)
def test_names_and_documentation(cls: Any, manager: Any, name: str) -> None:
    for function in (getattr(cls, name), getattr(manager, name)):
        assert function.__name__ == name
        assert function.__qualname__ == f"PortManager.{name}"
        assert function.__module__ == cls.__module__
        assert inspect.getdoc(function)
        assert f"PortManager.{name}" in repr(function)
        assert function.__defaults__ == getattr(twin.PortManager, name).__defaults__
        assert function.__kwdefaults__ is None


def test_bound_methods(cls: Any, make_manager: Callable[..., Any]) -> None:
    one, other = make_manager(), make_manager()
    for name in METHODS:
        method = getattr(one, name)
        assert method.__self__ is one
        assert method.__func__ is getattr(cls, name)
        assert method == getattr(one, name)
        assert hash(method) == hash(getattr(one, name))
        assert method != getattr(other, name)
        assert getattr(cls, name).__get__(one) == method
        assert inspect.getattr_static(cls, name) is getattr(cls, name)


@pytest.mark.parametrize("name", METHODS)
def test_help(cls: Any, manager: Any, name: str) -> None:
    parameters = inspect.signature(getattr(twin.PortManager, name)).parameters.values()
    parts = [
        p.name + ("" if p.name == "self" else r":[^=]+?")
        + ("" if p.default is p.empty else re.escape(f"={p.default!r}"))
        for p in parameters
    ]  # fmt: skip
    prefix = "async" if name in ASYNC else r"(?<!async)"
    whole = rf"{prefix}{name}\({','.join(parts)}\)->\w+"
    methods = rf"{name}\({','.join(parts[1:])}\)->\w+.*methodof"
    for target, pattern in (
        (cls, whole),
        (getattr(cls, name), whole),
        (getattr(manager, name), methods),
    ):
        text = pydoc.render_doc(target, renderer=pydoc.plaintext)  # type: ignore[attr-defined]
        assert re.search(pattern, re.sub(r"[\s|]", "", text)), text


def test_autospec_of_the_class(cls: Any) -> None:
    mocked = create_autospec(cls)
    assert isinstance(mocked(), cls)
    with pytest.raises(TypeError, match="too many positional arguments"):
        mocked(None, 1)
    for name in ASYNC:
        assert isinstance(getattr(mocked(), name), AsyncMock), name
    for name in SYNC:
        assert isinstance(getattr(mocked(), name), MagicMock), name
        assert not isinstance(getattr(mocked(), name), AsyncMock), name
    with pytest.raises(AttributeError):
        mocked().no_such_method()


async def test_autospec_of_an_instance(cls: Any, manager: Any) -> None:
    for mocked in (create_autospec(cls, instance=True), create_autospec(manager)):
        assert isinstance(mocked, cls)
        for name in ASYNC:
            assert isinstance(getattr(mocked, name), AsyncMock), name
        for name in SYNC:
            assert isinstance(getattr(mocked, name), MagicMock), name
            assert not isinstance(getattr(mocked, name), AsyncMock), name
        mocked.allocate_port.return_value = "given"
        assert await mocked.allocate_port("api") == "given"
        mocked.allocate_port.assert_awaited_once_with("api")
        mocked.allocate_port.assert_awaited_once_with(service_name="api")
        assert await mocked.find_available_port(1, host="::1") is not None
        mocked.get_port.return_value = 5
        assert mocked.get_port("api") == 5


@pytest.mark.parametrize(
    ("name", "arguments", "keywords"),
    [
        ("allocate_port", (), {}),
        ("allocate_port", ("a", "b"), {}),
        ("allocate_port", ("a",), {"service": "b"}),
        ("cleanup", (1,), {}),
        ("is_port_available", (1, "h", 2), {}),
        ("get_port", (), {}),
        ("release_all_ports", (1,), {}),
        ("start_port_monitoring", ("a",), {"every": 1}),
    ],
)
def test_autospec_enforces_signatures(
    cls: Any, name: str, arguments: Any, keywords: dict[str, Any]
) -> None:
    mocked = create_autospec(cls, instance=True)
    expected = create_autospec(twin.PortManager, instance=True)
    text = error_of(getattr(mocked, name), *arguments, **keywords)
    assert text.startswith("TypeError: ")
    assert text == error_of(getattr(expected, name), *arguments, **keywords)


async def test_mock_with_spec(cls: Any, manager: Any) -> None:
    for mocked in (Mock(spec=cls), MagicMock(spec_set=cls), Mock(spec=manager), AsyncMock(cls)):
        assert isinstance(mocked, cls)
        for name in ASYNC:
            assert isinstance(getattr(mocked, name), AsyncMock), name
        for name in SYNC:
            assert not isinstance(getattr(mocked, name), AsyncMock), name
        mocked.allocate_port.return_value = "given"
        assert await mocked.allocate_port("api") == "given"
        with pytest.raises(AttributeError):
            mocked.no_such_method  # noqa: B018


@pytest.mark.parametrize("name", METHODS)
async def test_patch_object_chooses_the_mock(cls: Any, manager: Any, name: str) -> None:
    original = getattr(cls, name)
    for target in (cls, manager):
        with patch.object(target, name) as mocked:
            assert isinstance(mocked, AsyncMock) == (name in ASYNC)
            mocked.return_value = "given"
            answer = getattr(manager, name)()
            assert (await answer if name in ASYNC else answer) == "given"
            mocked.assert_called_once_with()
        assert getattr(cls, name) is original
        assert name not in vars(manager)
        assert getattr(manager, name).__func__ is original


async def test_patch_object_with_autospec(cls: Any, manager: Any) -> None:
    original = cls.allocate_port
    with patch.object(cls, "allocate_port", autospec=True) as mocked:
        mocked.return_value = "given"
        assert await manager.allocate_port("api") == "given"
        mocked.assert_awaited_once_with(manager, "api")
        with pytest.raises(TypeError):
            await manager.allocate_port()
    with patch.object(manager, "get_port", autospec=True, return_value=7) as mocked:
        assert manager.get_port("api") == 7
        mocked.assert_called_once_with("api")
        with pytest.raises(TypeError):
            manager.get_port()
    assert cls.allocate_port is original
    assert "get_port" not in vars(manager)


async def test_wraps_and_partial(cls: Any, manager: Any, free_port: int) -> None:
    calls = []

    @functools.wraps(cls.is_port_available)
    async def wrapper(*arguments: Any, **keywords: Any) -> Any:
        calls.append((arguments, keywords))
        return await cls.is_port_available(*arguments, **keywords)

    assert wrapper.__wrapped__ is cls.is_port_available
    assert wrapper.__qualname__ == "PortManager.is_port_available"
    assert wrapper.__doc__ == cls.is_port_available.__doc__
    assert bare(inspect.signature(wrapper)) == SIGNATURES["is_port_available"]
    assert inspect.unwrap(wrapper) is cls.is_port_available
    assert await wrapper(manager, port=free_port) is True
    assert calls == [((manager,), {"port": free_port})]

    partial = functools.partial(manager.is_port_available, free_port)
    assert bare(inspect.signature(partial)) == "(host='127.0.0.1')"
    assert await partial() is True
    assert functools.partial(cls.get_port, manager, "nobody")() is None

    class Sub(cls):
        check = functools.partialmethod(cls.is_port_available, free_port)

    assert await Sub().check() is True


@pytest.mark.parametrize("name", METHODS)
def test_functions_are_copied_and_pickled_by_reference(cls: Any, name: str) -> None:
    function = getattr(cls, name)
    assert copy.copy(function) is function
    assert copy.deepcopy([function])[0] is function
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(function, protocol)) is function


@pytest.mark.parametrize("name", METHODS)
def test_custom_attributes(cls: Any, manager: Any, name: str) -> None:
    function = getattr(cls, name)
    function.marker = ["mark"]
    try:
        assert getattr(cls, name).marker == ["mark"]
        assert getattr(manager, name).marker == ["mark"]
        assert vars(function)["marker"] == ["mark"]
    finally:
        del function.marker
    assert not hasattr(getattr(cls, name), "marker")
    assert error_of(setattr, getattr(manager, name), "marker", 1) == (
        error_of(setattr, getattr(twin.PortManager(), name), "marker", 1)
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((), {}),
        ((), {"surprise": 1}),
        ((), {"servise_name": 1, "prot": 2}),
        (("a",), {"service_name": "b", "port": 1, "start_port": 1, "file_path": "c"}),
        (("a", "b", "c", "d", "e"), {}),
        (("a", "b", "c", "d", "e", "f"), {}),
        (("a", "b", "c", "d", "e", "f"), {"surprise": 1}),
    ],
)
def test_text_of_wrong_calls(
    cls: Any, manager: Any, name: str, arguments: Any, keywords: dict[str, Any]
) -> None:
    theirs = twin.PortManager()
    try:
        inspect.signature(getattr(theirs, name)).bind(*arguments, **keywords)
    except TypeError:
        text = error_of(getattr(manager, name), *arguments, **keywords)
        assert text == error_of(getattr(theirs, name), *arguments, **keywords)
        assert text.startswith(f"TypeError: PortManager.{name}() ")
        # The same through the class, with self counted as one of the arguments.
        text = error_of(getattr(cls, name), manager, *arguments, **keywords)
        assert text == error_of(getattr(theirs, name), *arguments, **keywords)
    function, expected = getattr(cls, name), getattr(twin.PortManager, name)
    assert error_of(function, surprise=1) == error_of(expected, surprise=1)
    assert error_of(function) == error_of(expected)
    assert "'self'" in error_of(function)


def test_text_of_wrong_constructor_calls(cls: Any) -> None:
    for arguments, keywords in (((None, 1), {}), ((), {"surprise": 1}), ((None,), {"config": 1})):
        text = error_of(cls, *arguments, **keywords)
        assert text == error_of(twin.PortManager, *arguments, **keywords)
        assert text.startswith("TypeError: PortManager.__init__() ")


def test_another_self(native: Any) -> None:
    """A method of the extension does not trust what it is called on."""
    for name in METHODS:
        function = getattr(native.PortManager, name)
        required = [
            p for p in inspect.signature(function).parameters.values() if p.default is p.empty
        ]
        text = error_of(call_on_object, function, *[1] * (len(required) - 1))
        assert text.startswith("TypeError: "), name
        assert "PortManager" in text


def call_on_object(function: Any, *arguments: Any) -> Any:
    """Call a method on what is no manager, and start it if it is a coroutine."""
    answer = function(object(), *arguments)
    if inspect.isawaitable(answer):
        answer.send(None)  # type: ignore[attr-defined]
    return answer
