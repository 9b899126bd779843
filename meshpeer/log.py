"""The library's log: structlog, and silent until the program has configured structlog."""

from __future__ import annotations

from typing import Any

import structlog

__all__ = ["Log"]


class Log:
    """A logger with bound values. Secrets are never given to it.

    structlog prints when nobody has configured it; a library must not. So nothing is passed on
    until the program has called `structlog.configure`.
    """

    __slots__ = ("_bound",)

    def __init__(self, **bound: Any) -> None:
        self._bound = bound

    def bind(self, **more: Any) -> Log:
        """A logger with more bound values."""
        return Log(**{**self._bound, **more})

    def debug(self, event: str, **values: Any) -> None:
        """What helps to follow what happened."""
        self._log("debug", event, values)

    def info(self, event: str, **values: Any) -> None:
        """What an operator may want to know."""
        self._log("info", event, values)

    def warning(self, event: str, **values: Any) -> None:
        """What somebody should look at."""
        self._log("warning", event, values)

    def exception(self, event: str, **values: Any) -> None:
        """An exception that was not expected; called where it is handled."""
        self._log("exception", event, values)

    def _log(self, level: str, event: str, values: dict[str, Any]) -> None:
        if structlog.is_configured():
            getattr(structlog.get_logger("meshpeer"), level)(event, **{**self._bound, **values})
