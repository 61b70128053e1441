"""What training draws: the same as the twin from the same numbers, else by the same law; and anew for each row and call.

Laws are compared by samples of n independent values each: the largest difference of their distribution functions exceeds
``sqrt(log(e / alpha) / n)`` with a probability of at most `alpha`, whatever the law is (Kolmogorov and Smirnov's statistic; the
constant e for all n of 4 and more is Wei and Dudley's, "Two-sample Dvoretzky-Kiefer-Wolfowitz inequalities", 2012). What is
drawn once a call for all rows, such as weights that are dropped, gives no independent values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.testing import profiles
from layers.testing.behaviour import batched
from layers.testing.contract import Case, Twin, is_float
from layers.testing.drawing import Function, seeded
from layers.testing.equality import Mismatch, leaves, real, require_equal
from layers.testing.nesting import regrouped
from layers.testing.reference import twin_tolerance
from layers.testing.verdicts import NO_BATCH, NO_ROWS, Vacuous, Verdict

NOTHING_SEEN = Vacuous("nothing is drawn, though the contract says `stochastic`, or what is drawn has no effect")
ALPHA = 1e-6
"""Probability at most of a false alarm in a property's whole test, over all its comparisons, configurations and twins."""
ROWS, ROWS_OF_MODEL = 8192, 256
"""Rows of one call: `random_law` compares those of two calls of each side, `random_rows` differences of half of them."""
LARGEST, LEAST = 2**24, 64
"""Numbers of one call's inputs or outputs, beyond which rows are fewer, down to so many: small differences are missed then."""
NOTHING_DRAWN = Vacuous("the contract says that nothing is drawn here: `stochastic`")


def distance(left: Tensor, right: Tensor, slack: float | None = None) -> float:
    """The largest difference of the distribution functions of two samples, of values that rounding moves by `slack` at most.

    One function is compared with the other at up to `slack` to the right of it, so that what rounding sets apart counts as one;
    by default a billionth of the largest value.
    """
    pair = [x.double().nan_to_num(math.inf, math.inf, -math.inf).sort().values for x in (left, right)]
    if slack is None:
        slack = 1e-9 * torch.cat(pair).nan_to_num(0, 0, 0).abs().max().item()

    def above(x: Tensor, y: Tensor) -> float:
        ours = torch.arange(1, len(x) + 1, dtype=torch.float64) / len(x)
        return (ours - torch.searchsorted(y, x + slack, right=True) / len(y)).max().item()

    return max(above(*pair), above(*reversed(pair)))


def limit(count: int, alpha: float) -> float:
    return math.sqrt(math.log(math.e / alpha) / count)


def differ(left: Tensor, right: Tensor, alpha: float, slack: float | None = None) -> str:
    """How far two samples are apart, if that is more than chance explains; nothing else. One value is only that value."""
    found, allowed = distance(left, right, slack), limit(min(len(left), len(right)), alpha)
    return f"their distribution functions differ by {found:.3f}, chance explains {allowed:.3f}" if found > allowed else ""


def training(module: nn.Module) -> nn.Module:
    """Batch norms are left out, for they mix the rows."""
    for part in module.train().modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    return module


def alike(case: Case, rows: int, row: int) -> dict[str, Any]:
    """Inputs of so many rows, all of which are this one."""
    inputs, batches = case.inputs(), case.batches()
    return {
        k: v.narrow(batches[k], row % v.shape[batches[k]], 1)
        .expand([rows if i == batches[k] else n for i, n in enumerate(v.shape)])
        .contiguous()
        if k in batches
        else v
        for k, v in inputs.items()
    }


def chosen(case: Case) -> tuple[int, int]:
    """The row for which training differs most from evaluation, for a mask may hide from others what is drawn; how many of it."""
    block, inputs, found = training(case.block(train=True)), case.inputs(), []
    for module in (block, case.block()):
        with seeded(case.seed), torch.no_grad():
            found.append(values_of_rows(case, case.call(module, case.inputs())))
    row = int((found[0] - found[1]).norm(dim=1).nan_to_num(-1, -1).argmax()) if found[0].numel() else 0
    width = max(found[0].shape[1], *(inputs[k].numel() // inputs[k].shape[i] for k, i in case.batches().items()))
    return row, max(LEAST, min(ROWS_OF_MODEL if case.contract.model else ROWS, LARGEST // max(1, width) // 4 * 4))


def values_of_rows(case: Case, output: Any) -> Tensor:
    """(rows, values) of the outputs that have rows."""
    positions = batched(case)
    parts = [real(x).movedim(positions[k], 0).flatten(1) for k, x in leaves(output) if k in positions and is_float(x)]
    return torch.cat([x.double() for x in parts], 1) if parts else torch.zeros(0, 0)


Call = Callable[[nn.Module, dict[str, Any]], Any]


def drawn(case: Case, module: nn.Module, call: Call, inputs: dict[str, Any], calls: int, seed: int) -> list[Tensor]:
    """(rows, values) of each call, all from the same state, with random numbers that follow one another, of generators too."""
    for value in inputs.values():
        if isinstance(value, torch.Generator):
            value.manual_seed(case.seed * 16 + seed)
    kept, found = {name: x.clone() for name, x in state(module)}, []
    with seeded(case.seed * 16 + seed), torch.no_grad():
        for _ in range(calls):
            found.append(values_of_rows(case, call(module, dict(inputs))))
            for name, x in state(module):
                if name in kept and x.shape == kept[name].shape and not torch.equal(x, kept[name]):  # not what a call has made
                    x.copy_(kept[name])
    return found


def state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def call_of(case: Case) -> Call:
    """The contract's, that moves the generators among the inputs."""
    return lambda block, inputs: case.contract.call(block, regrouped(inputs, case.given))


def slack(tolerance: float, *samples: Tensor) -> float:
    """How far rounding moves a row at most, as a vector."""
    return max(tolerance, 1e-9) * max((x.norm(dim=1).max().item() for x in samples if x.numel()), default=0.0)


def all_alike(x: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether all rows are the first one of the other, but for rounding."""
    return bool((x - other[:1]).norm(dim=1).max() <= slack(tolerance, other))


def chance(case: Case, comparisons: int) -> float:
    """With which each comparison may fail, of so many in a configuration."""
    return ALPHA / comparisons / max(1, profiles.budget())


def random_rows(case: Case) -> Verdict:
    """What training draws, it draws anew for each row and each call, wherever the contract says that it draws.

    For rows that are all alike, outputs of two rows of one call differ by the law by which those of two calls do, and so do those
    of one row in two calls. A false alarm has a probability below 1e-6. Blocks opt out that draw once a call for all rows.
    """
    if not case.contract.stochastic(case.arguments):
        return NOTHING_DRAWN
    if not case.batches():
        return NO_BATCH
    block = training(case.block(train=True))
    row, rows = chosen(case)
    inputs = alike(case, rows, row)
    first, second, third, fourth, fifth = drawn(case, block, call_of(case), inputs, 5, 5)
    if not first.numel():
        return NO_ROWS
    tolerance = case.tolerance(block)
    if all(all_alike(x, first, tolerance) for x in (first, second, third)):
        return NOTHING_SEEN
    half, moved, alpha = rows // 2, 2 * slack(tolerance, first, second), chance(case, 6)
    for weights in directions(case, first, 2):
        a, b, c, d, e = (x @ weights for x in (first, second, third, fourth, fifth))
        apart = b[:half] - c[half:]
        if why := differ(a[:half] - a[half:], apart, alpha, moved):
            raise Mismatch(f"rows of one call do not draw independently of each other: {why}")
        if why := differ(a[0::2] - a[1::2], apart, alpha, moved):
            raise Mismatch(f"neighbouring rows of one call do not draw independently of each other: {why}")
        if why := differ(d[:half] - e[:half], apart, alpha, moved):
            raise Mismatch(f"a row draws in a second call what has to do with the first: {why}")
    return True


def directions(case: Case, x: Tensor, number: int) -> list[Tensor]:
    """Random weights of all values of a row, as vectors of length 1."""
    generator = case.generator(6)
    return [F.normalize(torch.randn(x.shape[1], generator=generator, dtype=x.dtype), dim=0) for _ in range(number)]


def random_law(case: Case) -> Verdict:
    """Training draws what the twin draws from the same random numbers, outputs and gradients, or draws by the twin's law.

    By law: for rows that are all alike, random sums of the outputs, single ones, and distances between outputs of training and
    evaluation and between rows are distributed as the twin's, which rate, scale and place of a dropout decide. A false alarm
    has a probability below 1e-6. Twins that draw nothing are passed over, but one of another class than the block's must draw.
    """
    if not case.contract.stochastic(case.arguments):
        return NOTHING_DRAWN
    if not case.batches():
        return NO_BATCH
    if not batched(case):
        return NO_ROWS
    idle, shown = [], False
    for twin in case.contract.twins:
        if draws_the_same(case, twin):
            why = IDLE if of_its_own(case.twin(twin, case.block()), case.block()) else ""
        else:
            why = by_another_law(case, twin)
        if why and why not in (IDLE, BOTH_IDLE):
            raise Mismatch(f"while training, outputs have another law than those of {twin.name}: {why}")
        shown |= not why
        idle += [twin.name] * (why == IDLE)
    if idle and not shown:
        raise Mismatch(f"no twin of another class draws anything while training ({', '.join(idle)}): give one the block's rates")
    return shown or NOTHING_SEEN


IDLE, BOTH_IDLE = "it draws nothing", "neither draws anything"


def of_its_own(twin: nn.Module, block: nn.Module) -> bool:
    """Whether a twin is of the block's class, beside which it proves nothing: of torch's classes and functions many differ."""
    from layers.testing.fresh import own_classes

    return type(twin) is type(block) and bool((own_classes(twin) & own_classes(block)) - {Function})


def draws_the_same(case: Case, twin: Twin) -> bool:
    """Whether block and twin give the same outputs and gradients when the global random state is the same."""

    def reference() -> nn.Module:
        return training(case.twin(twin, case.block(train=True)))

    block, outputs = training(case.block(train=True)), []
    for seed in (0, 1):
        module = reference()
        with seeded(case.seed + seed), torch.no_grad():
            outputs.append(case.call_twin(twin, module, case.inputs()))
    tolerance = twin_tolerance(case, twin, block)
    if alike_to_rounding(outputs[0], outputs[1], tolerance):
        return False  # it may draw nothing
    results, module = [], reference()
    for each, run in ((block, lambda i: case.call(block, i)), (module, lambda i: case.call_twin(twin, module, i))):
        with seeded(case.seed):
            results.append(case.gradients(run, case.inputs(), each))
    if not alike_to_rounding(results[0][0], results[1][0], tolerance):
        return False
    (_, of_inputs, of_ours), (_, inputs, parameters) = results
    known = dict(module.named_parameters())  # a tied one under one of its names only
    carried = twin.map(case.arguments).to_theirs(of_ours, strict=False)
    carried = {name: x for name, x in carried.items() if name in known}
    require_equal({**of_inputs, **carried}, {**inputs, **parameters}, 10 * tolerance, "gradient for the same random numbers", 1.0)
    return True


def alike_to_rounding(ours: Any, theirs: Any, tolerance: float) -> bool:
    try:
        require_equal(ours, theirs, tolerance, common=1.0)
    except Mismatch:
        return False
    return True


def by_another_law(case: Case, twin: Twin) -> str:
    """How the laws differ, if they do."""
    block = training(case.block(train=True))
    reference = training(case.twin(twin, block))
    (row, rows), tolerance = chosen(case), twin_tolerance(case, twin, block)
    inputs = alike(case, rows, row)
    theirs = torch.cat(drawn(case, reference, lambda m, i: case.call_twin(twin, m, i), inputs, 2, 6))
    ours = torch.cat(drawn(case, block, call_of(case), inputs, 2, 7))
    if not ours.numel():
        return BOTH_IDLE
    if theirs.numel() and all_alike(theirs, theirs, tolerance):
        return BOTH_IDLE if all_alike(ours, ours, tolerance) else IDLE
    if ours.shape != theirs.shape:
        return f"values of a row are {tuple(ours.shape[1:])}, theirs {tuple(theirs.shape[1:])}"
    still = drawn(case, block.eval(), call_of(case), alike(case, 1, row), 1, 7)[0]
    some = torch.randperm(ours.shape[1], generator=case.generator(6))[: max(1, ours.shape[1] // 3)]

    def statistics(x: Tensor) -> dict[str, Tensor]:
        """Of each, what moves a row by some distance moves the statistic no farther, or by twice that where two rows count."""
        sums = {f"random sum {i} of a row": x @ w for i, w in enumerate(directions(case, x, 3))}
        apart = x[0::2] - x[1::2]
        return sums | {
            "a single output": x[:, some[0]],
            "the distance from what evaluation gives": (x - still).norm(dim=1),
            "that of a third of the outputs": (x - still)[:, some].norm(dim=1),
            "the distance of two rows": apart.norm(dim=1),
            "a random sum of the difference of two rows": apart @ directions(case, x, 1)[0],
        }

    moved, alpha = 2 * slack(tolerance, ours, theirs), chance(case, 8 * len(case.contract.twins))
    for (name, left), right in zip(statistics(ours).items(), statistics(theirs).values(), strict=True):
        if why := differ(left, right, alpha, moved):
            return f"{name}: {why}"
    return ""


def draws(contract: Any) -> bool:
    """Whether the contract says `stochastic` of itself."""
    return contract.stochastic is not type(contract).__dataclass_fields__["stochastic"].default
