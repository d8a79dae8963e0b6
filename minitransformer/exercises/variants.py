"""A function with one thing changed, in every way that a slip of the pen might: what it does then.

    for slip, source in variants(source):
        ...

`slip` says in words what kind of change it is, without the line: an operand is missing, something
is turned upside down, counted once too often, taken along another axis, of another argument. These
are the mistakes that nobody wrote down; see `mistakes.py`.
"""

import ast
from collections.abc import Iterator

MISSING = {
    ast.Add: "Something that should be added is missing.",
    ast.Sub: "Something that should be subtracted is missing.",
    ast.Mult: "A factor is missing.",
    ast.Div: "A division is missing.",
    ast.FloorDiv: "A division is missing.",
    ast.Pow: "A power or a root is missing.",
    ast.MatMult: "A matrix product is missing.",
    ast.BitAnd: "Of two conditions that must both hold, one is missing.",
    ast.BitOr: "Of two conditions of which one must hold, one is missing.",
}
OTHER = {
    ast.Add: (ast.Sub, "Something is subtracted that should be added."),
    ast.Sub: (ast.Add, "Something is added that should be subtracted."),
    ast.Mult: (ast.Div, "Something is divided by what it should be multiplied with."),
    ast.Div: (ast.Mult, "Something is multiplied with what it should be divided by."),
    ast.BitAnd: (ast.BitOr, "One of two conditions is enough where both must hold."),
    ast.BitOr: (ast.BitAnd, "Two conditions must hold where one is enough."),
}
ORDERED = {
    ast.Sub: "A difference is taken the wrong way round.",
    ast.Div: "A quotient is taken the wrong way round.",
    ast.Pow: "Base and exponent have changed places.",
    ast.MatMult: "The two sides of a matrix product have changed places.",
}
BOUNDARY = "At the boundary it decides the other way: < where <= belongs, or <= where < does."
UPSIDE_DOWN = "A condition is used upside down: it holds where it should not."
COMPARISONS = {
    ast.Eq: [(ast.NotEq, UPSIDE_DOWN)],
    ast.NotEq: [(ast.Eq, UPSIDE_DOWN), (ast.Gt, "A comparison forgets numbers below.")],
    ast.Lt: [(ast.LtE, BOUNDARY), (ast.GtE, UPSIDE_DOWN)],
    ast.LtE: [(ast.Lt, BOUNDARY), (ast.Gt, UPSIDE_DOWN)],
    ast.Gt: [(ast.GtE, BOUNDARY), (ast.LtE, UPSIDE_DOWN)],
    ast.GtE: [(ast.Gt, BOUNDARY), (ast.Lt, UPSIDE_DOWN)],
}
INSTEAD = {  # one operation for another that is easily taken for it
    "sum": ["mean", "amax"],
    "mean": ["sum"],
    "amax": ["amin", "mean"],
    "max": ["min"],
    "min": ["max"],
    "argmax": ["argmin"],
    "sin": ["cos"],
    "cos": ["sin"],
    "tril": ["triu"],
    "cat": ["stack"],
    "square": ["abs"],
    "sqrt": ["square", "abs"],
    "any": ["all"],
    "all": ["any"],
    "softmax": ["sigmoid", "log_softmax"],
    "ones": ["zeros"],
    "zeros": ["ones"],
    "relu": ["abs", "sigmoid", "tanh"],
    "repeat_interleave": ["repeat"],
}
OFF_BY_ONE = "Something is off by one: a count, an index, an exponent or an axis."
OTHER_SIGN = "A sign is turned, or an axis counted from the other end."
WRONG_AXIS = "Something goes along another axis than it should: a sum, a mean, a softmax."
FIRST_ROW = "Every sequence of the batch is given what belongs to the first one."
FIRST_HEAD = "Every head, or every query, is given what belongs to the first one."

Variant = tuple[str, str]  # what kind of change it is, and the source with it


def variants(source: str) -> Iterator[Variant]:
    """The source of a function with one change each, every kind in turn."""
    tree = ast.parse(source)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    given = [argument.arg for argument in function.args.args]
    body = function.body[1:] if ast.get_docstring(function) else function.body
    seen = {ast.unparse(tree)}
    for parent, name, place in _places(function, body):
        held = getattr(parent, name)
        node = held if place is None else held[place]
        changes = [(slip, [new]) for slip, new in _changes(node, given)]
        for slip, new in [*changes, *(_without(node, held) if place is not None else [])]:
            instead = new[0] if place is None else [*held[:place], *new, *held[place + 1 :]]
            setattr(parent, name, instead)
            changed = ast.unparse(ast.fix_missing_locations(tree))
            setattr(parent, name, held)
            if changed not in seen:
                seen.add(changed)
                yield slip, changed


def _places(function: ast.FunctionDef, body: list) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Where each node of the body stands: its parent, the field, the place in a list."""
    start = len(function.body) - len(body)
    for number, statement in enumerate(body, start):
        yield function, "body", number
        for parent in ast.walk(statement):
            for name, held in ast.iter_fields(parent):
                if name in ("annotation", "ctx"):
                    continue
                if isinstance(held, list):
                    yield from ((parent, name, i) for i in range(len(held)))
                elif isinstance(held, ast.AST):
                    yield parent, name, None


def _without(node: ast.AST, held: list) -> Iterator[tuple[str, list]]:
    """Without a statement, a case or an argument of a list of them."""
    if isinstance(node, ast.stmt):
        if not isinstance(node, ast.Return) and (len(held) > 1 or isinstance(node, ast.Break)):
            yield "A step is missing.", [ast.Pass()]
        if isinstance(node, ast.If):
            yield "Something is done always that should be done in one case only.", node.body
            yield "One of two cases is forgotten.", node.orelse or [ast.Pass()]
    elif isinstance(node, ast.keyword):
        yield f"{node.arg} is not what it should be.", []


def _changes(node: ast.AST, given: list[str]) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in place of a node."""
    if isinstance(node, ast.stmt | ast.keyword):
        return
    kinds = {
        ast.BinOp: _of_operation,
        ast.UnaryOp: _of_sign,
        ast.Compare: _of_comparison,
        ast.Call: _of_call,
        ast.Constant: _of_constant,
        ast.Subscript: _of_subscript,
        ast.IfExp: _of_choice,
        ast.Tuple: _of_order,
        ast.Slice: _of_slice,
    }
    if isinstance(node, ast.Name):
        yield from _of_name(node, given)
    elif type(node) in kinds:
        yield from kinds[type(node)](node)


def _of_operation(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    kind = type(node.op)
    if kind in MISSING:
        yield MISSING[kind], node.left
        yield MISSING[kind], node.right
    if kind in OTHER:
        other, slip = OTHER[kind]
        yield slip, ast.BinOp(node.left, other(), node.right)
    if kind in ORDERED:
        yield ORDERED[kind], ast.BinOp(node.right, node.op, node.left)


def _of_sign(node: ast.UnaryOp) -> Iterator[tuple[str, ast.AST]]:
    condition = isinstance(node.op, ast.Invert | ast.Not)
    yield UPSIDE_DOWN if condition else OTHER_SIGN, node.operand


def _of_comparison(node: ast.Compare) -> Iterator[tuple[str, ast.AST]]:
    for other, slip in COMPARISONS.get(type(node.ops[0]), []):
        yield slip, ast.Compare(node.left, [other()], node.comparators)


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.func, ast.Attribute):
        name, of = node.func.attr, node.func.value
        if not (isinstance(of, ast.Name) and of.id in ("torch", "math", "F")):
            yield _without_step(name), of
        for other in INSTEAD.get(name, []):
            called = ast.Attribute(of, other, ast.Load())
            slip = f"{other} is taken where {name} belongs."
            yield slip, ast.Call(called, node.args, node.keywords)
    elif isinstance(node.func, ast.Name) and node.args:
        yield _without_step(node.func.id), node.args[0]
    for i, keyword in enumerate(node.keywords):
        if keyword.arg == "dim":
            for dim in (-1, -2, -3, 0, 1):
                axis = ast.keyword("dim", ast.Constant(dim))
                keywords = [*node.keywords[:i], axis, *node.keywords[i + 1 :]]
                yield WRONG_AXIS, ast.Call(node.func, node.args, keywords)
    for i, given in enumerate(node.args):
        for other in _one_more_or_less(given):
            args = [*node.args[:i], other, *node.args[i + 1 :]]
            yield OFF_BY_ONE, ast.Call(node.func, args, node.keywords)
    for i in range(len(node.args) - 1):
        args = [*node.args[:i], node.args[i + 1], node.args[i], *node.args[i + 2 :]]
        yield "Two things have changed places.", ast.Call(node.func, args, node.keywords)


def _without_step(name: str) -> str:
    return f"A step is missing: the right answers without {name} are yours."


def _of_constant(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.value, bool):
        yield "A switch is the other way round: True for False.", ast.Constant(not node.value)
    elif isinstance(node.value, int):
        for other in (node.value + 1, node.value - 1):
            yield OFF_BY_ONE, ast.Constant(other)
        if node.value == 100:
            for other in (0, 1):
                yield "What is to be ignored is another number.", ast.Constant(other)
    elif isinstance(node.value, float):
        for other in (0.0, 1.0, 2 * node.value):
            if other != node.value:
                yield f"A number is {other:g} that should be another.", ast.Constant(other)
    elif node.value == "-inf":
        for other, what in ((0.0, "0"), (-10.0, "-10"), (-1e9, "-1e9")):
            yield f"-inf is replaced by {what}, a score like any other.", ast.Constant(other)


def _of_subscript(node: ast.Subscript) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.ctx, ast.Load):
        yield "The whole is taken where a part of it belongs.", node.value


def _of_slice(node: ast.Slice) -> Iterator[tuple[str, ast.AST]]:
    if node.lower is not None:
        yield "A part starts too early.", ast.Slice(None, node.upper, node.step)
    if node.upper is not None:
        yield "A part ends too late.", ast.Slice(node.lower, None, node.step)
    for lower in _one_more_or_less(node.lower):
        yield OFF_BY_ONE, ast.Slice(lower, node.upper, node.step)
    for upper in _one_more_or_less(node.upper):
        yield OFF_BY_ONE, ast.Slice(node.lower, upper, node.step)


def _one_more_or_less(node: ast.expr | None) -> Iterator[ast.expr]:
    """Of a number that is computed."""
    if isinstance(node, ast.BinOp | ast.Name):
        for operator in (ast.Add(), ast.Sub()):
            yield ast.BinOp(node, operator, ast.Constant(1))


def _of_choice(node: ast.IfExp) -> Iterator[tuple[str, ast.AST]]:
    yield "Of two cases only one is treated.", node.body
    yield "Of two cases only one is treated.", node.orelse


def _of_order(node: ast.Tuple) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.ctx, ast.Load) and len(node.elts) == 2:
        yield "Two things have changed places.", ast.Tuple(node.elts[::-1], ast.Load())


def _of_name(node: ast.Name, given: list[str]) -> Iterator[tuple[str, ast.AST]]:
    """One argument for another; the first row or head of it for all."""
    if node.id not in given or not isinstance(node.ctx, ast.Load):
        return
    for other in given:
        if other != node.id:
            yield f"{other} is used where {node.id} belongs.", ast.Name(other, ast.Load())
    for slip, index in ((FIRST_ROW, "[:1]"), (FIRST_HEAD, "[:, :1]"), (FIRST_HEAD, "[..., :1, :]")):
        yield slip, ast.parse(f"{node.id}{index}", mode="eval").body
