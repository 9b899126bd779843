"""The plugin's fixtures, each in a pytest run of its own."""

from __future__ import annotations

import textwrap

import pytest

_INI = """
[pytest]
asyncio_mode = {mode}
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

# What a case leaves behind is let go of when its module ends, for this process goes on.
_HEAD = """
import asyncio, gc, os, socket, threading
import pytest, pytest_asyncio

kept = []
ended = threading.Event()

@pytest.fixture(autouse=True, scope="module")
def let_go():
    yield
    ended.set()
    for item in kept:
        if isinstance(item, socket.socket):
            item.close()
        elif isinstance(item, tuple):
            os.close(item[0]), os.close(item[1])
"""


def _run(pytester: pytest.Pytester, body: str, mode: str = "auto") -> pytest.RunResult:
    pytester.makefile(".ini", pytest=_INI.format(mode=mode))
    pytester.makepyfile(_HEAD + textwrap.dedent(body))
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:timeout")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        pytest.param(
            """
            async def test_it(no_leaks):
                kept.append(asyncio.create_task(asyncio.Event().wait(), name="the task"))
            """,
            "*task <Task pending name='the task'*",
            id="task",
        ),
        pytest.param(
            """
            async def test_it(no_leaks):
                kept.append(socket.create_server(("127.0.0.1", 0)))
            """,
            "*fd *: AF_INET SOCK_STREAM socket at ('127.0.0.1', *",
            id="socket",
        ),
        pytest.param(
            """
            def test_it(no_leaks):
                kept.append(os.pipe())
            """,
            "*fd *: pipe:*",
            id="pipe",
        ),
        pytest.param(
            """
            def test_it(no_leaks):
                threading.Thread(target=ended.wait, name="the thread").start()
            """,
            "*thread <Thread(the thread, started *",
            id="thread",
        ),
        pytest.param(
            """
            @pytest.fixture
            async def careless():
                yield
                kept.append(asyncio.create_task(asyncio.Event().wait(), name="of a fixture"))

            async def test_it(no_leaks, careless):
                pass
            """,
            "*task <Task pending name='of a fixture'*",
            id="task-of-a-fixture",
        ),
        pytest.param(
            """
            async def lonely():
                await asyncio.get_running_loop().create_future()

            async def test_it(no_leaks):
                asyncio.create_task(lonely())
                await asyncio.sleep(0)
                gc.collect()
            """,
            "*unhandled by the event loop: Task was destroyed but it is pending!*",
            id="task-destroyed",
        ),
        pytest.param(
            """
            async def fails():
                raise RuntimeError("nobody asked")

            async def test_it(no_leaks):
                asyncio.create_task(fails())
                await asyncio.sleep(0)
            """,
            "*unhandled by the event loop: *RuntimeError('nobody asked')*",
            id="exception-not-retrieved",
        ),
    ],
)
def test_what_is_left_is_named(pytester: pytest.Pytester, body: str, named: str) -> None:
    result = _run(pytester, body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*left behind by this test:*", named])


@pytest.mark.parametrize(
    ("body", "named"),
    [
        pytest.param(
            """
            async def work():
                pass

            def test_it():
                work()
                gc.collect()
            """,
            "*coroutine 'work' was never awaited*",
            id="never-awaited",
        ),
        pytest.param(
            """
            def test_it():
                socket.socket()
                gc.collect()
            """,
            "*ResourceWarning: unclosed <socket*",
            id="unclosed-socket",
        ),
        pytest.param(
            """
            class Bad:
                def __del__(self):
                    raise RuntimeError("in a finaliser")

            def test_it():
                Bad()
            """,
            "*RuntimeError: in a finaliser*",
            id="finaliser",
        ),
    ],
)
def test_warnings_nobody_could_catch_are_failures(
    pytester: pytest.Pytester, body: str, named: str
) -> None:
    result = _run(pytester, body)
    assert result.parseoutcomes().get("passed", 0) == 0
    result.stdout.fnmatch_lines([named])


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_who_cleans_up_passes(pytester: pytest.Pytester, mode: str) -> None:
    result = _run(
        pytester,
        """
        @pytest.mark.asyncio
        async def test_it(no_leaks):
            loop = asyncio.get_running_loop()
            await loop.getaddrinfo("127.0.0.1", 0)  # leaves a thread in the loop's own executor
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()
            thread = threading.Thread(target=ended.wait)
            thread.start()
            ended.set()

        def test_without_a_loop(no_leaks):
            pass
        """,
        mode,
    )
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_services_are_up_and_leave_nothing(pytester: pytest.Pytester, mode: str) -> None:
    result = _run(
        pytester,
        """
        from meshpeer.core.messages import VERSION, Join

        JOIN = Join(VERSION, "lobby", "ann", "inc-ann1")

        @pytest.mark.asyncio
        async def test_memory_hub(no_leaks, memory_hub):
            transport = memory_hub.transport()
            assert (await transport.open(JOIN)).peer_id == "ann"
            await transport.close()

        @pytest.mark.asyncio
        async def test_relay(no_leaks, relay):
            from meshpeer.signaling.websocket import WebSocketTransport

            transport = WebSocketTransport(relay.url)
            assert (await transport.open(JOIN)).peer_id == "ann"
            await transport.close()
        """,
        mode,
    )
    result.assert_outcomes(passed=2)


def test_without_pytest_asyncio_nothing_is_offered(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]")  # or a configuration above this folder would be found
    pytester.makepyfile("def test_it():\n    pass\n")
    result = pytester.runpytest_subprocess("-p", "no:asyncio", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    result = pytester.runpytest_subprocess("-p", "no:asyncio", "--fixtures")
    assert "no_leaks" not in result.stdout.str()
