"""Several processes that train as one: who is here, what the first does for all, and how all come to an end together.

What they tell each other goes through the coordination service of jax.distributed, which process 0 runs. It is used
before the first collective and beside those of the training, so that a process that fails, stops or is gone is named by
the others, who would wait for it forever in a collective.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxft.registry import UserError
from jaxft.signals import Stopped, leave

GO_ON = "the same command goes on from the last checkpoint"
BEAT = 2.0  # seconds between two signs of life, and between two looks at those of others
LOST = 40.0  # seconds without one after which a process counts as lost
PATIENCE = 3600.0  # seconds that a process may take for what the others wait for, such as reading a corpus
# What tells jax that this process is one of several, of SLURM (srun), GKE and TPU pods.
TOLD = ("SLURM_STEP_NODELIST", "MEGASCALE_COORDINATOR_ADDRESS", "JAX_COORDINATOR_ADDRESS")


def join(coordinator: str, processes: int, rank: int) -> None:
    """Joins the other processes; before jax has looked for devices. `coordinator` is host:port of process 0.

    "auto": as the cluster tells (SLURM, TPU pods, GKE, Open MPI); "": so where it does, else this process is alone.
    Raises UserError where the three do not go together, and when the others do not come.
    """
    named = coordinator not in ("", "auto")
    if named != (processes > 0) or named != (rank >= 0):
        raise UserError("--coordinator=HOST:PORT, --processes=N and --rank=I go together; name all three, or none")
    if named and not rank < processes:
        raise UserError(f"--rank={rank} must be below --processes={processes}; ranks count from 0")
    if not (coordinator or _told()):
        return
    port = re.fullmatch(r".+:(\d{1,5})", coordinator)
    if named and not (port and 0 < int(port[1]) < 2**16):
        raise UserError(f"--coordinator={coordinator!r} must be HOST:PORT of process 0, such as 10.0.0.1:1234")
    own = {"coordinator_address": coordinator, "num_processes": processes, "process_id": rank} if named else {}
    try:
        # Longer than LOST: who is lost is said by `Watch`, before jax ends the process.
        jax.distributed.initialize(**own, heartbeat_timeout_seconds=int(4 * LOST), shutdown_timeout_seconds=20)
    except (RuntimeError, ValueError) as error:
        # A RuntimeError, such as a name that is not known yet, may be gone at the next try: not 2, which is final.
        code = 1 if isinstance(error, RuntimeError) else 2
        raise UserError(f"the processes do not come together: {str(error).splitlines()[0]}", code) from error


def _told() -> bool:
    if os.environ.get("SLURM_STEP_NUM_TASKS") == "1":  # a shell within an allocation
        return False
    return any(name in os.environ for name in TOLD) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def several() -> bool:
    return jax.process_count() > 1


def first() -> bool:
    return jax.process_index() == 0


def by_first(name: str, action: Callable[[], Any]) -> Any:
    """What `action` returns (JSON) in the first process, which alone runs it. Where it fails, all fail alike."""
    if not several():
        return action()
    key = f"{_numbered(name)}/0"
    if not first():
        return _taken(key)
    with _posting(key) as post:
        post(result := action())
    return result


def in_turn(name: str, action: Callable[[], Any]) -> Any:
    """What `action` returns; first in process 0, whose files the others find, then in all others at once.

    No collective may be within. Raises UserError in all where one fails, with its rank.
    """
    if not several():
        return action()
    name = _numbered(name)
    if not first():
        _taken(f"{name}/0")
    with _posting(f"{name}/{jax.process_index()}") as post:
        result = action()
        post(None)
    for rank in range(1, jax.process_count()):
        _taken(f"{name}/{rank}")
    return result


def to_first(name: str, value: Any) -> list[Any]:
    """The `value` (JSON) of every process by rank, in the first one; in the others nothing, and they do not wait."""
    if not several():
        return [value]
    name = _numbered(name)
    with _posting(f"{name}/{jax.process_index()}") as post:
        post(value)
    if not first():
        return []
    values = [_taken(f"{name}/{rank}") for rank in range(jax.process_count())]
    _client().key_value_delete(f"{name}/")
    return values


def of_all(name: str, value: Any) -> list[Any]:
    """The `value` (JSON) of every process by rank, in each of them."""
    if not several():
        return [value]
    name = _numbered(name)
    with _posting(f"{name}/{jax.process_index()}") as post:
        post(value)
    return [_taken(f"{name}/{rank}") for rank in range(jax.process_count())]


def part(name: str, seconds: float = PATIENCE) -> None:
    """Waits until all are here, before they go their ways. Raises UserError with the ranks of those who do not come."""
    if not several():
        return
    client, name = _client(), _numbered(name)
    own = f"{name}/{jax.process_index()}"
    client.key_value_set(own, "")
    try:
        client.wait_at_barrier(name, int(1000 * seconds))
    except RuntimeError as error:
        here = {key for key, _ in client.key_value_dir_get(f"{name}/")}
        missing = [str(rank) for rank in range(jax.process_count()) if f"{name}/{rank}" not in here]
        raise UserError(_absent(", ".join(missing), name, seconds, error), code=1) from error
    client.key_value_delete(own)


def _absent(ranks: str, name: str, seconds: float, error: Exception) -> str:
    if ranks and "DEADLINE_EXCEEDED" in str(error):
        return f"process {ranks} did not come to {name!r} within {seconds:.0f} s; {GO_ON}"
    return f"the processes did not meet at {name!r}: {str(error).splitlines()[0]}; {GO_ON}"


_met: dict[str, int] = {}


def _numbered(name: str) -> str:
    """The name of this meeting alone: all processes come to those of one name in the same order."""
    _met[name] = _met.get(name, 0) + 1
    return f"{name} {_met[name]}"


@contextlib.contextmanager
def _posting(key: str) -> Iterator[Callable[[Any], None]]:
    """Gives a function that tells the others a value; what is raised within is told instead."""
    try:
        yield lambda value: _client().key_value_set(key, json.dumps({"value": value}))
    except BaseException as error:  # whatever it is, the others must not wait for this process; it goes on its way
        code = error.code if isinstance(error, UserError) else 1
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        _client().key_value_set(key, json.dumps({"error": said, "code": code}))
        raise


def _taken(key: str, seconds: float = PATIENCE) -> Any:
    """What another process tells. Raises UserError for an error of its, and when it says nothing."""
    name, _, rank = key.rpartition("/")
    try:
        told = json.loads(_client().blocking_key_value_get(key, int(1000 * seconds)))
    except RuntimeError as error:
        raise UserError(_absent(rank, name, seconds, error), code=1) from error
    if "error" in told:
        raise UserError(f"process {rank}: {told['error']}", code=told["code"])
    return told["value"]


def _client() -> Any:
    from jax._src import distributed  # no public name; jax.experimental.multihost_utils uses it as well

    return distributed.global_state.client


class Watch:
    """While entered: tells the others that this process lives, and ends it when another one does not.

    It also agrees on the step after which all stop, when one is asked to. Nothing of a process that is alone.
    """

    def __init__(self, asked: Callable[[], int | None]):
        self._asked = asked  # the number of the signal that has come to this process
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._step, self._last, self.number = 0, -1, None
        self._rounds = 0  # of telling and looking that came to an end
        self._threads = [
            threading.Thread(target=target, name="watch", daemon=True) for target in (self._run, self._guard)
        ]

    def __enter__(self) -> "Watch":
        if several():
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if several() and error is not None and not isinstance(error, (UserError, Stopped)):
            # A collective may fail at once where a process is gone: who it was is known a little later.
            seconds = LOST + 4 * BEAT
            print(
                f"jaxft: {type(error).__name__}, perhaps because another process is gone: which one is told within "
                f"{seconds:.0f} s, or, of process 0, by jax at once. Then {GO_ON}",
                file=sys.stderr,
                flush=True,
            )
            self._threads[0].join(seconds)
        self._over.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * BEAT)  # it may wait for a process that is gone

    def asked(self, step: int) -> int | None:
        """The number of a signal when all processes are to stop after `step`, which each asks of every step."""
        if not several():
            return self._asked()
        with self._lock:  # while the step is agreed upon none goes on
            self._step = step
            return self.number if step == self._last else None

    def _run(self) -> None:
        heard: dict[str, tuple[str, float]] = {}
        try:
            for beat in itertools.count():
                if self._over.wait(BEAT):
                    return
                self._tell(f"alive/{jax.process_index()}", f"{socket.gethostname()} {time.time()} {beat}")
                self._look(heard)
                if self._last < 0:
                    self._agree()
                self._rounds += 1
        except UserError as error:
            leave(str(error), error.code)
        except RuntimeError as error:  # nobody answers
            if not self._over.wait(BEAT):
                leave(
                    f"process 0, through which the others speak, is gone ({str(error).splitlines()[0][:200]}); {GO_ON}",
                    1,
                )

    def _guard(self) -> None:
        """Ends this process where process 0 neither answers nor fails, so that `_run` waits for it.

        Rounds without an answer are counted, not seconds: this process may have been stopped as well.
        """
        silent = before = 0
        while not self._over.wait(BEAT):
            silent, before = 0 if self._rounds > before else silent + 1, self._rounds
            if silent * BEAT > LOST + 2 * BEAT:
                leave(f"process 0, through which the others speak, does not answer for {LOST:.0f} s; {GO_ON}", 1)

    @staticmethod
    def _tell(key: str, value: str) -> None:
        _client().key_value_set(key, value, allow_overwrite=True)

    def _look(self, heard: dict[str, tuple[str, float]]) -> None:
        """Ends this process where another one has not been heard of for too long."""
        now = time.monotonic()
        for key, value in _client().key_value_dir_get("alive/"):
            if heard.get(key, ("", 0.0))[0] != value:
                heard[key] = (value, now)
            elif now - heard[key][1] > LOST and not self._over.is_set():
                rank, host = key.rpartition("/")[2], value.partition(" ")[0]
                leave(f"process {rank} on {host} has not been heard of for {LOST:.0f} s; {GO_ON}", 1)

    def _agree(self) -> None:
        """The step after which all stop: one that none has passed."""
        if (number := self._asked()) is not None:
            self._tell("asked/signal", str(number))
        told = dict(_client().key_value_dir_get("asked/"))
        if not told:
            return
        with self._lock:
            with _posting(f"stop/step/{jax.process_index()}") as post:
                post(self._step)
            steps = [_taken(f"stop/step/{rank}", LOST) for rank in range(jax.process_count())]
            self.number, self._last = int(next(iter(told.values()))), max(steps) + 1
