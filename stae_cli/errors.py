"""Errors that stae raises on purpose: each says what happened, which file, and what to do.

StaeError                all of the below; the command line prints it and exits 1
  UsageError             the request makes no sense as typed; exits 2
  CheckpointError        a checkpoint is absent, damaged, or not the right one
  DeviceError            the requested device or dtype is not available here
  InputError             one input cannot be used; a run lists it and continues
"""

from __future__ import annotations


class StaeError(Exception):
    """A failure that the user can do something about.

    Args:
        message: what happened and to which file, without a final full stop.
        hint: what the user can do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[StaeError], tuple[str, str]]:
        """Keeps message and hint when pickled."""
        return type(self), (self.message, self.hint)


class UsageError(StaeError):
    """The request makes no sense as typed."""


class CheckpointError(StaeError):
    """A checkpoint is absent, damaged, or not the right one."""


class DeviceError(StaeError):
    """The requested device or dtype is not available here."""


class InputError(StaeError):
    """One input cannot be used; a run lists it and continues with the others."""
