"""AdaF2M2: Comprehensive Learning and Responsive Leveraging Features in Recommendation System (Zhu et al., arXiv 2025).

https://arxiv.org/abs/2501.15816
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs, tasks
from recstack.models.base import Model
from recstack.nn.interaction.cross import Cross
from recstack.nn.mlp import MLP, linear
from recstack.schema import Schema


class AdaF2M2(Model):
    r"""Features are weighed by the state of user and item; masked copies of each row teach the model not to lean on a few.

    .. math:: z = f(a \odot E), \qquad a = \sigma\big(\mathrm{MLP}(\mathrm{sg}[e_{state}; \lVert e_1 \rVert; \dots; \lVert e_F \rVert])\big),
        \qquad \mathcal L = \ell(z, y) + \frac{\alpha}{k} \sum_{c=1}^{k} \ell\big(f(E^{(c)}), y\big)

    f is a cross network (DCN V2) beside an MLP, over fields ``[R, L, F, dim]``; a is one weight for each field of each
    row; sg stops gradients. In a copy :math:`E^{(c)}` each field is replaced by a learned vector with a probability
    drawn anew for each row and copy from U(`share`). Copies exist in training only: `forward` and what is exported know
    nothing of them.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        cross_layers: of the cross network.
        hidden: widths of the MLP.
        state: features whose vectors say the state, such as how active a user is; None is the user and the item key.
        adapter: hidden widths of the network that makes the weights.
        copies: k; 0 is the adapter alone.
        share: lowest and highest probability that a field is masked.
        alpha: weight of the loss of the copies.
        dropout: in the MLP.

    Zhu et al., 2025, https://arxiv.org/abs/2501.15816

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.AdaF2M2(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        cross_layers: int = 3,
        hidden: Sequence[int] = (400, 400, 400),
        state: Sequence[str] | None = None,
        adapter: Sequence[int] = (64,),
        copies: int = 2,
        share: Sequence[float] = (0.1, 0.5),
        alpha: float = 0.2,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if copies < 0 or len(share) != 2 or not 0 <= share[0] <= share[1] <= 1:
            raise ConfigError(
                f"copies counts from 0 and share is (lowest, highest) within 0 and 1; got {copies} and {tuple(share)}."
            )
        self.copies, self.share, self.alpha = copies, tuple(share), alpha
        self.inputs = Inputs(schema, dim, stacked=True)
        fields, names = self.inputs.fields, list(self.inputs.widths)
        state = [n for n in (schema.user, schema.item) if n is not None] if state is None else state
        places = [names.index(schema.feature(name).name) for name in state]
        self.register_buffer("places", torch.tensor(places, dtype=torch.long), persistent=False)
        self.adapter = MLP(len(places) * dim + fields, adapter)
        self.weigh = linear(self.adapter.width, fields)
        self.blank = nn.Parameter(0.01 * torch.randn(fields, dim)) if copies and alpha else None
        self.cross = Cross(fields * dim, cross_layers)
        self.mlp = MLP(fields * dim, hidden, dropout=dropout)
        self.heads = Heads(schema, fields * dim + self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._logits(self.weighed(self.inputs(batch).stack()))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()
        out = tasks.losses(self._logits(self.weighed(fields)), batch, self.schema)
        if self.training and self.blank is not None:
            rows = {key: copied(value, self.copies) for key, value in batch.items() if _of_labels(key)}
            own = tasks.losses(self._logits(self.masked(copied(fields, self.copies))), rows, self.schema)
            out |= {f"{name}@masked": self.alpha * value for name, value in own.items()}
        return out

    def weights(self, fields: Tensor) -> Tensor:
        """How much of each field a row uses, between 0 and 1: ``[R, L, F, D] → [R, L, F]``."""
        known = fields.detach()
        state = known.index_select(-2, self.places).flatten(-2)  # type: ignore[arg-type]
        return self.weigh(self.adapter(torch.cat([state, known.float().norm(dim=-1).to(known.dtype)], -1))).sigmoid()

    def weighed(self, fields: Tensor) -> Tensor:
        """Fields ``[R, L, F, D]`` times their weights."""
        return fields * self.weights(fields).unsqueeze(-1)

    def masked(self, fields: Tensor) -> Tensor:
        """Fields ``[R, L, F, D]``, some of them replaced, in each row others."""
        low, high = self.share
        share = low + (high - low) * torch.rand(*fields.shape[:-2], 1, device=fields.device)
        hidden = torch.rand(fields.shape[:-1], device=fields.device) < share
        assert self.blank is not None
        return torch.where(hidden.unsqueeze(-1), self.blank.to(fields.dtype), fields)

    def _logits(self, fields: Tensor) -> dict[str, Tensor]:
        x = fields.flatten(-2)
        return self.heads(torch.cat([self.cross(x), self.mlp(x)], -1))


def copied(x: Tensor, k: int) -> Tensor:
    """Each request k times, its copies behind each other, so that fields, labels and weights stay aligned: ``[k R, ...]``."""
    return x.repeat_interleave(k, 0)


def _of_labels(key: str) -> bool:
    return key in ("@mask", "@weight") or key.endswith("@label")
