"""``python -m meshpeer``: the `meshpeer` command."""

from __future__ import annotations

from meshpeer.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
