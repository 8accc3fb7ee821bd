"""Bandits in closed form: what is not yet known of an arm is worth something.

Arms are the ids 0 to A - 1, item ids for instance. `scores` tells what each arm is worth now, `probabilities` with what
chance each would be chosen, `choose` chooses and gives that chance, which a log must keep (`recstack.metrics.off_policy`),
and `update` learns from any number of rewards at once, in any order. State is in float64. `to_piece` and `save` keep it in
bundles; nothing is pickled.

A context x is ``[R, D]``, one vector per request, for bandits with a model of each arm; for one model of all arms
(``arms=None``) it is ``[R, A, D]``, a vector for each arm in each request.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from recstack import bundle
from recstack.bundle import Piece
from recstack.errors import ConfigError, DataError

DRAWS = 200  # of a posterior, to estimate with what chance it would choose each arm


class Choice(NamedTuple):
    """The arm chosen for each request, int64 [R], and the chance with which it was, float64 [R]."""

    arm: Tensor
    propensity: Tensor


class Bandit:
    """What bandits share: choosing, counting, saving. A subclass has `_scores` and `_learn`, and its sums in `state`."""

    random = False  # True: scores are draws of a posterior

    def __init__(self, arms: int | None, **options: Any):
        if arms is not None and arms < 1:
            raise ConfigError(f"{type(self).__name__} needs at least 1 arm; got {arms}.")
        self.arms, self.options = arms, {"arms": arms, **options}
        self.state: dict[str, Tensor] = {}

    # -- choosing -----------------------------------------------------------------------------------------------------
    def scores(self, x: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """What each arm is worth, what is not known included: float64 [R, A], [1, A] without a context."""
        return self._scores(self._context(x), generator)

    def probabilities(
        self, x: Tensor | None = None, *, where: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """With what chance each arm is chosen, float64 [R, A]; for drawn scores, the share of 200 draws."""
        if self.random:
            draws = (self._best(self.scores(x, generator=generator), where) for _ in range(DRAWS))
            return sum(draws, torch.zeros(())) / DRAWS
        return self._best(self.scores(x, generator=generator), where)

    def choose(
        self, x: Tensor | None = None, *, where: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Choice:
        """One arm for each request, among those that `where` bool [R, A] allows; among equals the first.

        For bandits that draw from a posterior the arm is a new draw's, and its chance an estimate of at least 1 / 200.
        """
        chance = self.probabilities(x, where=where, generator=generator)
        if self.random:
            arm = self._best(self.scores(x, generator=generator), where).argmax(1)
            chance = chance.clamp(min=1 / DRAWS)
        else:
            arm = torch.multinomial(chance, 1, generator=generator).squeeze(1)
        return Choice(arm, chance.gather(1, arm.unsqueeze(1)).squeeze(1))

    def _best(self, scores: Tensor, where: Tensor | None) -> Tensor:
        """One-hot, float64 [R, A]."""
        if where is not None:
            if not where.any(-1).all():
                raise DataError("A request allows no arm at all; give each at least one in where=.")
            scores = scores.masked_fill(~where, -torch.inf)
        return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).double()

    # -- learning -----------------------------------------------------------------------------------------------------
    def update(self, arm: Any, reward: Any, x: Any = None, *, where: Any = None) -> Self:
        """Learn from rewards of arms that were chosen, of any one shape; x has one axis more, the D of a context each.

        Cells that `where` bool excludes, and NaN rewards (labels that are missing), teach nothing.

        Raises DataError for shapes that differ, an arm that there is not, or a context that is not finite.
        """
        arm, reward = torch.as_tensor(arm).long(), torch.as_tensor(reward).double()
        if arm.shape != reward.shape:
            raise DataError(f"Arms are {list(arm.shape)} and rewards {list(reward.shape)}; give one reward per arm.")
        live = ~reward.isnan() if where is None else torch.as_tensor(where).bool() & ~reward.isnan()
        if x is not None:
            x = torch.as_tensor(x).double()
            if x.shape[:-1] != arm.shape:
                raise DataError(
                    f"Contexts are {list(x.shape)} for arms {list(arm.shape)}; give [{'R, ' * arm.dim()}D]."
                )
            x = x[live]
        arm, reward = arm[live], reward[live]
        if self.arms is not None and len(arm) and not 0 <= int(arm.min()) <= int(arm.max()) < self.arms:
            raise DataError(f"Arms go from 0 to {self.arms - 1}; got {int(arm.min())} to {int(arm.max())}.")
        x = self._context(x)
        if x is not None and not x.isfinite().all():
            raise DataError("A context holds NaN or infinite values; fill them before the bandit reads them.")
        self._learn(arm, reward, x)
        return self

    def _scores(self, x: Any, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def _learn(self, arm: Tensor, reward: Tensor, x: Any) -> None:
        raise NotImplementedError

    def _context(self, x: Tensor | None) -> Tensor | None:
        """x in float64, if this bandit reads one."""
        return None

    # -- saving -------------------------------------------------------------------------------------------------------
    def to_piece(self) -> Piece:
        """This bandit as a piece of a bundle."""
        return Piece(bundle.class_path(type(self)), bundle.encode_config(self.options), dict(self.state))

    @classmethod
    def from_piece(cls, piece: Piece) -> Self:
        """The bandit that `to_piece` saved."""
        new = cls(**bundle.decode_config(piece.config))
        new.state = {name: torch.as_tensor(value).clone() for name, value in piece.tensors.items()}
        return new

    def save(self, path: str | Path) -> Path:
        """Write a bundle with this bandit alone; `load` of this module reads it."""
        return bundle.write(path, {"bandit": self.to_piece()}, {"kind": "bandit"})


def load(path: str | Path) -> Bandit:
    """The bandit that was saved at `path`. Raises BundleError for what is missing or altered."""
    piece = bundle.read(path).piece("bandit")
    return bundle.resolve(piece.class_path).from_piece(piece)  # type: ignore[attr-defined]


# -- arms without a context -------------------------------------------------------------------------------------------
class Counting(Bandit):
    """A bandit that knows, of each arm, how often it was played and the sum of its rewards."""

    arms: int

    def __init__(self, arms: int, **options: Any):
        super().__init__(arms, **options)
        self.state = {"plays": torch.zeros(arms).double(), "rewards": torch.zeros(arms).double()}

    def _learn(self, arm: Tensor, reward: Tensor, x: Any) -> None:
        self.state["plays"].index_add_(0, arm, torch.ones_like(reward))
        self.state["rewards"].index_add_(0, arm, reward)

    @property
    def means(self) -> Tensor:
        """The mean reward of each arm [A]; 0 of one that was never played."""
        return self.state["rewards"] / self.state["plays"].clamp(min=1)


class EpsilonGreedy(Counting):
    r"""With chance ε any arm, else the one of the highest mean reward (Sutton and Barto, 1998, section 2.2).

    >>> bandit = EpsilonGreedy(3, epsilon=0.3).update([0, 1, 1], [0.0, 1.0, 0.0])
    >>> bandit.probabilities()
    tensor([[0.1000, 0.8000, 0.1000]], dtype=torch.float64)
    """

    def __init__(self, arms: int, *, epsilon: float = 0.1):
        super().__init__(arms, epsilon=epsilon)
        if not 0 <= epsilon <= 1:
            raise ConfigError(f"EpsilonGreedy needs an epsilon between 0 and 1; got {epsilon}.")
        self.epsilon = epsilon

    def _scores(self, x: Any, generator: torch.Generator | None) -> Tensor:
        return self.means.unsqueeze(0)

    def probabilities(
        self, x: Tensor | None = None, *, where: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """ε spread over the arms that are allowed, the rest on the best of them."""
        scores = self.scores().expand(1 if where is None else where.shape[0], -1)
        allowed = torch.ones_like(scores) if where is None else where.double()
        return (1 - self.epsilon) * self._best(scores, where) + self.epsilon * allowed / allowed.sum(-1, keepdim=True)


class UCB1(Counting):
    r"""The arm of the highest upper confidence bound (Auer et al., Machine Learning 2002).

    .. math:: \bar r_a + c \sqrt{\ln n / n_a}

    c is `confidence`, the paper's :math:`\sqrt 2` by default, for rewards in [0, 1]; arms never played come first.

    https://doi.org/10.1023/A:1013689704352

    >>> UCB1(3).update([0, 1], [1.0, 0.0]).choose().arm
    tensor([2])
    """

    def __init__(self, arms: int, *, confidence: float = math.sqrt(2)):
        super().__init__(arms, confidence=confidence)
        self.confidence = confidence

    def _scores(self, x: Any, generator: torch.Generator | None) -> Tensor:
        plays = self.state["plays"]
        width = (plays.sum().clamp(min=1).log() / plays.clamp(min=1)).sqrt()
        return (self.means + self.confidence * width).masked_fill(plays == 0, torch.inf).unsqueeze(0)


class Thompson(Counting):
    r"""Arms by draws of what their rate may be (Thompson 1933; Chapelle and Li, NIPS 2011).

    .. math:: \theta_a \sim \mathrm{Beta}\Big(\alpha + \sum r, \; \beta + \sum (1 - r)\Big)

    for rewards in [0, 1]; `prior` is (α, β).

    https://papers.nips.cc/paper/4321-an-empirical-evaluation-of-thompson-sampling

    >>> bandit = Thompson(2).update([0] * 50 + [1] * 50, [1.0] * 40 + [0.0] * 60)
    >>> bool(bandit.probabilities(generator=torch.Generator().manual_seed(0))[0, 0] > 0.9)
    True
    """

    random = True

    def __init__(self, arms: int, *, prior: tuple[float, float] = (1.0, 1.0)):
        super().__init__(arms, prior=tuple(prior))
        if len(prior) != 2 or min(prior) <= 0:
            raise ConfigError(f"Thompson needs a prior of two positive numbers; got {prior}.")
        self.prior = prior

    def probabilities(
        self, x: Tensor | None = None, *, where: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The share of 200 draws in which each arm is the best."""
        drawn = self._draws(DRAWS, generator)
        if where is None:
            return self._best(drawn, None).mean(0, keepdim=True)
        return self._best(drawn, where.unsqueeze(1)).mean(1)

    def _scores(self, x: Any, generator: torch.Generator | None) -> Tensor:
        return self._draws(1, generator)

    def _draws(self, n: int, generator: torch.Generator | None) -> Tensor:
        wins, plays = self.state["rewards"], self.state["plays"]
        if (wins < 0).any() or (wins > plays).any():
            raise DataError(
                "Thompson counts rewards from 0 to 1, and sums of an arm's rewards lie outside; scale them."
            )
        a, b = self.prior[0] + wins, self.prior[1] + plays - wins
        gammas = (torch._standard_gamma(s.expand(n, -1).contiguous(), generator=generator) for s in (a, b))  # pyright: ignore[reportPrivateImportUsage]
        one, other = gammas
        return one / (one + other)


# -- arms with a context ----------------------------------------------------------------------------------------------
class Contextual(Bandit):
    """A bandit that reads contexts of `dim` numbers, with a model for each arm or one for all."""

    def __init__(self, dim: int, *, arms: int | None, ridge: float, **options: Any):
        super().__init__(arms, dim=dim, ridge=ridge, **options)
        if dim < 1 or ridge <= 0:
            raise ConfigError(
                f"{type(self).__name__} needs a dim of at least 1 and a positive ridge; got {dim}, {ridge}."
            )
        self.dim = dim

    def _context(self, x: Tensor | None) -> Tensor | None:
        if x is None or x.shape[-1] != self.dim:
            got = "none" if x is None else list(x.shape)
            raise DataError(f"{type(self).__name__} reads contexts of {self.dim} numbers; got {got}.")
        return x.double()

    def _per_arm(self, x: Tensor) -> Tensor:
        """[R, A, D]."""
        return x if self.arms is None else x.unsqueeze(1).expand(-1, self.arms, -1)


class Linear(Contextual):
    r"""Rewards that are linear in a context: for each arm, or for all together, :math:`A = \lambda I + \sum x x^\top`, its
    inverse, and :math:`b = \sum r x`.

    The inverse follows by Sherman and Morrison's formula, one row of each arm at a time; where an arm has as many new rows
    as the context has dimensions, A is inverted anew instead. `refresh` does so for all, against drift.
    """

    def __init__(self, dim: int, *, arms: int | None, ridge: float, **options: Any):
        super().__init__(dim, arms=arms, ridge=ridge, **options)
        eye = torch.eye(dim, dtype=torch.float64).repeat(arms or 1, 1, 1)
        self.state = {"A": ridge * eye, "inverse": eye / ridge, "b": torch.zeros(arms or 1, dim).double()}

    @property
    def theta(self) -> Tensor:
        """The ridge regression's coefficients [A, D]."""
        return (self.state["inverse"] @ self.state["b"].unsqueeze(-1)).squeeze(-1)

    def _learn(self, arm: Tensor, reward: Tensor, x: Tensor) -> None:
        arm = arm if self.arms is not None else torch.zeros_like(arm)
        _add_outer(self.state["A"], arm, x, x)
        self.state["b"].index_add_(0, arm, reward.unsqueeze(-1) * x)
        inverse, counts = self.state["inverse"].clone(), torch.bincount(arm, minlength=len(self.state["b"]))
        many = counts >= self.dim
        if many.any():
            inverse[many] = torch.linalg.inv(self.state["A"][many])
        few = ~many[arm]
        arm, x = arm[few], x[few]
        order = arm.argsort(stable=True)
        start = counts.masked_fill(many, 0).cumsum(0) - counts.masked_fill(many, 0)
        turn = torch.empty_like(arm).scatter_(0, order, torch.arange(len(arm)) - start[arm[order]])
        for t in range(int(turn.max()) + 1 if len(arm) else 0):  # the t-th new row of every arm at once
            now = turn == t
            inverse[arm[now]] = sherman_morrison(inverse[arm[now]], x[now])
        self.state["inverse"] = inverse

    def refresh(self) -> Self:
        """Invert every A anew."""
        self.state["inverse"] = torch.linalg.inv(self.state["A"])
        return self


def sherman_morrison(inverse: Tensor, x: Tensor) -> Tensor:
    r"""The inverse of :math:`A + x x^\top` from that of A [..., D, D] and x [..., D], in O(D²).

    .. math:: A^{-1} - \frac{A^{-1} x x^\top A^{-1}}{1 + x^\top A^{-1} x}
    """
    u = (inverse @ x.unsqueeze(-1)).squeeze(-1)
    scale = 1 + (x * u).sum(-1)
    return inverse - u.unsqueeze(-1) * u.unsqueeze(-2) / scale[..., None, None]


def _add_outer(sums: Tensor, arm: Tensor, x: Tensor, z: Tensor) -> None:
    """Add each row's x zᵀ to the sum of its arm, some rows at a time."""
    for rows in torch.arange(len(arm)).split(4096):
        sums.index_add_(0, arm[rows], x[rows].unsqueeze(-1) * z[rows].unsqueeze(-2))


class LinUCB(Linear):
    r"""Upper confidence bounds of a linear reward (Li et al., WWW 2010, algorithm 1: disjoint models).

    .. math:: \hat\theta_a^\top x + \alpha \sqrt{x^\top A_a^{-1} x}, \qquad \hat\theta_a = A_a^{-1} b_a

    A model of each of `arms`, or with ``arms=None`` one model of all, whose contexts describe user and arm together: so
    new arms need no history.

    https://arxiv.org/abs/1003.0146

    >>> bandit = LinUCB(2, arms=2).update([0, 1], [1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]])
    >>> bandit.choose(torch.tensor([[3.0, 0.0], [0.0, 3.0]])).arm
    tensor([0, 1])
    """

    def __init__(self, dim: int, *, arms: int | None = None, alpha: float = 1.0, ridge: float = 1.0):
        super().__init__(dim, arms=arms, alpha=alpha, ridge=ridge)
        self.alpha = alpha

    def _scores(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        x = self._per_arm(x)
        width = ((x.transpose(0, 1) @ self.state["inverse"]).transpose(0, 1) * x).sum(-1)
        return (x * self.theta).sum(-1) + self.alpha * width.clamp(min=0).sqrt()


class LinTS(Linear):
    r"""Draws of the coefficients of a linear reward (Agrawal and Goyal, ICML 2013).

    .. math:: \tilde\theta_a \sim N(\hat\theta_a, \; v^2 A_a^{-1})

    v is `scale`; one draw per request. The draw comes from the Cholesky factor of A, and not from a decomposition of its
    inverse whose signs differ between machines.

    https://arxiv.org/abs/1209.3352

    >>> bandit = LinTS(2, arms=2, scale=0.1).update([0, 1], [9.0, 9.0], [[9.0, 0.0], [0.0, 9.0]])
    >>> bandit.choose(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), generator=torch.Generator().manual_seed(0)).arm
    tensor([0, 1])
    """

    random = True

    def __init__(self, dim: int, *, arms: int | None = None, scale: float = 0.5, ridge: float = 1.0):
        super().__init__(dim, arms=arms, scale=scale, ridge=ridge)
        self.scale = scale

    def _scores(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        factor = torch.linalg.cholesky(self.state["A"])
        noise = torch.randn(x.shape[0], *self.state["b"].shape, dtype=torch.float64, generator=generator)
        shift = torch.linalg.solve_triangular(factor.mT, noise.movedim(0, -1), upper=True).movedim(-1, 0)
        return (self._per_arm(x) * (self.theta + self.scale * shift)).sum(-1)


class LogisticTS(Contextual):
    r"""Draws of the coefficients of a logistic reward (Chapelle and Li, NIPS 2011, algorithm 3).

    .. math:: \tilde\theta_a \sim N\Big(m_a, \; \mathrm{diag}(v^2 / q_a)\Big), \qquad
        m \leftarrow \arg\min_\theta \tfrac12 \sum_i q_i (\theta_i - m_i)^2 - \sum \log p(r \mid x, \theta), \qquad
        q_i \leftarrow q_i + \sum x_i^2\, p (1 - p)

    for rewards from 0 to 1, such as clicks: p is the logistic function of :math:`\theta^\top x`. v is `scale`, 1 in the paper (which
    tries ½ and ¼ too). What was learned before is the prior of a batch, so how rows are cut into batches changes the answer a
    little; scores are log-odds.

    https://papers.nips.cc/paper/4321-an-empirical-evaluation-of-thompson-sampling

    >>> bandit = LogisticTS(1, arms=2, scale=0.1).update([0] * 50 + [1] * 50, [1.0] * 50 + [0.0] * 50, [[1.0]] * 100)
    >>> bandit.choose(torch.ones(1, 1), generator=torch.Generator().manual_seed(0)).arm
    tensor([0])
    """

    random = True

    def __init__(self, dim: int, *, arms: int | None = None, scale: float = 1.0, ridge: float = 1.0):
        super().__init__(dim, arms=arms, scale=scale, ridge=ridge)
        self.scale = scale
        zeros = torch.zeros(arms or 1, dim, dtype=torch.float64)
        self.state = {"mean": zeros, "precision": zeros + ridge}

    def _learn(self, arm: Tensor, reward: Tensor, x: Tensor) -> None:
        if len(reward) and not 0 <= float(reward.min()) <= float(reward.max()) <= 1:
            raise DataError("LogisticTS learns rewards from 0 to 1, and some lie outside; scale them.")
        arm = arm if self.arms is not None else torch.zeros_like(arm)
        mean, precision = (self.state[name].clone() for name in ("mean", "precision"))
        for a in arm.unique().tolist():
            of, r = x[arm == a], reward[arm == a]
            mean[a] = _most_likely(of, r, mean[a], precision[a])
            p = (of @ mean[a]).sigmoid()
            precision[a] += (of.square() * (p * (1 - p)).unsqueeze(-1)).sum(0)
        self.state = {"mean": mean, "precision": precision}

    def _scores(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        mean, precision = self.state["mean"], self.state["precision"]
        noise = torch.randn(x.shape[0], *mean.shape, dtype=torch.float64, generator=generator)
        return (self._per_arm(x) * (mean + self.scale * noise / precision.sqrt())).sum(-1)


def _most_likely(x: Tensor, r: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """θ [D] of the least penalised log loss of x [n, D] and r [n], by Newton's steps, halved where they go too far."""

    def loss(theta: Tensor) -> Tensor:
        z = x @ theta
        return (precision * (theta - mean).square()).sum() / 2 + (torch.nn.functional.softplus(z) - r * z).sum()

    theta = mean
    for _ in range(50):
        p = (x @ theta).sigmoid()
        gradient = precision * (theta - mean) + x.mT @ (p - r)
        step = torch.linalg.solve(precision.diag() + (x.mT * (p * (1 - p))) @ x, gradient)
        if gradient @ step < 1e-20:
            break
        while loss(theta - step) > loss(theta) and step.abs().max() > 1e-12:
            step = step / 2
        theta = theta - step
    return theta


class HybridLinUCB(Bandit):
    r"""LinUCB whose arms also share coefficients (Li et al., WWW 2010, algorithm 2).

    .. math:: z^\top \hat\beta + x^\top \hat\theta_a + \alpha \sqrt{s}, \qquad
              s = (z - B_a^\top A_a^{-1} x)^\top A_0^{-1} (z - B_a^\top A_a^{-1} x) + x^\top A_a^{-1} x

    A context [x; z] holds `dim` numbers for each arm's own model and `shared` for the common one: [R, dim + shared],
    or [R, A, dim + shared] where z differs between the arms. What the paper updates row by row are sums, so that rows
    may come in any number and order:
    :math:`A_0 = \lambda I + \sum z z^\top - \sum_a B_a^\top A_a^{-1} B_a` with :math:`B_a = \sum x z^\top`. It costs
    O(A dim³) to score after an update.

    https://arxiv.org/abs/1003.0146

    >>> bandit = HybridLinUCB(1, 1, arms=2).update([0, 1], [1.0, 0.0], [[1.0, 1.0], [1.0, 0.0]])
    >>> bandit.scores(torch.tensor([[1.0, 1.0]])).shape
    torch.Size([1, 2])
    """

    arms: int

    def __init__(self, dim: int, shared: int, *, arms: int, alpha: float = 1.0, ridge: float = 1.0):
        super().__init__(arms, dim=dim, shared=shared, alpha=alpha, ridge=ridge)
        if min(dim, shared) < 1 or ridge <= 0:
            raise ConfigError(
                f"HybridLinUCB needs widths of at least 1 and a positive ridge; got {dim}, {shared}, {ridge}."
            )
        self.dim, self.shared, self.alpha, self.ridge = dim, shared, alpha, ridge
        zeros = {
            "A": (arms, dim, dim),
            "B": (arms, dim, shared),
            "b": (arms, dim),
            "zz": (shared, shared),
            "rz": (shared,),
        }
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in zeros.items()}

    def _context(self, x: Tensor | None) -> Tensor | None:
        if x is None or x.shape[-1] != self.dim + self.shared:
            got = "none" if x is None else list(x.shape)
            raise DataError(f"HybridLinUCB reads contexts of {self.dim} + {self.shared} numbers; got {got}.")
        return x.double()

    def _learn(self, arm: Tensor, reward: Tensor, x: Tensor) -> None:
        x, z = x.split([self.dim, self.shared], -1)
        state, r = self.state, reward.unsqueeze(-1)
        _add_outer(state["A"], arm, x, x)
        _add_outer(state["B"], arm, x, z)
        state["b"].index_add_(0, arm, r * x)
        state["zz"] += z.mT @ z
        state["rz"] += (r * z).sum(0)

    def _scores(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        state = self.state
        x = x if x.dim() == 3 else x.unsqueeze(1).expand(-1, self.arms, -1)
        x, z = x.split([self.dim, self.shared], -1)  # [R, A, ...]
        inverse = torch.linalg.inv(state["A"] + self.ridge * torch.eye(self.dim, dtype=torch.float64))
        known = inverse @ state["B"]  # A⁻¹ B
        common = self.ridge * torch.eye(self.shared, dtype=torch.float64) + state["zz"] - (state["B"].mT @ known).sum(0)
        beta = torch.linalg.solve(common, state["rz"] - (known.mT @ state["b"].unsqueeze(-1)).sum(0).squeeze(-1))
        theta = (inverse @ (state["b"] - state["B"] @ beta).unsqueeze(-1)).squeeze(-1)
        rest = z - torch.einsum("rad,ads->ras", x, known)
        width = torch.einsum("ras,st,rat->ra", rest, torch.linalg.inv(common), rest)
        width = width + torch.einsum("rad,ade,rae->ra", x, inverse, x)
        return z @ beta + (x * theta).sum(-1) + self.alpha * width.clamp(min=0).sqrt()
