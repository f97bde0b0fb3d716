"""What the broker costs: connecting through the supervisor against connecting directly, and throughput after that."""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator

from ringfence import Pool

ROUNDS = 9
CONNECTIONS = 50
BULK = 1 << 30


@contextlib.contextmanager
def sink() -> Iterator[int]:
    """Accept and read to the end, in threads; yield the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:

        def read(client: socket.socket) -> None:
            buffer = bytearray(1 << 20)
            with client:
                while client.recv_into(buffer):
                    pass

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=read, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def connect(port: int) -> float:
    """Return the seconds that one connection takes, of many."""
    start = time.perf_counter()
    for _ in range(CONNECTIONS):
        with socket.socket() as client:
            client.connect(("127.0.0.1", port))
    return (time.perf_counter() - start) / CONNECTIONS


def send(port: int) -> float:
    """Return the bytes a second that one connection takes."""
    chunk = bytes(1 << 20)
    with socket.create_connection(("127.0.0.1", port)) as client:
        start = time.perf_counter()
        for _ in range(BULK >> 20):
            client.sendall(chunk)
    return BULK / (time.perf_counter() - start)


def main() -> None:
    """Print the medians."""
    with sink() as port:
        direct = Pool(1, capabilities=[f"net:request=:{port}"])
        brokered = Pool(1, capabilities=[f"net:request=127.0.0.1:{port}"])
        with direct, brokered:
            for pool in (direct, brokered):
                pool.submit(connect, port).result()
            found: dict[str, list[tuple[float, float]]] = {"direct": [], "through the supervisor": []}
            for _ in range(ROUNDS):
                for name, pool in (("direct", direct), ("through the supervisor", brokered)):
                    found[name].append((pool.submit(connect, port).result(), pool.submit(send, port).result()))
                    time.sleep(0.2)  # the rate of requests
        for name, rows in found.items():
            seconds, rate = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"{name:24} connect {seconds * 1e6:7.0f} µs   throughput {rate / 1e9:5.2f} GB/s")


if __name__ == "__main__":
    main()
