"""Which TCP ports of a host accept a connection: run on another host as `python3 - FROM TO ADDRESS...`, prints JSON.

Dropped packets show by silence alone, so many connections are tried at once, for long enough that a lost packet was
sent a second time. Bounded: the given ports of the given addresses, once.
"""

import errno
import json
import resource
import select
import socket
import sys
import time

AT_ONCE = 8000
SECONDS = 1.5  # the kernel sends a lost first packet again after one


def scan(address: str, first: int, last: int) -> list[int]:
    """Ports of one address that accept, in batches."""
    found: list[int] = []
    for start in range(first, last + 1, AT_ONCE):
        found += batch(address, range(start, min(start + AT_ONCE, last + 1)))
    return sorted(found)


def batch(address: str, ports: range) -> list[int]:
    """Ports of one batch that accept within the time."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found, waiting, poll = [], {}, select.epoll()
    for port in ports:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        code = sock.connect_ex((address, port))
        if code == 0:
            found.append(port)
        elif code == errno.EINPROGRESS:
            poll.register(sock.fileno(), select.EPOLLOUT)
            waiting[sock.fileno()] = sock, port
        elif code != errno.ECONNREFUSED:
            raise OSError(code, f"{address} {port}: this scan would be blind")
    end = time.monotonic() + SECONDS
    while waiting and (left := end - time.monotonic()) > 0:
        for number, _ in poll.poll(left, 1000):
            sock, port = waiting.pop(number)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                found.append(port)
            elif code not in (errno.ECONNREFUSED, errno.ECONNRESET):
                raise OSError(code, f"{address} {port}: this scan would be blind")
            sock.close()
    for sock, _ in waiting.values():
        sock.close()
    poll.close()
    return found


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (AT_ONCE + 200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    first, last, *addresses = sys.argv[1:]
    json.dump({address: scan(address, int(first), int(last)) for address in addresses}, sys.stdout)
