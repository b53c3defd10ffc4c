"""A TCP proxy that holds every byte back, as a long line would.

A program in the middle cannot delay the kernel's SYN and ACK, so it delays
their consequences: what a client sends at once counts as sent when the ACK
would have come (two delays after the accept), and the server is connected to
when the client's ACK would have reached it (three delays).
"""

import asyncio
import threading


class DelayProxy:
    """Runs in a thread of its own for as long as the `with` block."""

    def __init__(self, to_port, delay):
        self.to_port = to_port
        self.delay = delay
        self.port = None
        # What has passed, in both directions.
        self.bytes = 0
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.work)

    def __enter__(self):
        self.thread.start()
        self.ready.wait()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()

    def work(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.listen())
        self.loop.close()

    async def listen(self):
        self.over = asyncio.Event()
        self.lines = set()
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await self.over.wait()
        server.close()
        for line in self.lines:
            line.cancel()
        await asyncio.gather(*self.lines, return_exceptions=True)

    async def accept(self, reader, writer):
        self.lines.add(asyncio.current_task())
        acked = self.loop.time() + 2 * self.delay
        # What the client says waits here meanwhile, with the time at which it came.
        said = asyncio.Queue()
        reading = asyncio.create_task(self.read(reader, said, acked))
        try:
            await self.sleep_until(acked + self.delay)
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.to_port)
            answers = asyncio.Queue()
            await asyncio.gather(
                self.write(said, server_writer),
                self.read(server_reader, answers, 0),
                self.write(answers, writer),
            )
            await reading
        except asyncio.CancelledError:
            # The measurement is over; what the peers still had to say does not matter.
            pass
        finally:
            reading.cancel()
            writer.close()

    async def read(self, reader, queue, earliest):
        while True:
            try:
                data = await reader.read(65536)
            except ConnectionError:
                data = b""
            self.bytes += len(data)
            sent = max(self.loop.time(), earliest)
            queue.put_nowait((sent + self.delay, data))
            if not data:
                return

    async def write(self, queue, writer):
        while True:
            due, data = await queue.get()
            await self.sleep_until(due)
            try:
                if data:
                    writer.write(data)
                    await writer.drain()
                elif writer.can_write_eof():
                    writer.write_eof()
            except (ConnectionError, OSError):
                pass
            if not data:
                return

    async def sleep_until(self, due):
        rest = due - self.loop.time()
        if rest > 0:
            await asyncio.sleep(rest)
