"""Recorded or labelled traffic -> metrics, fitted parameters and gate verdicts, by the functions that serve.

Read the subpackages in this order:

- data: traffic and recorded answers, read from files
- execution: one configuration on one file of traffic; decisions are sealed before labels are read
- measure: metrics of an execution, and the comparison of two
- perturb: the same prompts in other words
- fit: centroids, floors, probabilities, tiers and settings, fitted and written into the YAML
- show: results as text and as pages
"""
