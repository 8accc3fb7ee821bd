"""TDM: the tree, the windows, and a search that is brute force where its beam is wide enough."""

import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack.errors import SchemaError
from recstack.kernels.tree import balanced_order, height, slots
from recstack.models.structure import factors
from recstack.nn.sequence.windows import Windows
from recstack.nn.tree import ItemTree
from recstack.testing.worlds import communities


@pytest.fixture(scope="module")
def world():
    return communities(users=300, items=50)


@pytest.fixture(scope="module")
def model(world):
    torch.manual_seed(0)
    encoder = rs.Encoder(world.log.schema).fit(world.log)
    model = rs.retrieval.TDM(encoder.schema, dim=8, hidden=(16, 8), windows=(1, 2, 3), leaf_negatives=8, beam=2)
    return model.fit(world.log, epochs=8, lr=0.03, batch_size=32, progress=False)


def test_clusters_hang_together_and_every_node_has_two_even_halves():
    g = torch.Generator().manual_seed(0)
    middle = 10 * torch.eye(4)
    cluster = torch.arange(36) % 4
    order = balanced_order(middle[cluster] + 0.1 * torch.randn(36, 4, generator=g))
    assert order.sort().values.tolist() == list(range(36))
    assert all(len(part.unique()) == 1 for part in cluster[order].split(9))
    for n in (2, 5, 36, 64):
        for above in range(1, height(n) + 1):
            under = torch.bincount(slots(n) >> above - 1, minlength=2 ** (height(n) - above + 1)).view(-1, 2)
            assert (under[:, 0] - under[:, 1]).abs().max() <= 1
            assert under.sum(1).min() >= 1


def test_windows_are_the_slow_loop():
    x, mask = torch.randn(2, 7, 3), torch.arange(7) < torch.tensor([[7], [3]])
    block, sizes = Windows((1, 2, 3)), (1, 2, 3)
    found, last = block(x, mask), block(x, mask, torch.tensor([[7], [3]]))
    for r, t in ((0, 6), (0, 2), (1, 2), (1, 0)):
        newest = 0
        for w, size in enumerate(sizes):
            steps = [x[r, t - age] for age in range(newest, newest + size) if t >= age]
            assert_close(found[r, t, w], torch.stack(steps).mean(0) if steps else torch.zeros(3))
            newest += size
    assert_close(last.squeeze(1), torch.stack([found[0, 6], found[1, 2]]))


def test_directions_of_items_tell_the_communities(world):
    encoder = rs.Encoder(world.log.schema).fit(world.log)
    x = factors(encoder.encode(world.log), 4)[2:]
    side = encoder.decode("item_id", torch.arange(2, len(x) + 2).numpy()) % 2
    near = x @ x.T
    same = torch.from_numpy(side[:, None] == side)
    assert near[same].mean() > near[~same].mean() + 0.3


def test_a_beam_as_wide_as_the_tree_is_brute_force(world, model):
    wide, users = rs.retrieval.TDM(**(model.config | {"beam": 64})), [*world.users[0], *world.users[1]]
    wide.load_state_dict(model.state_dict())
    wide.profiles, model_share = model.profiles, model.measure(users, k=3)["share"]
    found = wide.eval().recommend(users, 5)
    score = wide.every_score(wide.requests(users))
    offsets, seen = wide.requests(users).seen
    for r in range(len(users)):
        score[r, :2] = -torch.inf
        score[r, seen[offsets[r] : offsets[r + 1]]] = -torch.inf
    assert_close(found.scores, score.topk(5).values)
    assert_close(wide.pair_scores(wide.requests(users), found.ids), found.scores)
    assert wide.measure(users, k=3)["recall"] == 1.0
    assert model_share < 0.7


def test_finds_the_community_scores_few_and_keeps_the_tree(world, model, tmp_path):
    users = world.users[0]
    own = set(model.schema.encoder.encode_values("item_id", world.items[0]).tolist())
    found = model.recommend(users, 4)
    assert sum(i in own for i in found.ids.flatten().tolist()) > 0.9 * found.ids.numel()
    again = rs.load(model.save(tmp_path / "tree"))
    assert torch.equal(again.tree.leaves, model.tree.leaves)
    assert torch.equal(again.recommend(users, 4).ids, found.ids)


def test_agreement_is_the_slow_loop_over_the_levels_that_a_wide_search_meets(world, model):
    states = model._users(model.requests(world.users[0][:3])).squeeze(1)
    model.beam, loss, leaf = 1, 0.0, 2**model.tree.height
    try:
        found = model.agreement(states)
        for state in states.detach():
            nodes = torch.arange(2 ** (model.tree.height + 1)).unsqueeze(0)
            every = model.score(state.view(1, 1, -1), model.tree.vectors(nodes, model._table())).flatten().tolist()
            score = every.__getitem__
            level = 3  # where the narrow search begins: eight for the one that it keeps
            nodes = [n for n in range(2**level, 2 ** (level + 1)) if _live(model, n)]
            met = [nodes]
            while nodes[0] < leaf:
                kept = sorted(nodes, key=score, reverse=True)[:4]
                nodes = [c for n in kept for c in (2 * n, 2 * n + 1) if _live(model, c)]
                met.append(nodes)
            best = max(nodes, key=score)
            for nodes in met[:-1]:
                ancestor = next(n for n in nodes if best >> (best.bit_length() - n.bit_length()) == n)
                loss -= (score(ancestor) - torch.tensor([score(n) for n in nodes]).logsumexp(0)) / len(states)
    finally:
        model.beam = 2
    assert_close(found, torch.as_tensor(loss), atol=1e-4, rtol=1e-4)
    assert found > 0


LEVELS = {
    1: [4, 5, 6, 7, 8],
    2: [4, 6, 8],
    3: [2, 5, 8],
    4: [4, 8],
}  # that a search for two meets, of a tree of height 8


@pytest.mark.parametrize(("stride", "taper"), [(1, 1.0), (2, 1.0), (2, 2.0), (3, 1.5), (4, 1.0)])
def test_a_search_is_the_slow_loop(stride, taper):
    g = torch.Generator().manual_seed(stride)
    tree, score = ItemTree(242, 4), torch.randn(3, 512, generator=g)  # 240 items in 256 places
    live = (torch.rand(3, 256, generator=g) < 0.9) & (tree.leaves > 0)
    found = list(tree.descend(lambda nodes: score.gather(1, nodes), 3, 2, live, stride, taper))
    assert [level for level, _, _ in found] == LEVELS[stride]
    for r in range(3):
        above = {(256 + leaf) >> up for leaf in live[r].nonzero().flatten().tolist() for up in range(9)}
        value = [score[r, n].item() if n in above else -float("inf") for n in range(512)]
        nodes = set(range(2 ** LEVELS[stride][0], 2 ** (LEVELS[stride][0] + 1)))
        for left, (level, met, scores) in zip(reversed(range(len(found))), found, strict=True):
            assert set(met[r].tolist()) == nodes
            assert scores[r].tolist() == [value[n] for n in met[r].tolist()]
            kept = sorted(nodes, key=value.__getitem__, reverse=True)[: max(1, round(2 / taper ** (left - 1)))]
            down = min(stride, 8 - level)
            nodes = {(n << down) + c for n in kept for c in range(2**down)}


def _live(model, node):
    if node < 2**model.tree.height:
        return _live(model, 2 * node) or _live(model, 2 * node + 1)
    return bool(model.tree.leaves[node - 2**model.tree.height] > 0)


def test_filters_never_leave_too_few(world, model):
    allowed = torch.zeros(model.catalog.size, dtype=torch.bool)
    allowed[5::7] = True
    found = model.recommend(world.users[1], 6, exclude_seen=False, where=allowed)
    assert found.mask.all()
    assert allowed[found.ids].all()


def test_growing_anew_keeps_every_item_and_starts_nodes_from_their_leaves(world, model):
    torch.manual_seed(0)
    other = rs.retrieval.TDM(**model.config)
    other.load_state_dict(model.state_dict())
    other.recluster()
    assert other.tree.leaves[other.tree.leaves > 0].sort().values.tolist() == list(range(2, other.catalog.size))
    vectors = other.tree.vectors(other.tree.codes[2:], other._table())
    under = other.tree.codes[2:] >> other.tree.height - 1 == 3
    assert_close(other.tree.nodes.weight[3], vectors[under].mean(0))


def test_a_category_keeps_its_items_together(world):
    encoder = rs.Encoder(world.log.schema).fit(world.log)
    model = rs.retrieval.TDM(encoder.schema, dim=4, tree="genre")
    model.prepare(encoder.encode(world.log))
    side = encoder.decode("item_id", model.tree.leaves[model.tree.leaves > 0].numpy()) % 2
    assert (side[1:] != side[:-1]).sum() <= 6  # as many changes as there are values, at most
    with pytest.raises(SchemaError, match="shelf"):
        rs.retrieval.TDM(encoder.schema, tree="shelf").prepare(encoder.encode(world.log))
