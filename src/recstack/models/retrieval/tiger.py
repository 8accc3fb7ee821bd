"""Recommender Systems with Generative Retrieval (Rajput et al., NeurIPS 2023).

https://arxiv.org/abs/2305.05065
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError, DataError, TrainingError
from recstack.features import tasks
from recstack.features.columns import column, of_steps
from recstack.features.tables import check_ids
from recstack.models.base import Retriever
from recstack.models.item_vectors import content_vectors
from recstack.models.next_item import covering, sought
from recstack.nn.modes import evaluating
from recstack.nn.quantizer import ResidualAutoencoder, ResidualQuantizer
from recstack.nn.sequence.codes import CodeTransformer
from recstack.nn.trie import Trie, kept_apart
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests

Batch = Mapping[str, Tensor]
CELLS = 1 << 22  # scores of codes that the beam search makes at a time


class TIGER(Retriever):
    r"""Items have ids that mean something, a few codes each, and a transformer writes the codes of the next item.

    .. math:: i \mapsto (c_1, \dots, c_C), \qquad
        s(u, i) = \sum_{l=1}^{C} \log p(c_l \mid c_{<l}, \mathrm{codes}(I_u))

    `fit` first gives each item of the catalogue its codes: a vector (below) goes through a residual-quantised autoencoder, and
    a last code numbers the items that share all the others. They stand in `item_codes` ``[N, C]`` (from 1; zeros: no codes)
    and are saved with the model. Then the encoder reads the codes of a history and the decoder writes the next item's. The
    encoder reads from left to right, so that one pass over a sequence trains all its prefixes.

    An item's vector is its schema's Vectors and a skip-gram over what users met together, in which an item is the mean of
    its own vector and those of its categories, lists and words: an item that nobody has met has codes if its attributes were
    met. `recommend` is a beam search over the codes of allowed items alone; the score is the logarithm of a probability. An
    item without codes is never proposed. Whoever asks is answered from their history, and one without a history too.

    Departs from the paper: the vectors (there, of texts); a learned token in the place of the hashed user id; positions count
    from the most recent item; heads divide the width; the encoder sees no later item, as said.

    Args:
        schema: a fitted schema with a History.
        dim: width of the transformer.
        layers, heads: of the encoder, and again of the decoder.
        hidden: width of the position-wise networks.
        dropout: of embeddings and layers.
        levels: codes of an item, without the one that numbers.
        codes: values of a code.
        quantizer_steps: batches that the autoencoder is trained on; 0: no autoencoder, residual k-means of the vectors.
        beam: how many beginnings of codes are kept, at least; more where more is asked for or seen.
        seed: of the vectors and codes.

    Rajput et al., NeurIPS 2023, https://arxiv.org/abs/2305.05065

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> model = rs.retrieval.TIGER(schema, dim=16, layers=1, hidden=32, codes=16, quantizer_steps=50)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("history", "item")
    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch_size": 256, "negatives": 0}

    item_codes: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        hidden: int = 1024,
        dropout: float = 0.1,
        levels: int = 3,
        codes: int = 256,
        quantizer_steps: int = 2000,
        beam: int = 50,
        seed: int = 0,
    ):
        super().__init__(schema)
        if min(levels, quantizer_steps + 1, beam) < 1 or codes < 2 or codes ** (levels + 1) >= 1 << 62:
            raise ConfigError(
                "levels and beam are at least 1, quantizer_steps 0, codes 2, and codes ** (levels + 1) is below 2 ** 62; "
                f"got {levels}, {beam}, {quantizer_steps} and {codes}."
            )
        self.history, self.levels, self.codes, self.length = schema.histories[0], levels, codes, levels + 1
        self.quantizer_steps, self.beam, self.seed = quantizer_steps, beam, seed
        self.size = schema.feature(schema.item).size  # type: ignore[arg-type, attr-defined]
        self.register_buffer("item_codes", torch.zeros(self.size, self.length, dtype=torch.int64))
        self.net = CodeTransformer(self.length, codes, dim, layers, heads, hidden, self.history.max_len, dropout)

    def user_vectors(self, batch: Batch) -> Tensor:
        """``[R, 1, D]``: the encoder's last state. With an item's vector its inner product says nothing."""
        memory, live, _ = self.read(batch)
        last = live.shape[1] - 1 - live.flip(-1).long().argmax(-1)
        return memory.take_along_dim(last[:, None, None], 1)

    def item_vectors(self, batch: Batch) -> Tensor:
        """``[N, D]``: the sum of the vectors of an item's codes but the last, near each other for items that share codes."""
        ids = column(batch, self.schema.item)  # type: ignore[arg-type]
        check_ids(ids, self.schema.item, self.size)  # type: ignore[arg-type]
        return self.net.vectors(self.item_codes[ids.long(), :-1]).sum(-2)

    # -- the score -----------------------------------------------------------------------------------------------------
    def read(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder reads ``[R, 1 + T · C, D]``, which of it is live, and the item ids of the history ``[R, T]``."""
        key = f"{self.schema.item}@{self.history.name}"
        ids = of_steps(batch, self.schema.item, self.history.name).long()  # type: ignore[arg-type]
        check_ids(ids, key, self.size)
        return *self.net.read(self.item_codes[ids], ids > 0), ids

    def _score(self, items: Tensor, memory: Tensor, live: Tensor) -> Tensor:
        """s of items ``[R, G]``."""
        codes = self.item_codes[items.long()]
        mask = live.unsqueeze(1).expand(-1, items.shape[1], -1)
        return self.net.log_likelihood(self.net.written(codes[..., :-1], memory, mask), codes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        items = column(batch, self.schema.item)  # type: ignore[arg-type]
        check_ids(items, self.schema.item, self.size)  # type: ignore[arg-type]
        memory, live, _ = self.read(batch)
        return tasks.of_score(self._score(items, memory, live), self.schema)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The codes of the next item after each step, and before the first; the last is the target, if its label is positive."""
        if not self.item_codes.any():
            raise TrainingError(
                "TIGER's items have no codes. Use model.fit(train), or model.prepare(columns) before a Trainer."
            )
        memory, live, ids = self.read(batch)
        end = (ids > 0).sum(-1, keepdim=True)
        wanted = F.pad(ids, (0, 1)).scatter(1, end, sought(batch, self.schema).long().unsqueeze(-1))  # [R, T + 1]
        token, step = torch.arange(live.shape[1], device=ids.device), torch.arange(wanted.shape[1], device=ids.device)
        before = live.unsqueeze(1) & (token < 1 + self.length * step.unsqueeze(-1))
        codes = self.item_codes[wanted]
        where = codes[..., 0] > 0
        states = self.net.written(codes[..., :-1], memory, before)[where]
        return {
            "codes": -self.net.log_likelihood(states, codes[where]).sum() / (self.length * where.sum().clamp(min=1))
        }

    def training_columns(self, train: Any) -> Any:
        return covering(train, self.history)

    # -- the codes -----------------------------------------------------------------------------------------------------
    def prepare(self, train: Columns) -> None:
        """Give the items of the catalogue their codes; `fit` does so.

        Raises:
            DataError: no item was met, or codes ** 2 items share all codes but the last.
        """
        vectors = content_vectors(self.schema, self.catalog, train, self.seed, "TIGER")
        live = torch.from_numpy(vectors.any(1)).nonzero().flatten()
        if not len(live):
            raise DataError("TIGER found no item that a user has met; train it on a log with positive rows.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            codes = self._quantized(torch.from_numpy(vectors)[live])
        self.item_codes.zero_()
        self.item_codes[live] = (kept_apart(codes, self.codes) + 1).to(self.item_codes.device)

    def _quantized(self, x: Tensor) -> Tensor:
        """``[n, levels]``, from 0."""
        if self.quantizer_steps:
            quantizer = ResidualAutoencoder(x.shape[1], self.levels, self.codes)
            return quantizer.learn(x, self.quantizer_steps, self.seed)
        means = ResidualQuantizer(x.shape[1], self.levels, self.codes)
        means.start(x, torch.Generator().manual_seed(self.seed))
        return means.eval()(x)[0]

    def code_use(self) -> dict[str, float]:
        """How well the codes keep items apart: the share of items that share all codes but the last with another
        (``collisions``), and of each level's codes that are used (``used_1``, ...).
        """
        codes = self.item_codes[self.item_codes[:, 0] > 0].cpu()
        _, count = codes[:, :-1].unique(dim=0, return_counts=True)
        shared = float(count[count > 1].sum()) / max(len(codes), 1)
        used = {f"used_{i + 1}": len(codes[:, i].unique()) / self.codes for i in range(self.levels)}
        return {"collisions": shared, **used}

    # -- answers -------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Beam search over the codes of allowed items; nothing that is allowed is lost for want of a beam."""
        trie = Trie(self.item_codes.cpu(), allowed, self.codes)
        longest = int(np.diff(requests.seen[0]).max(initial=0)) if exclude_seen else 0
        width = max(1, min(max(self.beam, k + longest), len(trie.items)))
        size = max(1, CELLS // (width * self.codes))
        parts = [requests.slice(i, i + size) for i in range(0, len(requests), size)]
        with evaluating(self):
            found = [self._beams(part, trie, width, k, exclude_seen) for part in parts]
        if not found:
            return torch.zeros(0, k, dtype=torch.int64), torch.zeros(0, k)
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    def _beams(self, requests: Requests, trie: Trie, width: int, k: int, exclude_seen: bool) -> tuple[Tensor, Tensor]:
        memory, live, _ = self.read(self._here(requests.batch))

        def next_code(codes: Tensor) -> Tensor:
            mask = live.unsqueeze(1).expand(-1, codes.shape[1], -1)
            states = self.net.written(codes.to(memory.device), memory, mask)
            return self.net.log_p(states[:, :, -1:], codes.shape[-1])[:, :, 0].cpu()

        seen = None
        if exclude_seen:
            seen = torch.zeros(len(requests), self.size, dtype=torch.bool)
            seen[requests.seen_pairs()] = True
        return trie.search(next_code, len(requests), width, k, seen)

    @torch.no_grad()
    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """s of given items: ids ``[R, K]`` → float32 ``[R, K]``."""
        size, found = max(1, CELLS // max(ids.shape[1] * self.codes * self.length, 1)), []
        with evaluating(self):
            for start in range(0, len(requests), size):
                memory, live, _ = self.read(self._here(requests.slice(start, start + size).batch))
                items = ids[start : start + size].to(memory.device)
                found.append(self._score(items, memory, live).cpu())
        return torch.cat(found) if found else torch.zeros(ids.shape)
