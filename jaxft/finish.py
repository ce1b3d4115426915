"""The end of a run: the chosen weights tested, exported and reported."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft import companions, exporting, processes, report, runfolder, state
from jaxft.hf import card
from jaxft.registry import UserError
from jaxft.writer import json_numbers


def finish(run: Any, raw: Mapping[str, Any]) -> None:
    """Tests and exports the best or the last weights of `run`; report.json, written last, marks the run as finished."""
    trained, step = _chosen(run)
    split = "test" if "test" in run.inputs.caches else "validation"
    meter = run.score(split, trained, last=True)
    results, details = meter.result(), meter.report()
    run.say(f"\n{split} split, step {step:,}\n{meter.table()}")
    params = state.weights(trained)

    def export(target: Path, net: Any, own: Any, task: Mapping[str, Any], base: str, source: Path | None) -> None:
        text = card.model_card(
            name=run.folder.path.name,
            base_model=base,
            head=net.head,
            images=net.family.KIND == "vision",
            labels=task.get("id2label", {}),
            dataset=card.dataset_name(run.config.data, split),
            split=split,
            results=results if net is run.net else {},  # a companion was not what was scored
            config=raw,
            measured_in=run.config.model.param_dtype,
            dtype="float32" if exporting.exchanged(net) else run.config.model.param_dtype,
            library=exporting.library(net),
        )
        beside = run.reader.beside(run.config, net.cfg, run.folder.tokenizer, run.inputs.hf_folder)
        dtype = run.config.model.param_dtype
        exporting.export(target, net, own, base=base, task=task, beside=beside, source=source, dtype=dtype, card=text)

    for name, (also, whole) in companions.exported(run.net, params).items():
        export(companions.folder_of(run.folder.hf, name), also.net, whole, {}, also.wish.hf, also.folder)
    export(run.folder.hf, run.net, run.net.own(params), run.task.hf_config(), run.config.model.hf, run.inputs.hf_folder)
    if not processes.first():
        return
    lines = (run.folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    report.render(run.folder.path, config=raw, history=[json.loads(line) for line in lines], results=details | results)
    record = {"split": split, "step": step, **results, "details": details, "inputs": run.identity}
    runfolder.write_json(run.folder.report, json_numbers(record))
    run.folder.send()
    hf = "hf" if run.folder.mirror else str(run.folder.hf)
    use = card.USES[run.net.family.KIND == "vision", run.net.head]
    curves = "tensorboard/, " if run.config.log.tensorboard else ""
    what = "adapter" if exporting.library(run.net) else "weights"
    run.say(
        f"written to {run.folder.place}: hf/ ({what}, {use['name']}, card), "
        f"report.html, report.json, metrics.jsonl, {curves}checkpoints/\n"
        f"load {'a copy of ' if run.folder.mirror else ''}it with:\n  {_loads(run, use, hf)}"
    )


def _loads(run: Any, use: Mapping[str, str], hf: str) -> str:
    """How Python opens what was written."""
    library = exporting.library(run.net)
    if not library:
        return f'{use["model"]}.from_pretrained("{hf}"), {use["reader"]}.from_pretrained("{hf}")'
    base = f'{use["model"]}.from_pretrained("{run.config.model.hf}", config=AutoConfig.from_pretrained("{hf}"))'
    if library == "adapters":
        return (
            f'model = {base}; adapters.init(model); model.load_adapter("{hf}", use_safetensors=True, set_active=True)'
        )
    return f'PeftModel.from_pretrained({base}, "{hf}")'


def _chosen(run: Any) -> tuple[Any, int]:
    """(state, step) that is tested and exported: the best checkpoint, or the last step where it cannot be read."""
    best = run.tracker.best_step
    if run.config.checkpoint.export != "best" or best in (0, run.step):
        return run.state, run.step
    try:
        restored = run.read(best)
    except UserError as damage:
        run.say(f"{damage}; this was the best one, the last step, {run.step:,}, is taken instead")
        return run.state, run.step
    run.say(f"taking the best checkpoint, step {best:,} ({run.task.metric} {run.tracker.best:.4f})")
    return restored, best
