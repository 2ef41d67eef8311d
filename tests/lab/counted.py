"""pyinfra with every SSH channel counted: `counted.py REPORT ARGUMENT...` writes one JSON line a channel to REPORT.

The SSH library is wrapped, so what is counted is what really went over the wire, not what callfleet says of itself.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

from pyinfra_cli.main import main  # first: it replaces the standard library's sockets by gevent's

import paramiko  # isort: skip


def count(report: Path) -> None:
    """Write down each request that opens work on a channel."""
    for name in ("exec_command", "invoke_shell", "invoke_subsystem"):
        setattr(paramiko.Channel, name, _counted(report, name, getattr(paramiko.Channel, name)))


def _counted(report: Path, kind: str, original: Any) -> Any:
    def counted(channel: Any, *arguments: Any, **named: Any) -> Any:
        sock = channel.get_transport().sock
        line = {
            "peer": sock.getpeername()[0],
            "kind": kind,
            "argument_bytes": len(str(arguments[0])) if arguments else 0,
            "nodelay": bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)),
            "user_timeout": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        }
        with report.open("a") as out:
            out.write(json.dumps(line) + "\n")
        return original(channel, *arguments, **named)

    return counted


if __name__ == "__main__":
    count(Path(sys.argv[1]))
    sys.argv = ["pyinfra", *sys.argv[2:]]
    main()
