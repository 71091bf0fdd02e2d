"""When status writers look again."""

import asyncio

from meshbus_config.rounds import PAUSE_S, RETRY_S, Rounds
from virtual_time import run_virtually


def times_of(*changes: float, took: float = 0.0, until: float = 20.0) -> list[float]:
    """When it looked, where something changes at these times and a look takes so long."""

    async def watch() -> list[float]:
        rounds, clock = Rounds(), asyncio.get_running_loop().time
        looks: list[float] = []
        begin = clock()

        async def look() -> None:
            looks.append(round(clock() - begin, 3))
            await asyncio.sleep(took)

        for at in changes:
            asyncio.get_running_loop().call_at(begin + at, rounds.wake)
        task = asyncio.create_task(rounds.run(look))
        await asyncio.sleep(until)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return looks

    return run_virtually(watch())


def test_a_look_comes_at_once_and_one_for_all_that_changes_meanwhile() -> None:
    assert times_of(1.0, until=2) == [1.0]
    assert times_of(1.0, 1.1, 1.2, until=2) == [1.0, 1.0 + PAUSE_S]
    # What changes during a look is seen by the next one.
    assert times_of(1.0, 1.5, took=1.0, until=3) == [1.0, 2.0 + PAUSE_S]


def test_without_a_change_there_is_one_once_in_a_while() -> None:
    first = RETRY_S
    second = first + PAUSE_S + RETRY_S
    assert times_of(until=2 * RETRY_S + 1) == [first, second]
