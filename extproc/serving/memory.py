"""The memory of a server process."""

import ctypes


def give_back() -> None:
    """Return freed memory to the system, if the C library can. After a start it is 30 MB.

    glibc keeps what loading the model and the tokenizer has freed. Other C libraries have no such function.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
