"""The tests of the package. Importing the command line first bounds the threads of BLAS, as in production."""

import extproc.cli  # noqa: F401
