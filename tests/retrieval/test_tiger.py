"""TIGER: the blocks against slow loops, the search against scores of every item, and what codes are good for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import recstack as rs
from recstack import testing
from recstack.errors import ConfigError, DataError, TrainingError
from recstack.nn.quantizer import ResidualAutoencoder, ResidualQuantizer
from recstack.nn.sequence.decoder import DecoderLayer
from recstack.nn.trie import Trie, kept_apart

SMALL = {"dim": 16, "layers": 1, "heads": 2, "hidden": 32, "dropout": 0.0, "levels": 2, "codes": 6}


# -- the blocks ------------------------------------------------------------------------------------------------------
def test_a_residual_quantiser_is_the_slow_loop():
    g = torch.Generator().manual_seed(0)
    block, z = ResidualQuantizer(4, 3, 5), torch.randn(7, 4, generator=g, requires_grad=True)
    codes, vector, loss = block(z)
    books, total = block.books.detach().clone().requires_grad_(), 0.0
    for n in range(7):
        rest = z[n]
        for level in range(3):
            distance = [(rest - books[level, k]).square().sum().item() for k in range(5)]
            k = int(np.argmin(distance))
            assert codes[n, level] == k
            total = total + (rest.detach() - books[level, k]).square().sum() / 7
            total = total + 0.25 * (rest - books[level, k].detach()).square().sum() / 7
            rest = rest - books[level, k].detach()
        assert_close(vector[n], z[n] - rest)
    assert_close(loss, total)
    slopes = torch.autograd.grad(loss, (z, block.books), retain_graph=True), torch.autograd.grad(total, (z, books))
    assert_close(*slopes)
    assert_close(torch.autograd.grad((vector * vector.detach()).sum(), z)[0], vector.detach())  # straight through


def test_codes_begin_as_means_and_the_dead_are_revived():
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 4, generator=g) * 10
    z = centres.repeat(20, 1) + 0.01 * torch.randn(160, 4, generator=g)
    block = ResidualQuantizer(4, 2, 8)
    block.start(z, g)
    _, vector, _ = block(z)
    assert (vector - z).square().sum(-1).mean() < 0.1 * z.square().sum(-1).mean()
    with torch.no_grad():
        block.books[0, 3:] = 1e4  # far from everything
    block.used.zero_()
    block(z)
    moved = block.revive(z, g)
    assert moved >= 5
    assert block.books.abs().max() < 1e3
    assert not block.used.any()


def test_an_autoencoder_tells_groups_apart():
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(6, 12, generator=g)).repeat(10, 1) + 0.02 * torch.randn(60, 12, generator=g)
    torch.manual_seed(0)
    codes = ResidualAutoencoder(12, 2, 6, hidden=(32, 16), size=8).learn(x, 150)
    codes = codes.view(10, 6, 2)
    assert (codes == codes[0]).float().mean() > 0.9
    assert len(codes[0].unique(dim=0)) == 6


def test_a_decoder_layer_is_each_sequence_alone():
    torch.manual_seed(0)
    block = DecoderLayer(8, 2, 12).eval()
    x, memory = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 8)
    mask = torch.rand(2, 3, 5) < 0.6
    mask[0, 0] = False  # nothing to read
    found = block(x, memory, mask)

    def attend(q, k, v):
        return torch.cat(
            [(a @ b.T / 2).softmax(-1) @ c for a, b, c in zip(*(y.split(4, -1) for y in (q, k, v)), strict=True)], -1
        )

    for r in range(2):
        for n in range(3):
            y = x[r, n]
            q, k, v = block.written.project(block.norms[0](y)).chunk(3, -1)
            own = torch.stack([attend(q[c : c + 1], k[: c + 1], v[: c + 1])[0] for c in range(4)])
            y = y + block.written.out(own)
            seen = memory[r, mask[r, n]]
            read = block.read
            said = attend(read.query(block.norms[1](y)), read.key(seen), read.value(seen)) if len(seen) else 0 * y
            y = y + read.out(said)
            assert_close(found[r, n], y + block.feed(block.norms[2](y)))


def test_a_trie_knows_what_exists():
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(1, 5, (30, 3), generator=g)
    codes[:3] = 0
    allowed = torch.rand(30, generator=g) < 0.7
    trie = Trie(codes, allowed, 4)
    there = {tuple(c) for c, a in zip((codes - 1).tolist(), allowed.tolist(), strict=True) if a and c[0] >= 0}
    for level in range(3):
        for key in range(4**level):
            start = tuple(key // 4 ** (level - 1 - d) % 4 for d in range(level))
            found = trie.children(torch.tensor([key]), level)[1][0].tolist()
            assert found == [any(t[: level + 1] == (*start, c) for t in there) for c in range(4)]


def test_a_search_as_wide_as_the_trie_is_brute_force():
    g = torch.Generator().manual_seed(0)
    codes = torch.cartesian_prod(*[torch.arange(1, 4)] * 3)[torch.randperm(27, generator=g)[:12]]
    allowed, forbidden = torch.rand(12, generator=g) < 0.8, torch.rand(2, 12, generator=g) < 0.2
    log_p = {level: torch.randn(2, 3**level, 3, generator=g).log_softmax(-1) for level in range(3)}

    def next_code(written):
        level = written.shape[-1]
        key = ((written - 1) * 3 ** torch.arange(level - 1, -1, -1)).sum(-1)
        return log_p[level].gather(1, key.unsqueeze(-1).expand(-1, -1, 3))

    ids, scores = Trie(codes, allowed, 3).search(next_code, 2, 27, 4, forbidden)
    for r in range(2):
        every = {}
        for item in range(12):
            a, b, c = (codes[item] - 1).tolist()
            if allowed[item] and not forbidden[r, item]:
                every[item] = (log_p[0][r, 0, a] + log_p[1][r, a, b] + log_p[2][r, 3 * a + b, c]).item()
        best = sorted(every, key=every.__getitem__, reverse=True)[:4]
        assert ids[r].tolist() == best
        assert_close(scores[r], torch.tensor([every[i] for i in best]))


@pytest.mark.parametrize("n", [10, 30, 64])
def test_no_two_items_get_the_same_codes(n):
    g = torch.Generator().manual_seed(n)
    codes = torch.cat([torch.randint(2, (n, 1), generator=g), 7 - (torch.rand(n, 1, generator=g) * 2).long() ** 2], 1)
    found = kept_apart(codes, 8)
    assert len(found.unique(dim=0)) == n
    assert 0 <= found.min() <= found.max() < 8
    assert torch.equal(found[:, 0], codes[:, 0])
    for code, n_same in zip(*codes.unique(dim=0, return_counts=True), strict=True):
        if n_same <= 8 and n == 10:
            assert (found[(codes == code).all(1), 1] == code[1]).all()
    with pytest.raises(DataError, match="share all codes"):
        kept_apart(torch.zeros(5, 2, dtype=torch.int64), 2)


# -- the model -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fitted():
    world = testing.communities()
    torch.manual_seed(0)
    schema = rs.Encoder(world.log.schema).fit(world.log).schema
    model = rs.retrieval.TIGER(schema, quantizer_steps=0, beam=3, **SMALL)
    return model.fit(world.log, epochs=15, lr=0.01, batch_size=16, progress=False), world


def test_items_have_codes_of_their_own_and_alike_ones_share_the_first(fitted):
    model, world = fitted
    codes = model.item_codes[2:]
    assert len(codes.unique(dim=0)) == len(codes)
    assert codes.min() >= 1
    side = torch.from_numpy(
        np.isin(np.arange(2, model.size), model.schema.encoder.encode_values("item_id", world.items[0]))
    )
    firsts = [set(codes[s, 0].tolist()) for s in (side, ~side)]
    assert not firsts[0] & firsts[1]  # the communities share neither users nor genres
    use = model.code_use()
    assert 0 <= use["collisions"] < 1
    assert use["used_1"] > 0.3


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_search_finds_what_scoring_every_item_finds(fitted, exclude_seen):
    model, world = fitted
    requests = model.requests([*world.users[0][:5], *world.users[1][:5], 999_999])
    allowed = torch.zeros(model.size, dtype=torch.bool)
    allowed[2::2] = allowed[5::4] = True
    every = torch.arange(model.size).expand(11, -1)
    scores = model.pair_scores(requests, every).masked_fill(~allowed, -torch.inf)
    if exclude_seen:
        offsets, seen = requests.seen
        for r in range(11):
            scores[r, seen[offsets[r] : offsets[r + 1]].tolist()] = -torch.inf
    n = int(allowed.sum())
    whole = model.recommend(requests, n, exclude_seen=exclude_seen, where=allowed)  # as many beams as items: exact
    wanted = scores.sort(descending=True, stable=True)
    left = scores.isfinite().sum(1)
    assert torch.equal(whole.mask.sum(1), left)
    for r in range(11):
        assert_close(whole.scores[r][: left[r]], wanted.values[r][: left[r]], rtol=1e-4, atol=1e-4)
        assert set(whole.ids[r][whole.mask[r]].tolist()) == set(scores[r].isfinite().nonzero().flatten().tolist())
    few = model.recommend(requests, 4, exclude_seen=exclude_seen, where=allowed)  # a narrow beam loses no place
    assert few.mask.all()
    assert_close(few.scores, model.pair_scores(requests, few.ids), rtol=1e-4, atol=1e-4)


def test_it_finds_the_community_from_the_history_alone(fitted):
    model, world = fitted
    found = model.recommend(world.users[0], 4)
    own = model.schema.encoder.encode_values("item_id", world.items[0])
    assert np.isin(found.ids.numpy(), own).mean() > 0.9


def test_one_pass_trains_every_prefix(fitted):
    model, _ = fitted
    batch = testing.batch(model.schema, 6, 1, seed=3, steps=4)
    batch["click@label"] = torch.tensor([1.0, 1, 0, 1, 1, 1])[:, None]
    ids, total, n = batch["item_id@watched"].long(), 0.0, 0
    for r in range(6):
        history = [i for i in ids[r].tolist() if i]
        wanted = [*history, *([int(batch["item_id"][r, 0])] if batch["click@label"][r] else [])]
        for t, item in enumerate(wanted):
            if item < 2:
                continue
            codes = model.item_codes[torch.tensor([[item]])]
            # positions count from the end of the whole sequence: the encoder reads all of it, the decoder a part
            memory, live, _ = model.read({key: v[r : r + 1] for key, v in batch.items()})
            memory, live = memory[:, : 1 + 3 * t], live[:, : 1 + 3 * t]
            states = model.net.written(codes[..., :-1], memory, live.unsqueeze(1))
            log_p = model.net.log_p(states)[0, 0]
            total, n = total - sum(log_p[c, codes[0, 0, c] - 1] for c in range(3)), n + 1
    assert_close(model.losses(batch)["codes"], total / (3 * n))


def test_an_item_that_nobody_met_is_found_by_its_attributes():
    world = testing.communities()
    frame = world.log.events
    new = world.items[0][0]
    encoder = rs.Encoder(world.log.schema).fit(world.log)  # the catalogue knows it
    train = rs.Log(frame.filter(frame["item_id"] != new), world.log.schema, implicit=True)
    torch.manual_seed(0)
    model = rs.retrieval.TIGER(encoder.schema, quantizer_steps=0, **SMALL)
    model.fit(encoder.encode(train), epochs=1, progress=False)
    id = int(encoder.encode_values("item_id", [new])[0])
    own = set(model.item_codes[encoder.encode_values("item_id", world.items[0][1:]), 0].tolist())
    assert int(model.item_codes[id, 0]) in own


def test_what_cannot_be_is_said(fitted):
    model, _ = fitted
    with pytest.raises(ConfigError, match="at least 1"):
        rs.retrieval.TIGER(model.schema, codes=1)
    fresh = rs.retrieval.TIGER(model.schema, **SMALL)
    with pytest.raises(TrainingError, match="no codes"):
        fresh.losses(testing.batch(model.schema, 2, 1))
