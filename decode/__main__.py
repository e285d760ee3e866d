"""``python -m trimtab.decode``: the command ``trimtab``."""

from __future__ import annotations

import sys

from trimtab.decode.commands import main

sys.exit(main())
