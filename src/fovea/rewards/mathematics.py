"""The reward `math`: is an answer mathematically equal to the truth? math-verify decides, within bounds.

A reply is hostile text and SymPy has no bounds of its own (`9^{9^{9}}`), so work is bounded three times: the
text before it is parsed (length, commands, nesting, exponents), the parsed expression before it is evaluated (what it
is made of, how large its numbers would become), and every call by a budget of Python function calls, which holds
in any thread where math-verify's own time-outs need the main one. What is refused scores 0. The first two decide;
the budget is a net that what passes them should not reach, since how many calls a text takes depends on what
SymPy and the parser remember: a verdict is to be the same in a run and in its resumption. SymPy is imported at the
first answer that needs it. Not here: plain numbers and texts (`matching.py`).

Try it: `fovea score math --kind math --answer '"\\\\frac{1}{2}"' --completion '<answer>0.5</answer>'` gives 1.
"""

from __future__ import annotations

import inspect
import logging
import math as arithmetic
import re
import sys
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import cache, lru_cache, partial
from types import FrameType
from typing import Any, TypeAlias, TypeVar

from fovea.rewards import answers
from fovea.rewards.matching import Compat, clean_text, last_block, refuse
from fovea.types import Problem

MATH_LIMIT = 120
"""An answer of more characters than this is no mathematical answer."""

NESTING_LIMIT = 5
"""Brackets and braces within each other; each level costs the parser 0.2 s where it has not seen the like."""

BITS_LIMIT = 4096
"""No number that evaluation would make may have more bits than this."""

DEGREE_LIMIT = 24
"""Nor any polynomial of a higher degree."""

TERMS_LIMIT = 100
"""No power of a sum may expand to more terms than this."""

NODES_LIMIT = 120
"""No expression may have more parts than this."""

FUNCTIONS_LIMIT = 4
"""Nor more sines, logarithms and the like, all of which SymPy tries to rewrite by each other."""

CALLS_LIMIT = 500_000
"""Python function calls that reading one answer may take, and comparing it; usual are 1,000 to 150,000."""

GRAMMAR_LIMIT = 5_000_000
"""Calls within the parser's grammar, which come on top: its tables fill as it goes, so that a text takes up to
1,000,000 at first and 2,000 when its like has been read. Counted apart, they do not decide a verdict."""

T = TypeVar("T")


class _Exhausted(BaseException):
    """The budget of calls is spent. Not an `Exception`: SymPy catches those and would go on, and a cache keeps none."""


def math(text: str, problem: Problem, *, compat: Compat = None) -> float:
    """1 if the answer is mathematically equal to the truth (LaTeX or plain), else 0.

    The answer is the content of the last `\\boxed{…}` in it, or the whole answer. It is equal if it is the same
    text but for spaces and dollar signs, or if math-verify says so (decimals to six places): `0.5` and
    `\\frac12`, `x^2-1` and `(x-1)(x+1)`, `{1, 2}` and `{2, 1}`, `x = 3` and `3`, `50\\%` and `0.5` as well as 50 are
    equal; `X` and `x` are not. Beyond the bounds of this file only the same text is equal.

    `compat="vlm_r1"`: answer and truth in lower case before anything else (so that `X` is `x`), then the same text,
    then math-verify, then equal after the normaliser of Hendrycks et al., arXiv:2103.03874. (The original does not
    catch what math-verify raises, which can end its run; here that is 0.)
    """
    truth = problem.answer
    if isinstance(truth, bool) or not isinstance(truth, str | int | float) or not str(truth).strip():
        refuse("math", problem, "a mathematical expression, for example '\\\\frac{1}{2}',")
    if compat == "vlm_r1":
        return float(_compat_equal(clean_text(last_block(text)), clean_text(str(truth))))
    answer = answers.value_of(text)
    if answer is None:
        return 0.0
    return float(equal(answer, answers.value_of(str(truth)) or str(truth)))


def equal(answer: str, truth: str) -> bool:
    """Whether two mathematical texts are equal as `math` defines it. Never raises; False where bounds end it."""
    answer, truth = plain(answer), plain(truth)
    if answer == truth:
        return bool(answer)
    ours, theirs = _decimal(answer), _decimal(truth)
    if ours is not None and theirs is not None and (ours == theirs or (ours % 1 == 0 and theirs % 1 == 0)):
        return ours == theirs
    return _same_case(answer, truth) and _verified(answer, truth)


_WORDS = re.compile(r"\\(?:text\w*+|mathrm|mbox|operatorname|begin|end)\s*+\{[^{}]*+\}")
_NAME = re.compile(r"\\[A-Za-z]++|[A-Za-z]")


def _same_case(answer: str, truth: str) -> bool:
    """Whether no name is in one case here and in the other there: math-verify lets X be x and \\Delta \\delta."""
    if len(answer) > MATH_LIMIT or len(truth) > MATH_LIMIT:
        return False
    forms: list[dict[str, set[str]]] = [{}, {}]
    for found, text in zip(forms, (answer, truth), strict=True):
        for name in _NAME.findall(_WORDS.sub("", text)):
            found.setdefault(name.lower(), set()).add(name)
    return not any(forms[0][name].isdisjoint(forms[1][name]) for name in forms[0].keys() & forms[1].keys())


def plain(text: str) -> str:
    """Mathematics without what does not count: outer spaces, dollar signs and full stop, runs of spaces."""
    text = " ".join(text.split()).removesuffix(".").rstrip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) >= len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    return text.removesuffix(".").rstrip()


_PLAIN_NUMBER = re.compile(r"([-+]?)([0-9]{1,3}(?:,[0-9]{3}){1,6}+|[0-9]{1,20}+)(\.[0-9]{1,8}+)?")


def _decimal(text: str) -> Decimal | None:
    """A plain decimal number, which Decimal holds exactly; None for everything else."""
    match = _PLAIN_NUMBER.fullmatch(text)
    return Decimal(match[1] + match[2].replace(",", "") + (match[3] or "")) if match else None


# --- the first bound: the text ----------------------------------------------------------------------------

_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
_FUNCTIONS = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt frac dfrac tfrac cfrac binom "
    "dbinom tbinom min max"
)
_SIGNS = (
    "cdot times div pm mp le ge leq geq lt gt ne neq approx in notin cup cap setminus infty circ degree emptyset "
    "varnothing to ldots dots cdots lfloor rfloor lceil rceil lvert rvert mid vert angle land lor mathbb"
)
_LAYOUT = (
    "left right big Big bigg Bigg text textbf textit mathrm mathbf mathit mbox operatorname displaystyle quad qquad "
    "begin end boxed hline limits"
)
_COMMANDS = frozenset(" ".join((_GREEK, _FUNCTIONS, _SIGNS, _LAYOUT)).split())
_ENVIRONMENTS = frozenset(("matrix", "pmatrix", "bmatrix", "vmatrix", "smallmatrix", "array", "cases"))
_COMMAND = re.compile(r"\\([A-Za-z]++)")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*+\{([^{}]*+)\}")
_OPERATOR = re.compile(r"\\operatorname\s*+\{([^{}]*+)\}")
_POWER = re.compile(r"\^|\*\*")
_LONG_EXPONENT = re.compile(r"(?:\^|\*\*)[\s{(+-]*+[0-9]{4}|[0-9]\s*+[eE]\s*+[-+]?\s*+[0-9]{3}")
_COMPARES = re.compile(r"[,;<>=|]|\\(?:l[et]|g[et]|leq|geq|neq?|in|cup|cap|max|min|lfloor|lceil)(?![A-Za-z])")


def readable(text: str) -> bool:
    """Whether a text is short and simple enough to be parsed: see the bounds at the top of this file."""
    if len(text) > MATH_LIMIT or not text.isprintable() or text.count("!") > 1:
        return False
    names = _COMMAND.findall(text)
    if not _COMMANDS.issuperset(names) or not _ENVIRONMENTS.issuperset(_ENVIRONMENT.findall(text)):
        return False
    if any(name.strip() not in _COMMANDS for name in _OPERATOR.findall(text)):
        return False
    nesting, tower = _depths(text)
    if nesting > NESTING_LIMIT or _LONG_EXPONENT.search(text):
        return False
    # Sets, intervals and comparisons are evaluated while they are parsed, binomials too: no towers there.
    eager = _COMPARES.search(text) is not None or "binom" in names or "dbinom" in names or "tbinom" in names
    if eager and tower > 1:
        return False
    return "binom" not in text or not re.search(r"[0-9]{4}|\^", text)


def _depths(text: str) -> tuple[int, int]:
    """How deep brackets nest, and how many powers stand above each other (an upper bound)."""
    depth = deepest = tower = highest = 0
    bars = text.count("|") // 2 + text.count("\\vert")
    open_towers: list[int] = []
    after = False  # directly after a power sign, or in the atom that is its exponent
    i = 0
    while i < len(text):
        char = text[i]
        if char == "^" or text.startswith("**", i):
            tower = tower + 1
            highest = max(highest, tower)
            i += 1 if char == "^" else 2
            after = True
            continue
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
            open_towers.append(tower if after else 0)
            tower = open_towers[-1]
            after = False
        elif char in ")]}":
            depth = max(depth - 1, 0)
            if open_towers:
                tower = open_towers.pop()
            after = False
        elif char in "+-*/=,;& " and not after:
            tower = open_towers[-1] if open_towers else 0
        elif not char.isspace() and char not in "+-":
            after = False
        i += 1
    return deepest + bars, highest


# --- the second bound: the expression ---------------------------------------------------------------------

_CONTAINERS = (
    "Add Mul Pow Symbol Dummy FiniteSet Tuple Interval Union Intersection Complement ProductSet EmptySet And Or Not "
    "Equality Unequality StrictLessThan StrictGreaterThan LessThan GreaterThan UnevaluatedExpr MutableDenseMatrix "
    "ImmutableDenseMatrix MatMul MatAdd MatrixSymbol Str"
)
_TRANSCENDENTAL = "sin cos tan cot sec csc asin acos atan sinh cosh tanh log exp"
_EVALUATED = "Abs floor ceiling Max Min factorial binomial"
_CONSTANTS = (
    "Pi Exp1 ImaginaryUnit Infinity NegativeInfinity ComplexInfinity Reals Integers Naturals Naturals0 Rationals "
    "Complexes UniversalSet BooleanTrue BooleanFalse"
)
_KNOWN_PARTS = frozenset(" ".join((_CONTAINERS, _TRANSCENDENTAL, _EVALUATED, _CONSTANTS)).split())
_COSTLY = frozenset(_TRANSCENDENTAL.split(" "))
Size: TypeAlias = tuple[float, float]
_ENDLESS: Size = (arithmetic.inf, arithmetic.inf)
_LARGE_FACTORIAL = 9
"""Bits of n in n!, at most: up to 511."""


def bounded(expression: Any) -> bool:
    """Whether a parsed expression is made of known parts whose evaluation stays small."""
    left, functions = NODES_LIMIT, FUNCTIONS_LIMIT

    def size(node: Any) -> Size:
        nonlocal left, functions
        left -= 1
        functions -= type(node).__name__ in _COSTLY
        small = left >= 0 and functions >= 0
        found = _size(node, [size(part) for part in _parts(node)]) if small else _ENDLESS
        return found if found[0] <= BITS_LIMIT and found[1] <= DEGREE_LIMIT else _ENDLESS

    return size(expression) != _ENDLESS


def _parts(node: Any) -> list[Any]:
    if getattr(node, "is_Matrix", False) and hasattr(node, "flat"):
        return list(node.flat())
    return list(node.args)


def _size(node: Any, parts: list[Size]) -> Size:
    """(bits of a node's exact value, its degree as a polynomial), given those of its parts; upper bounds."""
    name = type(node).__name__
    bits, degree = [part[0] for part in parts], [part[1] for part in parts]
    if getattr(node, "is_Number", False) and node.is_finite:
        if node.is_Rational:
            return float(int(node.p).bit_length() + int(node.q).bit_length()), 0.0
        return (64.0 + abs(arithmetic.frexp(float(node))[1]), 0.0) if abs(node) < 1e300 else _ENDLESS
    if name == "Pow":
        return _power_size(node, *parts)
    if name == "exp":
        return 2 * 2 ** min(bits[0], 64), max(1.0, degree[0])
    if name in ("factorial", "binomial"):
        n = bits[0]
        return (2**n * n, max(degree)) if n <= _LARGE_FACTORIAL and max(bits) <= 64 else _ENDLESS
    if name not in _KNOWN_PARTS and not _undefined(node):
        return _ENDLESS
    if name in ("Symbol", "Dummy"):
        return 2.0, 1.0
    return max(sum(bits), 2.0), sum(degree) if name in ("Mul", "MatMul") else max(degree, default=0.0)


def _power_size(node: Any, base: Size, exponent: Size) -> Size:
    """As `_size`, of a power. A root makes the degree larger, as x^(1/3) is a new variable of which x is the cube."""
    if not node.exp.is_Rational:
        degree = base[1] + exponent[1] if exponent[1] else base[1] * 2 ** min(exponent[0], 64)
        return base[0] * 2 ** min(exponent[0], 64), degree
    power, root = abs(int(node.exp.p)), int(node.exp.q)
    degree = max(base[1], float(root > 1)) * power * root
    terms = len(node.base.args) if node.base.is_Add else 1
    if terms > 1 and degree <= DEGREE_LIMIT and arithmetic.comb(power + terms - 1, power) > TERMS_LIMIT:
        return _ENDLESS
    return base[0] * max(power, 1), degree


def _undefined(node: Any) -> bool:
    """A function of the answer's own, as in f(x)."""
    from sympy.core.function import AppliedUndef

    return isinstance(node, AppliedUndef)


# --- the third bound: calls -------------------------------------------------------------------------------


def _within_budget(work: Callable[[], T]) -> T | None:
    """What `work` returns; None if it raises.

    `sys.settrace` calls back at every call of this thread; who traced before (a debugger, coverage) traces on after.

    Raises:
        _Exhausted: it takes more than `CALLS_LIMIT` Python function calls, or `GRAMMAR_LIMIT` in the grammar.
    """
    left, grammar = CALLS_LIMIT, GRAMMAR_LIMIT

    def spend(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left, grammar
        if frame.f_globals.get("__name__", "").startswith(_GRAMMAR):
            grammar -= 1
        else:
            left -= 1
        # Not into a generator: one that is being thrown away would swallow it, and tracing would have ended.
        if (left < 0 or grammar < 0) and not frame.f_code.co_flags & inspect.CO_GENERATOR:
            raise _Exhausted

    before = sys.gettrace()
    sys.settrace(spend)
    try:
        return work()
    except Exception:  # SymPy raises whatever it likes: RecursionError, TypeError, TokenError …
        return None
    finally:
        sys.settrace(before)


_GRAMMAR = ("antlr4.", "latex2sympy2_extended.gen.")


def _verified(answer: str, truth: str) -> bool:
    """math-verify's verdict, within the bounds."""
    if not (readable(answer) and readable(truth)):
        return False
    try:
        return _verdict(answer, truth)
    except _Exhausted:
        return False


@lru_cache(maxsize=4096)
def _verdict(answer: str, truth: str) -> bool:
    """As `_verified`, of readable texts. Replies repeat each other; what exhausted the budget is not remembered."""
    ours, theirs = _parsed(answer), _parsed(truth)
    if not ours or not theirs:
        return False
    if not (_all_bounded(ours) and _all_bounded(theirs)):
        return bool(_within_budget(lambda: ours[0] == theirs[0]))  # the same form, which evaluates nothing
    from sympy.core.cache import clear_cache

    clear_cache()  # in 0.02 to 1 ms: no budget is spared what an earlier answer computed
    verify = _math_verify()[1]
    return bool(_within_budget(lambda: verify(theirs, ours, timeout_seconds=None)))


def _all_bounded(parsed: Iterable[Any]) -> bool:
    return all(isinstance(part, str) or _within_budget(partial(bounded, part)) for part in parsed)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> list[Any]:
    """What math-verify parses from a text, read as LaTeX; empty if nothing. Truths and frequent answers are kept."""
    parse = _math_verify()[0]
    shown = text if "$" in text or "\\boxed" in text else f"${text}$"
    return _within_budget(lambda: parse(shown)) or []


@cache
def _math_verify() -> tuple[Callable[[str], list[Any]], Callable[..., bool]]:
    """math-verify's `parse` and `verify`, imported and used once, so that no answer pays for that from its budget."""
    from math_verify import LatexExtractionConfig, parse, verify

    # It warns that its time-outs are off, which is what the budget is for.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # LaTeX alone: math-verify's reader of plain expressions calls SymPy's `parse_expr`, which is an eval.
    read = partial(parse, extraction_config=(LatexExtractionConfig(),), parsing_timeout=None)
    for ours, theirs in _WARM_UP:
        verify(read(f"${theirs}$"), read(f"${ours}$"), timeout_seconds=None)
    return read, verify


_WARM_UP = (
    ("x^2-1", "(x-1)(x+1)"),
    ("\\{1, x\\}", "[1, 2)"),
    ("y = 2x + 1", "2x - y = -1"),
    ("\\sqrt{8} + \\sin\\frac{\\pi}{4}", "\\frac{5\\sqrt{2}}{2}"),
)


# --- the original's comparison ----------------------------------------------------------------------------


def _compat_equal(answer: str, truth: str) -> bool:
    if answer == truth or _verified(plain(answer), plain(truth)):
        return True
    boxed = answers.value_of(f"<answer>{answer}</answer>") if "\\boxed{" in answer else None
    return boxed is not None and normal_latex(boxed) == normal_latex(truth)


_UNITS_AFTER = re.compile(r"\\text\{ ")
_DROPPED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%")
_SHORT_ROOT = re.compile(r"\\sqrt([^{])")
_SHORT_FRACTION = re.compile(r"\\frac([^{ ])(?:([^{ ])|(?=\{))")
_WHOLE_FRACTION = re.compile(r"(-?[0-9]++)/(-?[0-9]++)")


def normal_latex(text: str) -> str:
    """LaTeX as compared by the normaliser of Hendrycks et al., arXiv:2103.03874, appendix: spaces, sizes, units on the
    right, degrees, per cent and dollar signs out, `\\frac12` to `\\frac{1}{2}`, `1/2` and 0.5 likewise, `k = 3` to `3`.
    """
    for size in ("\\dfrac", "\\tfrac"):
        text = text.replace(size, "\\frac")
    text = text.replace("\\\\", "\\")
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    text = _UNITS_AFTER.split(text, maxsplit=1)[0]
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    name, equals, value = text.partition("=")
    if equals and "=" not in value and len(name.strip()) <= 2:
        text = value
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text).replace(" ", "")
    text = _SHORT_FRACTION.sub(
        lambda found: f"\\frac{{{found[1]}}}" + (f"{{{found[2]}}}" if found[2] else ""), text
    )
    if text == "0.5":
        return "\\frac{1}{2}"
    whole = _WHOLE_FRACTION.fullmatch(text)
    return f"\\frac{{{whole[1]}}}{{{whole[2]}}}" if whole else text
