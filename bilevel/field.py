"""The gradient field of F around a path, from noisy gradients along it: a Gaussian process of the objective itself.

    F(z) = b'z + z'Hz / 2 + f(z),      f ~ GP(0, rho^2 l^2 exp(-|z - z'|^2 / 2 l^2)),      g_k = dF(z_k) + noise

b and H have wide priors: near any point the field is a linear one with a symmetric Hessian, as far as the gradients
say, and f bends it. z is u, seen from the path's end: a link stretches its parameter so that u is of order 1, and l is
not much less. The noise of a step is that of its samples, smoothed over the steps nearby, correlated between
coordinates as the residuals are, and times a factor that the residuals tell, too:

    sigma^2 ~ scaled inverse chi^2, as if PRIOR residuals had been as large as the standard errors

l and rho are not chosen but averaged over, by how well each explains the gradients (Rasmussen & Williams 2006, 5.4 and
9.4). So what is not known of the shape of F is a part of every error bar. A straight line through the same gradients
is too sure of its slope, and one through those of them that show a slope even more so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

LENGTHS = (1.0, 2.0, 4.0)  # of l, in u
BENDS = (0.5, 2.0, 8.0, 32.0, 128.0)  # of rho, in standard errors of a gradient
WIDE = 10.0  # standard deviation of b and H, in root mean square gradients
PRIOR = 8.0  # residuals that the standard errors are worth
FEEDBACK = 1.15  # of all errors: a climb follows its own noise, and its gradients are no independent measurements
NEARBY = 0.8  # in u: how far the noise of a step speaks for that of others
LEAST = 1e-4  # of the root mean square gradient: no noise is thought to be less
NEGLIGIBLE = 0.01  # weight of a cell that is left out

Nodes = tuple[float, ...]  # of u, beside a point: over these a coordinate of a gradient is averaged


@dataclass(frozen=True)
class Local:
    """Draws of the gradient (S, P) and of the Hessian (S, P, P) at a point, in u."""

    grad: Tensor
    hessian: Tensor


@dataclass(frozen=True)
class Field:
    """What the gradients say of the field, everywhere: a mixture over C cells, an l and a rho each."""

    z: Tensor  # (n, P), u - origin
    origin: Tensor  # (P,)
    unit: Tensor  # (), noise of a gradient; all below is in units of it
    wide: tuple[float, float]  # standard deviations of b and H
    length: Tensor  # (C,)
    rho: Tensor  # (C,)
    weight: Tensor  # (C,), adding up to 1
    alpha: Tensor  # (C, nP), K^-1 y
    factor: Tensor  # (C, nP, nP), of K
    sigma2: Tensor  # (C,), scale of the inverse chi^2
    degrees: float
    nodes: Nodes = (0.0,)

    def mean(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The expected gradient (P,) and Hessian (P, P) at u (P,)."""
        straight, bent = self._cross(u - self.origin)
        shared = self.weight[:, None] * self.alpha
        grad, hessian = self._unpacked((straight @ shared.sum(0) + torch.einsum("cqn,cn->q", bent, shared))[None])
        return grad[0], hessian[0]

    def at(self, u: Tensor, draws: int) -> Local:
        """Draws from what is known of both at u (P,); the same ones each time."""
        generator = torch.Generator().manual_seed(0)
        z = u - self.origin
        straight, bent = self._cross(z)
        cross = straight + bent  # (C, Q, nP)
        half = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False)
        covariance = _own(z, self.wide, self.length, self.rho) - half.mT @ half
        values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
        root = vectors * values.clamp(min=0).sqrt()[:, None]
        of = torch.arange(len(self.weight)).repeat_interleave(_shares(self.weight, draws))  # (S,)
        spread = (self.sigma2[of] * self.degrees / _chi2(self.degrees, draws, generator)).sqrt()[:, None]
        normal = torch.randn(draws, root.shape[-1], generator=generator, dtype=z.dtype)
        means = torch.einsum("cqn,cn->cq", cross, self.alpha)
        parts = [
            n @ r.T for n, r in zip(normal.split(torch.bincount(of, minlength=len(root)).tolist()), root, strict=True)
        ]
        return Local(*self._unpacked(means[of] + spread * torch.cat(parts)))

    def _cross(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _at(z, self.z, self.wide, self.length, self.rho, self.nodes)

    def _unpacked(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(S, Q) of gradients and upper triangles of Hessians, in units of the noise -> both."""
        p = len(self.origin)
        i, j = torch.triu_indices(p, p)
        hessian = rows.new_zeros(len(rows), p, p)
        hessian[:, i, j] = hessian[:, j, i] = rows[:, p:]
        return rows[:, :p] * self.unit, hessian * self.unit

    @property
    def spread(self) -> Tensor:
        """How far the path went along each coordinate (P,), a standard deviation."""
        found = self.z.std(0)
        return found.clamp(min=1e-3 * found.max().item() or 1e-12)


def field(u: Tensor, g: Tensor, se: Tensor, width: float = 0.0) -> Field:
    """From steps u (n, P), their gradients, and standard errors that are NaN or 0 where they are not known.

    Each coordinate of a gradient is its average over u +- `width` along that coordinate, which is taken as that of two
    points, u +- width / sqrt 3: exact for a cubic (Gauss).
    """
    nodes = (-width / 3**0.5, width / 3**0.5) if width else (0.0,)
    z, noise = u - u[-1], smoothed(u, g, se)
    unit = noise.square().mean().sqrt()

    def fitted(correlation: Tensor) -> Field:
        return _fit(z, g / unit, noise / unit, correlation, u[-1], unit, nodes)

    first = fitted(torch.eye(u.shape[1], dtype=u.dtype))
    return first if u.shape[1] == 1 else fitted(_correlation(first, noise / unit))


def smoothed(z: Tensor, y: Tensor, se: Tensor) -> Tensor:
    """Standard errors (n, P), each the root mean square of those near it.

    A step's own is not used alone: of samples that jump now and then, those steps that happen to see no jump have both
    the smallest error and too small a gradient.
    """
    size = y.square().mean(0).sqrt().clamp(min=1e-300)
    known = (se.isfinite() & (se > 0)).to(se)
    near = torch.exp(-(torch.cdist(z, z) / NEARBY).square() / 2)
    variance = (near @ se.nan_to_num(0.0, 0.0, 0.0).square()) / (near @ known).clamp(min=1e-12)
    found = variance.sqrt().where(known.any(0), 0.1 * size)
    return torch.maximum(found, LEAST * size)


def _fit(z: Tensor, y: Tensor, noise: Tensor, correlation: Tensor, origin: Tensor, unit: Tensor, nodes: Nodes) -> Field:
    n, p = y.shape
    size = WIDE * max(y.square().mean().sqrt().item(), 1.0)
    wide = (size, size / min(max(z.std(0).max().item(), 1e-9), 1.0))
    d, data = noise.reshape(-1), y.reshape(-1)
    errors = d[:, None] * torch.kron(torch.eye(n, dtype=z.dtype), correlation) * d
    pairs = [(1.0, 0.0), *((length, rho) for length in LENGTHS for rho in BENDS)]
    length, rho = torch.tensor(pairs, dtype=z.dtype).T
    factor = torch.linalg.cholesky(_linear(z, z, wide) + errors + _bent(z, z, length, rho, nodes, nodes))
    alpha = torch.cholesky_solve(data[:, None].expand(len(pairs), -1, 1), factor)[..., 0]
    misfit = alpha @ data
    taken = min(p + p * (p + 1) / 2, n * p - 1)  # numbers of b and H
    degrees = PRIOR + n * p - taken
    volume = factor.diagonal(dim1=1, dim2=2).log().sum(1)
    weight = (-volume - degrees / 2 * (1 + misfit / PRIOR).log()).softmax(0)
    kept = weight > NEGLIGIBLE
    weight, sigma2 = weight[kept] / weight[kept].sum(), FEEDBACK**2 * (PRIOR + misfit[kept]) / degrees
    return Field(
        z, origin, unit, wide, length[kept], rho[kept], weight, alpha[kept], factor[kept], sigma2, degrees, nodes
    )


def _correlation(found: Field, noise: Tensor) -> Tensor:
    """Of the noise between coordinates (P, P), from residuals of a first fit; nearer to none where steps are few."""
    n, p = noise.shape
    residual = noise * found.alpha[found.weight.argmax()].reshape(n, p)  # noise^2 K^-1 y, in standard errors
    second = residual.T @ residual
    size = second.diagonal().sqrt().clamp(min=1e-300)
    share = n / (n + 2 * p)
    return share * second / (size[:, None] * size) + (1 - share) * torch.eye(p, dtype=noise.dtype)


def _shares(weight: Tensor, draws: int) -> Tensor:
    """`draws` among the cells, by weight."""
    ends = (weight.cumsum(0) * draws).round().long()
    ends[-1] = draws
    return ends.diff(prepend=ends.new_zeros(1))


def _chi2(degrees: float, draws: int, generator: torch.Generator) -> Tensor:
    """(S,), to the nearest whole degree."""
    whole = max(1, round(degrees))
    return torch.randn(draws, whole, generator=generator, dtype=torch.float64).square().sum(-1) * degrees / whole


# -- covariances of the gradients at a (n, P) with those at b (m, P): (nP, mP) -----------------------------------------


def _linear(a: Tensor, b: Tensor, wide: tuple[float, float]) -> Tensor:
    """Of b + Hz, whose standard deviations are w and h: w^2 I + h^2 / 2 (a'b I + b a')."""
    eye = torch.eye(a.shape[1], dtype=a.dtype)
    dots = (a @ b.T)[:, :, None, None]
    turned = b[None, :, :, None] * a[:, None, None, :]
    return _flat(wide[0] ** 2 * eye + wide[1] ** 2 / 2 * (eye * dots + turned))


def _bent(a: Tensor, b: Tensor, length: Tensor, rho: Tensor, of_a: Nodes, of_b: Nodes) -> Tensor:
    """Of df, for C cells: rho^2 e^(-x'x / 2) (I - x x'), x = (a - b) / l, averaged over nodes.

    Coordinate i of a gradient at a is the mean over the points a + s e_i, s in `of_a`, and likewise j at b.
    """
    eye = torch.eye(a.shape[1], dtype=a.dtype)
    d = (a[:, None] - b)[..., None]  # (n, m, P, 1)
    scale = length[:, None, None, None, None]
    total = torch.zeros((), dtype=a.dtype)
    for s, t in product(of_a, of_b):
        one, two = d + s - t * eye, d.mT - t + s * eye  # entries i and j of a + s e_i - b - t e_j: (n, m, P, P)
        square = d.square().sum(-2, keepdim=True) + 2 * (s * d - t * d.mT) + s**2 + t**2 - 2 * s * t * eye
        total = total + torch.exp(-square / (2 * scale**2)) * (eye - one * two / scale**2)
    return _flat(rho[:, None, None, None, None] ** 2 * total / (len(of_a) * len(of_b)))


def _flat(x: Tensor) -> Tensor:
    """(..., n, m, P, P) -> (..., nP, mP)."""
    *lead, n, m, p, q = x.shape
    return x.transpose(-3, -2).reshape(*lead, n * p, m * q)


def _at(
    z: Tensor, b: Tensor, wide: tuple[float, float], length: Tensor, rho: Tensor, nodes: Nodes
) -> tuple[Tensor, Tensor]:
    """Of gradient and upper triangle of the Hessian at z (P,), Q numbers, with the gradients at b (m, P).

    The linear part (Q, mP), and the bent one of C cells (C, Q, mP).
    """
    p = len(z)
    eye = torch.eye(p, dtype=z.dtype)
    i, j = torch.triu_indices(p, p)
    one, two = eye[i][:, None], eye[j][:, None]  # (T, 1, P)
    # Cov(H_ij, (Hb)_q) = h^2 / 2 (I_iq b_j + I_jq b_i)
    straight = wide[1] ** 2 / 2 * (one * b.T[j][..., None] + two * b.T[i][..., None])  # (T, m, P)
    straight = torch.cat([_linear(z[None], b, wide), straight.reshape(len(i), -1)])
    scale, same = length[:, None, None, None], (i == j)[:, None, None].to(z)
    moved = torch.zeros((), dtype=z.dtype)
    for t in nodes:
        x = (z - b[:, None] - t * eye) / scale  # (C, m, P, P), a row for each coordinate of the gradient at b
        k = (rho[:, None, None] ** 2 / length[:, None, None] * torch.exp(-x.square().sum(-1) / 2))[:, None]
        xi, xj = x[..., i].movedim(-1, 1), x[..., j].movedim(-1, 1)  # (C, T, m, P)
        own = x.diagonal(dim1=-2, dim2=-1)[:, None]
        moved = moved + k * ((xi * xj - same) * own - xj * one - xi * two) / len(nodes)
    return straight, torch.cat([_bent(z[None], b, length, rho, (0.0,), nodes), moved.flatten(2)], dim=1)


def _own(z: Tensor, wide: tuple[float, float], length: Tensor, rho: Tensor) -> Tensor:
    """Of gradient and upper triangle of the Hessian at z (P,) with themselves, for C cells: (C, Q, Q)."""
    p = len(z)
    eye = torch.eye(p, dtype=z.dtype)
    i, j = torch.triu_indices(p, p)
    same = eye[i][:, i] * eye[j][:, j] + eye[i][:, j] * eye[j][:, i]  # I_ik I_jl + I_il I_jk, (T, T)
    mixed = wide[1] ** 2 / 2 * (eye[i] * z[j][:, None] + eye[j] * z[i][:, None])  # (T, P)
    top = torch.cat([_linear(z[None], z[None], wide), mixed.T], dim=1)
    straight = torch.cat([top, torch.cat([mixed, wide[1] ** 2 / 2 * same], dim=1)])
    bent = torch.block_diag(torch.zeros_like(eye), same + ((i == j)[:, None] & (i == j)))
    flat = torch.block_diag(eye, torch.zeros_like(same))
    found: Tensor = straight + rho[:, None, None] ** 2 * (flat + bent / length[:, None, None] ** 2)
    return found
