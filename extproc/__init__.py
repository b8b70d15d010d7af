"""A semantic router for LLM traffic: an external processor beside Envoy.

Reading order, along the path of a request:

    exchange    one exchange as straight-line code: start here
    request     the client's bytes -> Request, for four API shapes
    ask         which of its words are the person's
    signals     cheap facts
    features    words -> vector (sentences runs the model, embedding shares it)
    match       vector -> nearest cohort
    policy      cohort and rules -> Decision, with exactly one Reason
    mutation    Decision -> the bytes that change (splice makes them in place)
    verify      an answer -> verdict, before the client sees it (response reads it, acceptance judges it)
    rescue      a failure -> the answer that an earlier rung gave

Around it: `server` answers Envoy's streams and `wire` speaks Envoy's protocol; `config` and `snapshot` turn YAML
(and fitted centroids: `centroid_file`) into what the path needs, `reload` swaps it once a `gate` lets it; `envoy`
renders Envoy's side; `contract` names what both sides share.
Afterwards: `accesslog` reads Envoy's log, `outcome` says what became of a request and what it cost, `ledger` hands
it to a `store` and `report` adds it up. `offline` evaluates, calibrates and gates with the functions above.
`sentences` runs the encoder, `prepare` converts it once; `workers` keeps several processes alive.
"""

__version__ = "0.1.0"
