"""The proto's messages to the library's data and back. Nothing here runs anything."""

from __future__ import annotations

from trimtab.decode.extras import require

require("server")
