"""What is put in the place of a method is what the methods built on it call."""

# The classes under test are not known before the tests run.
# mypy: allow-subclassing-any

import asyncio
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import AsyncMock, call, patch

import pytest
import twin
from comparing import error_of, finish

Override = Callable[[str, Any], Any]


@pytest.fixture(params=["subclass", "instance", "patched class", "patched instance"])
def override(
    request: pytest.FixtureRequest, implementation: Any, make_manager: Any
) -> Iterator[Override]:
    """Make a manager with a method overridden, in each of the ways there are.

    The replacement is called without the manager.
    """
    with ExitStack() as stack:

        def install(name: str, replacement: Any, *configs: Any, **options: Any) -> Any:
            cls = implementation.PortManager
            if request.param == "subclass":
                cls = type("Sub", (cls,), {name: lambda self, *a, **k: replacement(*a, **k)})
            manager = make_manager(*configs, cls=cls, **options)
            if request.param == "instance":
                setattr(manager, name, replacement)
            elif request.param == "patched class":
                stack.enter_context(patch.object(cls, name, staticmethod(replacement)))
            elif request.param == "patched instance":
                stack.enter_context(patch.object(manager, name, replacement))
            return manager

        yield install


@pytest.fixture
def first(port_block: Callable[[int], int]) -> int:
    """The first of four free ports."""
    return port_block(4)


@pytest.fixture
def config(implementation: Any, first: int) -> Any:
    """A configuration whose default port is not in its range."""
    return implementation.PortConfig("api", first, (first + 1, first + 3), required=True)


async def test_allocate_asks_about_the_default_port(override: Any, config: Any, first: int) -> None:
    mock = AsyncMock(return_value=True)
    manager = override("is_port_available", mock, config)
    allocation = await manager.allocate_port("api")
    assert (allocation.status, allocation.allocated_port) == ("allocated", first)
    assert allocation.message == f"Allocated default port {first}"
    assert mock.await_args_list == [call(first)]
    assert await manager.allocate_port("api") is allocation
    assert mock.await_count == 1


async def test_allocate_asks_about_the_range(override: Any, config: Any, first: int) -> None:
    mock = AsyncMock(side_effect=[False, False, True])
    manager = override("is_port_available", mock, config)
    allocation = await manager.allocate_port("api")
    assert (allocation.status, allocation.allocated_port) == ("allocated", first + 2)
    assert allocation.message == (
        f"Default port {first} was in use. Allocated alternative port {first + 2}"
    )
    assert mock.await_args_list == [call(first), call(first + 1), call(first + 2)]


async def test_allocate_asks_once_a_round(override: Any, config: Any, first: int) -> None:
    mock = AsyncMock(return_value=False)
    config.range = None
    manager = override("is_port_available", mock, config, max_retries=3)
    allocation = await manager.allocate_port("api")
    assert (allocation.status, allocation.allocated_port) == ("in_use", 0)
    assert allocation.message == f"Port {first} is in use and no alternatives available"
    assert mock.await_args_list == [call(first)] * 4


async def test_allocate_succeeds_at_a_retry(override: Any, config: Any, first: int) -> None:
    mock = AsyncMock(side_effect=[False, False, True])
    manager = override(
        "is_port_available", mock, config, max_retries=5, enable_auto_allocation=False
    )
    assert (await manager.allocate_port("api")).allocated_port == first
    assert mock.await_args_list == [call(first)] * 3


async def test_find_asks_about_each_port(override: Any, first: int) -> None:
    mock = AsyncMock(side_effect=lambda port, *host: port == first + 2)
    manager = override("is_port_available", mock)
    assert await manager.find_available_port(first, first + 3) == first + 2
    assert mock.await_args_list == [call(first), call(first + 1), call(first + 2)]
    mock.reset_mock()
    assert await manager.find_available_port(first, first + 1) is None
    assert mock.await_args_list == [call(first), call(first + 1)]


async def test_find_without_an_end(override: Any, first: int) -> None:
    mock = AsyncMock(return_value=False)
    manager = override("is_port_available", mock)
    for start, last in ((first, min(first + 100, 65535)), (65500, 65535), (65535, 65535)):
        mock.reset_mock()
        assert await manager.find_available_port(start) is None
        asked = [arguments.args[0] for arguments in mock.await_args_list]
        # Ports that another process holds are left out, if there are any.
        assert asked == sorted({*asked} & {*range(start, last + 1)})
        assert (asked[0], asked[-1]) == (start, last)
        assert len(asked) > (last - start) / 2


async def test_wait_reads_false_as_in_use(override: Any, free_port: int) -> None:
    mock = AsyncMock(side_effect=[True, True, False])
    manager = override("is_port_available", mock)
    assert await manager.wait_for_port(free_port, timeout=10) is True
    assert mock.await_args_list == [call(free_port)] * 3


async def test_wait_reads_true_as_not_in_use(override: Any, busy_port: int) -> None:
    mock = AsyncMock(return_value=True)
    manager = override("is_port_available", mock)
    assert await manager.wait_for_port(busy_port, timeout=0) is False
    assert mock.await_args_list == [call(busy_port)]


async def test_status_reads_false_as_in_use(override: Any, config: Any, first: int) -> None:
    mock = AsyncMock(return_value=True)
    manager = override("is_port_available", mock, config)
    await manager.allocate_port("api")
    for available in (True, False, True):
        mock.reset_mock()
        mock.return_value = available
        (status,) = await manager.get_port_status()
        assert (status.port, status.service) == (first, "api")
        assert status.in_use is not available
        assert mock.await_args_list == [call(first)]


async def test_a_host_is_passed_on_where_it_is_not_the_default(
    override: Any, free_port: int
) -> None:
    seen = []

    async def looking(port: int, host: str = "not given") -> bool:
        seen.append((port, host))
        return False

    manager = override("is_port_available", looking)
    for host in ("127.0.0.1", "::1", "", "localhost"):
        assert await manager.find_available_port(free_port, free_port, host) is None
        assert await manager.wait_for_port(free_port, 1, 0.1, host=host) is True
    given = ["not given", "::1", "", "localhost"]
    assert seen == [(free_port, host) for host in given for _ in range(2)]


async def test_allocate_calls_find_with_the_range(override: Any, config: Any, first: int) -> None:
    mock = AsyncMock(return_value=first + 3)
    manager = override("find_available_port", mock, config)
    manager.is_port_available = AsyncMock(return_value=False)
    allocation = await manager.allocate_port("api")
    assert (allocation.status, allocation.allocated_port) == ("allocated", first + 3)
    assert allocation.message == (
        f"Default port {first} was in use. Allocated alternative port {first + 3}"
    )
    assert mock.await_args_list == [call(first + 1, first + 3)]


async def test_find_without_an_answer(override: Any, config: Any, first: int) -> None:
    mock = AsyncMock(return_value=None)
    manager = override("find_available_port", mock, config, max_retries=2)
    manager.is_port_available = AsyncMock(return_value=False)
    allocation = await manager.allocate_port("api")
    assert (allocation.status, allocation.allocated_port) == ("in_use", 0)
    assert mock.await_args_list == [call(first + 1, first + 3)] * 3
    assert manager.is_port_available.await_args_list == [call(first)] * 3


async def test_find_is_not_called_without_need(override: Any, config: Any) -> None:
    mock = AsyncMock(return_value=None)
    manager = override("find_available_port", mock, config)
    assert (await manager.allocate_port("api")).status == "allocated"
    manager.release_port("api")
    manager.is_port_available = AsyncMock(return_value=False)
    manager.config.enable_auto_allocation = False
    assert (await manager.allocate_port("api")).status == "in_use"
    manager.config.enable_auto_allocation = True
    config.range = None
    assert (await manager.allocate_port("api")).status == "in_use"
    mock.assert_not_called()


async def test_allocate_all_calls_allocate(override: Any, implementation: Any, config: Any) -> None:
    mock = AsyncMock(side_effect=lambda name: f"allocation of {name}")
    others = [
        implementation.PortConfig("optional", 1),
        implementation.PortConfig("web", 2, required=True),
    ]
    manager = override("allocate_port", mock, config, *others)
    assert await manager.allocate_all_ports() == {
        "api": "allocation of api",
        "web": "allocation of web",
    }
    assert mock.await_args_list == [call("api"), call("web")]
    assert manager.allocated_ports == {}


async def test_allocate_all_asks_about_each_port(
    override: Any, implementation: Any, config: Any, first: int
) -> None:
    mock = AsyncMock(side_effect=[True, False, True])
    web = implementation.PortConfig("web", first + 3, (first + 2, first + 2), required=True)
    manager = override("is_port_available", mock, config, web)
    got = await manager.allocate_all_ports()
    assert {name: a.allocated_port for name, a in got.items()} == {"api": first, "web": first + 2}
    assert mock.await_args_list == [call(first), call(first + 3), call(first + 2)]


async def test_true_stands_for_the_probe(override: Any, config: Any, busy_port: int) -> None:
    config.default_port = busy_port
    manager = override("is_port_available", AsyncMock(return_value=True), config)
    assert (await manager.allocate_port("api")).allocated_port == busy_port
    assert await manager.find_available_port(busy_port, busy_port) is None, "it is reserved now"
    manager.release_port("api")
    assert await manager.find_available_port(busy_port, busy_port) == busy_port


async def test_true_does_not_stand_for_the_reservation(
    make_manager: Any, implementation: Any, first: int
) -> None:
    mock = AsyncMock(return_value=True)
    configs = [implementation.PortConfig(name, first, (first, first + 3)) for name in "abcde"]
    manager = make_manager(*configs)
    manager.is_port_available = mock
    got = [await manager.allocate_port(name) for name in "abcde"]
    ports = [*range(first, first + 4)]
    assert [allocation.allocated_port for allocation in got] == [*ports, 0]
    # A port that is reserved is not even looked at.
    assert mock.await_args_list == [call(port) for port in ports]


async def test_managers_share_no_port_whatever_an_override_says(native: Any, first: int) -> None:
    class Careless(native.PortManager):
        async def is_port_available(self, port: int) -> bool:
            return True

    managers = [Careless(native.PortManagerConfig(max_retries=0)) for _ in range(5)]
    for index, manager in enumerate(managers):
        # Services of different names, since one of the same name is no stranger.
        config = native.PortConfig(f"s{index}", first, (first, first + 3))
        manager.port_configs = {config.service: config}
    got = [await m.allocate_port(f"s{index}") for index, m in enumerate(managers)]
    assert [a.allocated_port for a in got] == [*range(first, first + 4), 0]
    assert await managers[4].find_available_port(first, first + 3) is None
    for manager in managers:
        manager.release_all_ports()
    assert await managers[4].find_available_port(first, first + 3) == first


async def test_found_port_that_is_reserved_is_not_given(
    make_manager: Any, implementation: Any, config: Any, first: int
) -> None:
    manager = make_manager(config, implementation.PortConfig("other", first + 2))
    assert (await manager.allocate_port("other")).allocated_port == first + 2
    manager.is_port_available = AsyncMock(return_value=False)
    manager.find_available_port = AsyncMock(return_value=first + 2)
    assert (await manager.allocate_port("api")).status == "in_use"
    assert manager.get_allocated_ports() == {"other": first + 2}


async def test_overrides_are_looked_up_at_each_call(
    make_manager: Any, free_port: int, busy_port: int
) -> None:
    manager = make_manager()
    assert await manager.find_available_port(free_port, free_port) == free_port
    manager.is_port_available = AsyncMock(return_value=False)
    assert await manager.find_available_port(free_port, free_port) is None
    manager.is_port_available.return_value = True
    assert await manager.find_available_port(busy_port, busy_port) == busy_port
    del manager.is_port_available
    assert await manager.find_available_port(free_port, free_port) == free_port
    with patch.object(type(manager), "is_port_available", return_value=False) as mock:
        assert await manager.find_available_port(free_port, free_port) is None
        mock.assert_awaited_once_with(free_port)
    assert await manager.find_available_port(free_port, free_port) == free_port


async def test_lookup_in_unusual_places(implementation: Any, free_port: int) -> None:
    async def taken(port: int) -> bool:
        return False

    class WithProperty(implementation.PortManager):
        @property
        def is_port_available(self) -> Any:
            return taken

    class WithGetattribute(implementation.PortManager):
        def __getattribute__(self, name: str) -> Any:
            return taken if name == "is_port_available" else super().__getattribute__(name)

    class Mixin:
        async def is_port_available(self, port: int) -> bool:
            return await taken(port)

    class WithMixin(Mixin, implementation.PortManager):
        pass

    for cls in (WithProperty, WithGetattribute, WithMixin):
        assert await cls().find_available_port(free_port, free_port) is None
        assert await cls().wait_for_port(free_port, timeout=0) is True


async def test_autospec_on_the_class(implementation: Any, free_port: int) -> None:
    manager = implementation.PortManager()
    with patch.object(
        implementation.PortManager, "is_port_available", autospec=True, return_value=False
    ) as mock:
        assert await manager.find_available_port(free_port, free_port) is None
    mock.assert_awaited_once_with(manager, free_port)


async def test_super(implementation: Any, free_port: int, busy_port: int) -> None:
    class Choosy(implementation.PortManager):
        async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
            return port != avoided and await super().is_port_available(port, host)

        async def allocate_port(self, service_name: str) -> Any:
            allocation = await super().allocate_port(service_name)
            allocation.message = "by way of super()"
            return allocation

    avoided = 0
    manager = Choosy()
    assert await manager.is_port_available(free_port) is True
    assert await manager.is_port_available(busy_port) is False
    assert await manager.find_available_port(free_port, free_port) == free_port
    avoided = free_port
    assert await manager.find_available_port(free_port, free_port) is None
    manager.port_configs = {"no": implementation.PortConfig("no", "bad", required=True)}
    got = await manager.allocate_all_ports()
    assert got["no"].message == "by way of super()"
    assert got["no"] is manager.allocated_ports["no"]


def users(manager: Any, port: int) -> dict[str, Callable[[], Any]]:
    """The methods that are built on is_port_available."""
    return {
        "allocate_port": lambda: manager.allocate_port("api"),
        "allocate_all_ports": manager.allocate_all_ports,
        "find_available_port": lambda: manager.find_available_port(port, port),
        "wait_for_port": lambda: manager.wait_for_port(port, timeout=0),
    }


USERS = ("allocate_port", "allocate_all_ports", "find_available_port", "wait_for_port")
WRONG = {
    "plain bool": lambda port: True,
    "plain False": lambda port: False,
    "nothing": lambda port: None,
    "generator": lambda port: iter([1]),
    "no arguments": lambda: True,
    "raises": lambda port: 1 // 0,
    "not callable": 5,
    "None": None,
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("wrong", WRONG)
def test_overrides_that_are_no_coroutine_functions(
    make_manager: Any, config: Any, user: str, wrong: str
) -> None:
    texts = []
    theirs = twin.PortManager()
    theirs.port_configs = {"api": config}
    for manager in (make_manager(config), theirs):
        setattr(manager, "is_port_available", WRONG[wrong])  # noqa: B010 - mypy knows the twin
        call = users(manager, config.default_port)[user]
        texts.append(error_of(lambda call=call: finish(call())))
        assert manager.allocated_ports == {}
    assert texts[0] == texts[1]
    assert texts[0].startswith("ZeroDivisionError: " if wrong == "raises" else "TypeError: ")


@pytest.mark.parametrize("user", USERS)
async def test_any_awaitable_will_do(make_manager: Any, config: Any, user: str) -> None:
    class Ready:
        def __await__(self) -> Generator[Any, Any, bool]:
            yield from asyncio.sleep(0).__await__()
            return True

    def future(port: int) -> Any:
        made = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(made.set_result, True)
        return made

    def task(port: int) -> Any:
        return asyncio.ensure_future(asyncio.sleep(0, True))

    for replacement in (lambda port: Ready(), future, task):
        manager = make_manager(config)
        manager.is_port_available = replacement
        got = await users(manager, config.default_port)[user]()
        if user in ("allocate_port", "allocate_all_ports"):
            assert manager.get_port("api") == config.default_port
        else:
            assert got == (config.default_port if user == "find_available_port" else False)
        manager.release_all_ports()


@pytest.mark.parametrize("answer", [1, 0, None, "yes", "", [], [0], 0.0])
async def test_answers_count_by_their_truth(
    make_manager: Any, config: Any, first: int, answer: Any
) -> None:
    manager = make_manager(config)
    manager.is_port_available = AsyncMock(return_value=answer)
    assert await manager.find_available_port(first, first) == (first if answer else None)
    assert await manager.wait_for_port(first, timeout=0) is (not answer)
    expected = "allocated" if answer else "in_use"
    assert (await manager.allocate_port("api")).status == expected


async def test_answer_without_a_truth(make_manager: Any, config: Any, first: int) -> None:
    class Vague:
        def __bool__(self) -> bool:
            raise LookupError("perhaps")

    manager = make_manager(config)
    manager.is_port_available = AsyncMock(return_value=Vague())
    for user in users(manager, first).values():
        with pytest.raises(LookupError, match="perhaps"):
            await user()
    assert manager.allocated_ports == {}


async def test_exhausted_side_effects(make_manager: Any, config: Any) -> None:
    manager = make_manager(config)
    manager.is_port_available = AsyncMock(side_effect=[False])
    with pytest.raises(StopAsyncIteration):
        await manager.allocate_port("api")
    assert manager.allocated_ports == {}
