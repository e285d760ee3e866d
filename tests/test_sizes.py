"""Files and functions stay small. ``python tests/test_sizes.py`` prints the lines of code of every package.

Lines of code leave out blank lines, comments, docstrings and generated code. Limits are on lines of text.
"""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "decode", "server")
FILE, FUNCTION = 500, 80
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source: str) -> int:
    """Lines of a module that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, *_Function)) and ast.get_docstring(node) is not None:
            doc = node.body[0]
            lines.difference_update(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
    return len(lines)


def too_long(source: str) -> list[str]:
    """What of a module is above a limit."""
    length = len(source.splitlines())
    found = [f"file: {length} lines"] if length > FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _Function) and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION:
            found.append(f"{node.name}: {lines} lines")
    return found


def files() -> list[Path]:
    return [path for top in FOLDERS for path in sorted((ROOT / top).rglob("*.py")) if "_pb2" not in path.name]


def test_code_lines_leave_out_what_is_no_code() -> None:
    source = """
        '''A module.'''

        # why
        x = '''
        '''


        def f():
            '''Says
            more.'''
            return (  # why
                1
            )
    """
    assert code_lines(textwrap.dedent(source)) == 2 + 1 + 3


def test_what_is_too_long_is_found() -> None:
    source = "def f():\n" + "    pass\n" * 80 + "\n" * 420
    assert too_long(source) == ["file: 501 lines", "f: 81 lines"]


def test_files_and_functions_are_small() -> None:
    found = {str(path.relative_to(ROOT)): too_long(path.read_text(encoding="utf-8")) for path in files()}
    assert len(found) > 150
    assert not {path: what for path, what in found.items() if what}


if __name__ == "__main__":
    count: Counter[Path] = Counter()
    for path in files():
        lines = code_lines(path.read_text(encoding="utf-8"))
        for folder in path.relative_to(ROOT).parents:
            count[folder] += lines
    for folder, lines in sorted(count.items()):
        print(f"{lines:7,}  {'  ' * (len(folder.parts) - 1)}{folder.name or 'all'}")  # noqa: T201
