"""What methods of other packages are made of, in one place: this and ``trimtab.decode`` are the public API.

A method is a frozen dataclass with slots that is a ``Policy``, a ``Draw`` or a ``Search``. Its fields are annotated
with what they accept (``Range``, ``Model``, ``Rated``, ...); ``check`` and ``resolved`` say what single fields can't. A
package names it under the entry-point group ``trimtab.policies``, ``trimtab.draws`` or ``trimtab.searches``, and it is
served like any other: by the library, on the command line, as JSON and over gRPC. docs/architecture.md shows the way of
a request, CONTRIBUTING.md has recipes, and ``examples/plugins`` is a package of this kind.
"""

from __future__ import annotations

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.chance import chance, drawn
from trimtab.decode.methods.desk import Desk
from trimtab.decode.methods.draws.autoregressive import AutoregressiveDraw, Edit
from trimtab.decode.methods.draws.base import TokenDraws
from trimtab.decode.methods.policies.base import BaseWriter
from trimtab.decode.methods.searches.setting import Outcome, Setting, ranked, refuse_equals, rewards_of, together
from trimtab.decode.methods.writer import Team, Writer
from trimtab.decode.ops import (
    Call,
    Context,
    Extend,
    Given,
    Mixed,
    Read,
    Seq,
    Verify,
    gather,
)
from trimtab.decode.request.check import Check
from trimtab.decode.request.fields import Accepts, Many, Model, OneOf, Range, Rated, Text
from trimtab.decode.request.method import AXES, Draw, Facts, Policy, Search, methods
from trimtab.decode.rewards.rating import Rating
from trimtab.kernels.types import Pick

__all__ = [
    "AXES",
    "Accepts",
    "Answer",
    "AutoregressiveDraw",
    "BaseWriter",
    "Call",
    "Check",
    "Context",
    "Desk",
    "Draw",
    "Edit",
    "Extend",
    "Facts",
    "Given",
    "Many",
    "Mixed",
    "Model",
    "OneOf",
    "Outcome",
    "Pick",
    "Policy",
    "Range",
    "Rated",
    "Rating",
    "Read",
    "Search",
    "Seq",
    "Setting",
    "Team",
    "Text",
    "TokenDraws",
    "Verify",
    "Writer",
    "chance",
    "drawn",
    "gather",
    "methods",
    "ranked",
    "refuse_equals",
    "rewards_of",
    "together",
]
