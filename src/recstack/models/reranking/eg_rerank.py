"""AliExpress Learning-To-Rank: Maximizing Online Model Performance without Going Online (Huzhang et al., TKDE 2021).

https://arxiv.org/abs/2003.11941
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs, tasks
from recstack.features.tasks import Logits
from recstack.losses.rows import weighted_mean
from recstack.models.generated import Generated
from recstack.nn.lists.evaluator import ListEvaluator
from recstack.nn.lists.orders import place_weights, placed
from recstack.nn.lists.pointer import LOW, Pointer
from recstack.nn.mlp import linear
from recstack.nn.sequence import Pooling
from recstack.schema import Schema


class EGRerank(Generated):
    r"""A policy that fills the page place by place learns, by PPO, what a learned evaluator of whole lists rewards.

    .. math:: r_t = \frac{p_t(\pi)}{\log_2(t + 1)}, \quad G_t = \sum_{s \ge t} \gamma^{s-t} r_s, \quad
        A_t = \frac{G_t - \mathrm{mean}\,G_t}{\mathrm{std}\,G_t}, \qquad
        L = -\min\big(\rho_t A_t, \mathrm{clip}(\rho_t, 1 \pm \epsilon) A_t\big) - c\, H_t, \quad
        \rho_t = \frac{\pi(a_t)}{\pi_{\mathrm{old}}(a_t)}

    The evaluator reads lists ``[R, L]`` in the order in which they were shown and gives each place its probability p. The
    policy has chosen some of the page (an LSTM) and scores all that is left. For each request `samples` pages are drawn from
    an older policy; mean and std are over those of one request, so that no critic is needed. Serving takes the best at each
    place. The first task's logits are the evaluator's of that page, handed out in its order: sorting by them gives the page.

    Departs from the paper: both learn at once, the policy from the evaluator's vectors without moving them; rewards fall
    with the place; one step is taken on each sample, and the old policy is a running average of the new; no discriminator
    (EGRerank+).

    Args:
        schema: a fitted schema; its first task must be binary, with one output.
        dim: embedding width of ids.
        width: of the vectors that both read.
        hidden: widths of the MLPs: of the evaluator, of the policy's reading of an item and of its score in a state.
        state: of the policy's LSTM.
        places: how many the policy chooses one after another; the rest follow by their scores for the first place.
        samples: pages drawn for each request.
        gamma: what the reward of the next place counts; near 0 each place takes what is best there.
        clip: ε.
        entropy: c.
        explore: share of the samples that are drawn uniformly.
        renewal: share of the new policy in the old one, at each step.
        max_list: places that the evaluator tells apart; later ones share the last.
        history: how each history becomes one vector: "mean", "sum", "max", "last", "attention" or a `Pooling` class.
        dropout: in the evaluator.

    Raises:
        ConfigError: where the first task is of another kind, `places` or `samples` too small, or `hidden` empty.

    Huzhang et al., TKDE 2021, https://arxiv.org/abs/2003.11941

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.EGRerank(rs.Encoder(train.schema).fit(train).schema, width=16, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        width: int = 64,
        hidden: Sequence[int] = (200, 80),
        state: int = 32,
        places: int = 10,
        samples: int = 5,
        gamma: float = 1.0,
        clip: float = 0.1,
        entropy: float = 0.001,
        explore: float = 0.2,
        renewal: float = 0.2,
        max_list: int = 100,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if places < 1 or samples < 2 or not hidden:
            raise ConfigError(
                "places must be at least 1, samples at least 2, and hidden one width at least; "
                f"got {places}, {samples} and {tuple(hidden)}."
            )
        self.samples, self.gamma, self.clip = samples, gamma, clip
        self.entropy, self.explore, self.renewal = entropy, explore, renewal
        self.inputs = Inputs(schema, dim, history=history)
        self.project = linear(self.inputs.width(), width)
        self.evaluator = ListEvaluator("bigru", width, hidden, max_list=max_list, dropout=dropout)
        self.heads = Heads(schema, self.evaluator.width)
        self.policy = Pointer(width, hidden, state, places)
        self.old = copy.deepcopy(self.policy).requires_grad_(False)

    def forward(self, batch: Mapping[str, Tensor]) -> Logits:
        x, mask = self.vectors(batch)
        with torch.autocast(x.device.type, enabled=False):
            order = self.policy(x, mask, lambda logit, place: logit.argmax(-1)).order
            return self.answer(self.evaluate(placed(x, order), placed(mask, order)), order, mask)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The evaluator's tasks on the lists as they were shown, and the policy's."""
        x, mask = self.vectors(batch)
        with torch.autocast(x.device.type, enabled=False):
            out = tasks.losses(self.evaluate(x, mask), batch, self.schema)
            return {**out, "policy": self._practise(x.detach(), mask)}

    def evaluate(self, x: Tensor, mask: Tensor, *more: Any) -> Logits:
        return self.heads(self.evaluator(x, mask))

    def _practise(self, x: Tensor, mask: Tensor) -> Tensor:
        """PPO's loss of `samples` pages a request."""
        x, mask = (t.repeat_interleave(self.samples, 0) for t in (x, mask))
        with torch.no_grad():
            uniform = torch.rand(x.shape[0], 1, device=x.device) < self.explore

            def drawn(logit: Tensor, place: int) -> Tensor:
                noise = -(-torch.rand_like(logit).clamp(min=1e-20).log()).clamp(min=1e-20).log()  # Gumbel's
                return (torch.where(uniform & (logit > LOW), 0.0, logit) + noise).argmax(-1)

            old = self.old(x, mask, drawn)
            shown = placed(mask, old.order)
            chance = self.chance(self.evaluate(placed(x, old.order), shown))
            gain = returns(chance * place_weights(chance) * shown, self.gamma)[:, : old.chosen.shape[1]]
            n = gain.shape[1]  # places that are there
            advantage = standardised(gain.unflatten(0, (-1, self.samples))).flatten(0, 1)
        new = self.policy(x, mask, lambda logit, place: old.chosen[:, place])
        where = old.left[:, :n] > 1  # there was a choice
        before = torch.where(uniform, -old.left.clamp(min=1).float().log(), old.log_chance)[:, :n]
        loss = clipped(new.log_chance[:, :n], before, advantage, self.clip, where)
        if self.training:
            with torch.no_grad():
                for was, now in zip(self.old.parameters(), self.policy.parameters(), strict=True):
                    was.lerp_(now, self.renewal)
        return loss - self.entropy * weighted_mean(new.entropy[:, :n], where.float())


def returns(reward: Tensor, gamma: float) -> Tensor:
    r"""What comes from each place on, :math:`G_t = \sum_{s \ge t} \gamma^{s-t} r_s`: ``[..., L] → [..., L]``."""
    place = torch.arange(reward.shape[-1], device=reward.device)
    ahead = place.unsqueeze(1) - place  # [s, t]
    return reward @ (gamma ** ahead.clamp(min=0).to(reward.dtype) * (ahead >= 0))


def standardised(gain: Tensor) -> Tensor:
    """Less their mean, by their standard deviation, over the samples of one request: ``[R, S, P]``."""
    return (gain - gain.mean(1, keepdim=True)) / (gain.std(1, correction=0, keepdim=True) + 1e-6)


def clipped(log_chance: Tensor, old: Tensor, advantage: Tensor, clip: float, where: Tensor) -> Tensor:
    r"""PPO's loss, :math:`-\min(\rho A, \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A)`, the mean over `where`.

    (Schulman et al., 2017, https://arxiv.org/abs/1707.06347.)
    """
    ratio = (log_chance - old).clamp(max=20.0).exp()
    value = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -weighted_mean(torch.where(where, value, 0), where.float())
