"""Where the parts of a packed pass lie in memory, as kernels for variable lengths want to be told."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True, slots=True)
class KeyRows:
    """Which keys each part of a decoder's pass sees, where some continue what was computed before.

    Attributes:
        rows: for part after part, the places of its keys among those that are
            kept and, behind them, the pass's own  # [num_keys] int32
        starts: where each part's keys begin in `rows`, and the end  # [num_parts + 1] int32
        lengths: how many keys each part sees.
    """

    rows: torch.Tensor
    starts: torch.Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a pass, on its device.

    The host knows only what `longest` and `lengths` say, so that nothing of
    the device need be waited for.

    Attributes:
        starts: where each part begins, and the end; a part may be empty,
            unless it is the last  # [num_parts + 1] int32, or int64 on the CPU
        longest: no part has more tokens.
        lengths: those of the parts; () where a captured pass must not depend on them.
        keys: what the parts of a decoder see; None if it is their own tokens.
    """

    starts: torch.Tensor
    longest: int
    lengths: tuple[int, ...] = ()
    keys: KeyRows | None = None

    @classmethod
    def of(cls, lengths: tuple[int, ...]) -> Layout:
        """The layout of parts on the CPU."""
        return cls(torch.tensor([0, *accumulate(lengths)]), max(lengths, default=0), lengths)

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
