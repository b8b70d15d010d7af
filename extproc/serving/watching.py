"""The values of the router that gauges read at each export."""

from extproc.encoder.batcher import Batcher
from extproc.routing.rollout import candidate_shares, is_off
from extproc.routing.router import Router
from extproc.serving.spending import spent_shares
from extproc.serving.telemetry import Telemetry


def watch_router(telemetry: Telemetry, router: Router, batcher: Batcher) -> None:
    """Let the gauges show this router, and the queue of its encoder."""
    telemetry.shares = lambda: router.snapshot.policy.escalation_shares
    telemetry.candidates = lambda: candidate_shares(router.snapshot.rollout, router.shares)
    telemetry.candidate_refused = lambda: is_off(router.snapshot.rollout)
    telemetry.revision = router.snapshot.revision
    telemetry.tiers = lambda: {tier.name: tier for tier in router.snapshot.policy.tiers}
    telemetry.encoder = lambda: batcher.load
    telemetry.caches = lambda: router.cache.checks_of(router.snapshot) if router.cache is not None else {}
    telemetry.budgets = lambda: spent_shares(router)
    telemetry.refused_apps = lambda: {app.name: bool(app.problems) for app in router.snapshot.apps}
    telemetry.apps = lambda: router.snapshot.app_labels
    telemetry.know_keys(router.snapshot.policy.tiers)
