"""What a client needs: the largest predicted peak of what it does, and exactly a tenth more."""

from __future__ import annotations

import pytest
import works

from unalike.memory import needs, stages
from unalike.memory.predict import predict
from unalike.models.progressive import SubModel

N = 8


@pytest.mark.parametrize(("bytes", "need"), [(0, 0), (1, 2), (10, 11), (100, 110), (101, 112), (10**18, 11 * 10**17)])
def test_a_tenth_is_added_and_rounded_up(bytes: int, need: int) -> None:
    assert needs.HEADROOM == 1.1
    assert needs.with_headroom(bytes) == need


def test_the_need_of_several_works_is_that_of_the_largest() -> None:
    small, large = works.whole(n=4), works.whole(n=16)
    assert needs.of(small, large) == needs.of(large) == needs.with_headroom(predict(large).bytes)
    assert needs.of(small) < needs.of(large)


def test_each_step_is_counted_with_its_evaluation() -> None:
    for t in (1, 4):
        sub = SubModel(works.SPEC, works.CUTS, t)
        trained, scored = works.step(t, N), stages.evaluated(sub, N)
        assert needs.step_peak(sub, works.TASK, works.OPTIMISER, N) == max(predict(w).bytes for w in (trained, scored))
        assert needs.step(sub, works.TASK, works.OPTIMISER, N) == needs.of(trained, scored)
    sub = SubModel(works.SPEC, works.CUTS, 2)
    assert needs.mapping(sub, works.OPTIMISER, works.TASK, N) == needs.of(works.mapping(2, N), stages.evaluated(sub, N))


def test_evaluation_counts_where_it_takes_more_than_training() -> None:
    trained, scored = works.whole(n=2), stages.evaluated_whole(works.SPEC, 256)
    found = needs._found(trained, scored, 2)
    assert found.peak == predict(scored).bytes > predict(trained).bytes
    assert found.flops == predict(trained).flops / 2
    whole = needs.whole_peak(works.SPEC, works.TASK, works.OPTIMISER, N)
    assert whole == predict(works.whole(n=N)).bytes > predict(stages.evaluated_whole(works.SPEC, N)).bytes


def test_frozen_blocks_in_training_mode_need_more() -> None:
    sub = SubModel(works.SPEC, works.CUTS, 4)
    kept, trained = (needs.step(sub, works.TASK, works.OPTIMISER, 32, mode) for mode in (False, True))
    assert trained > kept


def test_a_need_is_predicted_once() -> None:
    sub = SubModel(works.SPEC, works.CUTS, 3)
    before = needs._step.cache_info().misses
    first = needs.step(sub, works.TASK, works.OPTIMISER, 5)
    assert needs.step(SubModel(works.SPEC, works.CUTS, 3), works.TASK, works.OPTIMISER, 5) == first
    assert needs._step.cache_info().misses == before + 1
