"""The leading columns of a matrix, contiguous in memory without a second copy of the matrix."""

import torch
from jaxtyping import Float
from torch import Tensor


class LeadingColumns:
    """A matrix whose leading columns are contiguous at the front of its memory.

    A product with a vector reads contiguous rows several times as fast as rows with gaps. If the
    number of leading columns changes, the numbers are moved inside the same memory.

    Args:
        matrix: contiguous; its memory is used from now on.
    """

    def __init__(self, matrix: Float[Tensor, "rows columns"]) -> None:
        self._shape, self._memory, self._width = matrix.shape, matrix.view(-1), matrix.shape[1]

    @torch.no_grad()
    def __call__(self, width: int) -> Float[Tensor, "rows width"]:
        """The first `width` columns. The results of earlier calls must not be used any more."""
        if width != self._width:
            whole = torch.cat(self._parts(), 1)
            self._width = width
            for part, columns in zip(
                self._parts(), whole.split([width, self._shape[1] - width], 1), strict=True
            ):
                part.copy_(columns)
        return self._parts()[0]

    def _parts(self) -> list[Tensor]:
        rows, columns = self._shape
        widths = [self._width, columns - self._width]
        memories = self._memory.split([rows * width for width in widths])
        return [part.view(rows, width) for part, width in zip(memories, widths, strict=True)]
