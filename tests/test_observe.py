"""What watches a run, piece by piece, with clocks that the tests wind."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import pytest

from jaxft import memory
from jaxft.config import Profile
from jaxft.config import Spikes as SpikesSection
from jaxft.observe import hang as hang_module
from jaxft.observe.goodput import KINDS, NOTHING, Ledger
from jaxft.observe.hang import Hang
from jaxft.observe.pace import ENOUGH, Pace
from jaxft.observe.profile import Profiler
from jaxft.observe.recompiles import EVENT, Recompiles
from jaxft.observe.spikes import Detours, Spike, Spikes
from jaxft.registry import UserError


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def test_every_second_is_of_one_kind_and_what_is_nothing_else_is_productive(tmp_path, clock):
    ledger = Ledger(tmp_path / "goodput.json", writes=True, clock=clock)
    clock.passes(10)
    with ledger.of("compile"):
        clock.passes(20)
    with ledger.of("productive"):
        clock.passes(60)
        ledger.move(4, "data")
        with ledger.of("evaluation"):
            clock.passes(10)
            ledger.move(3, "compile")
    spent = {"startup": 10, "compile": 23, "productive": 56, "data": 4, "evaluation": 7}
    assert ledger.spent() == pytest.approx(NOTHING | spent)
    assert ledger.training() == pytest.approx(60)
    assert ledger.shares() == pytest.approx({f"goodput/{kind}": ledger.spent()[kind] / 100 for kind in KINDS})
    said = "56.0% of 100 s in steps; compiling 23.0%, start-up 10.0%, evaluation 7.0%, waiting for data 4.0%"
    assert ledger.describe() == f"goodput: {said}"


def test_steps_that_are_made_again_after_a_kill_are_lost_once_and_only_since_the_checkpoint(tmp_path, clock):
    def start():
        return Ledger(tmp_path / "goodput.json", writes=True, clock=clock)

    ledger = start()
    with ledger.of("productive"):
        clock.passes(30)
        checkpoint = ledger.spent()
        clock.passes(12)
        ledger.keep(now=True)
        clock.passes(3)  # a kill: nobody tells
    for _ in range(2):  # the second start is killed before its first step
        ledger = start()
        clock.passes(5)
        ledger.go_back(checkpoint)
        ledger.keep(now=True)
        clock.passes(1)
    ledger = start()
    ledger.go_back(checkpoint)
    assert ledger.spent() == pytest.approx(NOTHING | {"productive": 30, "lost": 12, "startup": 10})


def test_a_checkpoint_that_is_newer_than_the_file_is_believed(tmp_path, clock):
    ledger = Ledger(tmp_path / "goodput.json", writes=True, clock=clock)
    ledger.keep(now=True)
    with ledger.of("productive"):
        clock.passes(30)
        checkpoint = ledger.spent()
    again = Ledger(tmp_path / "goodput.json", writes=True, clock=clock)
    again.go_back(checkpoint)
    assert again.spent() == pytest.approx(NOTHING | {"productive": 30})


def test_only_the_first_process_keeps_the_file_and_not_at_every_step(tmp_path, clock):
    Ledger(tmp_path / "other.json", writes=False, clock=clock).keep(now=True)
    ledger = Ledger(tmp_path / "goodput.json", writes=True, clock=clock)
    clock.passes(9)
    ledger.keep()
    assert not list(tmp_path.iterdir())
    clock.passes(2)
    ledger.keep()
    assert [path.name for path in tmp_path.iterdir()] == ["goodput.json"]


@pytest.mark.parametrize("text", ["[]", '"text"', "3", "null", '{"steps": 1}', '{"data": "1"}', '{"data": NaN}', "{"])
def test_a_file_of_times_that_holds_something_else_is_named_with_what_to_do(tmp_path, text):
    (tmp_path / "goodput.json").write_text(text)
    with pytest.raises(UserError, match=r"goodput\.json: .*; delete it"):
        Ledger(tmp_path / "goodput.json", writes=True)


def test_a_file_of_times_without_a_kind_that_is_newer_goes_on(tmp_path, clock):
    (tmp_path / "goodput.json").write_text('{"productive": 30}')
    ledger = Ledger(tmp_path / "goodput.json", writes=True, clock=clock)
    assert ledger.spent() == pytest.approx(NOTHING | {"productive": 30})


def made(pace, clock, step, seconds, waited=0.0):
    """A step on the devices, without the thread."""
    with pace._lock:
        pace._pending += 1
    clock.passes(seconds)
    pace.end(step, waited)


def test_a_step_that_takes_long_is_named_with_what_it_waited_for(clock):
    pace = Pace(clock)
    for step in range(1, ENOUGH + 1):
        made(pace, clock, step, 0.5)
    made(pace, clock, ENOUGH + 1, 1.4)  # less than three times
    made(pace, clock, ENOUGH + 2, 4.0, waited=3.5)
    made(pace, clock, ENOUGH + 3, 3.0)
    assert list(pace.outliers()) == [
        "step 18 took 4.0 s, 3.5 s of it waiting for data: 8 times the median; 1 more outliers since"
    ]
    assert pace.metrics() == {"step_seconds": 0.5, "step_seconds_max": 4.0} and pace.metrics() == {}


def test_lines_about_slow_steps_come_now_and_then_only(clock):
    pace = Pace(clock)
    for step in range(1, ENOUGH + 1):
        made(pace, clock, step, 0.5)
    lines = []
    for step in range(20, 60):
        made(pace, clock, step, 5.0 if step % 4 == 0 else 0.5)
        lines += pace.outliers()
    assert len(lines) == 2, lines


def test_short_steps_that_jitter_and_pauses_between_steps_are_no_outliers(clock):
    pace = Pace(clock)
    for step in range(1, 100):
        made(pace, clock, step, 0.5 if step == 50 else 0.01)
        with pace.away():
            clock.passes(30)
    assert not list(pace.outliers())


def test_data_are_waited_for_only_while_the_devices_have_nothing_to_do(clock):
    pace = Pace(clock)
    pace.come_back()
    asked = clock()
    clock.passes(2)
    assert pace.idle(asked, clock()) == 2, "before the first step"
    with pace._lock:
        pace._pending += 1
    asked = clock()
    clock.passes(5)
    assert pace.idle(asked, clock()) == 0, "a step runs all the while"
    pace.end(1, 0.0)
    asked, _ = clock() - 3, clock.passes(4)
    assert pace.idle(asked, clock()) == 4, "the step ended on the way"


def test_the_thread_sees_a_step_end_without_the_loop():
    ended = threading.Event()
    with Pace() as pace:
        pace.end = lambda step, waited: ended.set()  # ty: ignore
        pace.add(1, {"loss": jnp.ones(())}, 0.0)
        assert ended.wait(10)


def test_a_hang_is_told_once_with_the_stacks_of_all_threads_and_again_after_progress(tmp_path, clock):
    said = []
    pace = Pace(clock)
    for step in range(1, 7):
        made(pace, clock, step, 0.5)
    watcher = Hang(tmp_path / "stacks-0.txt", "stacks-0.txt", pace, lambda: 7, said.append)
    clock.passes(hang_module.LEAST - 1)
    watcher.look()
    assert not said
    clock.passes(2)
    for _ in range(3):
        watcher.look()
    assert len(said) == 1 and said[0].startswith("step 7 has not ended for 301 s: what every thread is doing")
    text = (tmp_path / "stacks-0.txt").read_text()
    assert text.count("step 7 has not ended") == 1 and "test_a_hang_is_told_once" in text
    made(pace, clock, 7, 0.0)
    watcher.look()
    clock.passes(hang_module.LEAST + 1)
    watcher.look()
    assert len(said) == 2


def test_what_takes_long_by_nature_is_no_hang(tmp_path, clock):
    said = []
    pace = Pace(clock)
    watcher = Hang(tmp_path / "stacks-0.txt", "stacks-0.txt", pace, lambda: 7, said.append)
    with pace.away():  # an evaluation
        clock.passes(10_000)
        watcher.look()
    for step in range(3):
        made(pace, clock, step, 100.0)
    clock.passes(100 * hang_module.TIMES - 1)
    watcher.look()
    assert not said and not list(tmp_path.iterdir())


def test_what_is_compiled_for_the_first_time_is_expected_and_again_is_said():
    said, seconds = [], []
    at = {"step": 1}

    @jax.jit
    def scored(x):
        return x * 2

    with Recompiles(lambda: at["step"], said.append, seconds.append) as recompiles:
        with recompiles.during("evaluation"):
            scored(jnp.ones(3))
        assert not said and seconds
        at["step"] = 1200
        with recompiles.during("evaluation"):
            scored(jnp.ones(3))
        assert not said, "nothing was compiled"
        with recompiles.during("evaluation"):
            scored(jnp.ones(4))
        assert any(line.startswith("step 1,200, in its evaluation: recompiled scored in ") for line in said), said
    said.clear()
    scored(jnp.ones(5))
    assert not said, "nobody listens any more"


def test_a_function_that_is_compiled_again_and_again_is_named_three_times():
    said = []
    recompiles = Recompiles(lambda: 5, said.append, lambda seconds: None)
    with recompiles.during("step"):
        recompiles.hear(EVENT, 9.0, fun_name="jit(f)")
    for _ in range(9):
        recompiles.hear(EVENT, 1.5, fun_name="jit(f)")
        recompiles.hear("/jax/core/compile/jaxpr_trace_duration", 1.5, fun_name="g")
    assert said == ["step 5: recompiled f in 1.50 s"] * 2 + [
        "step 5: recompiled f in 1.50 s; no more is said of this one"
    ]


def test_memory_is_of_the_fullest_device_and_absent_where_devices_do_not_tell():
    class Device:
        def __init__(self, now):
            self.now = now

        def memory_stats(self):
            return self.now and {"bytes_in_use": self.now * 2**30, "peak_bytes_in_use": self.now * 2**31}

    class Mesh:
        def __init__(self, *now):
            self.local_devices = [Device(one) for one in now]

    assert memory.in_use(Mesh(2, 3)) == {"memory_gib": 3, "memory_peak_gib": 6}
    assert memory.in_use(Mesh(None, None)) == {}
    assert memory.in_use(jax.make_mesh((1,), ("data",))) == {}


def profiler(tmp_path, steps, *, done=0, wished=lambda: False):
    said = []
    return Profiler(tmp_path, str(tmp_path), steps, done=done, wished=wished, say=said.append), said


def traced(profiler, upto, done=0):
    """(first, last) step of every trace."""
    found, first = [], None
    for step in range(done + 1, upto + 1):
        if profiler.due(step):
            first = step
        if profiler.over(step):
            found.append((first, step))
            profiler._first = profiler._last = 0
    return found


def test_the_planned_steps_are_traced_and_those_after_a_signal(tmp_path):
    assert traced(profiler(tmp_path, ())[0], 30) == []
    assert traced(profiler(tmp_path, (10, 13))[0], 30) == [(10, 13)]
    wishes = iter([True] + 4 * [False] + [True, True] + 99 * [False])  # the last has come while one was made
    assert traced(profiler(tmp_path, (), wished=lambda: next(wishes))[0], 30) == [(1, 3), (8, 10), (11, 13)]


def test_steps_to_trace_that_are_past_are_said(tmp_path):
    late, said = profiler(tmp_path, (10, 13), done=13)
    assert said == ["profile.steps=10,13: the run goes on after step 13; nothing is traced"]
    assert traced(late, 30, done=13) == []
    late, said = profiler(tmp_path, (10, 13), done=11)
    assert said == ["profile.steps=10,13: the run goes on after step 11; steps 12 to 13 are traced"]
    assert traced(late, 30, done=11) == [(12, 13)]


def test_a_trace_that_cannot_be_made_is_said_and_nothing_else_happens(tmp_path, monkeypatch):
    def busy(*_arguments, **_options):
        raise RuntimeError("another one is being made")

    monkeypatch.setattr(jax.profiler, "start_trace", busy)
    one, said = profiler(tmp_path, (1, 2))
    assert one.due(1)
    one.start()
    assert said == ["no trace of step 1: another one is being made"] and not one.over(2)


@pytest.mark.parametrize("steps", [(13, 10), (0, 3), (10,), (1, 2, 3), ("10", "x"), (1.0, 2.0), 10])
def test_steps_to_trace_that_are_no_range_are_refused(steps):
    with pytest.raises(UserError, match=r"profile.steps=.* must be the first and the last step"):
        Profile(steps)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"sigma": -1.0}, "spikes.sigma"),
        ({"window": 3}, "spikes.window=3 must be 8 or more"),
        ({"action": "stop"}, "spikes.action='stop' must be one of: say, rollback"),
        ({"max_rollbacks": -1}, "spikes.max_rollbacks"),
    ],
)
def test_wrong_options_of_spikes_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        SpikesSection(**{"sigma": 6.0, "window": 128, "action": "say", "max_rollbacks": 3} | changed)


def judged(losses, sigma=6.0, window=8):
    spikes = Spikes(sigma, window)
    return [step for step, loss in enumerate(losses, 1) if spikes.add(step, loss)]


NOISY = [5.0 + 0.1 * (i * 7 % 5) for i in range(40)]


def test_a_loss_far_above_those_before_is_a_spike_and_of_several_in_a_row_the_first():
    assert judged([*NOISY, 9.0, *NOISY[:3]]) == [41]
    assert judged([*NOISY, 9.0, 9.5, *NOISY[:3], 9.0]) == [41, 46], "spikes in the window hide none"
    assert judged([*NOISY, 9.0], sigma=0.0) == []


@pytest.mark.parametrize(
    "losses",
    [
        [*NOISY[:7], 9.0],  # too few to judge by
        [*NOISY, 1.0],  # down
        [*NOISY, float("nan"), float("inf"), 5.0],  # for others
        [*[5.0] * 40, 5.01],  # no spread at all
        [10.0 * 0.97**i for i in range(100)],
        NOISY,
    ],
    ids=["few", "down", "not finite", "flat", "falling", "noise"],
)
def test_what_is_no_spike(losses):
    assert judged(losses) == []


def test_a_resumed_run_judges_as_the_unbroken_one():
    losses = [*NOISY[:20], 9.0, 9.5]
    whole, resumed = Spikes(6.0, 8), Spikes(6.0, 8)
    for cut in (19, 20, 21):
        whole = Spikes(6.0, 8)
        for step, loss in enumerate(losses[:cut], 1):
            whole.add(step, loss)
        resumed.go_back(whole.record())
        rest = list(enumerate(losses[cut:], cut + 1))
        assert [whole.add(*one) for one in rest] == [resumed.add(*one) for one in rest]


def spike(step):
    return Spike(step, 9.0, 5.0, 8.0)


def test_batches_go_around_what_led_to_a_spike_whichever_step_a_run_goes_on_from(tmp_path):
    path = tmp_path / "rollbacks.json"
    detours = Detours(path)
    assert [detours.batch(step) for step in (1, 2, 12)] == [0, 1, 11]
    assert detours.add(spike(12), 10, writes=True) == 2
    expected = [*range(10), 12, 13, 14, 15]
    assert [detours.batch(step) for step in range(1, 15)] == expected
    assert [Detours(path).batch(step) for step in range(1, 15)] == expected, "as after a kill"
    # Again from the same checkpoint, then from a later one, then from one before all of them.
    assert detours.add(spike(11), 10, writes=True) == 1 and detours.batch(11) == 13
    assert detours.add(spike(20), 16, writes=True) == 4 and detours.batch(16) == 18 and detours.batch(17) == 23
    assert len(detours) == 3
    assert detours.add(spike(18), 4, writes=True) == 21
    assert [detours.batch(step) for step in (4, 5, 11, 17)] == [3, 25, 31, 37]
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    Detours(path).add(spike(12), 10, writes=False)
    assert not path.exists()


@pytest.mark.parametrize(
    "text", ["{}", '"text"', "3", "null", "[1]", '[{"after": 3}]', '[{"after": 3, "batches": "2"}]', "not JSON"]
)
def test_a_file_of_rollbacks_that_holds_something_else_is_named_with_what_to_do(tmp_path, text):
    (tmp_path / "rollbacks.json").write_text(text)
    with pytest.raises(UserError, match=r"rollbacks\.json: .*; bring back the run's own, or delete it"):
        Detours(tmp_path / "rollbacks.json")


def test_a_trace_that_is_being_made_is_ended_before_another_begins(tmp_path):
    """SIGUSR1 before the planned steps; and a rollback, after which the same steps come again."""
    wishes = iter([False, True] + 99 * [False])
    assert traced(profiler(tmp_path, (3, 6), wished=lambda: next(wishes))[0], 30) == [(2, 4), (5, 6)]
    one, said = profiler(tmp_path, (3, 6))
    begun = [step for step in (1, 2, 3, 4, 2, 3, 4, 5) if one.due(step)]
    assert begun == [3] and one.over(6) and not said
