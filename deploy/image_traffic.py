"""Send requests through the real Envoy to a router in a container. `deploy/image.sh` runs this.

The first argument is an empty folder that the container sees, too, at the same path. The others are the command
that runs `extproc` in the container. Each prompt must be answered by the tier that the sample intents name for it.
At the end the router must stop with exit code 0.
"""

import json
import sys
import urllib.request
from pathlib import Path

from extproc.config.load import load_config
from extproc.demo.processes import end
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack

INTENTS = Path(__file__).parents[1] / "intents"
# A prompt, and the cohort and the tier that answer it.
PROMPTS = {
    "Extract the sender, amount and due date as JSON: Invoice from Nordwind, 420 EUR, due 3 May.": (
        "extraction", "small",
    ),
    "Prove that the sum of two odd numbers is even.": ("math_reasoning", "large"),
}  # fmt: skip


def main(folder: Path, program: list[str]) -> None:
    """Start the router and Envoy, send the prompts, and stop both."""
    tiers = load_config(INTENTS).policy.tiers
    with SampleUpstreams({tier.name: tier.model for tier in tiers}) as upstreams:
        stack = Stack(INTENTS, folder, upstreams, deadline_ms=5000)
        stack.program = program
        try:
            stack.start_router()
            stack.start_envoy()
            for prompt, expected in PROMPTS.items():
                cohort, tier, model = ask(stack.url, prompt)
                print(f"{prompt!r}: cohort {cohort}, tier {tier}, answered by {model}")
                if (cohort, tier) != expected or model != upstreams.models[tier]:
                    sys.exit(f"expected cohort and tier {expected}; the logs are in {folder}")
            router = stack.router
            assert router is not None
            end(router)
            if router.returncode != 0:
                sys.exit(f"the router stopped with exit code {router.returncode}: {folder / 'router.log'}")
        finally:
            stack.stop()


def ask(url: str, prompt: str) -> tuple[str, str, str]:
    """Return the cohort and the tier of the answer's headers, and the model that the upstream was asked for."""
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        headers, model = answer.headers, json.load(answer)["model"]
    return headers["x-router-cohort"], headers["x-router-tier"], model


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
