"""The contract between the router, the verifier and Envoy: the names that more than one of them uses.

Words, headers, namespaces and keys are enums. Metadata is written and read as records. `to_metadata` returns plain
values and leaves out absent ones. `from_metadata` never raises, because metadata may be damaged or written by
another release.

`CONTRACT` is the version of these names. The router writes it into every decision, so the decision log shows which
contract a decision was written for. No reader refuses another version: it reads the keys that it knows and ignores
the others. This works because a key keeps its meaning: a new meaning takes a new key and raises the version.
"""
