"""Averages of the weights: coefficients and final values, against the callbacks' own."""

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from lightning_sgdinf import random_state
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.record.averaging import coefficients


class EpochAveraging(WeightAveraging):
    def should_update(self, step_idx=None, epoch_idx=None):
        return epoch_idx is not None


class BothAveraging(WeightAveraging):
    """Averages after steps and, once more, after epochs."""

    def should_update(self, step_idx=None, epoch_idx=None):
        return step_idx is None or step_idx % 2 == 1


class NoisyAverage:
    """Linear, but counts its calls and draws random numbers."""

    def __init__(self):
        self.calls = 0

    def __call__(self, average, params, count):
        self.calls += 1
        torch.rand(3)
        return 0.5 * average + 0.5 * params


def rms(average, params, count):
    return (0.9 * average**2 + 0.1 * params**2).sqrt()


CASES = {
    "EMA": lambda: WeightAveraging(avg_fn=get_ema_avg_fn(0.8)),
    "EMA at once": lambda: WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.8)),
    "mean": lambda: WeightAveraging(),
    "mean at once": lambda: WeightAveraging(multi_avg_fn=get_swa_multi_avg_fn(), use_buffers=False),
    "without buffers": lambda: WeightAveraging(use_buffers=False),
    "after epochs": lambda: EpochAveraging(avg_fn=get_ema_avg_fn(0.6)),
    "after steps and epochs": lambda: BothAveraging(avg_fn=get_ema_avg_fn(0.6)),
    "noisy": lambda: WeightAveraging(avg_fn=NoisyAverage()),
    "SWA": lambda: StochasticWeightAveraging(0.05, swa_epoch_start=2),
    "SWA from the start": lambda: StochasticWeightAveraging(0.05, swa_epoch_start=0.0),
}


def go(lab, case, *more):
    return lab.train(
        lab.Net(batch_norm="SWA" not in case), callbacks=[CASES[case](), *more], epochs=4, val=lab.loader(shuffle=False)
    )


@pytest.mark.parametrize("case", CASES)
def test_the_recorded_coefficients_make_the_average(lab, case, tmp_path):
    plain = go(lab, case)
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    recorded = go(lab, case, recorder)
    lab.assert_untouched(plain, recorded)
    lab.assert_faithful(recorder.path, recorded.net)
    with RunLog.open(recorder.path) as log:
        assert log.end_reason == "completed"
        assert log.average is not None
        before = log.header.extra.get("average_before_first_step")
        assert (before is not None) == (case == "SWA from the start")
        combined = {n: v.double() * (before[1] if before else 0.0) for n, v in log.state(0).params.items()}
        updates = 0
        for t in range(len(log)):
            if (average := log.step(t).average) is not None:
                a, b = average
                updates += 1
                after = log.state(t + 1).params
                combined = {n: a * combined[n] + b * after[n].double() for n in combined}
        assert updates > 0
        for name, value in combined.items():
            torch.testing.assert_close(log.average[name].double(), value, rtol=1e-5, atol=1e-6)
            # the Trainer leaves the average in the module
            assert torch.equal(log.average[name], recorded.weights[name])


def test_each_update_is_seen_once(lab, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    lab.train(callbacks=[BothAveraging(avg_fn=get_ema_avg_fn(0.6)), recorder], epochs=2)
    with RunLog.open(recorder.path) as log:
        updates = [log.step(t).average for t in range(8)]
    # the first update copies; steps 3 and 7 are followed by two updates
    once, twice = pytest.approx((0.6, 0.4)), pytest.approx((0.36, 0.64))
    assert updates == [None, (0.0, 1.0), None, twice, None, once, None, twice]


def test_users_counter_is_not_advanced(lab, tmp_path):
    function = NoisyAverage()
    lab.train(callbacks=[WeightAveraging(avg_fn=function)], epochs=2)
    alone = function.calls
    again = NoisyAverage()
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    lab.train(callbacks=[WeightAveraging(avg_fn=again), recorder], epochs=2)
    assert again.calls == alone > 0


def test_an_average_that_is_not_linear_is_left_out_and_told(lab, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    with pytest.warns(UserWarning, match="not of the form"):
        run = lab.train(callbacks=[WeightAveraging(avg_fn=rms, use_buffers=False), recorder], epochs=2)
    lab.assert_faithful(recorder.path, run.net)
    with RunLog.open(recorder.path) as log:
        assert log.average is None
        assert any("not of the form" in remark for remark in log.header.extra["remarks"])
        assert log.header.replayable == ""


def test_two_averages(lab, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    both = [WeightAveraging(avg_fn=get_ema_avg_fn(0.6)), EpochAveraging()]
    with pytest.warns(UserWarning, match="2 callbacks average the weights"):
        lab.train(callbacks=[*both, recorder], epochs=2)
    with RunLog.open(recorder.path) as log:
        assert log.step(5).average == pytest.approx((0.6, 0.4))


def test_swa_that_steps_on_stale_gradients_is_told(lab, tmp_path):
    # Without validation nothing clears the gradients before the epoch that only updates batch norm.
    def go(*callbacks):
        return lab.train(callbacks=[StochasticWeightAveraging(0.05, swa_epoch_start=1), *callbacks], epochs=2)

    plain = go()
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    with pytest.warns(UserWarning, match="after step 7 the optimizer stepped on gradients left over"):
        recorded = go(recorder)
    lab.assert_untouched(plain, recorded)
    with RunLog.open(recorder.path) as log:
        assert len(log) == 8
        assert "left over" in log.end_reason


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, p: 0.9 * a + 0.1 * p, (0.9, 0.1)),
        (lambda a, p: a + p, (1.0, 1.0)),
        (lambda a, p: p, (0.0, 1.0)),
        (lambda a, p: a + 1e-3, None),
        (lambda a, p: torch.maximum(a, p), None),
        (lambda a, p: a * p, None),
        (lambda a, p: 0.5 * a + 0.5 * p.mean(), None),
    ],
)
def test_coefficients(function, expected):
    pair = coefficients(function)
    assert pair == (expected if expected is None else pytest.approx(expected))


def test_looking_for_coefficients_draws_nothing(lab):
    before = random_state.capture()
    coefficients(lambda a, p: 0.9 * a + 0.1 * p)
    assert random_state.capture() == before
