"""What goes into batches.log: of each step one digest of the global batch, of which a process has only some rows."""

from collections.abc import Sequence

from jaxft import processes
from jaxft.data import pipeline
from jaxft.registry import UserError
from jaxft.writer import Writer


class BatchLog:
    """Collects the digests of this process's rows; process 0 adds those of the others and writes the lines.

    A process that is alone writes a line at once. Several tell one another a few bytes a step through the coordination
    service, at `write`, so that no step waits for it.
    """

    def __init__(self, share: pipeline.Share, writer: Writer):
        self._blocks, self._writer = share.blocks, writer
        self._noted: dict[int, Sequence[int]] = {}

    def add(self, step: int, digests: Sequence[int]) -> None:
        """Notes what `step` is about to train on: pipeline.digests of the rows of this process."""
        self._noted[step] = digests
        self._writer.advance(step - 1)
        if not processes.several():
            self.write()

    def write(self) -> None:
        """Writes what was noted since the last time; every process does so after the same step.

        Raises UserError where two processes that share rows have read different ones.
        """
        noted, self._noted = self._noted, {}
        if not noted:
            return
        told = processes.to_first(f"batches/{min(noted)}", [self._blocks, list(noted.values())])
        for at, step in enumerate(noted if told else ()):
            held: dict[int, tuple[int, int]] = {}  # block -> (digest, rank)
            for rank, (blocks, digests) in enumerate(told):
                for block, digest in zip(blocks, digests[at], strict=True):
                    other, of = held.setdefault(block, (digest, rank))
                    if digest != other:
                        raise UserError(
                            f"processes {of} and {rank} share rows of the batch, and read different ones for step "
                            f"{step:,}: their data, or their versions of jaxft, are not the same"
                        )
            self._writer.batch(step, pipeline.digest(digest for digest, _ in held.values()))
