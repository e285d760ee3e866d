"""What is said of a token: its text or a mark for it, its details on a card, and a table of all tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import exp

from trimtab.decode.request.result import Token, TokenDraw, TokenReason

__all__ = ["DRAWS", "WHY", "about", "mark", "table"]

# How tokens of a draft came about. Tokens of plain drawing need no word.
DRAWS = {
    TokenDraw.ACCEPTED: "drafted and accepted",
    TokenDraw.CORRECTED: "in place of a rejected one",
    TokenDraw.BONUS: "after a draft that was accepted whole",
}
# Why its author wrote a token, where models take turns.
WHY = {
    TokenReason.SURE: "the base is sure",
    TokenReason.AGREED: "the base would go on as the nudger does",
    TokenReason.SPAN_SPENT: "the nudger has written its span",
    TokenReason.UNSURE: "the base is unsure",
    TokenReason.BASE_ENDS: "the base would end here",
    TokenReason.NUDGER_ENDS: "the nudger ends the answer",
    TokenReason.WITHIN_WORD: "it goes on with its word",
    TokenReason.LOOPING: "the answer repeats itself",
}
_SHOWN = 5  # of the most likely tokens


def _piece(token: Token) -> str:
    return repr(token.piece.decode(errors="replace"))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value + 0.0:.3g}"  # no -0


def _entropy(nats: float | None) -> str:
    return "" if nats is None else f"{nats:.3g} nats (exp {exp(min(nats, 700.0)):.3g})"


def _top(token: Token) -> str:
    return ", ".join(f"{t.piece.decode(errors='replace')!r} {exp(t.logprob):.3g}" for t in token.top[:_SHOWN])


_Column = tuple[str, Callable[[Token], str]]
# What the base read where another model wrote, which is why that one did.
_BASE: tuple[_Column, ...] = (
    ("entropy of the base", lambda token: _entropy(token.base_entropy)),
    ("its top p", lambda token: _number(token.base_top_prob)),
)
# By lines of the card; empty where it is not known.
_LINES: tuple[tuple[_Column, ...], ...] = (
    (
        ("token", _piece),
        ("by", lambda token: token.author),
        ("id", lambda token: str(token.id)),
        ("because", lambda token: "" if token.reason is None else WHY[token.reason]),
        ("drawn", lambda token: DRAWS.get(token.draw, "" if token.draw is TokenDraw.PLAIN else str(token.draw))),
    ),
    (
        ("p", lambda token: "" if token.logprob is None else f"{exp(token.logprob):.3g}"),
        ("ln p", lambda token: _number(token.logprob)),
        ("entropy", lambda token: _entropy(token.entropy)),
        ("top p", lambda token: _number(token.top_prob)),
        ("reward", lambda token: _number(token.reward)),
    ),
    _BASE,
    (("most likely", _top),),
)
_COLUMNS = tuple(column for line in _LINES for column in line)


def about(token: Token) -> str:
    """Its details in a few lines of text."""
    by_base = (token.entropy, token.top_prob) == (token.base_entropy, token.base_top_prob)
    lines = (
        ", ".join(f"{name} {value}" for name, get in line if (value := get(token)))
        for line in _LINES
        if not (by_base and line is _BASE)  # they are the figures above
    )
    return "\n".join(line for line in lines if line)


def mark(token: Token) -> str:
    """What stands for a token without text of its own: the name of a special token, or its bytes."""
    try:
        text = repr(token.piece.decode())[1:-1].strip("<|>")
    except UnicodeDecodeError:  # a part of a character
        text = token.piece.hex(" ")
    return f"⟨{text or f'id {token.id}'}⟩"


def table(tokens: Sequence[Token]) -> str:
    """All tokens with their details: a row for each, a column for each detail that one of them has."""
    columns = [(name, values) for name, get in _COLUMNS if any(values := [get(token) for token in tokens])]
    head = "".join(f'<th scope="col">{name}</th>' for name, _ in columns)
    rows = "\n".join(
        f'<tr><th scope="row">{place}</th>{"".join(f"<td>{escape(values[place])}</td>" for _, values in columns)}</tr>'
        for place in range(len(tokens))
    )
    return f'<table><tr><th scope="col">place</th>{head}</tr>\n{rows}</table>'
