"""What a refit may be told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RefitOptions:
    """Options of a refit.

    Attributes:
        ridges: ridges that each layer chooses from on held-out positions, relative to the mean square of its inputs.
        rows_per_unknown: positions used for each input of a filter.
        least_rows: positions used at least, as far as there are so many.
        most_rows: positions used at most.
        record_bytes: bytes of outputs recorded of one layer; gives way to four positions for each input of a filter.
        residual: whether a layer whose output goes straight into an Add is fitted towards the original's sum.
        normalization: whether BatchNormalizations whose input is no refitted layer get new scales and shifts.
        keep_zeros: whether weights that are zero stay zero, as those that were pruned must.
        memory: bytes of activations held in memory; more go to temporary files.
        run_memory: bytes of activations that one run of the original may hand out.
        batch: most samples that are run at once, where the model lets the batch be chosen.
    """

    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    rows_per_unknown: int = 16
    least_rows: int = 16_384
    most_rows: int = 60_000
    record_bytes: int = 64 << 20
    residual: bool = True
    normalization: bool = True
    keep_zeros: bool = False
    memory: int = 1 << 30
    run_memory: int = 256 << 20
    batch: int = 32


# Noise is not what the net is used to: a fit to it must not go as far (measured with ``synthetic_feeds``).
DATA_FREE = RefitOptions(ridges=(1e-2, 1e-1, 1.0))
