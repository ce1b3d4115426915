"""python -m jaxft.prepare --config=configs/prepare.py[:variant] [--config.section.key=value ...] [--workdir=DIR]"""

import json
from pathlib import Path
from typing import Any

from absl import app, flags

from jaxft import cli, config_file, remote
from jaxft.registry import UserError

flags.adopt_module_key_flags(config_file)  # --help lists them
STOPPED = "stopped; the same command goes on from the chunks that are finished"
MEMORY = "Set one of: --config.work.workers lower; --config.work.chunk lower; --config.tokenizer.documents lower"


def main() -> None:
    """Parses flags, checks the config and prepares; every known failure is one message and an exit code."""
    told = {"memory_fix": MEMORY, "stopped": STOPPED}
    app.run(
        lambda _: cli.guarded(
            lambda: prepare(config_file.CONFIG.value.to_dict(), config_file.workdir(), cli.say), **told
        ),
        flags_parser=lambda argv: cli.guarded(lambda: config_file.parse(argv, "configs/prepare.py"), **told),
    )


def prepare(raw: dict[str, Any], workdir: str | Path, say: Any) -> None:
    """Makes the corpus of a config in `workdir`, or goes on with one that was begun there. Raises UserError."""
    from jaxft.corpora import folder, options
    from jaxft.hf import hub
    from jaxft.lock import RunLock
    from jaxft.runfolder import RunFolder

    if remote.is_remote(str(workdir)):
        raise UserError(f"--workdir={workdir}: a corpus is made in a local folder; copy it when it is finished")
    workdir = Path(workdir)
    raw = json.loads(json.dumps(raw))  # as it is kept, and as workers get it
    config = options.parse(raw)
    folder.check_libraries()
    source = options.source_of(config)
    if config.tokenizer.hf:
        hub.resolve(config.tokenizer.hf, weights=False, field="tokenizer.hf")  # now, not after the last document
    if config.beam:
        folder.check_beam()
        from jaxft.corpora import pipelines

        pipelines.made(config.beam)  # now: the folder will hold to these options
    RunFolder(workdir).create()
    with RunLock(workdir, say=say):
        folder.claim(workdir, raw, source.identity())
        if folder.is_finished(workdir):
            say(f"the corpus is finished: {workdir}")
        elif config.beam:
            from jaxft.corpora import beam

            beam.prepare(raw, config, source, workdir, say)
        else:
            from jaxft.corpora import local

            local.prepare(raw, config, source, workdir, say)
        folder.clear(workdir)
        say(f"corpus: {workdir}; train on it with --config.data.folder={workdir}; what went: {workdir}/removed.jsonl")


if __name__ == "__main__":
    main()
