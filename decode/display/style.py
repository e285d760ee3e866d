"""Style of results: of a page, and of the part that may stand in any other page, light or dark."""

from __future__ import annotations

__all__ = ["PAGE", "STYLE", "tints"]

_HUES = (35, 200, 300, 140)  # of the models after the first

PAGE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fdfdfb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ec; --paper: #17171a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 2.5rem 1.25rem; background: var(--paper); color: var(--ink);
       font: 17px/1.65 Georgia, "Times New Roman", serif; }
h1 { font: 600 1rem/1.4 system-ui, sans-serif; margin: 0 0 .75rem; }
.prompt { white-space: pre-wrap; overflow-wrap: anywhere; padding-left: .9rem; margin: 0 0 1.5rem;
          border-left: 3px solid color-mix(in srgb, currentColor 20%, transparent); }
"""

# Colours are mixed from those of the page around it, which may be light or dark whatever the system prefers.
STYLE = """
.trimtab { --soft: color-mix(in srgb, currentColor 72%, transparent);
           --line: color-mix(in srgb, currentColor 18%, transparent); }
.trimtab .answer { white-space: pre-wrap; overflow-wrap: anywhere; margin: .75rem 0 1rem; }
.trimtab .legend, .trimtab .switch, .trimtab .card, .trimtab .curve, .trimtab table, .trimtab summary,
.trimtab .ended { font: .82rem/1.5 system-ui, sans-serif; color: var(--soft); }
.trimtab .legend { margin: 0 0 .4rem; }
.trimtab .legend b { font-weight: 500; padding: .1em .45em; margin: 0 .5em 0 0;
           display: inline-block; }
.trimtab .t { border-radius: 2px; cursor: pointer; }
.trimtab .accepted, .trimtab .corrected, .trimtab .bonus { text-decoration: underline 1px currentColor;
           text-underline-offset: .3em; }
.trimtab .accepted { text-decoration-style: dotted; }
.trimtab .corrected { text-decoration-thickness: 2px; }
.trimtab .bonus { text-decoration-style: double; }
.trimtab .mark { font: .7em/1 system-ui, sans-serif; color: var(--soft); user-select: none; text-decoration: none; }
.trimtab:has(.shade:checked) .t { background: color-mix(in srgb, #d5402b calc(var(--h, 0%) * .55), transparent);
           border-color: transparent; }
.trimtab .t:focus, .trimtab .t.shown { outline: 2px solid currentColor; outline-offset: 0; }
.trimtab:not(.live) .t:focus::after { content: attr(title); position: fixed; z-index: 9; left: 1rem; bottom: 1rem;
           max-width: calc(100vw - 4rem); }
.trimtab .card { position: sticky; bottom: .5rem; min-height: 6rem; margin: 0 0 1.25rem; padding: .5rem .8rem;
           border: 1px solid var(--line); border-radius: 6px; }
.trimtab:has(.shown) .card, .trimtab:not(.live) .t:focus::after { white-space: pre-line; overflow-wrap: anywhere;
           background: #1b1b1f; color: #f4f4f6; border: 1px solid #6a6a72; border-radius: 6px; padding: .5rem .8rem;
           font: .75rem/1.5 ui-monospace, monospace; }
.trimtab .card[hidden] { display: none; }
.trimtab .curve { margin: 0 0 1.25rem; }
.trimtab .plot { position: relative; height: 5.5rem; margin: .6rem 0 .5rem 3.2em; font-size: .75rem; }
.trimtab .plot span { position: absolute; right: calc(100% + .5em); transform: translateY(-50%); }
.trimtab .plot svg { display: block; width: 100%; height: 100%; overflow: visible; fill-opacity: 1; }
.trimtab .plot line, .trimtab .plot polyline { fill: none; stroke: currentColor; stroke-width: 1.5;
           stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.trimtab .plot .grid { stroke: var(--line); stroke-width: 1; }
.trimtab .plot .base { stroke: currentColor; stroke-width: 5; stroke-linecap: round; }
.trimtab .plot .trigger { stroke-dasharray: 5 4; stroke-width: 1; }
.trimtab table { border-collapse: collapse; width: 100%; border-top: 1px solid var(--line); }
.trimtab .figures td, .trimtab .figures th, .trimtab .all td, .trimtab .all th { padding: .3rem 0; text-align: left;
           border-bottom: 1px solid var(--line); font-weight: 400; overflow-wrap: anywhere; background: none; }
.trimtab .figures td { text-align: right; color: currentColor; font-variant-numeric: tabular-nums; }
.trimtab summary { margin: 1.25rem 0 .6rem; cursor: pointer; }
.trimtab .all { overflow-x: auto; }
.trimtab .all td, .trimtab .all th { padding-right: .9em; white-space: pre; overflow-wrap: normal;
           font-variant-numeric: tabular-nums; }
.trimtab h2, .trimtab h3 { font: 600 .9rem/1.4 system-ui, sans-serif; margin: 1.75rem 0 .6rem; }
.trimtab h3 { margin: 0; }
.trimtab h3 b { font-weight: 500; padding: 0 .4em; margin-left: .3em; border: 1px solid currentColor;
           border-radius: 4px; }
.trimtab .candidates { display: grid; gap: .9rem;
           grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); }
.trimtab section { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; min-width: 0; }
.trimtab section p { margin: .3rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88em; }
.trimtab .chosen { border: 2px solid currentColor; }
.trimtab .pruned { border-style: dashed; }
"""


def tints(count: int) -> str:
    """The tokens of the first of so many models stay plain; those of each other one have a hue."""
    rules = []
    for index in range(1, count):
        hue = _HUES[(index - 1) % len(_HUES)]
        rules.append(
            f".trimtab .m{index} {{ background: hsl({hue} 90% 50% / .22); border-bottom: 2px solid hsl({hue} 75% 48%);"
            f" fill: hsl({hue} 90% 50% / .3); }}"
        )
    return "\n".join(rules)
