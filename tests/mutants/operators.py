"""Small changes of a source text: each a span of it and what takes its place. Nothing else of the text moves."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

# Places are (start, end) in bytes, as ast counts columns.
ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.FloorDiv: "*"}
MASKS = {ast.BitAnd: "|", ast.BitOr: "&"}
BOUNDARY = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
NEGATED = {ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "=="} | {
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
PAIRS = (
    *(("amax", "amin"), ("max", "min"), ("sum", "mean"), ("all", "any"), ("maximum", "minimum")),
    *(("add", "sub"), ("add_", "sub_"), ("mul", "div"), ("mul_", "div_"), ("addcmul", "addcdiv")),
    *(("addcmul_", "addcdiv_"), ("zeros_like", "ones_like"), ("new_ones", "new_zeros"), ("sqrt", "square")),
    *(("isfinite", "isnan"), ("enable_grad", "no_grad")),
)
NAMES = dict(PAIRS) | {b: a for a, b in PAIRS} | {"neg_": "abs_", "detach": "clone", "nanmedian": "nansum"}
COMMUTATIVE = {"minimum", "maximum", "min", "max", "addcmul", "addcmul_", "_dot"}
NO_CONTEXT = '__import__("contextlib").nullcontext()'


@dataclass(frozen=True)
class Mutant:
    """One change. ``lines``: of the statement it is in; ``before`` and ``after``: that statement's changed line."""

    file: str
    function: str
    lines: tuple[int, int]
    start: int
    end: int
    text: str
    before: str
    after: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]


def mutants(source: str, file: str = "") -> list[Mutant]:
    """All of a source text, in the order of their places."""
    finder = _Finder(source.encode(), file)
    finder.visit(ast.parse(source))
    return sorted(finder.found.values(), key=lambda m: (m.start, m.end, m.text))


class _Finder(ast.NodeVisitor):
    """Walks what computes: no docstrings, annotations, decorators, imports, asserts, or what is raised."""

    def __init__(self, source: bytes, file: str) -> None:
        self.source, self.file = source, file
        self.offsets = [0]
        for line in source.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))
        self.found: dict[tuple[int, int, str], Mutant] = {}
        self.names: list[str] = []
        self.conditions: set[ast.AST] = set()  # which become True and False anyway
        self.lines = (1, 1)

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.offsets[node.lineno - 1] + node.col_offset, self.offsets[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def put(self, span: tuple[int, int], text: str) -> None:
        start, end = span
        first, last = self.source.rfind(b"\n", 0, start) + 1, self.source.find(b"\n", end) % (len(self.source) + 1)
        before = self.source[first:last]
        after = before[: start - first] + text.encode() + before[end - first :]
        shown = [" ".join(line.decode().split()) for line in (before, after)]
        mutant = Mutant(self.file, ".".join(self.names), self.lines, start, end, text, *shown)
        self.found.setdefault((start, end, text), mutant)

    def swap(self, first: ast.AST, second: ast.AST) -> None:
        (a, b), (c, d) = self.span(first), self.span(second)
        if self.text(first) != self.text(second):
            self.put((a, d), self.text(second) + self.source[b:c].decode() + self.text(first))

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        """Put ``new`` for the operator ``old`` between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        at = self.source.find(old.encode(), start, end)
        if at >= 0:
            self.put((at, at + len(old)), new)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            self.lines = (node.lineno, body[0].lineno - 1 if body else node.end_lineno)
            self.lines = (self.lines[0], max(self.lines))
        for change in CHANGES.get(type(node), ()):
            change(self, node)
        for child in _computed(node):
            lines, deeper = self.lines, isinstance(child, NAMED)
            self.names += [child.name] if deeper else []
            self.visit(child)
            del self.names[len(self.names) - deeper :]
            self.lines = lines


NAMED = (ast.ClassDef, ast.FunctionDef)


def _computed(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of ``node`` that may be changed."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert, ast.Raise, ast.JoinedStr, ast.Delete)):
        return
    if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases):
        return
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue  # an assertion
        if name in ("annotation", "returns", "decorator_list", "bases", "msg"):
            continue
        yield from (child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST))


def _binary(finder: _Finder, node: ast.BinOp) -> None:
    if isinstance(node.right, ast.Constant) and node.right.value is None:
        return  # a type
    new = (ARITHMETIC | MASKS).get(type(node.op))
    if new is not None:
        finder.between(node.left, node.right, SYMBOLS[type(node.op)], new)


def _compare(finder: _Finder, node: ast.Compare) -> None:
    for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
        for table in (BOUNDARY,) if node in finder.conditions else (BOUNDARY, NEGATED):
            if type(op) in table:
                finder.between(left, right, SYMBOLS[type(op)], table[type(op)])


def _unary(finder: _Finder, node: ast.UnaryOp) -> None:
    if not isinstance(node.operand, ast.Constant):
        finder.put(finder.span(node), f"({finder.text(node.operand)})")


def _boolean(finder: _Finder, node: ast.BoolOp) -> None:
    old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    for left, right in zip(node.values, node.values[1:], strict=False):
        finder.between(left, right, old, new)


def _condition(finder: _Finder, node: ast.If | ast.While) -> None:
    finder.conditions.add(node.test)
    for value in ("True", "False") if isinstance(node, ast.If) else ("False",):
        finder.put(finder.span(node.test), value)


def _choice(finder: _Finder, node: ast.IfExp) -> None:
    finder.conditions.add(node.test)
    for branch in (node.body, node.orelse):
        finder.put(finder.span(node), f"({finder.text(branch)})")


def _filtered(finder: _Finder, node: ast.comprehension) -> None:
    for condition in node.ifs:
        finder.put(finder.span(condition), "True")


def _constant(finder: _Finder, node: ast.Constant) -> None:
    value = node.value
    if isinstance(value, bool):
        finder.put(finder.span(node), str(not value))
    elif isinstance(value, (int, float)):
        finder.put(finder.span(node), repr(value + 1 if isinstance(value, int) else 2 * value or 1.0))


def _call(finder: _Finder, node: ast.Call) -> None:
    function = node.func
    if isinstance(function, ast.Name) and function.id in NAMES:
        finder.put(finder.span(function), NAMES[function.id])
    if isinstance(function, ast.Attribute) and any(keyword.arg == "keepdim" for keyword in node.keywords):
        finder.put(finder.span(node), f"({finder.text(function.value)})")  # shapes still broadcast
    parts = sorted([*node.args, *node.keywords], key=finder.span)
    for index, part in enumerate(parts):
        (start, end), last = finder.span(part), index == len(parts) - 1
        if isinstance(part, ast.keyword) and part.arg == "strict":
            continue
        if isinstance(part, ast.keyword) and part.arg and index:
            finder.put((finder.span(parts[index - 1])[1], end), "")
        elif isinstance(part, ast.keyword) and part.arg:
            finder.put((start, end if last else finder.span(parts[1])[0]), "")
    if getattr(function, "attr", getattr(function, "id", "")) in COMMUTATIVE:
        return
    if len(node.args) > 1 and all(isinstance(arg, (ast.Name, ast.Attribute, ast.Subscript)) for arg in node.args[:2]):
        finder.swap(*node.args[:2])


def _attribute(finder: _Finder, node: ast.Attribute) -> None:
    if node.attr in NAMES:
        end = finder.span(node)[1]
        finder.put((end - len(node.attr.encode()), end), NAMES[node.attr])


def _with(finder: _Finder, node: ast.With) -> None:
    for item in node.items:
        if item.optional_vars is None:
            finder.put(finder.span(item.context_expr), NO_CONTEXT)


def _expression(finder: _Finder, node: ast.Expr) -> None:
    if not isinstance(node.value, (ast.Constant, ast.Yield)):
        finder.put(finder.span(node), "pass")


def _augmented(finder: _Finder, node: ast.AugAssign) -> None:
    finder.put(finder.span(node), "pass")


def _assignment(finder: _Finder, node: ast.Assign) -> None:
    """Dropped where the target has a value before."""
    (target, *_), used = node.targets, {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
    again = isinstance(target, ast.Name) and target.id in used
    if again or isinstance(target, (ast.Attribute, ast.Subscript)):
        finder.put(finder.span(node), "pass")
    pairs = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
    for old, new in zip(target.elts, node.value.elts, strict=True) if pairs else ():
        if isinstance(old, (ast.Attribute, ast.Subscript)) or (isinstance(old, ast.Name) and old.id in used):
            finder.put(finder.span(new), finder.text(old))


def _dropped(finder: _Finder, node: ast.stmt) -> None:
    if not isinstance(node, ast.Raise) or node.exc is None:
        finder.put(finder.span(node), "pass")


SYMBOLS = (
    {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.FloorDiv: "//"}
    | {ast.BitAnd: "&", ast.BitOr: "|", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
    | {ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in"}
)
CHANGES = (
    {ast.BinOp: (_binary,), ast.UnaryOp: (_unary,), ast.Compare: (_compare,), ast.BoolOp: (_boolean,)}
    | {ast.If: (_condition,), ast.While: (_condition,), ast.IfExp: (_choice,), ast.comprehension: (_filtered,)}
    | {ast.Constant: (_constant,), ast.Call: (_call,), ast.Attribute: (_attribute,), ast.With: (_with,)}
    | {ast.Expr: (_expression,), ast.AugAssign: (_augmented,), ast.Assign: (_assignment,)}
    | {ast.Break: (_dropped,), ast.Continue: (_dropped,), ast.Raise: (_dropped,)}
)
