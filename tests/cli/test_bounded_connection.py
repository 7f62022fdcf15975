"""Too many connections: those that wait for their clients give way, the others are served."""

import asyncio

import pytest
from connection_cases import Served, Transport

from snc_service.cli.server import bounded_connection
from snc_service.cli.server.bounded_connection import ANSWER_SECONDS, HEADERS, PIPELINED

LIMIT = 16
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf"


async def never_ending(scope, receive, send):
    """An app at work on every request, until it is cancelled."""
    await asyncio.Event().wait()


async def reading(scope, receive, send):
    """An app that reads the body before it answers."""
    while (await receive()).get("more_body"):
        pass
    await asyncio.Event().wait()


async def at_once(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


class Loop:
    """A loop whose timers a test fires by hand."""

    def __init__(self):
        self.now, self.timers = 0.0, []
        self.inner = asyncio.get_running_loop()

    def time(self):
        return self.now

    def call_later(self, seconds, work, *arguments):
        timer = asyncio.TimerHandle(self.now + seconds, work, arguments, self.inner)
        self.timers.append(timer)
        return timer

    def create_task(self, work, **options):
        return self.inner.create_task(work, **options)

    def advance(self, seconds):
        self.now += seconds
        due = [each for each in self.timers if each.when() <= self.now and not each.cancelled()]
        self.timers = [each for each in self.timers if each not in due]
        for each in due:
            each._run()


async def settled():
    for _ in range(50):
        await asyncio.sleep(0)


def on_a_loop(work):
    async def whole():
        served = []
        try:
            await work(served)
        finally:
            for task in [task for each in served for task in each.state.tasks]:
                task.cancel()

    asyncio.run(whole())


def test_a_mute_connection_gives_way_and_the_one_that_waits_longest_goes_first():
    async def work(served):
        loop, server = Loop(), Served(never_ending, LIMIT)
        served.append(server)
        transports = [Transport() for _ in range(LIMIT + 3)]
        for transport in transports:
            loop.now += 0.01
            server.connect(transport, loop)
        assert [each.aborted for each in transports] == [True] * 4 + [False] * (LIMIT - 1)
        assert len(server.state.connections) == LIMIT - 1

    on_a_loop(work)


def test_requests_at_work_keep_their_place_and_slow_bodies_go_after_the_mute():
    async def work(served):
        loop, server = Loop(), Served(reading, LIMIT)
        served.append(server)
        busy, slow, mute, new = ([Transport() for _ in range(n)] for n in (5, 5, 5, 10))
        for kind, data in ((busy, GET), (slow, HALF), (mute, b"GET / HTT")):
            for transport in kind:
                loop.now += 0.01
                server.connect(transport, loop).data_received(data)
        await settled()
        for transport in new:
            server.connect(transport, loop).data_received(GET)
        assert not any(each.aborted for each in busy + new)
        assert all(each.aborted for each in slow + mute)
        answers = [each.written for each in new]
        assert not any(b"503" in each for each in answers)

    on_a_loop(work)


def test_a_service_whose_every_connection_is_at_work_still_answers_503():
    async def work(served):
        server = Served(never_ending, LIMIT)
        served.append(server)
        transports = [Transport() for _ in range(LIMIT + 2)]
        for transport in transports:
            server.connect(transport).data_received(GET)
        await settled()
        assert not any(each.aborted for each in transports)
        assert [b" 503 " in each.written for each in transports] == [False] * 15 + [True] * 3

    on_a_loop(work)


@pytest.mark.parametrize("paused", [True, False])
def test_an_answer_of_which_nothing_is_taken_is_given_up(paused):
    async def work(served):
        loop, server, transport = Loop(), Served(at_once), Transport()
        served.append(server)
        connection = server.connect(transport, loop)
        transport.untaken = 100_000
        connection.data_received(GET)
        await settled()
        if paused:
            connection.pause_writing()
        for _ in range(3):  # as long as something is taken, it goes on
            transport.untaken -= 1
            loop.advance(ANSWER_SECONDS)
            assert not transport.aborted
        loop.advance(ANSWER_SECONDS)
        assert transport.aborted

    on_a_loop(work)


def test_an_answer_that_was_taken_is_not_given_up():
    async def work(served):
        loop, server, transport = Loop(), Served(at_once), Transport()
        served.append(server)
        connection = server.connect(transport, loop)
        transport.untaken = 100_000
        connection.pause_writing()
        transport.untaken = 0
        connection.resume_writing()
        loop.advance(bounded_connection.HEAD_SECONDS - 1)
        connection.data_received(GET)
        await settled()
        loop.advance(2 * ANSWER_SECONDS)
        assert not transport.aborted

    on_a_loop(work)


def test_a_body_in_chunks_arrives_whole_and_those_of_one_read_are_one_message():
    async def work(served):
        heard = []

        async def app(scope, receive, send):
            message = await receive()
            heard.append(message["body"])
            while message.get("more_body"):
                message = await receive()
                heard.append(message["body"])
            await at_once(scope, receive, send)

        server, transport = Served(app), Transport()
        served.append(server)
        connection = server.connect(transport)
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        pieces = (head + b"1\r\na\r\n2\r\nbc\r\n3\r\nd", b"ef\r\n1\r\ng\r\n", b"0\r\n\r\n" + GET)
        for data in pieces:
            connection.data_received(data)
            await settled()
        assert [body for body in heard if body] == [b"abcd", b"efg"]
        assert transport.written.count(b" 200 OK") == 2  # and what follows it is a request

    on_a_loop(work)


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
def test_nothing_is_upgraded_and_nothing_is_said_of_it(upgrade, caplog):
    async def work(served):
        server, transport = Served(at_once), Transport()
        served.append(server)
        head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: " + upgrade
        server.connect(transport).data_received(head + b"\r\n\r\n")
        await settled()
        assert transport.written.startswith(b"HTTP/1.1 200 ")
        assert not caplog.records

    on_a_loop(work)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * HEADERS + b"\r\n", 200),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (HEADERS + 1) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 66_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 8_000 + b" HTTP/1.1\r\n\r\n", 200),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /?" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n", 200),
        (GET * (PIPELINED + 1), 200),
        (GET * (PIPELINED + 2), 431),
    ],
)
def test_a_head_in_one_piece_is_bounded_too(data, status):
    async def work(served):
        server, transport = Served(at_once), Transport()
        served.append(server)
        server.connect(transport).data_received(data)
        await settled()
        assert int(transport.written.split(b" ", 2)[1]) == status

    on_a_loop(work)
