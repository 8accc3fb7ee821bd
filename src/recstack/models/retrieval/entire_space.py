"""Matching over the entire space: the chain of the Entire Space Multi-Task Model (Ma et al., SIGIR 2018), as a retriever.

https://arxiv.org/abs/1804.07931
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError
from recstack.features import Inputs
from recstack.models.base import Batch, Retriever
from recstack.models.in_batch import InBatchSoftmax, shown
from recstack.nn.sequence import Pooling
from recstack.nn.tower import Tower
from recstack.schema import Schema

USER = ("user", "context", "domain", "history")


class EntireSpaceTower(Retriever):
    r"""To be clicked an item has to be exposed first: both are learned where they are seen, and their product everywhere.

    .. math::
        p(\text{click} \mid u, i) = p(\text{exposed} \mid u, i)\; p(\text{click} \mid \text{exposed}, u, i)
        \propto e^{s_e + s_c}, \quad s_e = \frac{\cos(u_e, v_e)}{\tau_e}, \quad s_c = \frac{\cos(u_c, v_c) - 1}{\tau_c} - b,
        \qquad s_e + s_c = \langle [u_e; u_c], [v_e; v_c] \rangle + \text{const}

    Clicks are seen on exposed items only, and retrieval asks for all items. Two pairs of towers share their tables:
    exposures ``[R, L]`` against those of other rows (softmax with logQ correction), clicks among the exposed (binary, with
    :math:`e^{s_c} \le 1` as the probability, so that a product never exceeds what it is made of), and the product against
    the items clicked in other rows. Both are log-bilinear, so that one inner product serves. For logs of impressions.

    Departs from ESMM: exposure and click in place of click and conversion, and towers in place of networks of the pair.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the four towers; the last is D / 2.
        temperature: where τ_e and τ_c start.
        exposure: weight of the exposures' loss; 0 leaves them out.
        product: weight of the product's loss; 0 leaves it out.
        history: pooling of histories, by name or class; not one that looks at the target.
        dropout: in the towers.

    Ma et al., SIGIR 2018, https://arxiv.org/abs/1804.07931

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.retrieval.EntireSpaceTower(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.catalog_vectors().shape[1]
    32
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")
    trainer: ClassVar[dict[str, Any]] = {"negatives": 0}  # what is in the log was exposed

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (256, 128, 64),
        temperature: float = 0.1,
        exposure: float = 1.0,
        product: float = 1.0,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if temperature <= 0 or min(exposure, product) < 0 or exposure + product == 0:
            raise ConfigError(
                "temperature is above 0, and of exposure and product one is above 0 and none below; "
                f"got {temperature:g}, {exposure:g} and {product:g}."
            )
        self.exposure, self.product = exposure, product
        own = schema.without(*[f.name for f in schema.fields if f.role == "pair"])  # a pair is known to neither tower
        self.inputs = Inputs(own, dim, history=history, std=0.02)
        widths = (self.inputs.width(*USER), self.inputs.width("item"))
        self.users, self.items = (
            nn.ModuleList(Tower(width, hidden, dropout=dropout) for _ in ("exposed", "clicked")) for width in widths
        )
        self.log_temperature = nn.Parameter(torch.full((2,), temperature).log())
        self.bias = nn.Parameter(torch.zeros(()))
        size = schema.feature(schema.item).size  # type: ignore[arg-type, attr-defined]
        self.exposed, self.clicked = InBatchSoftmax(size), InBatchSoftmax(size)

    def user_vectors(self, batch: Batch) -> Tensor:
        x = self.inputs(batch, *USER).flat()
        parts = [tower(x) for tower in self.users]  # [R, 1, D / 2]
        return torch.cat([p / t for p, t in zip(parts, self.log_temperature.exp(), strict=True)], -1)

    def item_vectors(self, batch: Batch) -> Tensor:
        x = self.inputs(batch, "item").flat()
        return torch.cat([tower(x).squeeze(-2) for tower in self.items], -1)

    def click_logits(self, users: Tensor, items: Tensor) -> Tensor:
        """The log-odds of a click on what is exposed, of user vectors ``[R, 1, D]`` and candidates ``[R, L, D]``: ``[R, L]``."""
        (_, u), (_, v) = users.chunk(2, -1), items.chunk(2, -1)
        s = (u * v).sum(-1) - (-self.log_temperature[1]).exp() - F.softplus(self.bias)
        s = s.clamp(max=-1e-6)
        return s - torch.where(s > -0.69, (-torch.expm1(s)).log(), torch.log1p(-s.exp()))  # log p - log(1 - p), p = e^s

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of exposures, of clicks on them, and of their product."""
        ids, label, live, weight = shown(batch, self.schema)
        users, items = self.user_vectors(batch), self.item_vectors(batch).view(*ids.shape, -1)
        found = {"click": losses.bce(self.click_logits(users, items), label, where=live, weight=weight)}
        if self.exposure:
            (u, _), (v, _) = users.chunk(2, -1), items.chunk(2, -1)
            found["exposure"] = self.exposure * self.exposed(u, v, ids, live, weight=weight)
        if self.product:
            found["product"] = self.product * self.clicked(users, items, ids, live & (label > 0), weight=weight)
        return found
