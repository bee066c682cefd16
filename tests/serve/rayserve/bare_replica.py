"""A replica as HAProxy sees one: answers every request after 20 ms. Started by test_haproxy with a port."""

import asyncio
import sys


async def answer(reader, writer):
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).lower():
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            await asyncio.sleep(0 if b"/-/healthz" in head else 0.02)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]), limit=2**20)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
