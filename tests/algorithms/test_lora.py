"""FedDPA's rivals: one adapter for all, tuned or not, one each, and one for rows in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from speaking import INIT, KEY, arrivals, close, job, noisy, prepared, stepped

from unalike import api, runs, tree
from unalike.data.federation import Federation, federation
from unalike.errors import InputError
from unalike.models import language


@pytest.fixture(scope="module")
def asked(asked: Federation, tiny_lm: Path) -> Federation:  # type: ignore[misc]
    """The same clients without dropout."""
    return federation(asked.source, partition=asked.partition, models=[f"lm:{tiny_lm}(r=2, dropout=0)"])


def answered(method: Any, adapter: Any, asked: Federation) -> torch.Tensor:
    return language.generate(method.shared, {"global": adapter}, asked.data(0, "test")["x"], tokens=2)


def predicted(method: Any, it: Any, asked: Federation, **state: Any) -> torch.Tensor:
    ready = method.prepare(it.info, it.down, {**it.state, **state}, it.data, KEY)
    found: torch.Tensor = method.predict(ready, {"x": asked.data(0, "test")["x"]})
    return found


def of(method: Any, value: float) -> dict[str, Any]:
    return {"adapter": {name: torch.full_like(w, value) for name, w in noisy(method, 1).items()}}


@pytest.mark.parametrize("name", ["fedit", "fedlora"])
def test_fedit_takes_a_step_from_what_came_and_averages_by_samples(name: str, asked: Federation) -> None:
    method = prepared(name, asked)
    it = job(method, asked, down={"adapter": noisy(method, 1)})
    update = method.client_update(it)
    assert close(update.up["adapter"], stepped(method, it.data, {"global": it.down["adapter"]}))
    assert (update.state, update.weight) == ({}, 12)
    found = method.aggregate({}, arrivals(asked, (of(method, 1.0), 3.0), (of(method, 5.0), 1.0)), 1, KEY)
    assert all((w == 2).all() for w in found["adapter"].values())
    assert predicted(method, it, asked).equal(answered(method, it.down["adapter"], asked))
    assert tree.nbytes(it.down) == tree.nbytes(update.up) == 4 * language.parameters(method.shared)


def test_fedlora_is_fedit_to_the_bit_until_its_last_round(asked: Federation, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"rounds": 2, "fraction": 0.25, "local_epochs": 1, "max_new_tokens": 1}
    keys |= {"engine": "serial", "report": False, "eval_every": 9}
    plain, tuned = (api.run(name, asked, out=tmp_path / name, **keys) for name in ("fedit", "fedlora"))
    trained = [[e["metrics"]["train"] for e in run.events() if e["event"] == "round"] for run in (plain, tuned)]
    assert trained[0] == trained[1][:2]
    assert len(trained[1]) == 3
    last = [e for e in tuned.events() if e["event"] == "round"][-1]
    assert (last["bytes_up"], len(last["clients"])) == (0, 8)


@pytest.mark.parametrize("variant", ["T", "F"])
def test_feddpas_global_adapter_is_fedits_to_the_bit(variant: str, asked: Federation) -> None:
    """With dropout, so that its noise is the same as well."""
    trained = [prepared("fedit", asked), prepared("feddpa", asked, variant=variant)]
    updates = [method.client_update(job(method, asked, down={"adapter": noisy(method, 1)})) for method in trained]
    assert tree.equal(updates[0].up, updates[1].up)


@pytest.mark.parametrize(("name", "keys"), [("fedlora", {}), ("feddpa", {"variant": "F"})])
def test_the_last_round_may_have_epochs_of_its_own(name: str, keys: dict[str, str], asked: Federation) -> None:
    """As many as are asked for are more than one, which is what all rounds have where nothing is asked."""
    ends = []
    for last, each in ((3, 1), (0, 3), (0, 1)):
        method = prepared(name, asked, rounds=3, local_epochs=each, last_epochs=last, lr=0.01, **keys)
        it = job(method, asked, round=4, down={"adapter": noisy(method, 1)})
        ends.append(method.client_update(it).state["adapter"])
    assert tree.equal(ends[0], ends[1])
    assert not tree.equal(ends[0], ends[2])


def test_fedlora_tunes_what_came_and_answers_with_it(asked: Federation) -> None:
    method = prepared("fedlora", asked, rounds=3)
    it = job(method, asked, round=4, down={"adapter": noisy(method, 1)})
    update = method.client_update(it)
    assert update.up == {}
    own = update.state["adapter"]
    assert close(own, stepped(method, it.data, {"global": it.down["adapter"]}))
    assert predicted(method, it, asked, adapter=own).equal(answered(method, own, asked))
    assert method.aggregate(of(method, 1.0), arrivals(asked, ({}, 1.0)), 4, KEY).keys() == {"adapter"}
    assert [method.done({}, round) for round in (3, 4)] == [False, True]


def test_local_lora_goes_on_from_its_own_and_sends_nothing(asked: Federation) -> None:
    method = prepared("local-lora", asked)
    it = job(method, asked, adapter=noisy(method, 1))
    update = method.client_update(it)
    assert (it.down, update.up) == ({}, {})
    assert close(update.state["adapter"], stepped(method, it.data, {"local": it.state["adapter"]}))
    assert predicted(method, it, asked).equal(answered(method, it.state["adapter"], asked))
    fresh = [method.init_client(asked.clients[k], INIT) for k in (0, 1)]
    assert tree.equal(*fresh), "all start at the same adapter"


def test_centralized_lora_is_sent_every_row_once(asked: Federation) -> None:
    method = prepared("centralized-lora", asked)
    it = job(method, asked, client=2)
    update = method.client_update(it)
    assert tree.equal(update.up["rows"], it.data)
    again = method.client_update(job(method, asked, client=2, **update.state))
    assert again.up == {}


def test_centralized_lora_trains_on_the_rows_of_all_clients_that_ever_came(asked: Federation) -> None:
    """One step on the rows of both, whose prompts differ in length; those of the first round are still there later."""
    method = prepared("centralized-lora", asked)
    server = {**method.init_server(INIT), "adapter": noisy(method, 1)}
    pad, rows = language.tokens_of(method.shared).pad, [asked.data(k, "train") for k in (0, 1)]
    wider = torch.nn.functional.pad(rows[1]["x"], (3, 0), value=pad)
    sent = [({"rows": rows[0]}, 1.0), ({"rows": {**rows[1], "x": wider}}, 1.0)]
    pooled = {name: torch.cat([part[name] for part in rows]) for name in ("x", "y")}
    first = method.aggregate(server, arrivals(asked, *sent), 1, KEY)
    assert close(first["adapter"], stepped(method, pooled, {"global": server["adapter"]}))
    second = method.aggregate({**first, "adapter": server["adapter"]}, arrivals(asked, ({}, 1.0)), 2, KEY / 2)
    assert close(second["adapter"], stepped(method, pooled, {"global": server["adapter"]}))
    assert method.report(first, 1)["loss"] > 0


def test_a_visit_ends_with_step_size_0_and_takes_e_epochs(asked: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 rows in batches of 5, of which the lone last two are trained on: 3 steps an epoch."""
    from unalike import adapters

    asked_for: list[Any] = []
    train = adapters.train
    monkeypatch.setattr(adapters, "train", lambda steps, *rest: asked_for.append((steps, rest)) or train(steps, *rest))
    method = prepared("fedit", asked, local_epochs=2, batch_size=5, lr=0.02, weight_decay=0.1, clip=2.0)
    method.client_update(job(method, asked))
    ((steps, rest),) = asked_for
    optimiser = steps[0].trains["global"]
    assert (optimiser.lr, optimiser.weight_decay, optimiser.clip, optimiser.steps) == (0.02, 0.1, 2.0, 6)
    assert [len(batch["x"]) for batch in rest[2]] == [5, 5, 2] * 2


def test_answers_are_written_a_batch_at_a_time(asked: Federation) -> None:
    method = prepared("fedit", asked, batch_size=3)
    both, x = {n: noisy(method, i) for i, n in enumerate(language.NAMES)}, asked.data(0, "train")["x"]
    a = torch.linspace(0, 1, len(x))
    assert method.answers(method.shared, both, x, a).equal(language.generate(method.shared, both, x, a, tokens=2))
    assert method.answers(method.shared, {}, x).shape == (12, 2)


def test_who_is_refused(asked: Federation, alike: Federation, tiny_lm: Path) -> None:
    with pytest.raises(InputError, match=r"feddpa trains adapters of a language model, and client 0 has cnn-5: give"):
        api.prepare("feddpa", alike)
    with pytest.raises(InputError, match=r"fedavg trains networks on rows of numbers, and eight holds texts: take fed"):
        api.prepare("fedavg", asked)
    two = federation(asked.source, partition=asked.partition, models=[f"lm:{tiny_lm}(r=2)", f"lm:{tiny_lm}(r=4)"])
    with pytest.raises(InputError, match="equal architectures"):
        api.prepare("fedit", two)


def test_the_papers_settings() -> None:
    found = runs.config.resolve({"method": "feddpa", "preset": "paper"}).parameters
    assert {k: found[k] for k in ("rounds", "local_epochs", "batch_size", "lr", "weight_decay", "clip", "beams")} == {
        "rounds": 20,
        "local_epochs": 10,
        "batch_size": 64,
        "lr": 3e-4,
        "weight_decay": 0.0,
        "clip": 1.0,
        "beams": 4,
    }
    assert (found["max_new_tokens"], found["lam"], found["anchors"]) == (80, 0.5, 5)
