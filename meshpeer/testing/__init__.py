"""For programs that test what they built on meshpeer.

`plugin` is a pytest plugin, found by pytest by itself; `fixtures` is what it offers. `conformance`
is the suite that every signalling transport passes. Nothing here is imported by the library.
"""

from __future__ import annotations

__all__: list[str] = []
