"""Drive calls at a fleet and judge them: numbered WebSocket frames, bursts of starts, background starts.

A *gap* in a held call is a frame number missing from the echoes, one that came again or out of order, or a second
without any echo.  Time in which this process itself was not running is not blamed on the call; it is reported as
`driver_lag`.

    python -m lab.calls hold wss://fleet.example.com/ws/demo --calls 8 --seconds 60 --ca ca.pem \\
        --resolve fleet.example.com:443:192.0.2.10
"""

from lab.calls.held import Calls, burst, hold
from lab.calls.holder import CallHolder
from lab.calls.report import Report, Summary
from lab.calls.starts import Started, attach_burst
from lab.calls.stream import StartStream
from lab.calls.target import Resolve, Target

__all__ = [
    "CallHolder",
    "Calls",
    "Report",
    "Resolve",
    "StartStream",
    "Started",
    "Summary",
    "Target",
    "attach_burst",
    "burst",
    "hold",
]
