"""``python -m trimtab``: the command ``trimtab``. Installed as the only file of the namespace's own."""

from __future__ import annotations

import sys

from trimtab.decode.commands import main

sys.exit(main())
