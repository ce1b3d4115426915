"""Checkpoints that count only when whole: arrays by Orbax, commit, integrity and retention by us.

    checkpoints/<step>/state/          the arrays (Orbax v1, sharded, any mesh can read them)
                       meta.json       what the caller gave, and the shapes of the arrays
                       best            empty; there when this step was the best so far
                       manifest.json   sha256 of each file, written last

Where they stand, in a folder or in a bucket, and how a step comes to count there, is in shelf.py. Orbax's own
CheckpointManager is not used: it checksums no array data, and its retention can delete the newest step.
"""

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxft import disk, processes, shelf
from jaxft.registry import UserError

# Orbax logs each failure several times over, with tracebacks of its threads. Ours is one sentence.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Checkpoints:
    """The checkpoints of one run. `keep` newest ones stay, and the last one saved as best; `say` takes announcements.

    `folder` is a path or a URL. `read_only` is for verbs that only read: leftovers of dead saves stay, since they may
    belong to a live run. `before_commit` is called in process 0 just before a step counts.
    Raises UserError when the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int,
        say: Callable[[str], None],
        read_only: bool = False,
        before_commit: Callable[[], None] = lambda: None,
    ):
        if keep < 1:
            raise UserError(f"checkpoint.keep={keep} would delete every checkpoint; it must be at least 1")
        self.shelf = shelf.of(folder)
        self._keep = keep
        self._before_commit = before_commit
        self._say = say if jax.process_index() == 0 else lambda _text: None
        self._damaged: set[int] = set()
        self._checked: set[int] = set()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        if not read_only and jax.process_index() == 0:
            self.shelf.prepare()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def save(self, step: int, state: Any, meta: Mapping[str, Any], *, best: bool = False, wait: bool = False) -> None:
        """Starts writing `state` (pytree of arrays) and `meta` (JSON); returns when the arrays are copied to the host.

        The next step may overwrite or donate `state` at once. One save is in flight at a time: a second waits. A step
        that is committed already is not written again, only marked when `best`. Raises UserError when this save cannot
        start, or when the one before it failed.
        """
        self.wait()
        if step in self.steps() and step not in self._damaged:
            if best and jax.process_index() == 0:
                self.shelf.mark(step)
            return
        arrays = _flatten(state)
        record = {"step": step, "meta": dict(meta), "state": {name: _describe(x) for name, x in arrays.items()}}
        try:
            if jax.process_index() == 0:
                # Here, not in the background: meta may change meanwhile, and what is not JSON should fail aloud here.
                text = json.dumps(record, indent=1) + "\n"
                self.shelf.begin(step, {"meta.json": text} | ({shelf.BEST: ""} if best else {}))
            response = ocp.save_async(f"{self.shelf.draft(step)}/state", arrays)
        except OSError as error:
            raise self._explain(step, arrays, error) from error
        self._saving = self._writer.submit(self._finish, response, step, arrays)
        del arrays, state
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is in flight. Raises UserError if the save that was in flight failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def check(self) -> None:
        """Raises UserError if the save in flight has failed by now; never waits. Cheap enough for every step."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def steps(self) -> list[int]:
        """The committed steps, ascending. Whether their files are still intact is for `newest` and `restore`."""
        return self.shelf.steps()

    def best(self) -> int | None:
        """The last committed step that was saved as best."""
        return max(self.shelf.marked(), default=None)

    def newest(self, fallback: bool = True) -> int | None:
        """The newest step whose files match their manifest; None when there is no checkpoint at all.

        A damaged one is named, file and step, and passed over for the one before it; with `fallback` False it raises
        UserError instead, as does a folder that holds only damaged ones. Process 0 reads, the others follow it.
        """
        found = processes.by_first("newest checkpoint", lambda: self._verify_downwards(fallback))
        self._damaged = {step for step in self.steps() if found is None or found < step}
        return found

    def restore(self, step: int, abstract: Any, *, partial: bool = False) -> Any:
        """The state of `step`, shaped, placed and sharded as `abstract` (pytree of ShapeDtypeStruct) says.

        Any mesh will do. `partial`: what else the step holds, such as companions of the network, is left out.
        Raises UserError for a missing or damaged step, or one that holds other arrays.
        """
        if step not in self.steps():
            raise UserError(f"{self.shelf} has no checkpoint of step {step}; it has: {self._listed()}")
        place = self.shelf.place(step)
        if trouble := processes.by_first("checkpoint to restore", lambda: self._unchecked_damage(step)):
            raise UserError(f"the checkpoint of step {step} is damaged: {trouble}; steps: {self._listed()}")
        wanted = _flatten(abstract)
        stored = self._record(step)["state"]
        if partial:
            stored = {name: text for name, text in stored.items() if name in wanted}
        _check_same(place, stored, {name: _describe(x) for name, x in wanted.items()})
        loading = ocp.options.PyTreeOptions.Loading(partial_load=partial)
        with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=loading)):
            arrays = ocp.load(f"{place}/state", wanted)
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted])

    def meta(self, step: int) -> dict[str, Any]:
        """What `save` was given as `meta`."""
        return self._record(step)["meta"]

    def paths(self, step: int) -> set[str]:
        """Of all arrays of the state that `save` was given."""
        return set(self._record(step)["state"])

    def preflight(self, size: int) -> None:
        """Raises UserError unless the disk holds as many checkpoints of `size` bytes as there will be at most.

        Those are the newest ones, the best one, and the draft: an old one goes only when the new one is whole.
        """
        if jax.process_index() != 0:
            return
        standing = len(self.steps())
        more = max(1, self._keep + 2 - standing)
        free = self.shelf.free()
        if free is not None and free < more * size:
            raise UserError(
                f"{self.shelf} has {_bytes(free)} free, and {_bytes(more * size)} are needed: {more} more checkpoints "
                f"of {_bytes(size)} (checkpoint.keep={self._keep}, the best one and the one being written; {standing} "
                "stand already). Free space, lower checkpoint.keep, or choose another --workdir"
            )

    def _finish(self, response: Any, step: int, arrays: dict[str, Any]) -> None:
        """In the background: when every process has written its arrays, process 0 seals, publishes, prunes."""
        try:
            response.result()
            # Not by a collective on the devices, which would deadlock with the train step running meanwhile.
            processes.by_first("checkpoint to seal", lambda: self._publish(step))
        # Tensorstore reports a full disk as ValueError, the coordination service a lost process as RuntimeError.
        except (OSError, ValueError, RuntimeError) as error:
            raise self._explain(step, arrays, error) from error
        self._damaged.discard(step)

    def _publish(self, step: int) -> None:
        self._before_commit()
        self.shelf.commit(step)
        self._prune(step)

    def _prune(self, committed: int) -> None:
        good = [step for step in self.steps() if step not in self._damaged or step == committed]
        kept = {*good[-self._keep :], committed, self.best()}
        for step in self.steps():
            if step not in kept:
                self.shelf.remove(step)

    def _unchecked_damage(self, step: int) -> str:
        return "" if step in self._checked else self.shelf.damage(step)

    def _verify_downwards(self, fallback: bool) -> int | None:
        steps = self.steps()
        for step in reversed(steps):
            trouble = self.shelf.damage(step)
            if not trouble:
                self._checked.add(step)
                return step
            text = f"the checkpoint of step {step} is damaged: {trouble}"
            if not fallback:
                raise UserError(f"{text}; the steps here: {self._listed()}")
            self._say(f"{text}; using the one before it")
        if steps:
            raise UserError(
                f"every checkpoint in {self.shelf} is damaged; restore the folder from a backup, or remove it "
                "to start from the beginning"
            )
        return None

    def _record(self, step: int) -> dict[str, Any]:
        return json.loads(self.shelf.read(step, "meta.json"))

    def _listed(self) -> str:
        return ", ".join(map(str, self.steps())) or "none"

    def _explain(self, step: int, arrays: Mapping[str, Any], error: Exception) -> UserError:
        """Removes what was half written and says what happened, what is needed and what is still there."""
        self.shelf.abandon(step)
        reason = f"{error}"
        if disk.is_full(error):
            free = self.shelf.free() or 0
            what = reason if "File too large" in reason else "no space"
            reason = f"{what}: it needs {_bytes(nbytes(arrays))}, {_bytes(free)} are free; free space or move the run"
        return UserError(
            f"the checkpoint of step {step} could not be written to {self.shelf}: {reason}. "
            f"Checkpoints that stand: {self._listed()}",
            code=1,
        )


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a tree (arrays or ShapeDtypeStruct), counted once however they are sharded."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _flatten(tree: Any) -> dict[str, Any]:
    """Path -> leaf, in the order of the tree. So the disk does not know what classes the tree is made of."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    assert len(flat) == len(leaves), "two leaves of the state have the same path"
    return flat


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _check_same(place: str, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Orbax would cast another dtype silently and stop at the first other difference; here all are listed."""
    lines = [f"{name} is missing" for name in wanted if name not in stored]
    lines += [f"{name} is not part of this run" for name in stored if name not in wanted]
    both = [name for name in wanted if name in stored]
    lines += [f"{name} is {stored[name]}, not {wanted[name]}" for name in both if stored[name] != wanted[name]]
    if lines:
        raise UserError(f"{place} holds the state of another run:\n  " + "\n  ".join(lines))


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
