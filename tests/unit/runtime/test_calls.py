import msgspec
import pytest

from meshbus.bus.memory import MemoryBus, MemoryServer
from meshbus.runtime.calls import CallError, answer, call


class Ask(msgspec.Struct):
    name: str


class Told(msgspec.Struct):
    greeting: str


async def _handler(ask: Ask) -> Told:
    if ask.name == "nobody":
        raise CallError("not-found", "no such name")
    if ask.name == "boom":
        raise KeyError("secret detail")
    return Told(f"hello {ask.name}")


async def test_answers_and_errors() -> None:
    server = MemoryServer()
    bus, other = MemoryBus(server, "ca"), MemoryBus(server, "local")
    with pytest.raises(CallError) as nobody:
        await call(other, "x.ca.greet", Ask("you"), Told)
    assert nobody.value.code == "unavailable"
    await answer(bus, "x.ca.greet", Ask, _handler)
    assert (await call(other, "x.ca.greet", Ask("you"), Told)).greeting == "hello you"
    with pytest.raises(CallError) as missing:
        await call(other, "x.ca.greet", Ask("nobody"), Told)
    assert (missing.value.code, missing.value.message) == ("not-found", "no such name")
    with pytest.raises(CallError) as broken:
        await call(other, "x.ca.greet", Ask("boom"), Told)
    assert broken.value.code == "internal"
    assert "secret" not in broken.value.message
    with pytest.raises(CallError) as wrong:
        await call(other, "x.ca.greet", {"nam": 1}, Told)
    assert wrong.value.code == "invalid"
