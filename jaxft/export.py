"""python -m jaxft.export --run=RUN --out=DIR [--step=best|last|N] [--dtype=bfloat16] [--verify]"""

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import Any

from jaxft import cli
from jaxft.registry import UserError, call

TOLERANCE = 1e-5  # of float32 logits


def main() -> None:
    cli.guarded(lambda: export(_arguments()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jaxft.export", description="Write a checkpoint as a Hugging Face folder."
    )
    parser.add_argument("--run", required=True, help="run folder, finished or not")
    parser.add_argument("--out", required=True, help="folder to write; must not exist or be an earlier export")
    parser.add_argument("--step", default="best", help="best, last, or the number of a checkpoint")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the tensors")
    parser.add_argument(
        "--verify", action="store_true", help="reload the export and compare logits; refuse on a difference"
    )
    return parser.parse_args()


def export(arguments: argparse.Namespace) -> None:
    """Raises UserError for a run without checkpoints, an unknown step, or logits that differ: --out is not touched."""
    from jaxft import cache, numerics
    from jaxft.config import parse
    from jaxft.runfolder import RunFolder, read_json

    run = RunFolder(Path(arguments.run))
    if not run.config.exists():
        raise UserError(f"--run={arguments.run} is not a run folder: it has no config.json")
    raw = read_json(run.config)["config"]
    numerics.self_check()
    cache.compile_cache(run.path)
    config = parse(raw)
    net, params, meta, step = _restore(run, config, arguments.step)

    from jaxft import inputs
    from jaxft.hf import card, folder, hub
    from jaxft.tasks import TASKS

    report = read_json(run.report) if run.report.exists() else {"step": -1, "split": ""}
    scores = report.keys() - {"split", "step", "details", "inputs"} if report["step"] == step else ()
    text = card.model_card(
        name=run.path.name,
        base_model=raw["model"]["hf"],
        head=net.head,
        images=net.family.KIND == "vision",
        labels=meta["task"].get("id2label", {}),
        dataset=card.dataset_name(raw["data"], report["split"]),
        split=str(report["split"]),
        results={name: float(report[name]) for name in report if name in scores},  # "NaN" is text there
        config=raw,
        measured_in=raw["model"]["param_dtype"],
        dtype=arguments.dtype,
    )
    source = hub.resolve(config.model.hf, weights=False) if config.model.hf else None
    folder.write(
        Path(arguments.out),
        net,
        params,
        task=meta["task"],
        beside=inputs.of(call(TASKS, raw["task"], "task"), net.family).beside(config, net.cfg, run.tokenizer, source),
        source=source,
        dtype=arguments.dtype,
        card=text,
        check=functools.partial(_verify, arguments, net, params) if arguments.verify else None,
    )
    cli.say(f"step {step:,} written to {arguments.out} in {arguments.dtype}")


def _verify(arguments: argparse.Namespace, net: Any, params: Any, folder: Path) -> None:
    """Raises UserError (exit 1) when `folder` does not compute what `params` do."""
    from jaxft.verify import largest_difference

    difference, reader = largest_difference(folder, net, params, arguments.dtype)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the export does not compute what the checkpoint does: logits read by {reader} differ by "
            f"{difference:.3g} (limit {TOLERANCE:g}); --out={arguments.out} is left as it was",
            code=1,
        )
    cli.say(f"verified: logits read by {reader} differ by at most {difference:.1g} (limit {TOLERANCE:g})")


def _restore(run: Any, config: Any, wanted: str) -> tuple[Any, Any, dict[str, Any], int]:
    """(network, parameters, the checkpoint's "model" record, step)."""
    from jaxft import build, sharding, state
    from jaxft.checkpoint import Checkpoints
    from jaxft.models import MODELS
    from jaxft.registry import lookup

    checkpoints = Checkpoints(run.checkpoints, keep=1, say=cli.say, read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"--run={run.path} has no checkpoint yet")
    if wanted in ("best", "last"):
        best = checkpoints.best() if wanted == "best" else None
        newest = checkpoints.newest()
        step = best if best is not None else newest
    elif wanted.isdecimal() and int(wanted) in steps:
        step = int(wanted)
    else:
        raise UserError(f"--step={wanted}: the run has best, last, {', '.join(map(str, steps))}")
    assert step is not None
    meta = checkpoints.meta(step)
    model = meta["model"]
    family = lookup(MODELS, model["family"], "model.name")
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1})
    net = build.network(
        family,
        family.Config(**model["config"]),
        head=model["head"],
        outputs=model["outputs"],
        # What --verify compares is not the rounding, and this machine need not be like the one that trained.
        model=dataclasses.replace(config.model, dtype="float32", attention="auto"),
        rules=config.sharding,
        mesh=mesh,
    )
    params = state.weights(checkpoints.restore(step, state.plan(net, config, None).abstract, partial=True))
    checkpoints.close()
    return net, params, model, step


if __name__ == "__main__":
    main()
