"""The generic properties, which hold for every block without a claim.

A check takes a `Case` (and a `Twin` where it compares with one) and raises if the property fails. It returns `Vacuous`, or False,
where the case could not have shown anything; a property that never could is reported as a failure, not as a pass. It returns
`Inapplicable` where the property has no meaning for the block; a property that never has is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from layers.testing import behaviour, beyond, deployment, errors, fresh, gradients, randomness, reference
from layers.testing.contract import Contract
from layers.testing.verdicts import Verdict


@dataclass(frozen=True)
class Property:
    """One thing to check. `cost` divides the number of examples; `each_twin` makes one test a twin, passing it to `check`.

    whole: `check` takes the contract in place of a case. gives: inputs that the check adds to those of the contract.
    laws: parameters for which it states the law of fresh values. long: it needs few calls for a long sequence too.
    """

    name: str
    check: Callable[..., Verdict]
    cost: int = 1
    each_twin: bool = False
    applies: Callable[[Contract], bool] = lambda contract: True
    whole: bool = False
    gives: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    long: bool = False


GENERIC = (
    Property("smoke", reference.smoke, cost=20),
    Property("shape", reference.shape, cost=2),
    Property("forward", reference.forward, each_twin=True),
    Property("backward", reference.backward, each_twin=True),
    Property("weights", reference.weights, cost=2, each_twin=True),
    Property("float32", reference.float32, cost=2, each_twin=True),
    Property("bfloat16", reference.bfloat16, cost=2, each_twin=True),
    Property("autocast", reference.autocast, cost=2, each_twin=True),
    Property("gradcheck", gradients.gradcheck, cost=4),
    Property("second_derivatives", gradients.second_derivatives, cost=5),
    Property("forward_derivatives", gradients.forward_derivatives, cost=5),
    Property("parameters_used", gradients.parameters_used, cost=2),
    Property("per_sample_gradients", gradients.per_sample_gradients, cost=4),
    Property("deterministic", behaviour.deterministic, cost=2),
    Property("no_global_random", behaviour.no_global_random, cost=2),
    Property("train_eval", behaviour.train_eval, cost=2),
    Property("random_law", randomness.random_law, cost=4, applies=lambda c: randomness.draws(c) and bool(c.twins)),
    Property("random_rows", randomness.random_rows, cost=8, applies=randomness.draws),
    Property("batch_rows", behaviour.batch_rows, cost=2),
    Property("beyond_drawn_sizes", beyond.beyond_drawn_sizes, whole=True, applies=beyond.compares),
    Property("heads_masked", beyond.heads_masked, cost=4, applies=lambda c: any(name in c.arguments for name in beyond.HEADS)),
    Property("initial_values", fresh.initial_values, whole=True, applies=lambda c: not c.foreign),
    Property("defaults", fresh.defaults, whole=True, applies=lambda c: bool(c.defaults)),
    Property("inputs_unchanged", behaviour.inputs_unchanged, cost=2),
    Property("non_contiguous", behaviour.non_contiguous, cost=2),
    Property("history_independent", behaviour.history_independent, cost=2),
    Property("empty_batch", behaviour.empty_batch, cost=2),
    Property("finite", behaviour.finite, cost=4),
    Property("state_round_trip", deployment.state_round_trip, cost=5),
    Property("meta_device", deployment.meta_device, cost=5),
    Property("meta_forward", deployment.meta_forward, cost=20),
    Property("inspection", deployment.inspection, cost=20),
    Property("hooks", deployment.hooks, cost=5),
    Property("trace", deployment.trace, cost=20),
    Property("export", deployment.export, cost=50),
    Property("compile", deployment.compile, cost=50),
    Property(
        "bad_argument", errors.bad_argument, cost=5, applies=lambda contract: bool(contract.arguments) and not contract.foreign
    ),
    Property("bad_input", errors.bad_input, cost=5, applies=lambda contract: not contract.foreign),
    Property("sizes_agree", errors.sizes_agree, cost=5, applies=errors.share_axes),
)
