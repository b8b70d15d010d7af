"""The command line. Every process of the product starts here."""

import os

# The matrices are small. With a thread for each core, the threads of BLAS mostly wait for each other. Fitting the
# sample intents takes 5 s of CPU with two threads, and 0.8 s with one. BLAS reads this when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
