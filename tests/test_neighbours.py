"""One request must not hurt another: whatever is legal gets the answer that it gets alone."""

from __future__ import annotations
