"""Train the teacher on the prepared images, or take the checkpoint that the YAML names."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import lookup, records, weights
from pipeline.config import Training
from pipeline.data import prepared
from pipeline.data.frames import canvas
from pipeline.files import write_json
from pipeline.models.base import ModelBase, set_precision
from pipeline.progress import detail, say
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment
from pipeline.training import distributed
from pipeline.training import run as runs
from pipeline.training import step as steps
from pipeline.training.loading import Loader


def run(experiment: Experiment, *, folder: Path, report: Path, device: str, log: Sequence[str] = ()) -> str:
    """Writes the weights and a report with their digest. Resumes from its last checkpoint."""
    config, source, weights_file = experiment.config, experiment.source, experiment.weights_file
    teacher, size = config.teacher, config.view_size
    found: dict = {"labels": "given"}  # whose labels its weights have seen
    experiment.check_views()
    if teacher.checkpoint is not None:
        state, whence = weights.load_checkpoint(teacher.checkpoint, say), listed(teacher.checkpoint)
        model = cache.build_teacher(teacher, source, size, source.lanes if weights.has_existence(state) else 0)
        weights.load_into(model, state, whence, say)
        experiment.try_teacher(model)
        line = f"{weights_file}: copied from {whence}"
    elif config.teacher_training is None:
        steps.reseed(0, 0)
        model = cache.build_teacher(teacher, source, size)
        experiment.try_teacher(model)
        line = f"{weights_file}: {teacher.model.called}, as its factory made it"
    else:
        steps.reseed(0, 0)  # before the network is made, and the same in every process
        lanes = source.lanes if config.teacher_training.existence_weight else 0
        model = cache.build_teacher(teacher, source, size, lanes)
        device = distributed.start(device)
        steps.check_batch(
            lambda: cache.build_teacher(teacher, source, size, lanes),
            canvas(size),
            config.teacher_training,
            device,
            "teacher_training",
        )
        trained = _train(experiment, model, config.teacher_training, folder, device, log)
        line = f"{weights_file}: {teacher.model.called}, {trained.in_words(config.teacher_training)}"
        outcome = trained.outcome(config.teacher_training)
        found = {"labels": prepared.labels_on_record(source).get("labelled", "all")} | ({"validation": outcome} if outcome else {})
    if not distributed.is_main_process():
        return line
    weights_file.parent.mkdir(parents=True, exist_ok=True)
    weights.save_file(weights_file, model.state_dict())
    write_json(report, {"weights": weights.digest(model.state_dict())} | found)
    return line


def listed(files: Path | Sequence[Path]) -> str:
    return str(files) if isinstance(files, Path) else ", ".join(map(str, files))


def _train(experiment: Experiment, model: ModelBase, training: Training, folder: Path, device: str, log: Sequence[str]) -> runs.Run:
    logs = None
    if log:
        from pipeline.training.loggers import Logs

        logs = Logs(log)
    config, source, teacher = experiment.config, experiment.source, experiment.config.teacher
    store, sample, images = experiment.pixels, experiment.sample, experiment.images
    prepared.require_labels(store, sample, images, source, "the teacher is trained on labels")
    plugin = lookup.find("models", teacher.model.name)
    plugins = [plugin, *([weights] if teacher.backbone else [])]
    if training.validate_every:
        from pipeline.scoring import validation as own_metric
        from pipeline.training import validation as validating

        plugins += [validating, *([own_metric] if training.validate_metric == "own" else [])]
    code = records.code_digest(sys.modules[__name__], *plugins)
    backbone = None if teacher.backbone is None else weights.digest(weights.load_file(teacher.backbone))
    record = {
        "teacher": teacher.model,
        **lookup.version_record(teacher.model.name, teacher.model.args),
        "backbone": backbone,
        "training": training,
        "views": config.views,
        "code": code,
        "dataset": prepared.meaning(source),
        "prepared": prepared.on_record(store, sample, images),
        **prepared.labels_on_record(source),
    }
    record |= records.code_outside(plugin.Model, teacher.model.args)
    if training.validate_every:
        record |= config.evaluate.windows
    set_precision(training.precision)
    if teacher.backbone is not None:
        weights.load_backbone(model, teacher.backbone, say)
    model.to(device)
    reader = experiment.samples(device=device)
    detail(f"prepared images: {reader.strategy}")
    loader = Loader.of(
        experiment,
        reader,
        training,
        seed=0,
        device=device,
        share=distributed.rank_and_world_size(),
        labelled=experiment.labelled,
        labelled_per_batch=experiment.labelled_per_batch(training, from_labels=True),
    )
    shares_K = loader.class_shares() if training.class_weights == "enet" else None
    weights_K = steps.class_weights(source, training, device, shares_K)
    step = steps.Step(model, [], [], training, weights_K, 0, loader.partly_labelled)
    validation: runs.Validate | None = None
    if training.validate_every:
        canvas_scores = validating.Validation(source, config.prepare, training, config.evaluate, weights_K)
        own = training.validate_metric == "own"
        validation = own_metric.OwnMetric(canvas_scores, source, config.prepare, training) if own else canvas_scores
    run = runs.Run(folder, record, config.text)
    runs.fit(run, step, loader, "training the teacher", validation, logs)
    model.load_state_dict(run.kept(step))
    return run
