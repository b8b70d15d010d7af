"""Centroids, floors, probabilities, tiers and settings, fitted on traffic and written into the YAML.

Two commands use it. `calibrate` reads labelled rows: labelled and partition, then learning (with trial and
centroid_kinds), then calibration (with floors and probability). `calibrate --target` reads recorded outcomes:
option_table, options, plans (with scorer), cohort_plans, picks, then choice. Both end in edits.
"""
