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
    """Writes the network of a run to --out, one that trained along, such as a generator, beside it.

    Raises UserError for a run without checkpoints, an unknown step, or logits that differ: --out is not touched.
    """
    from jaxft.runfolder import opened

    with opened(arguments.run) as run:
        run.fetch()
        _export(arguments, run, _config(run))


def _export(arguments: argparse.Namespace, run: Any, raw: dict[str, Any]) -> None:
    from jaxft import cache, numerics
    from jaxft.config import parse
    from jaxft.tasks import TASKS

    numerics.self_check()
    cache.compile_cache(run.path)
    config = parse(raw)
    task = call(TASKS, raw["task"], "task")
    net, params, meta, step = _restore(run, config, task, arguments.step)

    from jaxft import companions, inputs
    from jaxft.hf import card, folder, hub

    split, scores = _scores(run, step)
    hf_folder = hub.resolve(config.model.hf, weights=False) if config.model.hf else None

    def write(out: Path, net: Any, own: Any, fields: Any, base: str, source: Path | None, results: Any) -> None:
        text = card.model_card(
            name=run.path.name,
            base_model=base,
            head=net.head,
            images=net.family.KIND == "vision",
            labels=fields.get("id2label", {}),
            dataset=card.dataset_name(raw["data"], split),
            split=split,
            results=results,
            config=raw,
            measured_in=raw["model"]["param_dtype"],
            dtype=arguments.dtype,
        )
        beside = inputs.of(task, net.family).beside(config, net.cfg, run.tokenizer, hf_folder)
        check = functools.partial(_verify, arguments, out, net, own) if arguments.verify else None
        dtype = arguments.dtype
        folder.write(out, net, own, task=fields, beside=beside, source=source, dtype=dtype, card=text, check=check)
        cli.say(f"step {step:,} written to {out} in {dtype}")

    target = Path(arguments.out)
    for name, (also, whole) in companions.exported(net, params).items():
        write(companions.folder_of(target, name), also.net, whole, {}, also.wish.hf, also.folder, {})
    write(target, net, net.own(params), meta["task"], config.model.hf, hf_folder, scores)


def _config(run: Any) -> dict[str, Any]:
    """The config of a run folder as plain dicts. Raises UserError for a folder that is none of a run."""
    from jaxft.runfolder import read_json

    if not run.config.exists():
        raise UserError(f"--run={run.place} is not a run folder: it has no config.json")
    return read_json(run.config)["config"]


def _scores(run: Any, step: int) -> tuple[str, dict[str, float]]:
    """(split, scores on it) of a step: there are some of the one that the run chose at its end."""
    from jaxft.runfolder import read_json

    report = read_json(run.report) if run.report.exists() else {"step": -1, "split": ""}
    names = report.keys() - {"split", "step", "details", "inputs"} if report["step"] == step else ()
    return report["split"], {name: float(report[name]) for name in report if name in names}  # "NaN" is text there


def _verify(arguments: argparse.Namespace, out: Path, net: Any, params: Any, folder: Path) -> None:
    """Raises UserError (exit 1) when `folder` does not compute what `params` do."""
    from jaxft.verify import largest_difference

    difference, reader = largest_difference(folder, net, params, arguments.dtype)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the export does not compute what the checkpoint does: logits read by {reader} differ by "
            f"{difference:.3g} (limit {TOLERANCE:g}); {out} is left as it was",
            code=1,
        )
    cli.say(f"verified: logits read by {reader} differ by at most {difference:.1g} (limit {TOLERANCE:g})")


def _restore(run: Any, config: Any, task: Any, wanted: str) -> tuple[Any, Any, dict[str, Any], int]:
    """(network with the companions that are exported, parameters of all, the checkpoint's "model" record, step)."""
    from flax.traverse_util import unflatten_dict

    from jaxft import build, companions, sharding, state
    from jaxft.checkpoint import Checkpoints
    from jaxft.models import MODELS
    from jaxft.registry import lookup

    checkpoints = Checkpoints(run.checkpoints, keep=1, say=cli.say, read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"--run={run.place} has no checkpoint yet")
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
    # What --verify compares is not the rounding, and this machine need not be like the one that trained.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32", attention="auto"))
    net = build.network(
        family,
        family.Config(**model["config"]),
        head=model["head"],
        outputs=model["outputs"],
        model=config.model,
        rules=config.sharding,
        mesh=mesh,
    )
    net = companions.attach_recorded(net, task, model["companions"], config)
    where = state.stored_weights(net.tree, checkpoints.paths(step))
    arrays = checkpoints.restore(step, where, partial=True)
    params = unflatten_dict({path.partition("/")[2]: array for path, array in arrays.items()}, sep="/")
    checkpoints.close()
    return net, params, model, step


if __name__ == "__main__":
    main()
