"""Questions about functions of Python's standard library, with answers that `ast` cuts: data that everybody has.

    def find(self, sub, start=0, end=None): Return the lowest index where sub is found.
    default of end        None
    default of sub        (no answer)
    purpose of find       Return the lowest index where sub is found.

A context is the head of a function and the first line of its docstring. A regular expression nearly answers all of them, which
`regular_expression` shows: what is learned here is to find the word that was asked for, and what belongs to it. Whether a
function is for train, valid or test is up to the hash of its context, so that no context of one is in another. Made up signatures
are for training alone.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b

from tasks.data import seed_of, split_of
from tasks.data.cldr_values import Draw
from tasks.data.documents import stdlib
from tasks.data.questions import Question

LONGEST = 100
"""Characters of a context, at most."""
INVENTED = 8000
"""Signatures that are made up for training."""


@lru_cache(1)
def signatures(no_answer: float = 1 / 3) -> dict[str, list[Question]]:
    """Questions by split; of those without an answer as many as make up a part `no_answer` of all, drawn by their hashes."""
    found: dict[str, list[Question]] = {"train": [], "valid": [], "test": []}
    known: set[str] = set()
    for document in stdlib():
        for context, questions in functions(document.text):
            if context not in known and len(context) <= LONGEST:
                known.add(context)
                split = found[split_of(int.from_bytes(blake2b(context.encode(), digest_size=8).digest(), "big"))]
                split += [Question(f"{document.name}:{n}", *x[:1], context, *x[1:]) for n, x in enumerate(questions, len(split))]
    found = {name: balanced(split, no_answer) for name, split in found.items()}
    return found | {"train": found["train"] + invented(found["train"], INVENTED)}


def invented(train: Sequence[Question], size: int) -> list[Question]:
    """Questions about signatures that are nobody's, of the names and defaults in `train`: too many to be learned by heart."""
    names = sorted({x.question.partition(" of ")[2] for x in train})
    values = [text for x in train if x.question.startswith("default") for text in x.texts]
    found: list[Question] = []
    for n in range(size):
        draw = Draw("signatures", n)
        called, *chosen = dict.fromkeys(draw.pick(names) for _ in range(2 + draw.below(4)))
        free = draw.below(len(chosen) + 1)  # of those with a default
        context, where = f"def {called}( ", {}
        for k, name in enumerate(chosen):
            context += f"{', ' if k else ''}{name}"
            if k >= free:
                value = draw.pick(values)
                context += f" = {value}"
                where[name] = (len(context) - len(value), len(context))
        context += "):"
        for name in chosen[:: max(1, len(chosen) - 1)]:
            found.append(Question(f"invented:{n}", f"default of {name}", context, (where[name],) if name in where else ()))
    return [x for x in found if len(x.context) <= LONGEST]


def balanced(questions: Sequence[Question], no_answer: float) -> list[Question]:
    have = sum(bool(x.answers) for x in questions)
    without = sorted((x for x in questions if not x.answers), key=lambda x: seed_of(x.question, x.context))
    kept = {id(x) for x in without[: round(have * no_answer / (1 - no_answer))]}
    return [x for x in questions if x.answers or id(x) in kept]


def functions(source: str) -> Iterator[tuple[str, list[tuple[str, tuple[tuple[int, int], ...]]]]]:
    """Contexts of the functions and methods of a module, each with its questions and where their answers are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old spellings in the source
        tree = ast.parse(source)
    classes: list[ast.Module | ast.ClassDef] = [tree]
    for place in classes:  # which grows
        classes += [node for node in place.body if isinstance(node, ast.ClassDef)]
        for node in place.body:
            if isinstance(node, ast.FunctionDef):
                line = (ast.get_docstring(node) or "").partition("\n")[0].strip()
                node.body[:], node.decorator_list = [ast.Expr(ast.Constant(...))], []
                head = spaced(" ".join(ast.unparse(node).splitlines()[0].split()), node.name)
                if head.isascii() and head.endswith(":"):  # else it has several lines
                    yield f"{head} {line}".strip(), [*questions(head, line)]


def spaced(head: str, name: str) -> str:
    """With spaces where most tokenizers have pieces of their own for words: `def f( a, b = 1 ):`."""
    head = head.replace(f"def {name}(", f"def {name}( ", 1)
    return re.sub(r"(?<=\w)=(?=\S)", " = ", head)


def questions(head: str, line: str) -> Iterator[tuple[str, tuple[tuple[int, int], ...]]]:
    node = ast.parse(f"{head} ...").body[0]
    assert isinstance(node, ast.FunctionDef)
    given = node.args
    places = [*given.posonlyargs, *given.args]
    defaults = dict(zip([x.arg for x in reversed(places)], reversed(given.defaults), strict=False))
    defaults |= {x.arg: value for x, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value is not None}
    for x in [*places, *given.kwonlyargs]:
        if x.arg not in ("self", "cls"):
            value = defaults.get(x.arg)
            where = () if value is None else ((value.col_offset, value.end_col_offset or 0),)
            yield f"default of {x.arg}", where
    if line:
        yield f"purpose of {node.name}", ((len(head) + 1, len(head) + 1 + len(line)),)


def first_default(question: Question) -> str:
    """Without reading the question: what stands behind the first "="."""
    found = re.search(r"=\s*([^,)]+)", question.context)
    return found[1].strip() if found else ""


def regular_expression(question: Question) -> str:
    """What a few minutes of thought give."""
    kind, _, name = question.question.partition(" of ")
    if kind == "purpose":
        found = re.match(r"def [^:]*(?::[^:]*)*?\)[^:]*: (.+)$", question.context)
    else:
        found = re.search(
            rf"[(,] ?{name}(?:: [^=,]+)? ?= ?((?:[^,()\[\]{{}}]|\([^()]*\)|\[[^\]]*\]|{{[^}}]*}})+)[,)]", question.context
        )
    return found[1].strip() if found else ""


def baselines(train: Sequence[Question], test: Sequence[Question]) -> dict[str, list[str]]:
    """Answers that need no model."""
    common = Counter(text for x in train for text in x.texts or [""]).most_common(1)[0][0]
    return {
        "commonest answer": [common] * len(test),
        "first default": [first_default(x) for x in test],
        "regular expression": [regular_expression(x) for x in test],
    }
