"""``trimtab models``: fetch the bundled models, list them, say where they are."""

from __future__ import annotations

import argparse
import sys

from trimtab.decode.commands import Subparsers

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    """Adds ``models`` with its actions ``pull``, ``list`` and ``path``."""
    models = subparsers.add_parser(
        "models",
        help="fetch, list and locate the bundled models",
        description="The bundled models: a small aligned one and a base one. TRIMTAB_CACHE says where they are kept; "
        "by default in the user's cache folder.",
    )
    actions = models.add_subparsers(dest="action", metavar="ACTION", required=True)

    pull = actions.add_parser("pull", help="fetch models, or check every byte of those already here")
    pull.add_argument("names", nargs="*", metavar="NAME", help="models to fetch; all of them by default")
    pull.set_defaults(run=_pull)

    show = actions.add_parser("list", help="list the models, their state and their licences")
    show.add_argument("--verify", action="store_true", help="compare the checksum of every file")
    show.set_defaults(run=_list)

    where = actions.add_parser("path", help="print the folder of a model, or of a draft")
    where.add_argument("name", metavar="NAME")
    where.set_defaults(run=_path)


def _pull(args: argparse.Namespace) -> int:
    from trimtab.decode.models.bundled import bundled, find, pull
    from trimtab.decode.models.progress import TextProgress

    names = args.names or [model.name for model in bundled()]
    for name in names:
        find(name)  # a misspelt name is refused before anything is fetched
    with TextProgress() as progress:
        for name in names:
            sys.stdout.write(f"{pull(name, progress=progress)}\n")
    return 0


def _list(args: argparse.Namespace) -> int:
    from trimtab.decode.models.bundled import bundled, fault
    from trimtab.decode.models.cache import ModelCache

    cache, sound = ModelCache(), True
    for model in bundled():
        reason = fault(model.name, full=args.verify, cache=cache)
        if not cache.entry(model.name).exists():
            state = f"not fetched ({model.download_megabytes} MB to download)"
        elif reason is not None:
            state, sound = f"damaged: {reason}", False
        else:
            state = f"{'verified' if args.verify else 'ready'}: {cache.entry(model.name)}"
        sys.stdout.write(f"{model.name}\n")
        for label, value in (
            ("role", model.role),
            ("weights", f"4-bit ({model.quantisation}), dequantised to bfloat16; to float32 on a CPU without it"),
            ("state", state),
            ("licence", model.licence),
            ("notice", model.notice),
            ("packages", ", ".join(model.packages)),
        ):
            sys.stdout.write(f"  {label:<9} {value}\n")
    return 0 if sound else 1


def _path(args: argparse.Namespace) -> int:
    from trimtab.decode.models.sources import path

    sys.stdout.write(f"{path(args.name)}\n")
    return 0
