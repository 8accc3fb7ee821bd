"""One ranking model of one toolkit, some training steps: run by ranking.py in that toolkit's environment; prints JSON.

Each toolkit trains with its own loop and its own default optimiser (RecStack: row-wise Adagrad on the rows of the batch,
Adam for the rest; the others: Adam over everything) on the same rows, made into the tensors that it reads beforehand. The
clocks are read whenever its loop asks for the next batch, so that what is timed is forward, backward and the update.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

DIM, WIDE, STEPS_OF_HISTORY = 16, (400, 400, 400), 50
BUCKETS = 100  # of each number
WARM, MOST = 3, 16  # steps before the clock, and on it
FEWEST, ENOUGH = 4, 2.5  # where a step takes long: this many on the clock, once they took so many processor seconds
USERS, ITEMS, GROUPS = 290_000, 700_000, 10_000
Train = Callable[[Any], None]


class Row(NamedTuple):
    """A model by three names: (class, options) of each toolkit that has it; FuxiCTR's class with the file in its model zoo."""

    ours: tuple[str, dict[str, Any]]
    fuxictr: tuple[str, str, dict[str, Any]] | None = None
    deepctr: tuple[str, dict[str, Any]] | None = None
    data: str = "ids"  # "ids": 39 of them; "numbers": 26 and 13 numbers; "history"


MLP = {"hidden": WIDE, "norm": None}
DNN = {"hidden_units": list(WIDE)}
DEEP = {"dnn_hidden_units": list(WIDE)}
LOCAL = {"din_target_field": [("item", "group")], "din_sequence_field": [("clicks", "groups")]}
SHORT = {"hidden": (200, 80)}
LONG = {"dnn_hidden_units": [200, 80], "dnn_activations": "Dice", "short_seq_len": 21, "attention_dim": 32}


def fields(prefix: str) -> dict[str, Any]:
    return {k.replace("din", prefix): v for k, v in LOCAL.items()}


ROWS = {
    "LR": Row(("LR", {}), ("LR", "LR/src/LR.py", {})),
    "FM": Row(("FM", {}), ("FM", "FM/src/FM.py", {}), ("DeepFM", {"dnn_hidden_units": ()})),
    "FFM": Row(("FFM", {"dim": 2}), ("FFMv2", "FFM/src/FFMv2.py", {"embedding_dim": 2})),
    "FwFM": Row(("FwFM", {}), ("FwFM", "FwFM/src/FwFM.py", {})),
    "FEFM": Row(("FEFM", {})),
    "FmFM": Row(("FmFM", {}), ("FmFM", "FmFM/src/FmFM.py", {})),
    "HOFM": Row(("HOFM", {"dim": 4}), ("HOFM", "HOFM/src/HOFM.py", {"embedding_dim": 4})),
    "GwPFM": Row(("GwPFM", {})),
    "AFM": Row(("AFM", {}), ("AFM", "AFM/src/AFM.py", {"attention_dim": 16}), ("AFM", {"attention_factor": 16})),
    "FNN": Row(
        ("FNN", {"hidden": WIDE, "activation": "relu", "dropout": 0.0}), ("DNN", "DNN/DNN_torch/src/DNN.py", DNN)
    ),
    "IPNN": Row(("IPNN", MLP), ("PNN", "PNN/src/PNN.py", DNN), ("PNN", DEEP)),
    "OPNN": Row(("OPNN", MLP)),
    "KPNN": Row(("KPNN", MLP), None, ("PNN", {"use_inner": False, "use_outter": True, **DEEP})),
    "PIN": Row(("PIN", MLP)),
    "WideDeep": Row(("WideDeep", MLP), ("WideDeep", "WideDeep/WideDeep_torch/src/WideDeep.py", DNN), ("WDL", DEEP)),
    "DeepCrossing": Row(
        ("DeepCrossing", {"hidden": WIDE}),
        ("DeepCrossing", "DeepCrossing/src/DeepCrossing.py", {"residual_blocks": list(WIDE)}),
    ),
    "DeepFM": Row(("DeepFM", MLP), ("DeepFM", "DeepFM/DeepFM_torch/src/DeepFM.py", DNN), ("DeepFM", DEEP)),
    "NFM": Row(
        ("NFM", {**MLP, "products_dropout": 0.0, "dropout": 0.0}), ("NFM", "NFM/src/NFM.py", DNN), ("NFM", DEEP)
    ),
    "DLRM": Row(
        ("DLRM", {"bottom": (512, 256, 64), "hidden": WIDE}),
        ("DLRM", "DLRM/src/DLRM.py", {"bottom_mlp_units": [512, 256, 64], "top_mlp_units": list(WIDE)}),
        data="numbers",
    ),
    "AFN": Row(
        ("AFN", {"neurons": 256, **MLP}),
        (
            "AFN",
            "AFN/src/AFN.py",
            {
                "logarithmic_neurons": 256,
                "ensemble_dnn": False,
                "afn_hidden_units": list(WIDE),
                "batch_norm": False,
            },
        ),
        ("AFN", {"ltl_hidden_size": 256, "afn_dnn_hidden_units": WIDE}),
    ),
    "AutoInt": Row(
        ("AutoInt", {"layers": 3, "width": 16, "heads": 2}),
        (
            "AutoInt",
            "AutoInt/src/AutoInt.py",
            {"attention_layers": 3, "num_heads": 2, "attention_dim": 16, "dnn_hidden_units": []},
        ),
        ("AutoInt", {"att_layer_num": 3, "att_head_num": 2, "dnn_hidden_units": ()}),
    ),
    "AutoInt+, width 64": Row(
        ("AutoInt", {"layers": 3, "width": 64, "heads": 2, **MLP}),
        (
            "AutoInt",
            "AutoInt/src/AutoInt.py",
            {"attention_layers": 3, "num_heads": 2, "attention_dim": 64, "dnn_hidden_units": list(WIDE)},
        ),
    ),
    "DCN": Row(("DCN", MLP), ("DCN", "DCN/DCN_torch/src/DCN.py", DEEP), ("DCN", {"cross_num": 3, **DEEP})),
    "DCNv2": Row(
        ("DCNv2", MLP),
        ("DCNv2", "DCNv2/src/DCNv2.py", {"parallel_dnn_hidden_units": list(WIDE)}),
        ("DCN", {"cross_num": 3, "cross_parameterization": "matrix", **DEEP}),
    ),
    "DCNv2, 4 experts of rank 32": Row(
        ("DCNv2", {"rank": 32, "experts": 4, **MLP}),
        ("DCNv2", "DCNv2/src/DCNv2.py", {"use_low_rank_mixture": True, "parallel_dnn_hidden_units": list(WIDE)}),
        ("DCNMix", {"cross_num": 3, **DEEP}),
    ),
    "DCNv3": Row(("DCNv3", {"exponential_dropout": 0.0, "linear_dropout": 0.0})),
    "xDeepFM": Row(
        ("xDeepFM", {"maps": (64, 64), **MLP}),
        ("xDeepFM", "xDeepFM/src/xDeepFM.py", {"cin_hidden_units": [64, 64], **DEEP}),
        ("xDeepFM", {"cin_layer_size": (64, 64), "cin_split_half": False, "cin_activation": "linear", **DEEP}),
    ),
    "GDCN": Row(("GDCN", MLP), ("GDCNP", "GDCN/src/GDCN.py", DEEP)),
    "EDCN": Row(("EDCN", {"norm": None}), ("EDCN", "EDCN/src/EDCN.py", {})),
    "FiBiNET": Row(
        ("FiBiNET", {"bilinear": "all", **MLP}),
        ("FiBiNET", "FiBiNET/src/FiBiNET.py", {"bilinear_type": "field_all", **DNN}),
        ("FiBiNET", {"bilinear_type": "all", **DEEP}),
    ),
    "FiBiNET, W by pair": Row(
        ("FiBiNET", {"bilinear": "interaction", **MLP}),
        ("FiBiNET", "FiBiNET/src/FiBiNET.py", {"bilinear_type": "field_interaction", **DNN}),
        ("FiBiNET", {"bilinear_type": "interaction", **DEEP}),
    ),
    "FiBiNetPlusPlus": Row(("FiBiNetPlusPlus", MLP)),
    "MaskNet": Row(
        ("MaskNet", {"structure": "parallel", "reduction": 1.0, "hidden": WIDE}),
        (
            "MaskNet",
            "MaskNet/src/MaskNet.py",
            {"model_type": "ParallelMaskNet", "parallel_num_blocks": 3, "parallel_block_dim": 64, **DEEP},
        ),
    ),
    "ContextNet": Row(("ContextNet", {})),
    "DHEN": Row(("DHEN", {})),
    "Wukong": Row(
        ("Wukong", {}),
        (
            "WuKong",
            "WuKong/src/WuKong.py",
            {
                "num_wukong_layers": 2,
                "lcb_features": 16,
                "fmb_features": 16,
                "fmb_mlp_units": [256],
                "fmp_rank_k": 24,
                "mlp_hidden_units": [256, 128],
                "mlp_batch_norm": False,
            },
        ),
    ),
    "RankMixer": Row(("RankMixer", {})),
    "FinalMLP": Row(
        ("FinalMLP", {"first": WIDE, "second": WIDE, "norm": None}),
        ("FinalMLP", "FinalMLP/src/FinalMLP.py", {"mlp1_hidden_units": list(WIDE), "mlp2_hidden_units": list(WIDE)}),
    ),
    "FinalNet": Row(
        ("FinalNet", {"first": (400, 400), "second": (400, 400), "norm": "batch"}),
        (
            "FinalNet",
            "FinalNet/src/FinalNet.py",
            {
                "use_feature_gating": True,
                "block1_hidden_units": [400, 400],
                "block2_hidden_units": [400, 400],
                "block1_hidden_activations": "ReLU",
                "block2_hidden_activations": "ReLU",
            },
        ),
    ),
    "EulerNet": Row(("EulerNet", {"layers": 1}), ("EulerNet", "EulerNet/src/EulerNet.py", {"shape": [39]})),
    "HMoE": Row(("HMoE", {})),
    "AdaF2M2": Row(("AdaF2M2", {})),
    "TextMLP": Row(("TextMLP", MLP)),
    "DINBase": Row(("DINBase", SHORT), data="history"),
    "DIN": Row(
        ("DIN", SHORT),
        (
            "DIN",
            "DIN/src/DIN.py",
            {
                "dnn_hidden_units": [200, 80],
                "dnn_activations": "Dice",
                "attention_hidden_units": [36],
                **LOCAL,
            },
        ),
        ("DIN", {"dnn_hidden_units": (200, 80), "att_hidden_size": (36,)}),
        "history",
    ),
    "DIEN": Row(
        ("DIEN", {"alpha": 0.0, **SHORT}),
        (
            "DIEN",
            "DIEN/src/DIEN.py",
            {
                "batch_norm": False,
                "dien_neg_seq_field": [],
                **fields("dien"),
            },
        ),
        ("DIEN", {"gru_type": "AUGRU", "dnn_hidden_units": (200, 80)}),
        "history",
    ),
    "BST": Row(
        ("BST", {"heads": 2, "hidden": (256, 128, 64), "reduction": "mean"}),
        ("BST", "BST/src/BST.py", fields("bst")),
        data="history",
    ),
    "DSIN": Row(("DSIN", SHORT), data="history"),
    "TIN": Row(("TIN", SHORT), data="history"),
    "CAN": Row(("CAN", SHORT), data="history"),
    "STAMP": Row(("STAMP", {}), data="history"),
    "SIM": Row(("SIM", {"heads": 2, **SHORT}), ("SIM", "LongCTR/SIM/SIM.py", {"num_heads": 2, **LONG}), data="history"),
    "ETA": Row(("ETA", {"heads": 2, **SHORT}), ("ETA", "LongCTR/ETA/ETA.py", {"num_heads": 2, **LONG}), data="history"),
    "SDIM": Row(
        ("SDIM", SHORT), ("SDIM", "LongCTR/SDIM/SDIM.py", {"num_hashes": 48, "hash_bits": 3, **LONG}), data="history"
    ),
    "TWIN": Row(
        ("TWIN", {"heads": 2, "keep": 50, **SHORT}),
        ("TWIN", "LongCTR/TWIN/TWIN.py", {"num_heads": 2, **LONG}),
        data="history",
    ),
    "TransAct": Row(
        ("TransAct", {}),
        (
            "TransAct",
            "TransAct/src/TransAct.py",
            {"target_item_field": [("item", "group")], "sequence_item_field": [("clicks", "groups")]},
        ),
        data="history",
    ),
    "HSTU": Row(("HSTU", {}), data="history"),
}
Columns = dict[str, np.ndarray]  # the columns of one batch, ids from 0 (histories and their items from 1)


def columns(row: Row, folder: Path, batch: int, steps: int) -> tuple[dict[str, int], list[Columns]]:
    """{column: ids} of the set, and its batches."""
    if row.data == "history":
        return histories(batch, steps)
    stored = {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("ids", "numbers", "click", "sizes")}
    sizes = {f"C{j}": int(s) for j, s in enumerate(stored["sizes"], 1)}
    edges = np.quantile(stored["numbers"][:100_000, 0], np.linspace(0, 1, BUCKETS + 1)[1:-1])
    if row.data == "ids":
        sizes |= {f"I{j}": BUCKETS for j in range(1, 14)}
    out = []
    for k in range(steps):
        part = slice(k * batch, (k + 1) * batch)
        ids, numbers = stored["ids"][part], np.array(stored["numbers"][part])
        found = {f"C{j}": ids[:, j - 1].astype(np.int64) for j in range(1, 27)}
        if row.data == "ids":
            numbers = np.searchsorted(edges, numbers)
        found |= {f"I{j}": numbers[:, j - 1] for j in range(1, 14)}
        out.append(found | {"click": np.array(stored["click"][part], np.float32)})
    return sizes, out


def histories(batch: int, steps: int) -> tuple[dict[str, int], list[Columns]]:
    """A user, an item with its group, the 50 items before it with theirs; all histories are full."""
    chance, out = np.random.default_rng(0), []
    for _ in range(steps):
        drawn = np.exp(chance.random((batch, STEPS_OF_HISTORY + 1)) * np.log(ITEMS)).astype(
            np.int64
        )  # from 1, as 1/rank
        groups = drawn % (GROUPS - 1) + 1
        out.append(
            {
                "user": chance.integers(0, USERS, batch),
                "item": drawn[:, -1],
                "group": groups[:, -1],
                "clicks": drawn[:, :-1],
                "groups": groups[:, :-1],
                "click": (chance.random(batch) < 0.3).astype(np.float32),
            }
        )
    return {"user": USERS, "item": ITEMS + 1, "group": GROUPS}, out


def recstack(row: Row, sizes: dict[str, int], batches: list[Columns]) -> tuple[list[Any], Train, torch.nn.Module]:
    import recstack as rs

    name, options = row.ours
    features: list[Any] = [
        rs.Categorical(n, size=s + 2, role="item") if n in ("item", "group") else rs.Categorical(n, size=s + 2)
        for n, s in sizes.items()
    ]
    if row.data == "numbers":
        features += [rs.Numeric(f"I{j}") for j in range(1, 14)]
    if row.data == "history":
        features.append(rs.History("clicks", of=("item", "group")))
    schema = rs.Schema(features, [rs.Task("click")])
    dim = {} if name == "LR" else {"dim": DIM}
    model = getattr(rs.ranking, name)(schema, **{**dim, **options})

    def made(found: Columns) -> dict[str, torch.Tensor]:
        rows = len(found["click"])
        out = {n: torch.from_numpy((found[n] + 2 * (row.data != "history")).astype(np.int32)) for n in sizes}
        out |= {
            n: torch.from_numpy(v).float() for n, v in found.items() if n not in sizes and v.ndim == 1 and n != "click"
        }
        if row.data == "history":
            out |= {n: out[n].unsqueeze(-1) for n in ("item", "group")}
            for of, key in (("item", "clicks"), ("group", "groups")):
                out[f"{of}@clicks"] = torch.from_numpy(found[key].astype(np.int32)).flatten()
            out["clicks@offsets"] = torch.arange(rows + 1) * STEPS_OF_HISTORY
        return out | {"click@label": torch.from_numpy(found["click"]).unsqueeze(-1)}

    trainer = rs.Trainer(model, epochs=1, progress=False)
    return [made(b) for b in batches], lambda given: (trainer.fit(given), None)[1], model


def fuxictr(
    row: Row, sizes: dict[str, int], batches: list[Columns], zoo: Path
) -> tuple[list[Any], Train, torch.nn.Module]:
    from fuxictr.features import FeatureMap

    assert row.fuxictr is not None
    name, path, options = row.fuxictr
    folder, long = tempfile.mkdtemp(), path.startswith("LongCTR")
    about = FeatureMap("generated", folder)
    about.labels, about.default_emb_dim = ["click"], DIM
    padded = {"padding_idx": 0} if row.data == "history" else {}
    for n, s in sizes.items():
        source = {"source": "item" if n in ("item", "group") else "user"}
        about.features[n] = {"type": "categorical", "vocab_size": s, **source, **(padded if n != "user" else {})}
    if row.data == "numbers":
        about.features.update({f"I{j}": {"type": "numeric", "source": ""} for j in range(1, 14)})
    if row.data == "history" and not long:
        for n, of in (("clicks", "item"), ("groups", "group")):
            sequence = {"type": "sequence", "vocab_size": sizes[of], "max_len": STEPS_OF_HISTORY, "share_embedding": of}
            about.features[n] = {"source": "", **sequence, **padded}
    about.num_fields = about.get_num_fields()
    about.set_column_index()
    spec = importlib.util.spec_from_file_location("zoo_model", zoo / "model_zoo" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    common = {"optimizer": "adam", "loss": "binary_crossentropy", "metrics": ["logloss"], "verbose": 0}
    given = {**({} if name == "LR" else {"embedding_dim": DIM}), **options, **common, "model_root": folder}
    model = getattr(module, name)(about, gpu=-1, **given)

    def made(found: Columns) -> Any:
        tensors = {n: torch.from_numpy(v) for n, v in found.items()}
        if row.data == "numbers":  # its DLRM puts them side by side
            tensors |= {n: v.unsqueeze(-1) for n, v in tensors.items() if n.startswith("I")}
        if not long:
            return tensors
        items = {
            n: torch.cat([tensors[of], tensors[n].unsqueeze(-1)], 1).flatten()
            for n, of in (("item", "clicks"), ("group", "groups"))
        }
        return {"user": tensors["user"], "click": tensors["click"]}, items, (tensors["clicks"] > 0).float()

    def train(given: Any) -> None:
        model._max_gradient_norm, model._eval_steps, model._total_steps, model._stop_training = 10.0, 10**9, 0, False
        model.train_epoch(given)

    return [made(b) for b in batches], train, model


def deepctr_torch(row: Row, sizes: dict[str, int], batches: list[Columns]) -> tuple[list[Any], Train, torch.nn.Module]:
    import deepctr_torch.models as models
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import basemodel

    assert row.deepctr is not None
    name, options = row.deepctr
    features: list[Any] = [SparseFeat(n, s, embedding_dim=DIM) for n, s in sizes.items()]
    common: dict[str, Any] = {"l2_reg_embedding": 0, "device": "cpu"}
    if row.data == "history":
        for of in ("item", "group"):
            of_items = SparseFeat(f"hist_{of}", sizes[of], embedding_dim=DIM, embedding_name=of)
            features.append(VarLenSparseFeat(of_items, STEPS_OF_HISTORY, length_name="length"))
        model = getattr(models, name)(features, ["item", "group"], **common, **options)
    else:
        kind = getattr(models, name)
        weights = [n for n in inspect.signature(kind).parameters if n.startswith("l2_reg")]
        twice = 1 if name == "PNN" else 2  # the linear part reads them too
        model = kind(*[features] * twice, **{**common, **dict.fromkeys(weights, 0), **options})
    model.compile("adam", "binary_crossentropy")

    def made(found: Columns) -> Any:
        names = {"clicks": "hist_item", "groups": "hist_group"}
        found = {names.get(n, n): v for n, v in found.items()} | {
            "length": np.full(len(found["click"]), STEPS_OF_HISTORY)
        }
        parts = [np.reshape(found[n], (len(found["click"]), -1)).astype(np.float32) for n in model.feature_index]
        return torch.from_numpy(np.concatenate(parts, 1)), torch.from_numpy(found["click"])

    def train(given: Any) -> None:
        basemodel.DataLoader = lambda **_: given  # its own loop over rows that are there already
        few = [np.zeros((2, b - a)) for a, b in model.feature_index.values()]
        model.fit(few, np.zeros(2), batch_size=2, epochs=1, verbose=0)

    return [made(b) for b in batches], train, model


class Steps:
    """Batches, one after the other; notes both clocks whenever one is asked for."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.marks = batches, []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self._mark()
            timed = len(self.marks) - 1 - WARM
            if timed >= FEWEST and self.marks[-1][0] - self.marks[WARM][0] > ENOUGH:
                return
            yield batch
        self._mark()

    def _mark(self) -> None:
        self.marks.append((time.process_time(), time.perf_counter()))


def peak() -> float:
    """GB that the process held at most, its libraries included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=ROWS, required=True)
    parser.add_argument("--toolkit", choices=("RecStack", "FuxiCTR", "DeepCTR-Torch"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, default=MOST, help="on the clock, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="print torch's profile instead")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    row = ROWS[args.model]
    sizes, batches = columns(row, args.data, args.batch, WARM + args.steps)
    with redirect_stdout(sys.stderr):  # what a toolkit prints goes to the log
        if args.toolkit == "RecStack":
            made, train, model = recstack(row, sizes, batches)
        elif args.toolkit == "FuxiCTR":
            made, train, model = fuxictr(row, sizes, batches, args.zoo)
        else:
            made, train, model = deepctr_torch(row, sizes, batches)
        del batches
        steps = Steps(made)
        if args.profile:
            train(made[:2])
            with torch.profiler.profile() as profile:
                train(made[2:5])
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=48))
            return
        train(steps)
    count = len(steps.marks) - 1 - WARM
    processor, wall = (b - a for a, b in zip(steps.marks[WARM], steps.marks[-1], strict=True))
    result = {
        "model": args.model,
        "toolkit": args.toolkit,
        "batch": args.batch,
        "threads": args.threads,
        "steps": count,
        "processor_seconds_per_step": round(processor / count, 5),
        "wall_seconds_per_step": round(wall / count, 5),
        "samples_per_processor_second": round(args.batch * count / processor),
        "samples_per_wall_second": round(args.batch * count / wall),
        "peak_gb": round(peak(), 3),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
