"""FedDAT's rivals: what each tunes, by a step of torch's AdamW, what travels, and whose the heads are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from catalogue import ANSWERING
from seeing import noisy
from unalike import answering, api, tree
from unalike.algorithms import ALGORITHMS
from unalike.data.federation import Federation
from unalike.models import multimodal
from unalike.optimisers import AdamW
from unalike.protocol import Arrival, Job
from unalike.rng import Key

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 1
LR = 0.01
AVERAGED = {
    "fedavg-adapter": {},
    "fedavg-lora": {"r": 4},
    "fedavg-prompt": {"tokens": 3},
    "fedavg-bias": {},
    "fedavg-norm": {},
}
SETTINGS: dict[str, dict[str, Any]] = {"fedavg-lora": {"rank": 4, "lora_alpha": 8}, "fedavg-prompt": {"tokens": 3}}


def prepared(name: str, pictured: Federation) -> Any:
    """A method whose visits are one batch of all rows."""
    return api.prepare(name, pictured, batch_size=10**6, lr=LR, **SETTINGS.get(name, {})).algorithm


def job(method: Any, pictured: Federation, client: int = 0, down: Any = None, **state: Any) -> Any:
    info = pictured.clients[client]
    sent = down or method.broadcast(method.init_server(INIT), info, 1)
    return Job(info, 1, sent, {**method.init_client(info, INIT), **state}, pictured.data(client, "train"), KEY / client)


def stepped(method: Any, it: Any, kind: str, tuned: Any, head: Any, scale: float = 1.0) -> dict[str, Any]:
    """What is tuned, and the head, after a step of torch's AdamW; no decay on vectors."""
    parts = {name: part for name, part in {kind: tuned, "head": head}.items() if part}
    leaves = {name: {n: w.clone().requires_grad_() for n, w in part.items()} for name, part in parts.items()}
    trees = {kind: [leaves[kind]]} if kind in leaves else {}
    logits = multimodal.logits(method.models[it.info.tier], trees, leaves["head"], it.data, scale=scale)
    F.cross_entropy(logits, it.data["y"]).backward()  # type: ignore[no-untyped-call]
    weights = [w for part in leaves.values() for w in part.values()]
    groups = [([w for w in weights if w.ndim > 1], 1e-2), ([w for w in weights if w.ndim == 1], 0.0)]
    torch.optim.AdamW(
        [{"params": found, "weight_decay": decay} for found, decay in groups], lr=LR, betas=(0.9, 0.98)
    ).step()
    return {name: {n: w.detach() for n, w in part.items()} for name, part in leaves.items()}


def close(found: Any, expected: Any) -> bool:
    """The same but for gradients of nearly 0, whose sign the order of sums decides."""
    assert found.keys() == expected.keys()
    near = torch.cat([(found[n] - expected[n]).abs().flatten() < LR / 10 for n in expected])
    return bool(near.float().mean() > 0.98)


def predicted(method: Any, it: Any, rows: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = method.predict(method.prepare(it.info, it.down, it.state, it.data, KEY), rows)
    return found


@pytest.mark.parametrize("client", [0, 2])
@pytest.mark.parametrize("name", AVERAGED)
def test_one_thing_is_tuned_and_averaged_and_heads_stay(name: str, client: int, pictured: Federation) -> None:
    method, kind = prepared(name, pictured), name.removeprefix("fedavg-")
    scale = 2.0 if name == "fedavg-lora" else 1.0
    start = noisy(method.shared, kind, 1, **AVERAGED[name])  # type: ignore[arg-type]
    it = job(method, pictured, client, down={"tuned": start})
    update = method.client_update(it)
    expected = stepped(method, it, kind, start, it.state["head"], scale)
    assert close(update.up["tuned"], expected[kind])
    assert close(update.state["head"], expected["head"])
    assert (set(update.up), set(update.state), update.weight) == ({"tuned"}, {"head"}, 12)
    assert tree.nbytes(update.up) == tree.nbytes(it.down)
    with torch.no_grad():
        own, rows = method.models[it.info.tier], pictured.data(client, "test")
        wanted = multimodal.logits(own, {kind: [start]}, it.state["head"], rows, scale=scale)
    assert predicted(method, it, rows).equal(wanted)


@pytest.mark.parametrize("name", AVERAGED)
def test_the_server_averages_by_samples(name: str, pictured: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2."""
    method = prepared(name, pictured)
    fresh = method.init_server(INIT)["tuned"]
    ups = [{"tuned": {n: torch.full_like(w, v) for n, w in fresh.items()}} for v in (1.0, 5.0)]
    sent = [
        Arrival(pictured.clients[k], up, weight, {}) for k, (up, weight) in enumerate(zip(ups, (3.0, 1.0), strict=True))
    ]
    assert all((w == 2).all() for w in method.aggregate({}, sent, 1, KEY)["tuned"].values())


@pytest.mark.parametrize("name", AVERAGED)
def test_it_begins_as_it_is_drawn_and_with_as_much_as_is_asked_for(name: str, pictured: Federation) -> None:
    method, kind = prepared(name, pictured), name.removeprefix("fedavg-")
    key = INIT / "shared"
    assert tree.equal(
        method.init_server(INIT)["tuned"],
        multimodal.initial(method.shared, kind, key, **AVERAGED[name]),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("name", "kind"), [("head-only", ""), ("local-adapter", "adapter")])
def test_alone_nothing_travels(name: str, kind: str, pictured: Federation, tmp_path: Path) -> None:
    method = prepared(name, pictured)
    it = job(method, pictured)
    update = method.client_update(it)
    expected = stepped(method, it, kind, it.state.get("adapter"), it.state["head"])
    assert update.up == {}
    assert update.state.keys() == it.state.keys() == expected.keys()
    assert all(close(update.state[part], expected[part]) for part in expected)
    run = api.run(name, pictured, rounds=2, engine="serial", report=False, out=tmp_path / "run")
    assert run.summary["bytes"] == {"up": 0, "down": 0}


def test_the_centralized_one_trains_each_row_by_its_clients_head(pictured: Federation) -> None:
    method = prepared("centralized-adapter", pictured)
    jobs = [job(method, pictured, k) for k in range(3)]
    updates = [method.client_update(it) for it in jobs]
    assert all(tree.equal(u.up["rows"], it.data) for u, it in zip(updates, jobs, strict=True))
    sent = [Arrival(it.info, u.up, u.weight, {}) for u, it in zip(updates, jobs, strict=True)]
    server = method.init_server(INIT)
    after = method.aggregate(server, sent, 1, KEY)
    leaves = {n: w.clone().requires_grad_() for n, w in server["adapter"].items()}
    heads = [{n: w.clone().requires_grad_() for n, w in it.state["head"].items()} for it in jobs]
    losses = [
        F.cross_entropy(multimodal.logits(method.shared, {"adapter": [leaves]}, head, it.data), it.data["y"])
        for it, head in zip(jobs, heads, strict=True)
    ]
    (sum(losses) / 3).backward()  # type: ignore[union-attr]
    weights = [*leaves.values(), *(w for head in heads for w in head.values())]
    groups = [([w for w in weights if w.ndim > 1], 1e-2), ([w for w in weights if w.ndim == 1], 0.0)]
    torch.optim.AdamW(
        [{"params": found, "weight_decay": decay} for found, decay in groups], lr=LR, betas=(0.9, 0.98)
    ).step()
    assert close(after["adapter"], {n: w.detach() for n, w in leaves.items()})
    assert float(after["loss"]) == pytest.approx(float(sum(loss.detach() for loss in losses)) / 3, rel=1e-5)
    for k, head in enumerate(heads):
        assert close(after["heads"][str(k)], {n: w.detach() for n, w in head.items()})
        sends = method.broadcast(after, pictured.clients[k], 2)
        assert tree.equal(sends["head"], after["heads"][str(k)])
    again = method.client_update(job(method, pictured, 1, down=sends, sent=torch.ones(())))
    assert again.up == {}, "rows are sent once"
    assert "head" not in method.broadcast(server, pictured.clients[0], 1)


def test_joined_rows_are_filled_up_and_say_whose_they_are() -> None:
    rows = [
        {"x": torch.tensor([[5, 6]]), "y": torch.tensor([1])},
        {"x": torch.tensor([[7], [8]]), "y": torch.tensor([0, 2])},
    ]
    found = answering.joined(rows, pad=9)
    assert {name: column.tolist() for name, column in found.items()} == {
        "x": [[5, 6], [7, 9], [8, 9]],
        "y": [1, 0, 2],
        "client": [0, 1, 1],
    }


def test_all_nine_share_the_hyper_parameters_of_a_visit() -> None:
    assert len(ANSWERING) == 9
    for name in ANSWERING:
        made: Any = ALGORITHMS[name]()
        found = (made.rounds, made.local_epochs, made.batch_size, made.lr, made.weight_decay, made.fraction)
        assert found == (30, 1, 32, 1e-4, 1e-2, 1.0)
        assert made.optimiser() == AdamW(1e-4, 1e-2, betas=(0.9, 0.98), decays_vectors=False)
        assert made.presets == {"paper": {"batch_size": 2}, "tiny": {"lr": 1e-3}}
