"""A relay that holds every byte back: python delay.py PORT TO_PORT MILLISECONDS"""

from __future__ import annotations

import asyncio
import sys


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Pass on what comes in, each piece so much later, in order."""
    clock, pieces = asyncio.get_running_loop().time, asyncio.Queue()

    async def collect() -> None:
        while data := await reader.read(65536):
            pieces.put_nowait((clock() + seconds, data))
        pieces.put_nowait((clock() + seconds, b""))

    collecting = asyncio.create_task(collect())
    try:
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(max(0.0, due - clock()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        collecting.cancel()
        writer.close()


async def main(port: int, target: int, seconds: float) -> None:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pour(reader, back, seconds), pour(there, writer, seconds))

    server = await asyncio.start_server(meet, "0.0.0.0", port)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000))
