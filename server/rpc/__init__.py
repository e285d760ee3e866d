"""The service: calls in, answers out, overload, cancellation, health and shutdown.

Messages are read and filled in ``wire``.
"""

from __future__ import annotations

from trimtab.decode.extras import require

require("server")
