"""A semantic router for LLM traffic: an external processor (ext_proc) for Envoy.

Start with `Router.route` in `routing/router.py`, the whole path of one request. It uses, in this order:

- `api/request`: the client's bytes -> `Request`, for four APIs
- `routing/ask`: `Request` -> the text that a person wrote
- `routing/signals`: `Request` -> facts that need no model
- `encoder`: text -> vector
- `routing/index`: vector -> the nearest cohort
- `routing/decision`: cohort, signals and rules -> `Decision`, with one `Reason`
- `routing/mutation`: `Decision` -> the headers and bytes that change

If the answer is judged, `verifying/exchange.py` handles it before the client sees it:

- `api/answer`: the upstream's bytes -> `Observation`
- `acceptance`: `Observation` and rules -> `Verdict`
- `verifying`: `Verdict` -> accept, escalate to the next tier, or queue for a person

The other packages:

- `settings`, `contract`, `messages`: the words that users write, that Envoy shares, and that pass on a stream
- `config`: YAML -> the snapshot that requests use, with checks, reload and a gate
- `envoy`: tiers -> Envoy's configuration
- `serving`: gRPC server, protocol, processes, health, telemetry
- `accounting`: Envoy's access log -> outcomes, cost, ledger, reports
- `evidence`: recorded traffic -> evaluation and fitted settings, with the functions above
- `demo`, `cli`: a whole system on one machine, and the commands

A package imports only packages on lower floors, which `tests/test_layers.py` lists.
"""

__version__ = "0.1.0"
