import asyncio
import random
import subprocess
import sys
import threading
import time

import pytest

from vmferry.simulation.loop import SimulationStuck, VirtualLoop, run


def test_time_jumps_instead_of_passing():
    async def main():
        await asyncio.sleep(36000)
        return asyncio.get_running_loop().time()

    begin = time.monotonic()
    assert run(main()) == 36000.0
    assert time.monotonic() - begin < 5


def test_timeouts_and_task_groups_work():
    async def main():
        seen = []

        async def step(delay):
            await asyncio.sleep(delay)
            seen.append(delay)

        async with asyncio.TaskGroup() as group:
            for delay in (3, 1, 2):
                group.create_task(step(delay))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        assert asyncio.get_running_loop().time() == 8.0
        return seen

    assert run(main()) == [1, 2, 3]


def test_a_deadlock_names_the_tasks_that_wait():
    async def forever():
        await asyncio.Event().wait()

    async def main():
        task = asyncio.create_task(forever(), name="the-stuck-one")
        await task

    with pytest.raises(SimulationStuck, match=r"(?s)the-stuck-one.*await asyncio.Event"):
        run(main())


def test_going_round_in_circles_is_found():
    async def main():
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(SimulationStuck, match="busy"):
        run(main())


def test_a_heartbeat_that_never_ends_is_found():
    async def main():
        while True:  # noqa: ASYNC110
            await asyncio.sleep(1)

    with pytest.raises(SimulationStuck, match="no end after 100 s"):
        run(main(), limit=100)


def test_leftovers_are_cancelled_in_order_of_creation():
    ended = []

    async def linger(name):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def main():
        main.keep = [asyncio.create_task(linger(n)) for n in range(20)]
        await asyncio.sleep(0)

    run(main())
    assert ended == list(range(20))


def test_executors_run_inline_and_pass_errors_on():
    async def main():
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, divmod, 7, 2) == (3, 1)
        assert await asyncio.to_thread(max, 1, 2) == 2
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, divmod, 1, 0)

    run(main())


def test_threads_are_refused():
    async def main():
        loop, refused, called = asyncio.get_running_loop(), [], []

        def work():
            try:
                loop.call_soon_threadsafe(called.append, 1)
            except RuntimeError as error:
                refused.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        work()
        await asyncio.sleep(0)
        assert len(refused) == 1
        assert called == [1]

    run(main())


def test_shuffling_changes_the_order_and_keeps_the_seed():
    def order(seed, shuffle):
        seen = []

        async def note(n):
            await asyncio.sleep(0)
            seen.append(n)

        async def main():
            async with asyncio.TaskGroup() as group:
                for n in range(10):
                    group.create_task(note(n))

        run(main(), seed=seed, shuffle=shuffle)
        return seen

    assert order(1, shuffle=False) == list(range(10))
    assert order(1, shuffle=True) == order(1, shuffle=True)
    assert len({tuple(order(seed, shuffle=True)) for seed in range(5)}) > 1


def test_unseen_exceptions_are_kept():
    loop = VirtualLoop()

    async def fail():
        raise KeyError("unseen")

    async def main():
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        del task

    loop.run_until_complete(main())
    loop.wind_up()
    assert any("unseen" in text for text in loop.complaints)


_GROUPS = """
import asyncio
from vmferry.simulation.loop import run
async def wait(n, out):
    try:
        await asyncio.Event().wait()
    finally:
        out.append(n)
async def fail():
    raise KeyError
async def main():
    out, junk = [], [object() for _ in range(int(__import__("sys").argv[1]))]
    try:
        async with asyncio.TaskGroup() as group:
            for n in range(40):
                junk.append(bytearray(n * 37 % 91))
                group.create_task(wait(n, out))
            await asyncio.sleep(0)
            group.create_task(fail())
    except* KeyError:
        pass
    done, _ = await asyncio.wait({asyncio.ensure_future(asyncio.sleep(0, n)) for n in range(30)})
    return out, [task.result() for task in done]
print(run(main()))
"""


def test_order_does_not_depend_on_addresses_or_the_hash_seed():
    seen = set()
    for number in range(3):
        environment = {"PYTHONHASHSEED": str(number)}
        argv = [sys.executable, "-c", _GROUPS, str(random.randrange(5000))]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
        seen.add(done.stdout)
    assert len(seen) == 1
