"""Where the parts of a packed pass lie in memory, as kernels for variable lengths want to be told."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a pass, on its device.

    The host knows only what `longest` and `lengths` say, so that nothing of
    the device need be waited for.

    Attributes:
        starts: where each part begins, and the end; a part may be empty,
            unless it is the last  # [num_parts + 1] int32
        longest: no part has more tokens.
        lengths: those of the parts; () where a captured pass must not depend on them.
        keys: the layout of the keys that the parts of a decoder see, where
            some continue a prefix; None where the parts see their own tokens.
        key_rows: for part after part, the rows of its keys among those that
            are kept and, behind them, the pass's own  # [num_keys] int32
    """

    starts: torch.Tensor
    longest: int
    lengths: tuple[int, ...] = ()
    keys: Layout | None = None
    key_rows: torch.Tensor | None = None

    @classmethod
    def of(cls, lengths: tuple[int, ...]) -> Layout:
        """The layout of parts on the CPU."""
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(starts, max(lengths, default=0), lengths)

    @property
    def firsts(self) -> torch.Tensor:
        """The first row of each part; 0 for empty parts at the beginning  # [num_parts]."""
        return self.starts[:-1]

    def lasts(self, skip: int) -> torch.Tensor:
        """The last row of each part but the first so many  # [num_parts - skip]."""
        return self.starts[1 + skip :] - 1

    def singles(self) -> Layout:
        """As many parts, each of one token: the queries of the first rows."""
        count = len(self.starts) - 1
        places = torch.arange(count + 1, dtype=self.starts.dtype, device=self.starts.device)
        return Layout(places, 1, (1,) * len(self.lengths))
