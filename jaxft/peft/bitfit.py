"""BitFit: the biases of a network train, and nothing is added to it (Ben Zaken et al. 2022)."""

from dataclasses import dataclass

from jaxft.peft.methods import Method, is_added
from jaxft.registry import UserError


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """All parameters whose path ends in /bias train, and a head of classes whole.

    The `peft` library has no such method: the whole network is exported.
    """

    def trains(self, path: str, head: str) -> bool:
        return path.endswith("/bias") or self.saves(path, head)

    def check(self, paths: list[str]) -> None:
        """As of every method; and raises UserError for a network whose body has no bias: its head alone would train."""
        super().check(paths)
        if not any(path.endswith("/bias") for path in paths if not is_added(path) and not path.startswith("head/")):
            raise UserError(
                "peft.name='bitfit': this model has no biases below its head, so that nothing of it would train; "
                "use 'lora' or 'ia3'"
            )
