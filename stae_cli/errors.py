"""Errors that stae raises on purpose: each says what happened, which file, and what to do.

StaeError                anything below; the command line prints it and exits 1
  UsageError             the request makes no sense as typed; exits 2
  CheckpointError        a checkpoint is absent, damaged, or not the one that is needed
  DeviceError            a device or dtype was asked for that this machine does not have
  InputError             one input cannot be used; a run lists it and goes on
"""

from __future__ import annotations


class StaeError(Exception):
    """A failure with a remedy.

    Args:
        message: what happened and to which file, without a final full stop.
        hint: what the user can do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[StaeError], tuple[str, str]]:
        """Travels between processes."""
        return type(self), (self.message, self.hint)


class UsageError(StaeError):
    """The request makes no sense as typed."""


class CheckpointError(StaeError):
    """A checkpoint is absent, damaged, or not the one that is needed."""


class DeviceError(StaeError):
    """A device or dtype was asked for that this machine does not have."""


class InputError(StaeError):
    """One input cannot be used; a run lists it and goes on with the others."""
