"""Error feedback: what one block of columns loses, the columns still to come make up for (GPTQ, arXiv 2210.17323).

The error of a layer's output is tr(E H E^T), E = W - Q as rows [O, n], H = E[x x^T] [n, n]. With U the upper Cholesky
factor of H^-1 and a block J of columns, the least error that any continuation can reach grows by
|(W_J - Q_J) U_JJ^-1|^2, and is reached if the remaining columns K become W_K - (W_J - Q_J) U_JJ^-1 U_JK.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean diagonal: keeps a singular H invertible
_WIDE = 256  # columns whose updates to the far right are gathered into one product

Choose = Callable[[int, Tensor, Tensor], Tensor]


def damped(moment: Tensor, damping: float = DAMPING) -> Tensor:
    """H [n, n] with a share of its mean diagonal added, so that it can be inverted; ones for inputs never seen."""
    mean = moment.diagonal().mean()
    if not mean > 0:
        return torch.eye(len(moment), device=moment.device)
    return moment / mean + damping * torch.eye(len(moment), device=moment.device)


def inverse_factor(moment: Tensor) -> Tensor:
    """U [n, n], upper triangular with U^T U = H^-1, of a positive definite H; in float64 where float32 fails."""
    for dtype in (torch.float32, torch.float64):
        lower, failed = torch.linalg.cholesky_ex(moment.to(dtype))
        if int(failed):
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed) and bool(torch.isfinite(upper).all()):
            found: Tensor = upper.float()
            return found
    return inverse_factor(damped(moment, 10 * DAMPING))


def feed_back(rows: Tensor, moment: Tensor, block: int, choose: Choose) -> Tensor:
    """Quantize rows [O, n] block by block under H [n, n] (positive definite) -> decoded rows [O, n].

    choose(start, ahead [O, a], metric [b, b]) returns the decoded block [O, b]; it should make
    |(ahead[:, :b] - block) metric|^2 small. `ahead` are the weights from `start` on, as feedback has changed them,
    up to a multiple of 256 columns.
    """
    upper = inverse_factor(moment)
    target, decoded = rows.clone(), torch.empty_like(rows)
    step = max(block, _WIDE // block * block)
    for wide in range(0, rows.shape[1], step):
        end = min(wide + step, rows.shape[1])
        errors = torch.empty_like(target[:, wide:end])
        for start in range(wide, end, block):
            stop = min(start + block, end)
            metric = torch.linalg.solve_triangular(
                upper[start:stop, start:stop], torch.eye(stop - start, device=rows.device), upper=True
            )
            decoded[:, start:stop] = choose(start, target[:, start:end], metric)
            error = (target[:, start:stop] - decoded[:, start:stop]) @ metric  # [O, b]
            errors[:, start - wide : stop - wide] = error
            target[:, stop:end] -= error @ upper[start:stop, stop:end]
        target[:, end:] -= errors @ upper[wide:end, end:]
    return decoded
