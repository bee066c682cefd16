"""A replica as HAProxy sees one. Started by haproxy_front with a port and the room to tell of, if any.

It answers after 20 ms, or after the milliseconds that the header X-Hold asks for, and says in X-Seen what
HAProxy told it of refusals. The one token that it knows is `good`; it asks for none.
"""

import asyncio
import sys

PORT, ROOM = sys.argv[1:3]


def value_of(name, head):
    return head.partition(name + b": ")[2].partition(b"\r\n")[0]


async def answer(reader, writer):
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).lower():
            await reader.readexactly(int(value_of(b"content-length", head) or 0))
            hold_ms = int(value_of(b"x-hold", head) or 20)
            await asyncio.sleep(0 if b"/-/healthz" in head else hold_ms / 1000)
            is_known = value_of(b"authorization", head) == b"bearer good"
            lines = [f"X-Fewshard-Room: {ROOM}/{is_known:d}"] if ROOM else []
            lines.append(f"X-Seen: {value_of(b'x-fewshard-refused', head).decode()}")
            told = "\r\n".join(["HTTP/1.1 200 OK", *lines, "Content-Length: 2", "", "ok"])
            writer.write(told.encode())
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", int(PORT), limit=2**20)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
