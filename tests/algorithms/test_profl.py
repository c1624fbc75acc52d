"""ProFL: the order of things, each equation by hand, what is frozen, what travels, and who takes part."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import INIT, KEY, arrivals, close, constant, is_all, prepared
from torch import nn
from torch.nn import functional as F

from unalike import api, config, models, tree
from unalike.algorithms.profl import ProFL, weights
from unalike.check import check_algorithm
from unalike.data.federation import Federation, federation
from unalike.errors import InputError, RunError
from unalike.memory import needs
from unalike.memory.course import Course
from unalike.memory.liveness import Liveness
from unalike.models import chain
from unalike.models.progressive import AT_ONCE
from unalike.phases import ENDS, KINDS, Phase
from unalike.protocol import Arrival, ClientInfo, Job
from unalike.rng import Key

MODEL, T = f"{__file__}:net", 4
HEADER = 32 * 10 + 10
PROXY = {2: 9 * 4 * 8, 3: 9 * 8 * 16, 4: 9 * 16 * 32}
BLOCK = {1: 9 * 1 * 4 + 4 * 4, 2: 9 * 4 * 8 + 4 * 8, 3: 9 * 8 * 16 + 4 * 16, 4: 9 * 16 * 32 + 4 * 32}
"""Scalars of a convolution, and of a normalisation's two weights and two statistics; its count is 8 bytes more."""
ORDER = [(kind, t) for t in (4, 3, 2) for kind in ("shrink", "map")] + [("grow", t) for t in (1, 2, 3, 4)]


def net(input: tuple[int, ...], classes: int) -> nn.Module:
    """Four units of 4, 8, 16 and 32 channels: convolution, normalisation, ReLU."""
    units, channels = list[nn.Module](), input[0]
    for filters in (4, 8, 16, 32):
        units += [nn.Conv2d(channels, filters, 3, 2, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
        channels = filters
    return nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


@pytest.fixture(scope="module")
def given() -> Federation:
    """Three clients with a chain of four units and few rows."""
    return federation("digits", rows=120, clients=3, partition="iid", models=[MODEL], seed=1)


def method_of(given: Federation, **parameters: Any) -> ProFL:
    """With one round for each phase, unless told otherwise, all rows as one batch and plain SGD."""
    found: ProFL = prepared(
        "profl", given, **{"rounds": 99, "max_rounds": 1, "map_rounds": 1, "cuts": "0,1,2,3,4", **parameters}
    )
    return found


def job(
    method: ProFL, server: Any, given: Federation, client: int, state: Any = None, round: int = 999
) -> Job[Any, Any]:
    info = given.clients[client]
    down = method.broadcast(server, info, round)
    return Job(info, round, down, state or {}, given.data(client, "train"), KEY / client)


@dataclasses.dataclass
class Run:
    """Rounds by hand, with the bytes of trees after each of them."""

    method: ProFL
    given: Federation
    server: Any
    round: int = 0
    states: dict[int, Any] = dataclasses.field(default_factory=dict)
    down: dict[int, Any] = dataclasses.field(default_factory=dict)

    def go(self, *clients: int) -> Any:
        """One round; the server after it."""
        self.round += 1
        sent = []
        for k in clients or range(len(self.given.clients)):
            it = job(self.method, self.server, self.given, k, self.states.get(k), self.round)
            update = self.method.client_update(it)
            self.states[k], self.down[k] = update.state, it.down
            sent.append(Arrival(it.info, update.up, update.weight, update.metrics))
        self.server = self.method.aggregate(self.server, sent, self.round, KEY)
        self.server = tree.from_bytes(tree.to_bytes(self.server))  # as a run does that is resumed after every round
        return self.server

    def until(self, kind: str, step: int) -> Any:
        """The server when the phase begins."""
        while (phase := self.method.course.at(self.server["phase"])[0]) != Phase(kind, step):  # type: ignore[arg-type]
            assert self.round < 50, phase
            self.go()
        return self.server


def start(given: Federation, **parameters: Any) -> Run:
    method = method_of(given, **parameters)
    return Run(method, given, method.init_server(INIT))


# The order of things


def test_phases_follow_one_another_and_the_run_is_over_when_the_last_block_is_frozen(given: Federation) -> None:
    run, seen = start(given), []
    while not run.method.done(run.server, run.round):
        run.go()
        told = run.method.report(run.server, run.round)
        seen.append((KINDS[int(told["stage"])], int(told["step"])))
        assert ENDS[int(told["ended"])] == "limit"
    assert seen == ORDER
    assert run.round == 10 < run.method.rounds


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"shrinking": False}, "g1 g2 g3 g4"),
        ({"mapping": False}, "s4 s3 s2 g1 g2 g3 g4"),
        ({"proxies": "none"}, "s4 s3 s2 g1 g2 g3 g4"),
        ({"cuts": "0,2,4"}, "s2 m2 g1 g2"),
        ({"cuts": "0,4"}, "g1"),
    ],
)
def test_ablations_leave_phases_out(given: Federation, options: dict[str, Any], kinds: str) -> None:
    assert " ".join(f"{p.kind[0]}{p.step}" for p in method_of(given, **options).course.order) == kinds


def test_only_what_a_phase_trains_moves_and_all_else_is_the_same_to_the_bit(given: Federation) -> None:
    run = start(given)
    for kind, t in ORDER:
        before = tree.clone(run.server)
        run.go()
        for b in range(1, T + 1):
            same = tree.equal(before["blocks"][str(b)], run.server["blocks"][str(b)])
            assert same == (kind == "map" or b != t), (kind, t, b)
        if kind == "map":
            header = before["output"]["header"]
            assert tree.equal(header, run.server["output"]["header"]) == (t != T)
            for b, proxy in before["output"].get("proxies", {}).items():
                assert tree.equal(proxy, run.server["output"]["proxies"][b])


def test_the_model_at_the_end_is_its_blocks_and_the_header(given: Federation) -> None:
    run = start(given)
    for _ in ORDER:
        run.go()
    leaves = {name: leaf for block in run.server["blocks"].values() for name, leaf in block.items()}
    whole = {"extractor": leaves, "header": run.server["output"]["header"]}
    assert "proxies" not in run.server["output"]
    it = job(run.method, run.server, given, 1, run.states[1], run.round)
    x = it.data["x"][:9]
    found = run.method.predict(run.method.prepare(it.info, it.down, it.state, it.data, KEY), {"x": x})
    assert torch.equal(found, models.logits(run.method.shared, whole, x))
    assert leaves.keys() == models.initial(run.method.shared, KEY)["extractor"].keys()


def test_it_starts_from_fedavgs_weights(given: Federation) -> None:
    whole = prepared("fedavg", given).init_server(INIT)["model"]
    server = start(given).server
    assert tree.equal(server["output"]["header"], whole["header"])
    assert tree.equal({n: w for block in server["blocks"].values() for n, w in block.items()}, whole["extractor"])


def test_rounds_that_are_spent_end_the_run_where_it_is(given: Federation) -> None:
    """Of three rounds none is left after shrinking block 3: what is evaluated is its sub-model."""
    run = start(given, rounds=3, max_rounds=0)
    for _ in range(3):
        assert not run.method.done(run.server, run.round)
        run.go()
    assert run.method.done(run.server, 3)
    assert run.method.course.at(run.server["phase"])[0] == Phase("shrink", 3)
    assert set(job(run.method, run.server, given, 0, round=3).down["output"]["proxies"]) == {"4"}


# Shrinking and growing


def composed(method: ProFL, blocks: Mapping[str, Any], t: int, output: Any, x: torch.Tensor) -> torch.Tensor:
    """Sub-model t as its layers, block t and what follows it in training mode."""
    with torch.no_grad():
        y = x
        for b in range(1, t):
            y = chain.run(method.shared, method.course.cuts[b - 1], method.course.cuts[b], blocks[str(b)], y)
    y = chain.run(method.shared, method.course.cuts[t - 1], method.course.cuts[t], blocks[str(t)], y, train=True)
    for b in range(t + 1, T + 1):
        y = F.conv2d(y, output["proxies"][str(b)]["weight"], stride=2, padding=1)
    return F.linear(y.mean((2, 3)), output["header"]["weight"], output["header"]["bias"])


@pytest.mark.parametrize(("kind", "t"), [("shrink", 3), ("grow", 2)])
def test_a_round_is_a_step_of_block_proxies_and_header(given: Federation, kind: str, t: int) -> None:
    """x_k ← x_k − η ∇CE(sub-model_t), and of the frozen blocks nothing moves, nor is sent."""
    run = start(given)
    server = run.until(kind, t)
    it = job(run.method, server, given, 2, run.states.get(2))
    trained = tree.clone({"active": server["blocks"][str(t)], "output": server["output"]})
    leaves = {name: leaf.requires_grad_() for name, leaf in tree.flatten(trained).items() if "~" not in name}
    blocks = {**tree.clone(server["blocks"]), str(t): trained["active"]}
    logits = composed(run.method, blocks, t, trained["output"], it.data["x"])
    gradients = torch.autograd.grad(F.cross_entropy(logits, it.data["y"]), list(leaves.values()))
    expected = {n: leaf - 0.05 * g for (n, leaf), g in zip(leaves.items(), gradients, strict=True)}
    update = run.method.client_update(it)
    found = tree.flatten(update.up)
    assert found.keys() == tree.flatten({"active": it.down["active"], "output": it.down["output"]}).keys()
    for name, leaf in expected.items():
        assert torch.allclose(found[name], leaf, atol=1e-5), name
    assert update.weight == it.info.n
    assert update.metrics["loss"] == pytest.approx(float(F.cross_entropy(logits, it.data["y"]).detach()), rel=1e-4)


def test_aggregation_is_the_mean_weighted_by_samples(given: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2."""
    run = start(given)
    server = run.until("shrink", 3)
    up = run.method.client_update(job(run.method, server, given, 0)).up
    sent = [
        Arrival(a.info, a.up, a.weight, {"loss": 1.0})
        for a in arrivals(given, (constant(up, 1.0), 3.0), (constant(up, 5.0), 1.0))
    ]
    after = dataclasses.replace(run.method, max_rounds=9).learned(server, sent)
    assert is_all(after["blocks"]["3"], 2.0)
    assert is_all(after["output"], 2.0)
    assert tree.equal(after["blocks"]["2"], server["blocks"]["2"])


def test_growing_starts_a_block_from_what_shrinking_made_of_it_and_block_1_fresh(given: Federation) -> None:
    run = start(given)
    first = tree.clone(run.server["blocks"])
    shrunk = tree.clone(run.until("grow", 1)["blocks"])
    assert tree.equal(shrunk["1"], first["1"])
    for t in (1, 2, 3, 4):
        server = run.until("grow", t)
        sent = run.method.broadcast(server, given.clients[0], run.round + 1)
        assert tree.equal(sent["active"], shrunk[str(t)])
        assert t == 1 or not tree.equal(sent["active"], first[str(t)])


# Mapping


@pytest.mark.parametrize("t", [4, 3])
def test_mapping_is_a_step_of_the_proxy_towards_the_sub_models_logits(given: Federation, t: int) -> None:
    """proxy_t ← proxy_t − η_m ∇ mean (student − teacher)²; only at t = T a header trains along."""
    run = start(given, map_lr=0.5)
    server = run.until("map", t)
    it = job(run.method, server, given, 1)
    student = tree.clone(server["student"])
    assert student.keys() == ({"proxy", "header"} if t == T else {"proxy"})
    leaves = {name: leaf.requires_grad_() for name, leaf in tree.flatten(student).items()}
    header = student.get("header", server["output"]["header"])
    y = it.data["x"]
    with torch.no_grad():
        for b in range(1, t):
            y = chain.run(
                run.method.shared, run.method.course.cuts[b - 1], run.method.course.cuts[b], server["blocks"][str(b)], y
            )
        z = chain.run(
            run.method.shared, run.method.course.cuts[t - 1], run.method.course.cuts[t], server["blocks"][str(t)], y
        )
        kernels = [server["output"]["proxies"][str(b)]["weight"] for b in range(t + 1, T + 1)]
        for kernel in kernels:
            z = F.conv2d(z, kernel, stride=2, padding=1)
        old = server["output"]["header"]
        teacher = F.linear(z if t == T else z.mean((2, 3)), old["weight"], old["bias"])
    for kernel in (student["proxy"]["weight"], *kernels):
        y = F.conv2d(y, kernel, stride=2, padding=1)
    loss = (F.linear(y.mean((2, 3)), header["weight"], header["bias"]) - teacher).square().mean()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    expected = {n: leaf - 0.5 * g for (n, leaf), g in zip(leaves.items(), gradients, strict=True)}
    update = run.method.client_update(it)
    assert update.up.keys() == {"student"}
    found = tree.flatten(update.up["student"])
    assert all(torch.allclose(found[name], leaf, atol=1e-5) for name, leaf in expected.items())
    assert update.metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_what_mapping_has_taught_takes_the_blocks_place(given: Federation) -> None:
    run = start(given, max_rounds=2, map_rounds=2)
    run.until("map", 4)
    student = run.go()["student"]
    up = run.method.client_update(job(run.method, run.server, given, 0)).up["student"]
    sent = [Arrival(given.clients[0], {"student": up}, 1.0, {"loss": 0.5})]
    after = run.method.aggregate(run.server, sent, run.round + 1, KEY)
    assert run.method.course.at(after["phase"])[0] == Phase("shrink", 3)
    assert close(after["output"]["proxies"]["4"], up["proxy"])
    assert close(after["output"]["header"], up["header"])
    assert not tree.equal(up, student)


def test_without_mapping_the_proxy_is_a_fresh_one(given: Federation) -> None:
    run = start(given, mapping=False)
    fresh = start(given, shrinking=False).server["output"]["proxies"]
    assert tree.equal(run.until("shrink", 3)["output"]["proxies"], {"4": fresh["4"]})


def test_the_step_size_of_mapping_is_what_the_server_sends(given: Federation) -> None:
    run = start(given, map_rounds=9, rounds=999, map_lr=0.25)
    run.until("map", 4)
    known = run.server["seen"]
    for loss, lr in ((1.0, 0.25), (2.0, 0.125)):
        up = run.method.client_update(job(run.method, run.server, given, 0)).up
        run.server = run.method.aggregate(run.server, [Arrival(given.clients[0], up, 1.0, {"loss": loss})], 3, KEY)
        assert float(run.method.broadcast(run.server, given.clients[0], 4)["lr"]) == lr
    assert float(known["lr"]) == 0.25


def test_the_loss_of_mapping_is_the_mean_weighted_by_samples(given: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2."""
    run = start(given, map_rounds=9, rounds=999)
    run.until("map", 4)
    up = run.method.client_update(job(run.method, run.server, given, 0)).up
    sent = [Arrival(given.clients[k], up, weight, {"loss": loss}) for k, weight, loss in ((0, 3.0, 1.0), (1, 1.0, 5.0))]
    after = run.method.aggregate(run.server, sent, 3, KEY)
    assert run.method.report(after, 3)["loss"] == 2.0


# Where growing has its output module from


def test_proxies_and_header_are_carried_from_step_to_step(given: Federation) -> None:
    run = start(given)
    for t in (2, 3, 4):
        before = run.until("grow", t - 1)
        assert set(before["output"].get("proxies", {})) == {str(b) for b in range(t, T + 1)}
        trained = tree.clone(run.go()["before"]["output"])
        assert tree.equal(run.server["output"]["header"], trained["header"])
        assert all(
            tree.equal(run.server["output"]["proxies"][str(b)], trained["proxies"][str(b)]) for b in range(t + 1, 5)
        )


def test_or_are_those_trained_beside_the_block_in_shrinking(given: Federation) -> None:
    run = start(given, proxies="shrinking")
    kept = {}
    for t in (4, 3, 2):
        run.until("shrink", t)
        kept[t] = tree.clone(run.go()["output"])
    run.until("grow", 1)
    for t in (2, 3, 4):
        assert tree.equal(run.until("grow", t)["output"], kept[t])


def test_without_proxies_each_step_has_a_linear_header_of_its_width(given: Federation) -> None:
    run = start(given, proxies="none")
    kept = {}
    for kind, t in [(k, t) for k, t in ORDER if k != "map"]:
        server = run.until(kind, t)
        assert server["output"]["header"]["weight"].shape == (10, 4 * 2 ** (t - 1))
        assert not server["output"].get("proxies")
        if kind == "grow" and t > 1:
            assert tree.equal(server["output"], kept[t])
        kept[t] = tree.clone(run.go()["output" if (kind, t) == ORDER[-1] else "before"])
        kept[t] = kept[t].get("output", kept[t])


# What travels


def test_the_active_block_and_the_output_module_travel_and_no_more(given: Federation) -> None:
    """Beside it a place in the order (8 bytes), in shrinking and mapping a key (32), in mapping a step size (8)."""
    run = start(given)
    for kind, t in ORDER:
        run.until(kind, t)
        it = job(run.method, run.server, given, 0, run.states.get(0))
        up = run.method.client_update(it).up
        block = 4 * BLOCK[t] + 8
        proxies = sum(PROXY[b] for b in range(t + 1, T + 1))
        if kind == "map":
            assert tree.nbytes(up) == 4 * (PROXY[t] + (HEADER if t == T else 0))
            assert tree.nbytes(it.down) == block + tree.nbytes(up) + 4 * (proxies + HEADER) + 8 + 8 + 32
        else:
            assert tree.nbytes(up) == block + 4 * (proxies + HEADER)
        if kind == "shrink":
            assert tree.nbytes(it.down) == tree.nbytes(up) + 8 + 32
        run.go()


def test_a_frozen_block_is_sent_to_each_client_once(given: Federation) -> None:
    run = start(given, shrinking=False, max_rounds=3)
    run.until("grow", 3)
    holders = {b: ids.tolist() for b, ids in run.server["holders"].items()}
    assert holders == {"1": [0, 1, 2]}
    run = start(given, shrinking=False, max_rounds=3)
    frozen: list[Any] = []
    for clients in ([0], [0], [0], [0, 1], [0, 1], [1], [0, 1], [0, 1, 2], [0], [2], [1], [0]):
        step = run.method.course.at(run.server["phase"])[0].step
        run.down.clear()
        run.go(*clients)
        frozen.append((step, {k: sorted(down.get("frozen", {})) for k, down in run.down.items()}))
    assert frozen == [
        (1, {0: []}),
        (1, {0: []}),
        (1, {0: []}),
        (2, {0: ["1"], 1: ["1"]}),
        (2, {0: [], 1: []}),
        (2, {1: []}),
        (3, {0: ["2"], 1: ["2"]}),
        (3, {0: [], 1: [], 2: ["1", "2"]}),
        (3, {0: []}),
        (4, {2: ["3"]}),
        (4, {1: ["3"]}),
        (4, {0: ["3"]}),
    ]
    for state in run.states.values():
        assert tree.equal(state["frozen"], {b: run.server["blocks"][b] for b in ("1", "2", "3")})


def test_frozen_blocks_of_shrinking_are_drawn_and_not_sent(given: Federation) -> None:
    run = start(given)
    server = run.until("shrink", 3)
    it = job(run.method, server, given, 0)
    assert "frozen" not in it.down
    drawn = run.method.prepare(it.info, it.down, {}, it.data, KEY)["weights"]["frozen"]
    assert tree.equal(drawn, {**server["blocks"]["1"], **server["blocks"]["2"]})
    assert tree.flatten(run.method.client_update(it).state) == {}


def test_clients_that_get_the_same_get_the_same_tensors(given: Federation) -> None:
    run = start(given)
    for kind, t in ORDER:
        server = run.until(kind, t)
        a, b = (tree.flatten(run.method.broadcast(server, info, run.round + 1)) for info in given.clients[:2])
        assert a.keys() == b.keys()
        assert all(leaf is b[name] for name, leaf in a.items())


def test_what_was_trained_in_a_round_is_what_is_scored_after_it(given: Federation) -> None:
    """The next phase begins with the next round, although the server has entered it."""
    run = start(given)
    for kind, t in ORDER[:-1]:
        run.until(kind, t)
        run.go()
        scored, trained = (run.method.broadcast(run.server, given.clients[0], run.round + i) for i in (0, 1))
        assert run.method.course.at(scored["phase"])[0] == Phase(kind, t)  # type: ignore[arg-type]
        assert run.method.course.at(trained["phase"])[0] != Phase(kind, t)  # type: ignore[arg-type]
        assert set(scored["output"].get("proxies", {})) == {str(b) for b in range(t + 1, T + 1)}
        ready = run.method.prepare(given.clients[0], scored, run.states[0], {}, KEY)
        assert run.method.predict(ready, {"x": torch.zeros(2, 1, 8, 8)}).shape == (2, 10)


# Normalisation of frozen blocks


def test_frozen_blocks_keep_their_statistics(given: Federation) -> None:
    run = start(given, rounds=99)
    before = tree.clone(run.server["blocks"]["1"])
    run.until("grow", 1)
    assert tree.equal(run.server["blocks"]["1"], before)
    assert "statistics" not in job(run.method, run.server, given, 0).down


def test_or_go_on_counting_and_send_their_statistics(given: Federation) -> None:
    run = start(given, frozen_bn="train")
    for kind, t in [("shrink", 3), ("grow", 3)]:
        run.until(kind, t)
        before = tree.clone(run.server["blocks"])
        up = [run.method.client_update(job(run.method, run.server, given, k, run.states.get(k))).up for k in range(3)]
        assert set(up[0]["statistics"]) == {"1", "2"}
        assert all("~" in name for name in tree.flatten(up[0]["statistics"]))
        after = run.go()["blocks"]
        rows = [info.n for info in given.clients]
        expected = tree.weighted_mean([u["statistics"] for u in up], rows)
        for b in ("1", "2"):
            assert tree.equal(weights(after[b]), weights(before[b]))
            assert tree.equal({n: after[b][n] for n in expected[b]}, expected[b])
            assert not tree.equal(after[b], before[b])
        sent = run.down[0].get("frozen", {})
        assert all("~" not in name for name in tree.flatten(sent))
    it = job(run.method, run.server, given, 0, run.states[0], run.round)
    used = run.method.prepare(it.info, it.down, it.state, it.data, KEY)["weights"]["frozen"]
    assert tree.equal(used, {**run.server["blocks"]["1"], **run.server["blocks"]["2"]})


# The freeze rule


def test_a_block_is_frozen_when_its_movement_is_level_and_low(given: Federation) -> None:
    """With H = 1 all values are 1, which is less than 1.2: the rule fires after two of them, and is told."""
    run = start(given, cuts="0,2,4", window=1, patience=1, max_rounds=9, map_rounds=9, map_lr=1e-12)
    ends, limits = [], []
    while not run.method.done(run.server, run.round):
        run.go()
        told = run.method.report(run.server, run.round)
        ends.append((KINDS[int(told["stage"])], int(told["step"]), int(told["rounds"]), ENDS[int(told["ended"])]))
        limits.append(told["limit"])
        assert ("movement" in told) == (ends[-1][0] != "map")
    assert ends == [
        (kind, t, k, "rule" if k == 2 else "")
        for kind, t in [("shrink", 2), ("map", 2), ("grow", 1), ("grow", 2)]
        for k in (1, 2)
    ]
    assert limits[:2] == limits[-4:-2] == [9, 9]


def test_with_fixed_lengths_no_rule_fires(given: Federation) -> None:
    run = start(given, cuts="0,2,4", window=1, patience=1, max_rounds=3, map_rounds=3, map_lr=1e-12, freeze="fixed")
    ends = []
    while not run.method.done(run.server, run.round):
        run.go()
        ends.append(ENDS[int(run.method.report(run.server, run.round)["ended"])])
    assert ends == ["", "", "limit"] * 4


def test_the_rule_follows_the_global_block(given: Federation) -> None:
    """EM over three rounds is that of the block's weights at the server."""
    run = start(given, window=3, max_rounds=9)
    seen = [run.server["blocks"]["4"]]
    for _ in range(3):
        seen.append(tree.clone(run.go()["blocks"]["4"]))
    flat = torch.stack([torch.cat([w.flatten() for w in tree.flatten(weights(b)).values()]) for b in seen]).double()
    way = flat.diff(dim=0).abs().sum()
    assert run.method.report(run.server, 3)["movement"] == pytest.approx(float((flat[-1] - flat[0]).abs().sum() / way))


# Who takes part


def with_memory(memory: Sequence[int | None]) -> list[ClientInfo]:
    return [ClientInfo(k, "tier", 10, m) for k, m in enumerate(memory)]


@pytest.fixture(scope="module")
def budgeted(given: Federation) -> ProFL:
    return method_of(given, batch_size=16, fraction=0.5)


def test_the_need_of_the_phase_at_hand_decides(budgeted: ProFL, given: Federation) -> None:
    """Needs are those of the step, or of mapping; whoever is without a budget takes part in everything."""
    by = {phase: budgeted.course.need(phase) for phase in budgeted.course.order}
    sub = dataclasses.replace(budgeted.course.sub(2), at_once=AT_ONCE[-1])
    sgd, task = budgeted.optimiser(), budgeted.task
    assert by[Phase("grow", 2)] == by[Phase("shrink", 2)] == needs.step(sub, task, sgd, 16)
    assert by[Phase("map", 2)] == needs.mapping(sub, sgd, task, 16)
    assert len(set(by.values())) == 7
    budgets = sorted(set(by.values()))
    clients = with_memory([*budgets, None])
    server = budgeted.init_server(INIT)
    for place, phase in enumerate(budgeted.course.order):
        at = {**server, "phase": torch.tensor(place)}
        able = {c.id for c in clients if c.memory is None or c.memory >= by[phase]}
        met = {c.id for r in range(12) for c in budgeted.select(at, clients, r, Key.root(r))}  # type: ignore[arg-type]
        assert met <= able
        assert all(len(budgeted.select(at, clients, r, Key.root(r))) == min(4, len(able)) for r in range(3))  # type: ignore[arg-type]


def test_where_memory_is_short_fewer_rows_pass_the_frozen_blocks_at_once(budgeted: ProFL) -> None:
    need, (many, few) = budgeted.course.need, AT_ONCE
    phase = next(p for p in budgeted.course.order if need(p, few) < need(p, many))
    least, most = need(phase, few), need(phase, many)
    found = {m: budgeted.course.fitted(phase, with_memory([m])[0]).at_once for m in (least, most - 1, most, None)}
    assert found == {least: few, most - 1: few, most: many, None: many}


def test_without_budgets_the_draw_is_that_of_every_method_and_nothing_is_predicted(
    budgeted: ProFL, given: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Course, "need", lambda *_: pytest.fail("there are no budgets"))
    server, clients = budgeted.init_server(INIT), with_memory([None] * 20)
    plain = prepared("fedavg", given, fraction=0.5)
    budgeted.require(clients)
    for r in range(3):
        key = Key.root(r)
        assert budgeted.select(server, clients, r, key) == plain.select({}, clients, r, key)


class Lazy(Sequence[ClientInfo]):
    """A million clients, every second one with little memory, of which only those that are asked for exist."""

    asked = 0

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, i: Any) -> Any:
        self.asked += 1
        return ClientInfo(i, "tier", 10, None if i % 2 else 1)

    def __iter__(self) -> Any:
        raise AssertionError("select must not iterate over the clients")


def test_of_a_million_clients_few_are_looked_at(budgeted: ProFL) -> None:
    method, clients = dataclasses.replace(budgeted, fraction=2e-5), Lazy()
    chosen = method.select(method.init_server(INIT), clients, 1, KEY)
    assert len({c.id for c in chosen}) == 20
    assert all(c.id % 2 for c in chosen)
    assert clients.asked < 200


def test_a_step_that_no_client_can_take_is_refused_before_the_run(budgeted: ProFL) -> None:
    largest = max(budgeted.course.need(phase) for phase in budgeted.course.order)
    budgeted.require(with_memory([60_000, largest]))
    with pytest.raises(
        InputError, match=r"^profl: to predict with the whole model takes .* and client 0 has 0\.00 MiB"
    ):
        budgeted.require(with_memory([1000, largest]))
    what = r"profl: no client's memory holds what it takes to (shrink|grow) block \d"
    with pytest.raises(
        InputError, match=rf"^{what}: it needs [\d.]+ MiB, and the largest budget is .*: cut the chain finer"
    ):
        budgeted.require(with_memory([60_000, largest - 1]))


def test_and_ends_the_run_when_it_is_found_out_later(budgeted: ProFL) -> None:
    with pytest.raises(RunError, match="round 7: nobody is there whose memory holds what it takes to shrink block 4"):
        budgeted.select(budgeted.init_server(INIT), with_memory([1, 2, 3]), 7, KEY)


def test_a_fleet_in_which_nobody_fits_the_whole_model_trains_it(tmp_path: Path) -> None:
    found = federation("digits", rows=240, clients=4, partition="iid", models=[MODEL], seed=1)
    keys = {"rounds": 12, "batch_size": 16, "engine": "serial", "fraction": 0.5, "cuts": "0,1,2,3,4"}
    keys |= {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "local_epochs": 1}
    method: Any = api.prepare("profl", found, **keys).algorithm
    by = {phase: method.course.need(phase) for phase in method.course.order}
    full = needs.whole(method.shared, method.task, method.optimiser(), 16)
    assert max(by.values()) < full
    fleet = found.with_budgets((max(by.values()), full - 1, max(by.values()), min(by.values())))
    run = api.run("profl", fleet, out=tmp_path / "run", report=False, **keys)
    rounds = [event for event in run.events() if event["event"] == "round"]
    seen = [(KINDS[int(e["metrics"]["server"]["stage"])], int(e["metrics"]["server"]["step"])) for e in rounds]
    assert list(dict.fromkeys(seen)) == ORDER
    allowed = {name: {k for k in range(4) if fleet.clients[k].memory >= by[Phase(*name)]} for name in ORDER}  # type: ignore[arg-type,operator]
    assert all(set(e["clients"]) <= allowed[at] for e, at in zip(rounds, seen, strict=True))
    assert run.summary["memory"]["over"] == 0
    assert run.summary["memory"]["visits"] == sum(len(e["clients"]) for e in rounds)


def test_a_client_with_a_budget_predicts_a_few_rows_at_once(given: Federation) -> None:
    """With the same outcome, and beside less memory than all rows at once take."""
    run = start(given, cuts="0,4")
    it = job(run.method, run.server, given, 0)
    x, outputs = torch.cat([it.data["x"]] * 3), []
    few = needs.evaluated_step(run.method.course.sub(1), 8)
    for info in (it.info, dataclasses.replace(it.info, memory=few)):
        tracker = Liveness(details=False)
        tracker.ignore([x])
        with torch.no_grad(), tracker:
            outputs.append(run.method.predict(run.method.prepare(info, it.down, it.state, it.data, KEY), {"x": x}))
        outputs.append(torch.tensor(float(tracker.most)))
    all_rows, peak, few_rows, least = outputs
    assert torch.allclose(all_rows, few_rows, atol=1e-6)
    assert least < peak / 3


def test_a_plan_is_what_the_run_does(given: Federation) -> None:
    """Its needs are those by which clients are chosen; its bytes those of the messages; its rounds those of the run."""
    run = start(given, batch_size=16, rounds=33, max_rounds=0, freeze="fixed")
    stages = run.method.plan()
    assert [stage.name for stage in stages] == [f"{kind} block {t}" for kind, t in ORDER]
    for stage, phase in zip(stages, run.method.course.order, strict=True):
        assert (stage.need, stage.step) == (run.method.course.need(phase), phase.step)
        assert stage.units == chain.units(run.method.shared)[phase.step - 1 : phase.step]
    assert [stage.turn for stage in stages] == list(range(10))
    lasted = {stage.name: 0 for stage in stages}
    assert sum(stage.rounds for stage in stages) == 33
    for place, (kind, t) in enumerate(ORDER):
        stage = stages[place]
        while str(run.method.course.at(run.server["phase"])[0]) == stage.name and not run.method.done(
            run.server, run.round
        ):
            it = job(run.method, run.server, given, 0, run.states.get(0))
            once = it.down.pop("frozen", {})
            assert tree.nbytes(it.down) == stage.down
            assert tree.nbytes(once) in (0, stage.once)
            run.go()
            lasted[stage.name] += 1
        assert stage.once == (4 * BLOCK[t - 1] + 8 if kind == "grow" and t > 1 else 0)
    assert lasted == {stage.name: stage.rounds for stage in stages}


# Cuts


def test_cuts_are_the_papers_or_as_given(given: Federation) -> None:
    assert method_of(given, cuts="0,2,4").course.cuts == (0, 2, 4)
    paper = federation("digits", rows=120, clients=3, partition="iid", models=["resnet18(width=0.0625)"])
    assert method_of(paper, cuts="paper").course.cuts == (0, 3, 5, 7, 9)
    for wrong, said in (
        ("0,2", "has 4 units: cuts must rise from 0 to 4"),
        ("two", "it should be paper, auto or units"),
    ):
        with pytest.raises(InputError, match=said):
            method_of(given, cuts=wrong)


def test_auto_cuts_by_memory_into_so_many_steps_or_the_fewest_that_fit(given: Federation) -> None:
    keys = {"cuts": "auto", "batch_size": 16, "rounds": 99}
    plain = method_of(given, steps=2, **keys)
    assert len(plain.course.cuts) == 3
    largest = max(plain.course.need(phase) for phase in plain.course.order)
    assert largest < needs.whole(plain.shared, plain.task, plain.optimiser(), 16)
    for rho, memory in ((1.0, (largest,) * 3), (0.6, (largest, largest, 60_000))):
        fitted = method_of(given.with_budgets(memory), steps=4, rho=rho, **keys)
        assert fitted.course.cuts == plain.course.cuts
    with pytest.raises(InputError, match="no partition into at most 2 blocks fits"):
        method_of(given.with_budgets((largest - 1,) * 3), steps=2, **keys)


def test_a_model_that_brings_no_cuts_is_cut_by_memory_and_one_that_is_no_chain_is_refused(given: Federation) -> None:
    assert (
        method_of(given, cuts="paper", steps=3, batch_size=16).course.cuts
        == method_of(given, cuts="auto", steps=3, batch_size=16).course.cuts
    )
    with pytest.raises(InputError, match=r"cannot be cut into blocks: the chain breaks at its extractor, a Own with"):
        method_of(federation("digits", rows=100, clients=2, models=[f"{__file__}:Own"], min_per_client=20))


class Own(nn.Module):
    """A forward of its own is no chain."""

    def __init__(self, input: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.first(x.flatten(1)).relu())
        return y


def test_what_auto_has_found_is_written_down(given: Federation, tmp_path: Path) -> None:
    run = api.run("profl", given, out=tmp_path / "r", cuts="auto", steps=2, rounds=1, report=False, engine="serial")
    cuts = config.from_toml(run.folder / "experiment.toml").parameters["cuts"]
    assert cuts == run.summary["parameters"]["cuts"]
    assert len(cuts.split(",")) == 3


# The contract


def test_any_interruption_is_resumed_to_the_same_bits(given: Federation, tmp_path: Path) -> None:
    """After every round: within shrinking, mapping and growing, and between them."""
    keys = {"rounds": 11, "local_epochs": 1, "engine": "serial", "cuts": "0,2,4", "fraction": 0.5, "max_rounds": 2}
    keys["proxies"] = "shrinking"
    whole = api.run("profl", given, out=tmp_path / "whole", report=False, **keys).summary

    class StoppedError(Exception):
        pass

    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "round":
            raise StoppedError

    with pytest.raises(StoppedError):
        api.run("profl", given, out=tmp_path / "halting", listeners=[stop], report=False, **keys)
    for _ in itertools.count(2):
        try:
            halting = api.resume(tmp_path / "halting", given, listeners=[stop], report=False).summary
            break
        except StoppedError:
            continue
    assert halting["rounds"] == whole["rounds"] > 6
    assert halting["state_sha256"] == whole["state_sha256"]


def test_growing_keeps_the_contract(given: Federation) -> None:
    check_algorithm(ProFL(shrinking=False, frozen_bn="train", cuts="0,2,4"), given)


def test_the_exported_model_is_the_one_that_was_scored(given: Federation, tmp_path: Path) -> None:
    """Round 3 ends the growing of block 1, and what it trained is what a client takes home."""
    keys = {"rounds": 3, "shrinking": False, "cuts": "0,1,2,4", "local_epochs": 1, "engine": "serial"}
    run = api.run("profl", given, out=tmp_path / "run", report=False, **keys)
    for last in (True, False):
        from unalike.personal import extract

        model = extract(run.folder, 0, last=last)
        event = next(e for e in run.events() if e["event"] == "round" and e["round"] == model.round)
        data = given.data(0, "test")
        ready = model.ready_on("cpu")
        found = model.algorithm.predict(ready, data).argmax(1)
        accuracy = float((found == data["y"]).float().mean())
        assert accuracy == pytest.approx(event["evaluation"]["test"]["0"]["accuracy"])


def test_the_preset_is_the_papers(given: Federation) -> None:
    found = api.prepare("profl", given, preset="paper").algorithm
    paper = {"rounds": 1000, "fraction": 0.2, "local_epochs": 5, "batch_size": 64, "lr": 0.01, "momentum": 0.9}
    paper |= {"weight_decay": 5e-4, "window": 20, "patience": 15}
    assert {name: getattr(found, name) for name in paper} == paper
