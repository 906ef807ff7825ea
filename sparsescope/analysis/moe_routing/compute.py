"""Routing of a mixture, computed: one pass over the text, one with shuffled routers, and passes without
experts.

Each part is a step of the run: its arrays are kept, so that a run that was stopped goes on after the last
one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.activations.context import Context
from sparsescope.activations.losses import check_causal
from sparsescope.activations.routing import RoutingTrace, trace_routing
from sparsescope.activations.routing_information import DomainInformation, domain_information
from sparsescope.analysis.moe_routing.ablation import Ablations
from sparsescope.analysis.moe_routing.alike import alike
from sparsescope.analysis.moe_routing.scalars import add_notes, add_scalars
from sparsescope.analysis.moe_routing.tables import Measured
from sparsescope.core.result import Result
from sparsescope.errors import SubjectError
from sparsescope.models.structure.routing import Router, routers
from sparsescope.models.variants import make_variant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.analysis.moe_routing import MoeRoutingParams
    from sparsescope.models.subject import Subject

    Arrays = dict[str, NDArray[Any]]


def compute(params: MoeRoutingParams, context: Context) -> Result:
    """Run the analysis."""
    subject, corpus = context.subject, context.corpus
    found = routers(subject)

    def traced(of: Subject, phase: str, outputs: bool) -> Arrays:
        def told(done: int, total: int) -> None:
            context.progress(phase, done, total, "batches")

        trace = trace_routing(of, corpus, routers(of), outputs=outputs, told=told)
        arrays = trace.arrays()
        if len(np.unique(trace.domain)) > 1:
            information = domain_information(trace, params.permutations, params.seed)
            arrays |= information.arrays("information/")
        return arrays

    arrays = context.step("routing", lambda: traced(subject, "routing", True))
    trace = RoutingTrace.of(arrays)
    information = _information(arrays)
    draws: list[DomainInformation] = []
    for number in range(params.controls if information is not None else 0):

        def control(seed: int = params.seed + number) -> Arrays:
            made = make_variant(subject, "shuffled_router", seed=seed)
            arrays = traced(made, "shuffled routers", False)
            return {name: values for name, values in arrays.items() if name.startswith("information/")}

        draws.append(DomainInformation.of(context.step(f"shuffled-{number}", control), "information/"))
    shuffled = DomainInformation.mean(draws) if draws else None
    measured = Measured(params, corpus, found, trace, information, shuffled)

    out = Result("moe_routing")
    out.add("load", measured.load())
    out.add("domain_shares", measured.domain_shares())
    out.add("specialization", measured.specialization())
    out.add("vocabulary", measured.vocabulary())
    if measured.k > 1:
        out.add("coactivation", measured.coactivation())
    out.add("repetition", measured.repetition())
    out.add("cache", measured.cache())
    out.add("chunk_sparsity", measured.chunk_sparsity())
    out.add("saliency", measured.saliency())
    out.add("tokens", measured.tokens(subject))
    if params.alike:
        compared = context.step("alike", lambda: alike(subject, corpus, found, params.alike, params.seed))
        out.add("similarity", measured.similarity(compared))
    if params.ablation_tokens and _has_losses(out, subject):
        _ablate(out, measured, context, found)
    add_scalars(out, measured)
    add_notes(out, measured, context)
    return out


def _information(arrays: Arrays) -> DomainInformation | None:
    """The measures of domains that were stored with a trace; None where the text has one domain."""
    return DomainInformation.of(arrays, "information/") if "information/value" in arrays else None


def _has_losses(out: Result, subject: Subject) -> bool:
    """Whether the subject has a loss of the next token; a note says so where it has none."""
    try:
        check_causal(subject)
    except SubjectError as error:
        out.note("info", f"No expert was taken away: {error.message}.", "ablation")
        return False
    return True


def _ablate(out: Result, measured: Measured, context: Context, found: tuple[Router, ...]) -> None:
    """Read the text without experts, one after the other, then without the least salient ones."""
    ablations = Ablations(measured, context, found)
    single = ablations.single()
    if single is not None:
        out.add("ablation", single)
        out.add("ablation_matrix", ablations.matrix())
        own = ablations.own_minus_others()
        text = (
            "loss without the specialists of a domain minus that without experts of like load: on that "
            "domain, "
            "minus on the other domains; mean over layers and domains"
        )
        if own is not None:
            out.add_scalar("specialist_effect", own[0], "nats", text, interval=own[1])
    out.add("pruning", ablations.pruning(out.tables["saliency"]))
