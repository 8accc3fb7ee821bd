"""A Dual Augmented Two-tower Model for Online Large-scale Recommendation (Yu et al., DLP-KDD 2021).

https://dlp-kdd.github.io/assets/pdf/DLP-KDD_2021_paper_4.pdf
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from recstack import losses
from recstack.errors import SchemaError
from recstack.features import Inputs
from recstack.features.columns import column
from recstack.features.tables import Ask
from recstack.losses.rows import weighted_mean
from recstack.models.base import Retriever
from recstack.models.in_batch import shown
from recstack.models.scored import chosen_only
from recstack.models.two_towers import Towers, task_of
from recstack.nn.sequence import Pooling
from recstack.schema import Categorical, Schema, is_multi


class DAT(Retriever):
    r"""Two towers that know of each other: a vector by id tells each side what it met on the other.

    .. math:: p_u = f([x_u; a_u]), \quad p_v = g([x_v; a_v]), \qquad
        L = \mathrm{BCE}\Big(\frac{\langle p_u, p_v \rangle}{\tau}\Big)
        + \lambda \operatorname{mean}_{y = 1} \big( \|a_u - \bar p_v\|^2 + \|a_v - \bar p_u\|^2 \big)
        + \mu \sum_{c \neq m} \|C(S_m) - C(S_c)\|_F^2

    ``p_u, p_v: [R, D], [N, D]`` of length 1; :math:`\bar p` is a target without gradient, so that the augmented vectors a
    mimic the other side's output in all positive pairs. The last term aligns the covariance C of the items of each category
    in the batch with that of its largest category m: what is learned of large categories serves small ones.

    Vectors a begin as zeros, and those of users and items whom training has not met stay so: these are answered from their
    features and history. `fit` leaves out what was shown and not chosen, and draws negatives from the catalogue, unless the
    log has lists.

    Departs from the paper: the temperature; zeros for a.

    Args:
        schema: a fitted schema with a user and an item key.
        dim: embedding width.
        hidden: widths of both towers; the last is D, also of a.
        temperature: τ.
        mimic: λ.
        aligned: item features whose categories are aligned: single-valued Categoricals.
        alignment: μ.
        history: pooling of histories, by name or class; not one that looks at the target.
        dropout: in the towers.

    Yu et al., DLP-KDD 2021, https://dlp-kdd.github.io/assets/pdf/DLP-KDD_2021_paper_4.pdf

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> model = rs.retrieval.DAT(schema, hidden=(32, 16), aligned=("category",))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (256, 128, 64),
        temperature: float = 0.1,
        mimic: float = 0.5,
        aligned: tuple[str, ...] = (),
        alignment: float = 1.0,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if schema.user is None or schema.item is None:
            raise SchemaError("DAT needs a user key and an item key: a Categorical of each role, or user=, item=.")
        for name in aligned:
            f = schema.feature(name)
            if f.role != "item" or not isinstance(f, Categorical) or is_multi(f):
                raise SchemaError(f"aligned= names single-valued Categorical features of items; {name!r} is none.")
        self.task, self.temperature = task_of(schema, None), temperature
        self.mimic, self.aligned, self.alignment = mimic, tuple(aligned), alignment
        width = hidden[-1]
        self.towers = Towers(schema, dim, hidden, history=history, dropout=dropout, more=(width, width))
        self.user_key, self.item_key = schema.feature(schema.user), schema.feature(schema.item)
        self.of_user = Inputs(Schema([self.user_key], user=schema.user), width, uniform=True, std=0.0)
        self.of_item = Inputs(Schema([self.item_key], item=schema.item), width, uniform=True, std=0.0)

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        return (
            self.towers.user(batch, self._augmented(batch, self.of_user, self.user_key)).unsqueeze(1) / self.temperature
        )

    def item_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.towers.item(batch, self._augmented(batch, self.of_item, self.item_key))

    def _augmented(self, batch: Mapping[str, Tensor], table: Inputs, key: Any) -> Tensor:
        return table.tables.gather([Ask(key.table_name, column(batch, key.name), column=key.name)])[0]

    def training_columns(self, train: Any) -> Any:
        return chosen_only(train, self.task)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = shown(batch, self.schema, self.task)
        of_user = self._augmented(batch, self.of_user, self.user_key)
        of_item = self._augmented(batch, self.of_item, self.item_key).view(*found.ids.shape, -1)
        users = self.towers.user(batch, of_user)
        items = self.towers.item(batch, of_item).view_as(of_item)
        score = (users.unsqueeze(1) * items).sum(-1) / self.temperature
        chosen = found.live & (found.label > 0)
        out = {self.task.name: losses.bce(score, chosen.float(), where=found.live, weight=found.weight)}

        row, place = chosen.nonzero(as_tuple=True)
        each = score.new_ones(len(row)) if found.weight is None else found.weight[row, place]
        p_u, p_v = users[row], items[row, place]
        for name, a, other in (("user", of_user[row], p_v), ("item", of_item[row, place], p_u)):
            away = (a.float() - other.detach()).square().sum(-1)
            out[f"{name} mimics"] = self.mimic * weighted_mean(away, each)
        for name in self.aligned:
            category = column(batch, name).view_as(found.ids)[row, place]
            out[f"{name} aligned"] = self.alignment * losses.category_alignment(p_v, category)
        return out
