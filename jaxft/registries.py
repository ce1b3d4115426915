"""All registries, and the check that every name in a config is in one. Imports none of what they list."""

from jaxft.config import Config
from jaxft.data import DATASETS
from jaxft.metrics import METRICS
from jaxft.models import MODELS
from jaxft.optim import OPTIMIZERS, SCHEDULES
from jaxft.peft import PEFT
from jaxft.registry import check_name
from jaxft.tasks import TASKS

ALL = {
    "data": DATASETS,
    "metrics": METRICS,
    "models": MODELS,
    "optim": OPTIMIZERS,
    "peft": PEFT,
    "schedule": SCHEDULES,
    "task": TASKS,
}


def check_names(config: Config) -> None:
    """Raises UserError for a model, task, data set, method of peft, optimizer or schedule that nobody registered."""
    check_name(MODELS, config.model.name, "model.name")
    check_name(TASKS, config.task["name"], "task.name")
    check_name(DATASETS, config.data["name"], "data.name")
    check_name(PEFT, config.peft["name"], "peft.name")
    check_name(OPTIMIZERS, config.optim["name"], "optim.name")
    check_name(SCHEDULES, config.schedule["name"], "schedule.name")
