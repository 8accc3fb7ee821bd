"""Perceive Your Users in Depth: Learning Universal User Representations from Multiple E-commerce Tasks (Ni et al., KDD 2018).

https://arxiv.org/abs/1805.10727
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import unknown
from recstack.features import Inputs
from recstack.models.trunk import MultiTask
from recstack.nn.sequence.property_gated import PropertyGated
from recstack.schema import CANDIDATE_ROLES, REQUEST_ROLES, Schema


class DUPN(MultiTask):
    r"""One representation of the user for all tasks: an LSTM over behaviours, gated by what kind each was, read by attention.

    .. math:: h = \mathrm{LSTM}(e; \text{gates of } [e; p]), \qquad
        a_t \propto \exp\big(w^\top \tanh(W [h_t; p_t; u] + b)\big), \qquad
        \mathrm{logit}_k = \mathrm{MLP}_k\big(\big[\textstyle\sum_t a_t h_t; u; v\big]\big)

    e_t are the items of the history ``[R, T]``, p_t their properties: features of the History that say what the user did,
    where or in which surroundings, rather than what the item is. u are all features of the user and the request, a query
    among them, v the candidate's. With ``towers=()`` the representation itself is what a model on top reads:
    ``rs.multitask.MMoE(schema, trunk=partial(rs.multitask.DUPN, towers=()))``. The encoder is that of the retriever
    `rs.retrieval.DUPN`. Departs from the paper: tasks are those of the schema, all on candidates; no peepholes in the LSTM.

    Args:
        schema: a fitted schema with a History; each has an encoder.
        dim: embedding width.
        properties: features of the histories that gate; None: all beside the item key.
        hidden: width of the states.
        attention: width of its layer.
        towers: widths of each task's tower.
        norm: "batch", "layer" or None, in the towers.
        dropout: in the towers.
        detach: tasks whose loss does not reach below their tower.

    Raises:
        ConfigError: a property that no History reads.

    Ni et al., KDD 2018, https://arxiv.org/abs/1805.10727

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel"))
    >>> model = rs.multitask.DUPN(rs.Encoder(train.schema).fit(train).schema, hidden=16, towers=(16,))
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['cart', 'carted', 'click', 'order', 'ordered']
    """

    needs = ("history", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        properties: Sequence[str] | None = None,
        hidden: int = 128,
        attention: int = 64,
        towers: Sequence[int] = (128,),
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
    ):
        super().__init__(schema)
        read = [name for h in schema.histories for name in h.of]
        for name in properties or ():
            if name not in read:
                raise unknown("property of a history", name, read)
        self.trunk.inputs = inputs = Inputs(schema, dim, history=None)
        self.side = inputs.width(*REQUEST_ROLES)
        self.gating: list[list[bool]] = []
        self.widths: list[list[int]] = []
        self.encoders = nn.ModuleList()
        for h in schema.histories:
            gating = [n in properties if properties is not None else n != schema.item for n in h.of]
            widths = [inputs.tables.dims[schema.feature(n).table_name] for n in h.of]  # type: ignore[attr-defined]
            of_property = sum(w for w, gates in zip(widths, gating, strict=True) if gates)
            self.encoders.append(PropertyGated(sum(widths) - of_property, of_property, hidden, self.side, attention))
            self.gating.append(gating)
            self.widths.append(widths)
        width = hidden * len(self.encoders) + inputs.width()
        self.towers_on(width, towers, each=False, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = self.trunk.inputs(batch)  # type: ignore[misc]
        candidate = slots.flat(*CANDIDATE_ROLES)
        user = slots.flat(*REQUEST_ROLES) if self.side else candidate.new_zeros(candidate.shape[0], 0)
        known = []
        for h, encoder, gating, widths in zip(
            self.schema.histories, self.encoders, self.gating, self.widths, strict=True
        ):
            steps, live = slots.sequence(h.name)
            fields = list(zip(steps.split(widths, -1), gating, strict=True))
            e, p = (torch.cat([steps[..., :0], *(x for x, g in fields if g == gates)], -1) for gates in (False, True))
            known.append(encoder(e, p, user, live))
        return self.answer((torch.cat([*known, user], -1), candidate), batch)
