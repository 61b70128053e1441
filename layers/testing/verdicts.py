"""What a check may say of one configuration, beside that all is well (True or None) and that it raises."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Vacuous:
    """This configuration could not have shown a failure, and why. If none could, the property fails."""

    reason: str


@dataclass(frozen=True)
class Inapplicable:
    """The property has no meaning for this block, or torch cannot do it, and why. If so for all, the property is skipped."""

    reason: str


Verdict = bool | None | Vacuous | Inapplicable
"""False is `Vacuous` without a reason."""

NO_BATCH = Vacuous("no input has a batch axis: call the axis `b` or `batch` in the contract's inputs and outputs")
NO_ROWS = Inapplicable("no output has a batch axis")
NO_PARAMETERS = Inapplicable("it has no parameters")
NO_GRADIENTS = Inapplicable("no output depends on parameters or on inputs of real numbers")

MISSING = {
    r"forward AD with (\S+) that does not support it": "torch has no forward derivative of {}",
    r"(\S+) not implemented for 'BFloat16'": "torch has no bfloat16 kernel of {}",
    r"Batching rule not implemented for (\S+)": "torch has no rule for vmap over {}",
}

MISSING_IN_OTHERS = {
    r"derivative for (\S+) is not implemented": "torch has no second derivative of {}",
    r"Skip (?:calling|inlining) `(torch\.compiler\.disable)": "a part of it is kept out of graphs, by {}",
    r"inline in skipfiles: (\S+) \| _fn \S+eval_frame": "{} is kept out of graphs",
}
"""The same of blocks of other libraries: ours must do without."""


def missing_in_torch(error: Exception, foreign: bool = False) -> Inapplicable | None:
    """What an error says that torch itself lacks."""
    for words, reason in (MISSING | MISSING_IN_OTHERS if foreign else MISSING).items():
        if found := re.search(words, str(error)):
            return Inapplicable(reason.format(found[1].strip('"')))
    return None
