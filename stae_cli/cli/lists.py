"""`--from-list`: paths of more inputs, in a file or on stdin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from stae_cli.cli import options as opt

if TYPE_CHECKING:
    from stae_cli.storage.lists import SourceList

FromList = Annotated[
    str | None,
    opt.file_option(
        "--from-list",
        metavar="FILE",
        help="Read paths from FILE, one per line, relative to its folder; `-` is stdin.",
        show_default=False,
    ),
]


def listed_inputs(from_list: str | None) -> SourceList | None:
    """What `--from-list` names, if it is given.

    Raises:
        UsageError: there is no such list, or it is not text.
    """
    from stae_cli.storage.lists import parse_list, read_list

    if from_list is None:
        return None
    if from_list in ("-", "/dev/stdin"):
        return parse_list(sys.stdin.buffer.read(), Path(), name="on stdin")
    return read_list(Path(from_list))
