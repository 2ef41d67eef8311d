"""The app host: API, Console and stores."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation

from callfleet.pyinfra_adapter import carry_out
from operations.stack import converge_stack


@operation()
def converge() -> Generator[FunctionCommand, None, None]:
    """Brings the project's services to their definitions; does nothing where labels say that they are."""
    yield from carry_out("app", converge_stack)
