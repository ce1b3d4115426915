"""python -m jaxft.export --run=RUN --out=DIR [--step=best|last|N] [--dtype=bfloat16] [--merge] [--verify]"""

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
        "--merge",
        action="store_true",
        help="of a run with an adapter: the whole model, with the adapter merged into it",
    )
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
    net, params, meta, step = _restore(run, config, task, arguments)

    from jaxft import companions, exporting, inputs
    from jaxft.hf import card, hub

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
            library=exporting.library(net),
        )
        beside = inputs.of(task, net.family).beside(config, net.cfg, run.tokenizer, hf_folder)
        check = functools.partial(_verify, arguments, out, net, own) if arguments.verify else None
        options = dict(task=fields, beside=beside, source=source, dtype=arguments.dtype, card=text, check=check)
        exporting.export(out, net, own, base=base, **options)
        cli.say(f"step {step:,} written to {out} in {arguments.dtype}")

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


def _restore(run: Any, config: Any, task: Any, arguments: argparse.Namespace) -> tuple[Any, Any, dict[str, Any], int]:
    """(network with the companions that are exported, parameters of all, the checkpoint's "model" record, step).

    With --merge a plain network, with what was added to it merged.
    """
    from jaxft import adapters, build, companions, exporting, sharding
    from jaxft.checkpoint import Checkpoints
    from jaxft.models import MODELS
    from jaxft.peft import PEFT
    from jaxft.registry import lookup

    checkpoints = Checkpoints(run.checkpoints, keep=1, say=cli.say, read_only=True)
    step = _step(run, checkpoints, arguments.step)
    meta = checkpoints.meta(step)
    model = meta["model"]
    family = lookup(MODELS, model["family"], "model.name")
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1})
    # What --verify compares is not the rounding, and this machine need not be like the one that trained.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32", attention="auto"))
    options = dict(head=model["head"], outputs=model["outputs"], rules=config.sharding, mesh=mesh)
    make = functools.partial(build.network, family, family.Config(**model["config"]), **options)
    net = make(model=config.model, peft=call(PEFT, config.peft, "peft"))
    net = companions.attach_recorded(net, task, model["companions"], config)
    params = _parameters(net, checkpoints, step, config)
    checkpoints.close()
    if arguments.merge:
        if not net.added:
            raise UserError(f"--merge: {run.place} is a run without an adapter (peft.name={config.peft['name']!r})")
        along = {name: branch for name, branch in params.items() if name in net.companions}
        params = adapters.merged(net, net.own(params)) | along
        plain = make(model=dataclasses.replace(config.model, frozen_dtype=""))
        net = companions.attach_recorded(plain, task, model["companions"], config)
    elif exporting.exchanged(net):
        _check_adapter(arguments, net.peft.layout, config.model.frozen_dtype)
    return net, params, model, step


def _check_adapter(arguments: argparse.Namespace, layout: str, frozen_dtype: str) -> None:
    """Raises UserError for what cannot be asked of an adapter."""
    if arguments.dtype != "float32":
        raise UserError(f"--dtype={arguments.dtype}: an adapter is written in float32; add --merge for a whole model")
    if arguments.verify and layout == "adapters":
        raise UserError(
            "--verify: this one is opened by the `adapters` library, which is not used here; leave --verify out"
        )
    if arguments.verify and frozen_dtype:
        raise UserError(
            f"--verify: the run kept its model in {frozen_dtype}, and the peft library would compute with the model as "
            "it is on disk; add --merge to export and verify what the run computes"
        )


def _parameters(net: Any, checkpoints: Any, step: int, config: Any) -> Any:
    """All parameters: those of the checkpoint, and what it does not hold of the model that training began with."""
    from flax.traverse_util import flatten_dict, unflatten_dict

    from jaxft import build, state
    from jaxft.hf import files, hub

    paths = checkpoints.paths(step)
    where = state.stored_weights(net.tree, paths)
    if net.peft.frozen:
        where = {path: leaf for path, leaf in where.items() if path in paths}
    arrays = checkpoints.restore(step, where, partial=True)
    held = {path.partition("/")[2]: array for path, array in arrays.items()}
    if not net.peft.frozen:
        return unflatten_dict(held, sep="/")
    folder = hub.resolve(config.model.hf) if config.model.hf else None
    known = checkpoints.meta(step)["identity"].get("model.hf")
    if folder is not None and files.weights_digest(folder) != known:
        raise UserError(
            f"model.hf={config.model.hf!r} holds other weights than when step {step} was trained on them; restore them"
        )
    params, _ = build.parameters(net, folder, config.seed, config.model.reset_head)
    return unflatten_dict(flatten_dict(params, sep="/") | held, sep="/")


def _step(run: Any, checkpoints: Any, wanted: str) -> int:
    """The step that --step names. Raises UserError where there is none."""
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"--run={run.place} has no checkpoint yet")
    if wanted in ("best", "last"):
        best = checkpoints.best() if wanted == "best" else None
        step = best if best is not None else checkpoints.newest()
        assert step is not None
        return step
    if not wanted.isdecimal() or int(wanted) not in steps:
        raise UserError(f"--step={wanted}: the run has best, last, {', '.join(map(str, steps))}")
    return int(wanted)


if __name__ == "__main__":
    main()
