"""Inner products of a vector with many rows.

A vector is an embedding of a few hundred numbers, and 2,048 hashed words of which about ten are set. With ten
thousand rows, a dense search spends nearly all its time on words that the text does not have. So only the embedding
is multiplied densely. Its table has a column for each row, because BLAS then reads it once and in order. Few rows
are multiplied whole, by FAISS.
"""

import faiss
import numpy as np

from extproc.encoder.features import WORD_COLUMNS
from extproc.encoder.protocols import Vectors

# One query is too little work for several threads.
faiss.omp_set_num_threads(1)
_products = faiss.fvec_inner_products_ny  # type: ignore[attr-defined]  # the types lack it
# With fewer rows, a dense product of all columns is as fast.
_MANY_ROWS = 128
# Words whose rows are added in one step: their copies stay in the cache.
_STEP = 16


class Products:
    """The rows, in the form that a search needs."""

    def __init__(self, rows: Vectors) -> None:
        """`rows` is float32[n, d]. If d is large enough, its last columns are hashed words."""
        width = rows.shape[1]
        self._embedding = width - WORD_COLUMNS
        self._few = None
        if len(rows) < _MANY_ROWS or self._embedding <= 0:
            self._few = faiss.IndexFlatIP(width)
            self._few.add(np.ascontiguousarray(rows, dtype=np.float32))
            return
        columns = np.ascontiguousarray(rows.T, dtype=np.float32)
        self._dense, self._words = columns[: self._embedding], columns[self._embedding :]

    def with_vector(self, vector: Vectors) -> Vectors:
        """Return the inner product of `vector` (float32[d]) with each row, float32[n]. Exact for any vector."""
        query = np.ascontiguousarray(vector, dtype=np.float32)
        if self._few is not None:
            return _with_few(self._few, query)
        products: Vectors = query[: self._embedding] @ self._dense
        words = query[self._embedding :]
        present = np.flatnonzero(words)
        for start in range(0, len(present), _STEP):
            chosen = present[start : start + _STEP]
            products += words[chosen] @ self._words[chosen]
        return products


def _with_few(index: faiss.IndexFlatIP, query: Vectors) -> Vectors:
    products = np.empty(index.ntotal, dtype=np.float32)
    _products(faiss.swig_ptr(products), faiss.swig_ptr(query), index.get_xb(), len(query), len(products))
    return products
