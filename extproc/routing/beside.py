"""Decides about side paths. They take the body of an API and generate no answer, so nothing is matched."""

from collections.abc import Mapping

import msgspec

from extproc.api.paths import Api
from extproc.contract.words import Course, Reason
from extproc.routing.ability import Load
from extproc.routing.choice import Choice, make_able
from extproc.routing.conversations import NEW, Continuation
from extproc.routing.decision import Decision, untouched
from extproc.routing.guard import Guard, guard_foreign
from extproc.routing.keeping import has_several_seals
from extproc.routing.policy import Policy, is_named


def decide_beside(
    policy: Policy,
    headers: Mapping[str, str],
    api: Api,
    model: str | None,
    continuation: Continuation,
    compacts: bool = False,
) -> Decision:
    """Choose the tier of a request on a side path.

    A tier whose model is named gets it. Then comes the tier that can read the request's sealed state, and then the
    default tier. `compacts`: the answer is sealed, so the tier that answered the conversation last makes it.
    """
    enforced = policy.mode == "enforce"
    guard = guard_foreign(policy, headers) if enforced else Guard(0, None)
    choice = _proposed(policy, model, continuation if enforced else NEW, compacts)
    able = make_able(policy, choice, guard, Load(api, frozenset(), 0, 0))
    if able is None:
        return Decision(policy.tiers[choice.rank], Reason.RESIDENCY, rewrite=False, refused=True)
    return Decision(policy.tiers[able.rank], able.reason, rewrite=False, course=able.course)


def _proposed(policy: Policy, model: str | None, continuation: Continuation, compacts: bool) -> Choice:
    first = untouched(policy, Reason.PASSTHROUGH, model)
    named = Choice(policy.rank(first.tier.name), first.reason, fixed=first.reason is Reason.PINNED)
    if is_named(policy, model):
        return named
    bound = continuation.bound and has_several_seals(policy)
    maker = continuation.tier_of(policy.tiers)
    if maker is None:
        return msgspec.structs.replace(named, reason=Reason.BOUND, course=Course.LOST) if bound else named
    if not bound and not compacts:
        return named
    return Choice(maker, Reason.BOUND, Course.KEPT_SEALED if bound else Course.KEPT, fixed=True)
