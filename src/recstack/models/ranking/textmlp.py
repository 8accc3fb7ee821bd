"""Bag of Tricks for Efficient Text Classification (Joulin et al., EACL 2017).

https://arxiv.org/abs/1607.01759
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.sequence import Pooling
from recstack.schema import Schema


class TextMLP(Model):
    r"""One MLP over everything that is known of a row, its texts as the mean of their hashed words: a plain production model.

    .. math:: t = \frac1{|w|} \sum_{n} E[h(w_n)], \qquad z = \mathrm{MLP}([t; e_1; \dots; e_F; x])

    Inputs ``[R, L, W]`` of any widths; numbers x as the schema transforms them. Words are those of ``rs.Text`` features,
    hashed into ``buckets`` rows and averaged; an empty text is zeros. Without a text, and with ``hidden=(400, 400, 400)``,
    this is the DNN of the published benchmarks.

    Departs from the paper: words alone, no n-grams, and a deep network where the paper has one linear layer.

    Args:
        schema: a fitted schema.
        dim: embedding width of ids and words.
        hidden: widths of the MLP.
        norm: "batch", "layer" or None.
        dropout: in the MLP.
        history: how each history becomes one vector, as `features.Inputs` takes it.

    Joulin et al., EACL 2017, https://arxiv.org/abs/1607.01759

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.TextMLP(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (512, 128, 64, 16),
        norm: str | None = "batch",
        dropout: float = 0.0,
        history: str | Callable[..., Pooling] = "mean",
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, history=history)
        self.mlp = MLP(self.inputs.width(), hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(self.mlp(self.inputs(batch).sides(), batch.get("@mask")))
