"""The ends of coroutine objects: dropped, collected, never awaited, and nothing left of them."""

import asyncio
import gc
import re
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from comparing import ASYNC_METHODS, error_of, finish, make_waiting, suspending

CYCLES = 10_000


@pytest.fixture
def make(implementation: Any) -> Callable[[], Any]:
    return lambda: make_waiting(implementation.PortManager)


@pytest.fixture
def manager(make_manager: Callable[..., Any]) -> Any:
    return make_manager()


@pytest.mark.parametrize("name", ASYNC_METHODS)
def test_never_awaited(manager: Any, name: str) -> None:
    text = re.escape(f"coroutine 'PortManager.{name}' was never awaited")
    with pytest.warns(RuntimeWarning, match=f"^{text}$") as caught:
        getattr(manager, name)(*ASYNC_METHODS[name])
    assert len(caught) == 1


def test_never_awaited_as_an_error(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda info: seen.append((info.exc_type, str(info.exc_value)))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager.allocate_port("api")
        gc.collect()
    text = "coroutine 'PortManager.allocate_port' was never awaited"
    assert seen == [(RuntimeWarning, text)]


def test_never_awaited_says_where_it_was_made(manager: Any) -> None:
    depth = sys.get_coroutine_origin_tracking_depth()
    sys.set_coroutine_origin_tracking_depth(2)
    try:
        coroutine = manager.allocate_port("api")
        assert coroutine.cr_origin[0][::2] == (
            __file__,
            "test_never_awaited_says_where_it_was_made",
        )
        assert len(coroutine.cr_origin) == 2
        with pytest.warns(RuntimeWarning, match="Coroutine created at") as caught:
            del coroutine
        assert __file__ in str(caught[0].message)
    finally:
        sys.set_coroutine_origin_tracking_depth(depth)
    coroutine = manager.cleanup()
    assert coroutine.cr_origin is None
    coroutine.close()


def test_started_ones_do_not_warn(make: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make().close()
        make().send(None)
        error_of(make().throw, ValueError)
        gc.collect()
    assert caught == []


def test_weak_reference(make: Callable[[], Any]) -> None:
    coroutine = make()
    coroutine.close()
    reference = weakref.ref(coroutine)
    assert reference() is coroutine
    del coroutine
    gc.collect()
    assert reference() is None


def test_cycle_with_its_manager_is_collected(implementation: Any) -> None:
    manager = implementation.PortManager()
    manager.is_port_available = suspending
    manager.kept = manager.wait_for_port(50000)
    manager.kept.send(None)
    reference = weakref.ref(manager)
    del manager
    gc.collect()
    assert reference() is None


def test_keeps_its_manager_and_arguments_alive(implementation: Any) -> None:
    manager = implementation.PortManager()
    reference = weakref.ref(manager)
    coroutine = manager.allocate_port("".join(["no", "body"]))
    del manager
    gc.collect()
    assert reference() is not None
    assert finish(coroutine).service == "nobody"
    del coroutine
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    "way", ["await", "fail", "close", "drop", "throw", "suspend", "allocate", "wrong call"]
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_nothing_leaks(
    make_manager: Callable[..., Any],
    implementation: Any,
    free_port: int,
    busy_port: int,
    way: str,
) -> None:
    manager = make_manager(implementation.PortConfig("api", free_port))
    port, name = free_port, "".join(["ap", "i"])

    async def waiting(port: int) -> bool:
        await asyncio.Future(loop=loop)
        return True

    def cycle() -> None:
        if way == "await":
            finish(manager.is_port_available(busy_port))
        elif way == "fail":
            error_of(lambda: finish(manager.is_port_available(-1)))
        elif way == "close":
            manager.wait_for_port(port, timeout=port).close()
        elif way == "drop":
            manager.find_available_port(port)
        elif way == "throw":
            error_of(manager.allocate_port(name).throw, ValueError)
        elif way == "suspend":
            coroutine = manager.allocate_port(name)
            coroutine.send(None)
            coroutine.close()
        elif way == "allocate":
            finish(manager.allocate_port(name))
            manager.release_port(name)
        else:
            error_of(manager.wait_for_port, port, port, port, port, surprise=port)

    loop = asyncio.new_event_loop()
    if way == "suspend":
        manager.is_port_available = waiting
    with warnings.catch_warnings():
        # Looked up for each warning otherwise, and remembered.
        warnings.simplefilter("ignore")
        for _ in range(300):
            cycle()
        gc.collect()
        before = (sys.getallocatedblocks(), len(gc.get_objects()), sys.getrefcount(name),
                  sys.getrefcount(port), sys.getrefcount(manager))  # fmt: skip
        for _ in range(CYCLES):
            cycle()
        gc.collect()
        after = (sys.getallocatedblocks(), len(gc.get_objects()), sys.getrefcount(name),
                 sys.getrefcount(port), sys.getrefcount(manager))  # fmt: skip
    loop.close()
    grown = [b - a for a, b in zip(before, after, strict=True)]
    # One leaked object or reference a cycle would be 10,000.
    assert max(grown) < CYCLES / 10, grown
