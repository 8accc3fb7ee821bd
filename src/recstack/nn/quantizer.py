"""Vectors as short rows of codes: residual quantisation, and the autoencoder that learns what is quantised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recstack.nn.mlp import MLP, linear

COMMITMENT = 0.25  # β: how much the vectors are drawn to their codes
LLOYD = 10  # rounds of k-means at the start
ROWS, RATE, REVIVAL = 1024, 1e-3, 100  # of training: a batch, Adam's rate, steps between revivals


class ResidualQuantizer(nn.Module):
    r"""Each level names, by the nearest of its K vectors, what the levels before it left over.

    .. math:: r_1 = z, \quad c_l = \arg\min_k \|r_l - e_{lk}\|^2, \quad r_{l+1} = r_l - e_{l c_l}, \qquad
        L = \sum_l \|\mathrm{sg}(r_l) - e_{l c_l}\|^2 + \beta \|r_l - \mathrm{sg}(e_{l c_l})\|^2

    (Lee et al., CVPR 2022, https://arxiv.org/abs/2203.01941.) ``z [N, D]`` gives codes ``[N, L]``, the sum of their vectors
    ``[N, D]``, through which gradients pass as if it were z, and L, the mean over rows. In float32. `start` sets the vectors
    by k-means, level by level; `revive` moves those that nothing chose in training since it was last called.

    Args:
        width: D.
        levels: how many codes a vector gets.
        codes: K.

    >>> quantizer = ResidualQuantizer(2, levels=2, codes=2)
    >>> with torch.no_grad():
    ...     _ = quantizer.books.copy_(torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]))
    >>> quantizer(torch.tensor([[4.0, 1.0]]))[:2]
    (tensor([[1, 1]]), tensor([[4., 1.]]))
    """

    used: Tensor  # how often each code was chosen since the last `revive`

    def __init__(self, width: int, levels: int, codes: int):
        super().__init__()
        self.levels, self.codes = levels, codes
        self.books = nn.Parameter(torch.randn(levels, codes, width))
        self.register_buffer("used", torch.zeros(levels, codes), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            rest, found, loss = z.float(), [], z.new_zeros((), dtype=torch.float32)
            for level, book in enumerate(self.books.float()):
                code = nearest(rest.detach(), book.detach())
                if self.training:
                    self.used[level].index_add_(0, code, torch.ones_like(code, dtype=self.used.dtype))
                chosen = book[code]
                loss = loss + (rest.detach() - chosen).square().sum(-1).mean()
                loss = loss + COMMITMENT * (rest - chosen.detach()).square().sum(-1).mean()
                rest = rest - chosen.detach()
                found.append(code)
            total = z.float() - rest  # Σ e, and the gradient of nothing
            return torch.stack(found, -1), z + (total - z).detach(), loss

    @torch.no_grad()
    def start(self, z: Tensor, generator: torch.Generator | None = None) -> None:
        """Codes by k-means of these vectors ``[N, D]``."""
        rest = z.float()
        for level in range(self.levels):
            self.books[level] = k_means(rest, self.codes, generator)
            rest = rest - self.books[level][nearest(rest, self.books[level])]

    @torch.no_grad()
    def revive(self, z: Tensor, generator: torch.Generator | None = None) -> int:
        """Codes that nothing chose become what is left over, at their level, of vectors drawn from ``z [N, D]``.

        Returns:
            how many codes were moved.
        """
        rest, dead = z.float(), self.used == 0
        for level in range(self.levels):
            drawn = torch.randint(len(rest), (int(dead[level].sum()),), generator=generator).to(rest.device)
            self.books[level][dead[level]] = rest[drawn]
            rest = rest - self.books[level][nearest(rest, self.books[level])]
        self.used.zero_()
        return int(dead.sum())


class ResidualAutoencoder(nn.Module):
    r"""RQ-VAE: an autoencoder whose middle is quantised.

    .. math:: L = \|x - D(\hat z)\|^2 + L_{\mathrm{quantiser}}(z), \qquad z = E(x), \quad \hat z = \sum_l e_{l c_l}

    ``x [N, W]``: called it gives codes ``[N, L]``; `loss` is the mean over rows.

    Args:
        width: W.
        levels, codes: of the quantiser.
        hidden: widths of the encoder, and in reverse of the decoder.
        size: width of z.
    """

    def __init__(self, width: int, levels: int, codes: int, *, hidden: Sequence[int] = (512, 256, 128), size: int = 32):
        super().__init__()
        self.encoder = nn.Sequential(MLP(width, hidden), linear(hidden[-1], size))
        self.quantizer = ResidualQuantizer(size, levels, codes)
        self.decoder = nn.Sequential(MLP(size, hidden[::-1]), linear(hidden[0], width))

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(self.encoder(x))[0]

    def loss(self, x: Tensor) -> Tensor:
        _, z, loss = self.quantizer(self.encoder(x))
        return (self.decoder(z) - x).square().sum(-1).mean() + loss

    @torch.enable_grad()
    def learn(self, x: Tensor, steps: int, seed: int = 0) -> Tensor:
        """Train on vectors ``[N, W]``, which are scaled to a deviation of 1: their codes ``[N, L]``.

        The codes begin as k-means, and those that nothing chooses are revived during the first half of the steps.
        """
        x, generator = x / x.std().clamp(min=1e-12), torch.Generator().manual_seed(seed)
        some = x[torch.randperm(len(x), generator=generator)[: 16 * ROWS]]
        self.train().quantizer.start(self.encoder(some).detach(), generator)
        books = self.quantizer.books
        rest = [p for p in self.parameters() if p is not books]
        optimizer = torch.optim.Adam(
            [{"params": rest}, {"params": [books], "lr": 10 * RATE}], RATE
        )  # or they lag behind z
        for step in range(1, steps + 1):
            rows = x[torch.randint(len(x), (min(ROWS, len(x)),), generator=generator)]
            loss = self.loss(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % REVIVAL == 0 and 2 * step <= steps:
                self.quantizer.revive(self.encoder(rows).detach(), generator)
        with torch.no_grad():
            return self.eval()(x)


def nearest(x: Tensor, book: Tensor) -> Tensor:
    """The row of `book` ``[K, D]`` nearest to each of ``x [N, D]``: int64 ``[N]``."""
    return (book.square().sum(-1) - 2 * x @ book.T).argmin(-1)


def k_means(x: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """Means ``[k, D]`` of ``x [N, D]``; one that nothing is near to becomes a row of x."""
    means = x[torch.randperm(len(x), generator=generator)[:k].to(x.device)]
    if len(means) < k:  # fewer rows than means: some are there twice, and nothing chooses the second
        means = torch.cat(
            [means, means[torch.randint(len(means), (k - len(means),), generator=generator).to(x.device)]]
        )
    for _ in range(LLOYD):
        own = nearest(x, means)
        count = torch.bincount(own, minlength=k)
        total = torch.zeros_like(means).index_add_(0, own, x)
        drawn = x[torch.randint(len(x), (k,), generator=generator).to(x.device)]
        means = torch.where(count.unsqueeze(-1) > 0, total / count.clamp(min=1).unsqueeze(-1), drawn)
    return means
