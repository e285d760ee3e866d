"""``trimtab methods``: what requests can be made of."""

from __future__ import annotations

import argparse
import sys

from trimtab.decode.commands import Subparsers
from trimtab.decode.options import once

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    """Adds ``methods``."""
    parser = subparsers.add_parser(
        "methods",
        help="list the policies, draws and searches, and their fields",
        description="List the policies, draws and searches that are installed: what each field accepts, its default.",
    )
    once(parser)
    parser.add_argument("--markdown", action="store_true", help="as the documentation has it")
    parser.set_defaults(run=_methods)


def _methods(args: argparse.Namespace) -> int:
    from trimtab.decode.methods.table import as_markdown, as_text

    sys.stdout.write(as_markdown() if args.markdown else as_text())
    return 0
