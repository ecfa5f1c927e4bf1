"""Where the provider cuts pages: a limit counts the bars that a bar is made of, and no bar is cut in two."""

import numpy as np
from numpy.typing import NDArray


def whole_bars(starts: NDArray[np.int64], limit: int, *, ascending: bool) -> slice:
    """Which base bars make up the page: those of whole bars within the limit, at least one whole bar.

    starts: shape (n,), for each base bar the start of the bar that it belongs to, ascending, not empty.
    """
    total = len(starts)
    edges = np.append(np.flatnonzero(np.diff(starts)) + 1, total)
    if ascending:
        fitting = edges[edges <= limit]
        return slice(0, int(fitting[-1] if len(fitting) else edges[0]))
    edges = np.insert(edges[:-1], 0, 0)
    fitting = edges[edges >= total - limit]
    return slice(int(fitting[0] if len(fitting) else edges[-1]), total)
