"""FedDAT, half by half: what a batch trains and in which order, both lessons by hand, what rests and what travels."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seeing import noisy
from unalike import api, compare, local, personal, runs, tree
from unalike.data.federation import Federation, federation
from unalike.errors import InputError
from unalike.models import multimodal
from unalike.protocol import Arrival, Job
from unalike.report import views
from unalike.report.read import read_run
from unalike.rng import Key

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 1
LR = 0.01


def prepared(pictured: Federation, **parameters: Any) -> Any:
    """FedDAT whose epochs are one batch of all rows."""
    return api.prepare("feddat", pictured, **{"batch_size": 10**6, "lr": LR, **parameters}).algorithm


def job(method: Any, pictured: Federation, client: int = 0, round: int = 1) -> Any:
    """A visit in the middle of a run: no adapter is as it began, and the head is sure of itself."""
    info = pictured.clients[client]
    own = method.models[info.tier]
    head = {name: 8 * leaf for name, leaf in multimodal.initial_head(own, KEY / "head").items()}
    state = {"adapter": noisy(own, "adapter", 1), "head": head}
    down = {"adapter": noisy(own, "adapter", 2)}
    return Job(info, round, down, state, pictured.data(client, "train"), KEY / client)


def outputs(method: Any, it: Any, adapters: list[Any], head: Any) -> Tensor:
    return multimodal.logits(method.models[it.info.tier], {"adapter": adapters}, head, it.data)


def lesson(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """τ² Σ p_T (ln p_T − ln p_S) / B."""
    p, q = (z.div(tau).softmax(1) for z in (teacher, student))
    return tau**2 * (p * (p.log() - q.log())).sum() / len(p)


def by_hand(method: Any, it: Any, epochs: int = 1, tau: float = 3.0, alpha: float = 1.0) -> dict[str, Any]:
    """A visit by torch's AdamW: one optimiser for each of A_s, A_c and the head, no decay on vectors."""
    copy = it.down["adapter"]
    parts = {"shared": copy, "local": it.state["adapter"], "head": it.state["head"]}
    leaves = {part: {n: w.clone().requires_grad_() for n, w in tensors.items()} for part, tensors in parts.items()}
    by: dict[str, Any] = {}
    for part, found in leaves.items():
        groups = [([w for w in found.values() if w.ndim > 1], 1e-2), ([w for w in found.values() if w.ndim == 1], 0.0)]
        asked = [{"params": weights, "weight_decay": decay} for weights, decay in groups]
        by[part] = torch.optim.AdamW(asked, lr=LR, betas=(0.9, 0.98))

    def step(loss: Tensor, *parts: str) -> None:
        weights = [w for part in parts for w in leaves[part].values()]
        for w, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            w.grad = gradient
        for part in parts:
            by[part].step()

    run = functools.partial(outputs, method, it)
    for _ in range(epochs):
        with torch.no_grad():
            z_t = run([leaves["local"], copy], leaves["head"])
        z_s = run([leaves["shared"]], leaves["head"])
        step(0.5 * (method.task.loss(z_s, it.data) + alpha * lesson(z_t, z_s, tau)), "shared", "head")
        z_d = run([leaves["local"], copy], leaves["head"])
        step(0.5 * (method.task.loss(z_d, it.data) + alpha * lesson(z_s.detach(), z_d, tau)), "local", "head")
    return {part: {n: w.detach() for n, w in found.items()} for part, found in leaves.items()}


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """The same but for the order of sums: AdamW's first steps are lr · sign of a gradient, so one of nearly 0 may fall
    either way."""
    assert found.keys() == expected.keys()
    near = torch.cat([(found[n] - expected[n]).abs().flatten() < LR / 10 for n in expected])
    return bool(near.float().mean() > 0.98)


# A visit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [0, 1, 2])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_visit_alternates_and_the_head_keeps_one_memory(epochs: int, client: int, pictured: Federation) -> None:
    method = prepared(pictured, local_epochs=epochs)
    it = job(method, pictured, client)
    update, expected = method.client_update(it), by_hand(method, it, epochs)
    assert close(update.up["adapter"], expected["shared"])
    assert close(update.state["adapter"], expected["local"])
    assert close(update.state["head"], expected["head"])
    assert update.weight == 12


def test_z_s_of_the_second_half_is_from_before_the_first_step(pictured: Federation) -> None:
    method = prepared(pictured)
    it, optimiser = job(method, pictured), local.SGD(0.0)
    told: list[Tensor] = []
    first, second = method.steps(it.info, 1.0)

    def looking(params: Any, given: Any, batch: Any) -> Tensor:
        told.append(batch["z_s"])
        assert not batch["z_s"].requires_grad
        return second.loss(params, given, batch)

    steps = [first, local.Step(looking, dict.fromkeys(second.trains, optimiser))]
    params = {"shared": it.down["adapter"], "local": it.state["adapter"], "head": it.state["head"]}
    tuned, _ = local.train(steps, params, {"copy": it.down["adapter"]}, [it.data], KEY)
    assert told[0].equal(outputs(method, it, [it.down["adapter"]], it.state["head"]))
    assert not told[0].equal(outputs(method, it, [tuned["shared"]], it.state["head"]))


def test_each_half_leaves_the_other_adapter_bit_identical(pictured: Federation) -> None:
    """Over several batches, with what the optimiser remembers of them."""
    method = prepared(pictured)
    it = job(method, pictured)
    params = {"shared": it.down["adapter"], "local": it.state["adapter"], "head": it.state["head"]}
    for half, rests, moves in ((0, "local", "shared"), (1, "shared", "local")):
        batch = it.data | {"z_s": outputs(method, it, [it.down["adapter"]], it.state["head"])}
        steps = [method.steps(it.info, 1.0)[half]]
        tuned, _ = local.train(steps, params, {"copy": it.down["adapter"]}, [batch] * 3, KEY)
        assert tree.equal(tuned[rests], params[rests])
        assert all(not tuned[moves][n].equal(w) for n, w in params[moves].items() if n.endswith("up.bias"))
        assert not tree.equal(tuned["head"], params["head"])


def test_resting_while_the_other_moves_within_one_visit(pictured: Federation) -> None:
    """After the first half of the second batch A_c is what the second half of the first one left."""
    method = prepared(pictured)
    it = job(method, pictured)
    seen: list[Any] = []

    def watched(step: local.Step) -> local.Step:
        def loss(params: Any, given: Any, batch: Any) -> Any:
            seen.append(tree.clone(params))
            return step.loss(params, given, batch)

        return local.Step(loss, step.trains)

    params = {"shared": it.down["adapter"], "local": it.state["adapter"], "head": it.state["head"]}
    steps = [watched(step) for step in method.steps(it.info, 1.0)]
    local.train(steps, params, {"copy": it.down["adapter"]}, [it.data] * 3, KEY)
    for before, after, rests in zip(seen, seen[1:], ["local", "shared"] * 3, strict=False):
        assert tree.equal(before[rests], after[rests])
        assert not tree.equal(before["head"], after["head"])


@pytest.mark.parametrize(
    ("head_by", "trains"), [("both", [True, True]), ("shared", [True, False]), ("dual", [False, True])]
)
def test_which_half_trains_the_head(head_by: str, trains: list[bool], pictured: Federation) -> None:
    method = prepared(pictured, head_by=head_by)
    it = job(method, pictured)
    params = {"shared": it.down["adapter"], "local": it.state["adapter"], "head": it.state["head"]}
    batch = it.data | {"z_s": outputs(method, it, [it.down["adapter"]], it.state["head"])}
    for step, moves, trained in zip(method.steps(it.info, 1.0), ("shared", "local"), trains, strict=True):
        tuned, _ = local.train([step], params, {"copy": it.down["adapter"]}, [batch], KEY)
        assert not tree.equal(tuned[moves], params[moves])
        assert tree.equal(tuned["head"], params["head"]) is not trained


# The lessons ---------------------------------------------------------------------------------------------------------


def losses(method: Any, it: Any, round: int = 1) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """L_s and L_D of the untrained visit, and the logits that they are made of."""
    copy, own, head = it.down["adapter"], it.state["adapter"], it.state["head"]
    shared = {n: w + 0.1 for n, w in copy.items()}
    params, given = {"shared": shared, "local": own, "head": head}, {"copy": copy}
    first, second = method.steps(it.info, method.alpha if round > method.warmup else 0.0)
    loss, told = first.loss(params, given, it.data)
    z = {"dual": [own, copy], "local": [own], "copy": [copy], "shared": [shared]}
    found = {name: outputs(method, it, adapters, head) for name, adapters in z.items()}
    return loss, second.loss(params, given, {**it.data, **told}), found


def expected(method: Any, it: Any, student: Tensor, teacher: Tensor | None, alpha: float = 1.0, tau: float = 3) -> Any:
    kl = 0.0 if teacher is None else alpha * lesson(teacher, student, tau)
    return pytest.approx(float(0.5 * (method.task.loss(student, it.data) + kl)), rel=1e-5)


def test_both_lessons_by_hand(pictured: Federation) -> None:
    """KL(teacher ‖ student), times τ² and α; the other way round is another number."""
    for parameters in ({}, {"tau": 1.0}, {"alpha": 0.3, "tau": 5.0}):
        method = prepared(pictured, **parameters)
        it = job(method, pictured)
        l_s, l_d, z = losses(method, it)
        how = {"alpha": method.alpha, "tau": method.tau}
        assert float(l_s) == expected(method, it, z["shared"], z["dual"], **how)
        assert float(l_d) == expected(method, it, z["dual"], z["shared"], **how)
        back = method.task.loss(z["shared"], it.data) + method.alpha * lesson(z["shared"], z["dual"], method.tau)
        assert abs(float(0.5 * back - l_s)) > 1e-4


@pytest.mark.parametrize(
    ("distillation", "taught", "teaching"),
    [("none", None, None), ("shared", "dual", None), ("dual", None, "shared"), ("mutual", "dual", "shared")],
)
def test_distillation_into_one_both_or_none(
    distillation: str, taught: Any, teaching: Any, pictured: Federation
) -> None:
    method = prepared(pictured, distillation=distillation)
    it = job(method, pictured)
    l_s, l_d, z = losses(method, it)
    assert float(l_s) == expected(method, it, z["shared"], z.get(taught))
    assert float(l_d) == expected(method, it, z["dual"], z.get(teaching))


@pytest.mark.parametrize(("teacher", "is_of"), [("dual", "dual"), ("local", "local"), ("shared", "copy")])
def test_one_adapter_alone_may_teach(teacher: str, is_of: str, pictured: Federation) -> None:
    method = prepared(pictured, teacher=teacher)
    it = job(method, pictured)
    l_s, l_d, z = losses(method, it)
    assert float(l_s) == expected(method, it, z["shared"], z[is_of])
    assert float(l_d) == expected(method, it, z["dual"], z["shared"])


def test_rounds_of_warming_up_have_no_lesson(pictured: Federation) -> None:
    method, plain = prepared(pictured, warmup=2), prepared(pictured, distillation="none")
    for round, same in ((1, True), (2, True), (3, False)):
        updates = [m.client_update(job(m, pictured, round=round)) for m in (method, plain)]
        assert tree.equal(updates[0].up, updates[1].up) is same


def test_no_gradient_passes_through_a_teacher(pictured: Federation) -> None:
    method = prepared(pictured)
    it = job(method, pictured)
    parts = {"shared": it.down["adapter"], "local": it.state["adapter"], "head": it.state["head"]}
    params = {part: {n: w.clone().requires_grad_() for n, w in found.items()} for part, found in parts.items()}
    first, second = method.steps(it.info, 1.0)
    loss, told = first.loss(params, {"copy": it.down["adapter"]}, it.data)
    weights = list(params["local"].values())
    assert torch.autograd.grad(loss, weights, allow_unused=True) == (None,) * len(weights)
    loss = second.loss(params, {"copy": it.down["adapter"]}, {**it.data, "z_s": told["z_s"].detach()})
    weights = list(params["shared"].values())
    assert torch.autograd.grad(loss, weights, allow_unused=True) == (None,) * len(weights)


# A run ---------------------------------------------------------------------------------------------------------------


def test_the_beginning(pictured: Federation) -> None:
    """A_c and A_s are independent draws, A_c the same for every client; a head has its client's answers."""
    method = prepared(pictured)
    states = [method.init_client(info, INIT) for info in pictured.clients]
    assert all(tree.equal(state["adapter"], states[0]["adapter"]) for state in states)
    assert not tree.equal(states[0]["adapter"], method.init_server(INIT)["adapter"])
    assert [len(state["head"]["bias"]) for state in states] == [4, 2, 4]


@pytest.fixture(scope="module")
def three(pictured: Federation, tmp_path_factory: pytest.TempPathFactory) -> list[api.Result]:
    """The same run after 1, 2 and 3 rounds."""
    folder, keys = tmp_path_factory.mktemp("runs"), {"batch_size": 6, "engine": "serial"}
    return [api.run("feddat", pictured, rounds=r, lr=LR, out=folder / str(r), **keys) for r in (1, 2, 3)]


def test_the_local_adapter_trains_in_every_round(three: list[api.Result], pictured: Federation) -> None:
    """In the authors' public code it trains in the first one only."""
    for client in range(3):
        models = [personal.extract(run.folder, client, last=True, given=pictured) for run in three]
        kept = [models[0].algorithm.init_client(models[0].info, Key.root(0) / "init"), *(m.state for m in models)]
        for before, after in itertools.pairwise(kept):
            moved = [not after["adapter"][n].equal(w) for n, w in before["adapter"].items() if n.endswith("up.bias")]
            assert all(moved)


def test_one_adapter_travels_each_way_and_nothing_else(three: list[api.Result], pictured: Federation) -> None:
    method = prepared(pictured)
    bytes_of_one = 4 * multimodal.parameters(method.shared)
    for event in (e for e in three[2].events() if e["event"] == "round"):
        assert (event["bytes_up"], event["bytes_down"]) == (3 * bytes_of_one, 3 * bytes_of_one)
    it = job(method, pictured)
    update = method.client_update(it)
    assert tree.flatten(update.up).keys() == tree.flatten(it.down).keys()
    assert set(update.metrics) == {"loss"}


def test_the_server_averages_by_samples(pictured: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2."""
    method = prepared(pictured)
    like = noisy(method.shared, "adapter", 1)
    ups = [({"adapter": {n: torch.full_like(w, v) for n, w in like.items()}}, weight) for v, weight in ((1, 3), (5, 1))]
    sent = [Arrival(pictured.clients[k], up, float(weight), {}) for k, (up, weight) in enumerate(ups)]
    assert all((w == 2).all() for w in method.aggregate({}, sent, 1, KEY)["adapter"].values())


def test_it_predicts_by_both_adapters_and_is_seen_by_each(pictured: Federation) -> None:
    method = prepared(pictured)
    it = job(method, pictured, 1)
    ready = method.prepare(it.info, it.down, it.state, it.data, KEY)
    own, copy, head = it.state["adapter"], it.down["adapter"], it.state["head"]
    with torch.no_grad():
        found = [method.predict(ready, it.data), *(method.view(name, ready, it.data) for name in method.views)]
        wanted = [outputs(method, it, adapters, head) for adapters in ([own, copy], [own], [copy])]
    assert all(a.equal(b) for a, b in zip(found, wanted, strict=True))


def test_each_view_is_scored_on_the_clients_own_rows(three: list[api.Result], pictured: Federation) -> None:
    """By hand with the last round's model, beside validation and test; on the page, and over seeds."""
    run = three[2]
    evaluation = [e for e in run.events() if "evaluation" in e][-1]["evaluation"]
    assert list(evaluation) == ["validation", "test", "local", "shared"]
    for client in range(3):
        model = personal.extract(run.folder, client, last=True, given=pictured)
        ready, rows = model.ready_on("cpu"), pictured.data(client, "test")
        for name in ("local", "shared"):
            scores = local.tally(pictured.task, functools.partial(model.algorithm.view, name, ready), rows)
            assert evaluation[name][str(client)] == pictured.task.scores(scores)
    assert set(run.summary["scopes"]) == {"local", "shared"}
    page = run.report().read_text()
    assert "its own part alone" in page
    assert "On whose rows" not in page
    found = views.curves(read_run(run.folder))
    assert [(name, list(curve)) for name, curve in found.items()] == [
        (n, [1, 2, 3]) for n in ("test", "local", "shared")
    ]
    each = [scores["accuracy"] for scores in evaluation["local"].values()]
    assert found["local"][3] == pytest.approx(sum(each) / 3)
    assert "Accuracy of each part over rounds; it ends at both" in page


def test_a_comparison_has_a_column_for_each_view(pictured: Federation, tmp_path: Path) -> None:
    found = compare(["feddat", "head-only"], pictured, seeds=1, rounds=1, engine="serial", out=tmp_path / "both")
    told = {line["method"]: line.get("scopes", {}) for line in found}
    assert set(told["feddat"]) == {"local", "shared"}
    assert told["head-only"] == {}
    assert "local alone" in (tmp_path / "both" / "report.html").read_text()


def test_a_run_knows_the_files_of_its_model(pictured: Federation, foundations: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(foundations["vilt"], tmp_path / "vilt")
    given = federation(pictured.source, partition=pictured.partition, models=[f"vl:{folder}"])
    run = api.run("feddat", given, rounds=1, engine="serial", report=False, out=tmp_path / "run")
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert {"transformers", "tokenizers"} < manifest["versions"].keys()
    assert set(manifest["code_sha256"]) == {"vl:vilt"}
    runs.reopen(run.folder, given)
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match="vl:vilt has changed since"):
        runs.reopen(run.folder, given)


def test_who_cannot_take_part_is_named(pictured: Federation, foundations: dict[str, Path], unlike: Federation) -> None:
    folder = str(foundations["vilt"])
    mixed = [f"vl:{folder}", f"vl:{folder}(reduction=4)"]
    two = federation(pictured.source, partition=pictured.partition, models=mixed)
    with pytest.raises(
        InputError, match=r"feddat: client [01] has vl:.*vilt.*, and what is tuned in it does not fit vl:"
    ):
        api.prepare("feddat", two)
    with pytest.raises(InputError, match="feddat answers questions about images; digits holds images"):
        api.prepare("feddat", unlike)
    with pytest.raises(InputError, match=r"holds questions about images: take feddat, fedavg-adapter, .*centralized"):
        api.prepare("fedavg", pictured)
