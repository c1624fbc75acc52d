"""FedAvg with local fine-tuning: FedAvg's training and traffic, and a tuned model to predict with."""

from __future__ import annotations

from by_hand import CNN5, INIT, KEY, arrivals, close, constant, gradient, is_all, job, minus, outputs, prepared

from unalike import models, tree
from unalike.data.federation import Federation


def test_what_is_sent_is_fedavgs_bit_for_bit(alike: Federation) -> None:
    tuned, plain = (prepared(name, alike, batch_size=32, momentum=0.9) for name in ("fedavg-ft", "fedavg"))
    assert tree.equal(tuned.init_server(INIT), plain.init_server(INIT))
    assert tree.equal(tuned.client_update(job(tuned, alike)).up, plain.client_update(job(plain, alike)).up)


def test_the_kept_model_is_the_one_that_was_sent_in_storage_of_its_own(alike: Federation) -> None:
    """w_k = w − η ∇L(w)."""
    method = prepared("fedavg-ft", alike)
    it = job(method, alike)
    update = method.client_update(it)
    w = it.down["model"]
    assert close(update.up["model"], minus(w, method.lr, gradient(method, w, it.data)))
    assert tree.equal(update.up, update.state)
    assert not tree.shares_storage(update.up, update.state)


def test_a_visit_starts_from_the_received_model_not_from_the_kept_one(alike: Federation) -> None:
    method = prepared("fedavg-ft", alike)
    it = job(method, alike)
    other = job(method, alike, model=constant(it.down["model"], 0.5))
    assert tree.equal(method.client_update(it).up, method.client_update(other).up)


def test_prediction_is_by_the_kept_model_and_by_the_broadcast_before_the_first_visit(alike: Federation) -> None:
    method = prepared("fedavg-ft", alike)
    it = job(method, alike)
    state = method.client_update(it).state
    other = {"model": constant(it.down["model"], 0.01)}
    x = it.data["x"][:4]
    assert outputs(method, it, state, other).equal(models.logits(method.shared, state["model"], x))
    assert outputs(method, it, method.init_client(it.info, INIT), other).equal(
        models.logits(method.shared, other["model"], x)
    )


def test_aggregation_is_the_mean_weighted_by_samples(alike: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2, and a client is weighted by its rows."""
    method = prepared("fedavg-ft", alike)
    server = method.init_server(INIT)
    sent = arrivals(alike, (constant(server, 1.0), 3.0), (constant(server, 5.0), 1.0))
    assert is_all(method.aggregate(server, sent, 2, KEY), 2.0)
    assert method.client_update(job(method, alike, 1)).weight == alike.clients[1].n


def test_the_model_travels_both_ways(alike: Federation) -> None:
    method = prepared("fedavg-ft", alike)
    it = job(method, alike)
    assert tree.nbytes(it.down) == tree.nbytes(method.client_update(it).up) == 4 * CNN5
