"""Evidence: what a configuration does to recorded or labelled traffic, found out by the functions that serve.

Reading order:

    traffic      the JSONL of labelled or recorded traffic (convert makes it from other formats)
    execution    rows -> decisions, sealed -> what is known of them
    answers      recorded answers -> what the client would have got, and its cost (tokens counts where nobody did)
    metrics      numbers from arrays, with intervals
    evaluation   `extproc eval`: executions -> a report, beside its controls (page and charts draw it)
    learning     `extproc calibrate`: labelled rows -> centroids, chosen by rows held out
    adapt        the encoder -> one that tells these cohorts apart, at the same speed (adapted keeps them)
    calibration  other labelled rows -> floors and probabilities (edits writes them into the YAML)
    options      what a cohort could be set to, and what each recorded row would then have given
    target       of those, one a cohort, so that all together meet the target
    choice       `extproc calibrate --target`: what came of it (scorer and logistic fit the acceptance score)
    comparison   `extproc diff` and `extproc gate`: two configurations on the same traffic
    suggestion   `extproc suggest`: new intents from what falls out of scope
    report       all of it in words (commands reads, runs and prints)

For research, used by `make bench-routing` and not served yet:

    success      prompt -> the chance that a tier answers it right (surface reads it)
"""
