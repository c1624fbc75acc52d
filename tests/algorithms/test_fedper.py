"""FedPer, equation by equation."""

from __future__ import annotations

from by_hand import close, gradient, job, minus, prepared

from unalike.data.federation import Federation


def test_base_and_header_take_one_step_together(alike: Federation) -> None:
    """(φ_k, h_k) = (φ, h) − η ∇L(h ∘ φ), both gradients at the same point."""
    method = prepared("fedper", alike)
    it = job(method, alike)
    before = {**it.down, **it.state}
    expected = minus(before, method.lr, gradient(method, before, it.data))
    update = method.client_update(it)
    assert close(update.up["extractor"], expected["extractor"])
    assert close(update.state["header"], expected["header"])
