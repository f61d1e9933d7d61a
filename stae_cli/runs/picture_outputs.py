"""Where pictures go: their names, and which of them would be in each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stae_cli.errors import UsageError
from stae_cli.images.write import PictureFormat
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.names import NameRules


@dataclass(frozen=True)
class PictureOutputs:
    """Where pictures go, in which format, and whether finished ones are written again."""

    destination: FolderDestination
    format: PictureFormat
    overwrite: bool

    def name(self, key: str) -> str:
        """The picture of a latent, relative to DEST."""
        return f"{key}.{self.format}"

    def refuse_collisions(self, keys: Sequence[tuple[str, str]], rules: NameRules) -> None:
        """Checks that all pictures are different files.

        Args:
            keys: of the pictures, each with what it is made from.
            rules: which names are the same file.

        Raises:
            UsageError: two are the same file, or one would be a folder of another.
        """
        first: dict[str, int] = {}
        for number, (key, origin) in enumerate(keys):
            name = self.name(key)
            if (other := first.setdefault(rules.same(name), number)) != number:
                named, owner = keys[other]
                raise UsageError(
                    f"`{owner}` and `{origin}` would both write `{name}`",
                    "rename one of them, or write them into different DESTs"
                    + (", or into one that tells their names apart" * (named != key)),
                )
        folders = {key.rpartition("/")[0]: origin for key, origin in keys}
        for folder, origin in folders.items():
            part = rules.same(folder)
            while part:
                if part in first:
                    raise UsageError(
                        f"`{keys[first[part]][1]}` would write `{part}`, which is a folder for "
                        f"`{origin}`",
                        "rename one of them, or write them into different DESTs",
                    )
                part = part.rpartition("/")[0]
