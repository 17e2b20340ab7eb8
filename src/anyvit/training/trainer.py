"""One training, from start or from where it stopped: the door to Lightning.

The data are an endless stream that starts at the step the run stands at, and everything random is a function of the
seed and the step. So a run that was stopped anywhere, by Ctrl-C, kill -9 or a full disk, ends with the same weights as
one that was not, as long as epochs, not the clock, end it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anyvit.data import DataSet
from anyvit.data.loading import steps_per_epoch, training_loader
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import Interrupted, SettingError
from anyvit.protocols import Progress, silent
from anyvit.training.checkpoint import LAST, read_checkpoint, recall, system_errors_named, write_checkpoint
from anyvit.training.execution import Execution, Precision, choose_execution
from anyvit.training.interruption import CtrlC
from anyvit.training.objectives import Objective, Remembering
from anyvit.training.parallel import Alone, Parallelize, Spread, names_in_order
from anyvit.training.ranks import agreed, count, most, rank, shared
from anyvit.training.recipes import Recipe
from anyvit.training.regularization import SoftTargets, set_stochastic_depth
from anyvit.training.run import Run, Validate
from anyvit.training.schedule import Schedule, lr_factor

_EMA_SHARE = 9  # the average covers the last ninth of the run so far, so that a short run is not ruined by its start


@dataclass(frozen=True)
class Training:
    """What a training ends with.

    Attributes:
        model: The averaged weights, in eval mode on the CPU.
        steps: Batches learned from.
        history: One entry a validation: step, epoch, seconds, loss, lr, images_per_second and the figures it gave.
        precision: "32-true" or "bf16-mixed".
    """

    model: nn.Module
    steps: int
    history: list[dict[str, float]]
    precision: str


def train(
    model: nn.Module,
    data: DataSet,
    *,
    objective: Objective,
    recipe: Recipe,
    preprocessing: Preprocessing,
    folder: Path,
    epochs: float | None = None,
    seconds: float | None = None,
    seed: int = 0,
    validate: Validate | None = None,
    progress: Progress = silent,
    workers: int | None = None,
    parallelize: Parallelize | None = None,
    rows: int = 1,
) -> Training:
    """Train a copy of `model` on the training split, or go on with the training that `folder` holds.

    The same call on the same folder resumes, and once finished gives its result at once. On one machine with the same
    number of threads the weights are those of an uninterrupted run, bit for bit, unless `seconds` is given.

    With `parallelize`, all processes that have `joined` make the same call, and each trains its part. The first one
    decides, validates and writes; `folder` is its own. Another number of them may resume.

    Args:
        model: Where training starts. It is left as it is.
        data: Its "train" split is learned; class weights are honoured.
        objective: What is learned from a batch.
        recipe: How.
        preprocessing: What the model sees of an image.
        folder: Keeps the checkpoints (see `remove_checkpoints`), and in `logs/` a CSV file and TensorBoard's.
        epochs: How often each image is seen. With neither it nor `seconds`, what the recipe says.
        seconds: The run ends before, the last validation included, whatever `epochs` says.
        seed: Everything random follows from it.
        validate: Called about twenty times: once an epoch where there are fewer, and at the end.
        progress: Called up to four times a second.
        workers: Processes that load images. None: as many as help.
        parallelize: Makes this process's part of a model.
        rows: How many whole models the processes make up, each on its share of a batch.

    Raises:
        Interrupted: Ctrl-C. The state is saved.
        SettingError: The loss is no longer finite, or `folder` holds a training with other settings.
        AnyViTError: `folder` cannot be written to.
    """
    if epochs is None and seconds is None:
        epochs = recipe.epochs
    split, num_classes = data.splits["train"], len(data.classes)
    with _quiet(), torch.random.fork_rng(devices=[]), system_errors_named(folder):
        settings = _settings(model, data, objective, recipe, epochs=epochs, seed=seed)
        _check_alike(settings)
        decide = partial(
            choose_execution, model, objective, recipe, image_size=preprocessing.image_size, num_classes=num_classes
        )
        execution = Execution(**agreed(lambda: _begun(folder, settings, lambda: asdict(decide()))))
        schedule = Schedule(epochs, seconds, steps_per_epoch(split, recipe.batch_size))
        targets = SoftTargets(recipe, num_classes, data.class_weights)
        learner = _Learner(model, objective, recipe, targets, schedule, seed, parallelize if count() > 1 else None)
        checkpoint = shared(lambda: read_checkpoint(folder))
        if checkpoint and checkpoint["callbacks"][_Hooks.state_key]["finished"]:
            learner.load_state_dict(checkpoint["state_dict"])
            history = checkpoint["callbacks"][_Hooks.state_key]["history"]
            return Training(learner.ema.module.eval(), checkpoint["global_step"], history, execution.precision)
        with CtrlC(together=count() > 1) as ctrl_c, execution.applied():
            run = Run(
                schedule,
                ctrl_c,
                validate,
                progress if rank() == 0 else silent,
                averaged=lambda: learner.spread.averaged(learner.ema.module),
                save=lambda: trainer.save_checkpoint(folder / LAST),
                log=lambda entry: _log(trainer.loggers, entry),
            )
            trainer = _trainer(folder, execution.precision, _Hooks(run, learner), checkpoint, rows)
            loader = training_loader(
                split,
                preprocessing,
                recipe.augmentation(mirrored=data.mirrored),
                batch_size=recipe.batch_size,
                seed=seed,
                position=lambda: trainer.global_step,
                workers=workers,
                share=(rank() * rows // count(), rows),
            )
            _fit(trainer, learner, loader, folder / LAST if checkpoint else None)
            averaged = learner.spread.averaged_everywhere(learner.ema.module)
    return Training(averaged.cpu().eval(), trainer.global_step, run.history, execution.precision)


def _settings(
    model: nn.Module, data: DataSet, objective: Objective, recipe: Recipe, **others: float | None
) -> dict[str, Any]:
    """What a resumed training must share with the one that it resumes."""
    shapes = str([(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()])
    return {
        **asdict(recipe),
        **others,
        "objective": repr(objective),
        "model": hashlib.sha256(shapes.encode()).hexdigest()[:12],
        "images": data.digest("train")[:12],
    }


def _begun(folder: Path, settings: Mapping[str, Any], decide: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return recall(folder, settings, decide)


def _check_alike(settings: Mapping[str, Any]) -> None:
    mine = json.loads(json.dumps(settings))
    theirs = agreed(lambda: mine)
    if others := [name for name in mine if mine[name] != theirs[name]]:
        raise SettingError(f"process {rank()} trains with other {', '.join(others)} than the first: give all the same.")


def _trainer(
    folder: Path, precision: Precision, hooks: _Hooks, checkpoint: dict[str, Any] | None, rows: int
) -> L.Trainer:
    step = checkpoint["global_step"] if checkpoint else 0
    devices = int(os.environ["LOCAL_WORLD_SIZE"]) if count() > 1 else 1
    return L.Trainer(
        accelerator="auto",
        devices=devices,
        num_nodes=count() // devices,
        strategy=_Together(rows, count() // rows) if count() > 1 else "auto",
        precision=precision,
        max_steps=-1,  # the run ends itself
        max_epochs=-1,
        callbacks=[hooks],
        plugins=[_Files(checkpoint)],
        logger=[
            CSVLogger(folder, name="logs", version=""),
            TensorBoardLogger(folder, name="logs", version="", purge_step=step + 1),
        ]
        if rank() == 0
        else False,
        default_root_dir=folder,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _fit(trainer: L.Trainer, learner: _Learner, loader: DataLoader, checkpoint: Path | None) -> None:
    try:
        trainer.fit(learner, loader, ckpt_path=checkpoint)
    except (Interrupted, SystemExit, KeyboardInterrupt):  # Lightning makes SystemExit of SIGTERM, and of Ctrl-C
        raise Interrupted(f"training stopped after {trainer.global_step} steps. The same command resumes it.") from None


class _Learner(L.LightningModule):
    """One step: mixed targets, loss, clipped gradient, AdamW, average."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        recipe: Recipe,
        targets: SoftTargets,
        schedule: Schedule,
        seed: int,
        parallelize: Parallelize | None,
    ) -> None:
        super().__init__()
        self.ema = _average(model, recipe)
        self.model = deepcopy(model)
        set_stochastic_depth(self.model, recipe.drop_path)
        self.spread = Alone(self.model)
        self.parallelize = parallelize
        self.objective = objective
        self.recipe = recipe
        self.targets = targets
        self.schedule = schedule
        self.seed = seed
        self.figures: dict[str, float] = {}  # of the last step
        self.images = 0  # in its batch

    def configure_model(self) -> None:
        """Keep this process's part of the model, where it is spread over several. The mesh is known by now."""
        if self.parallelize is None or isinstance(self.spread, Spread):
            return
        self.model.load_state_dict(shared(self.model.state_dict))
        names = names_in_order(self.configure_optimizers(), self.model)
        assert self.device_mesh is not None
        module = self.parallelize(self.model, self.device_mesh)
        self.spread = Spread(module, self.ema.module, names)
        self.model = module.part
        self.ema = _average(self.model, self.recipe)

    @property
    def lr(self) -> float:
        """The learning rate of the last layer at the last step."""
        return max(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        layer_decay = self.recipe.layer_decay if self.recipe.layer_decay < 1 else None
        return create_optimizer_v2(
            self.model,
            opt="adamw",
            lr=self.recipe.lr,
            weight_decay=self.recipe.weight_decay,
            layer_decay=layer_decay,
            fused=True,  # on the CPU too, where the loop over parameters costs a small model half its speed
        )

    def on_train_start(self) -> None:
        self.model.train()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        step = self.global_step
        others = (self.spread.data_rank,) if self.spread.data_rank else ()  # draw for other images
        torch.manual_seed(int(np.random.SeedSequence((self.seed, step, *others)).generate_state(1, np.uint64)[0]))
        done = self.schedule.progress(step)
        if self.schedule.seconds is not None:  # clocks differ
            (done,) = most(done)
        share = lr_factor(done, warmup=self.recipe.warmup, final=self.recipe.final_lr)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.recipe.lr * share * group.get("lr_scale", 1.0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = self.targets(*batch)
        self.images = len(images) * self.spread.data_size
        loss, figures = self.objective.loss(self.spread.module, images, targets, step=self.global_step)
        self.figures = self.spread.average({"loss": loss.item(), **figures})
        if not np.isfinite(self.figures["loss"]):
            raise self._diverged(f"the loss is {self.figures['loss']}")
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        norm = self.spread.clip_gradients(self.recipe.clip)
        if not torch.isfinite(norm):  # before it reaches the weights
            raise self._diverged(f"the norm of the gradient is {norm.item()}")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.model, step=step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if isinstance(self.objective, Remembering):
            checkpoint["objective"] = self.objective.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if isinstance(self.objective, Remembering):
            self.objective.load_state_dict(checkpoint["objective"])

    def _diverged(self, what: str) -> SettingError:
        return SettingError(
            f"training diverged: at step {self.global_step} {what}, with a learning rate of {self.lr:.2g}. "
            f"Set a lower lr than {self.recipe.lr:g} in the recipe, and train in another folder."
        )


def _average(model: nn.Module, recipe: Recipe) -> ModelEmaV3:
    return ModelEmaV3(
        model,
        decay=recipe.ema_decay,
        use_warmup=True,
        warmup_gamma=_EMA_SHARE,
        warmup_power=1.0,
        exclude_buffers=True,  # they are copied
    )


class _Together(ModelParallelStrategy):
    """Several processes, each with its part: their checkpoint is that of one process with the whole."""

    lightning_restore_optimizer = True

    @property
    def learner(self) -> _Learner:
        assert isinstance(self.lightning_module, _Learner)
        return self.lightning_module

    @property
    def spread(self) -> Spread:
        assert isinstance(self.learner.spread, Spread)
        return self.learner.spread

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self.spread.gather_state(self.learner.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return self.spread.gather_optimizer(optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        self.learner.load_state_dict(self.spread.cut_state(checkpoint["state_dict"]), strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        cut = [self.spread.cut_optimizer(optimizer, whole) for optimizer, whole in states]
        Strategy.load_optimizer_state_dict(self, {"optimizer_states": cut})


class _Files(CheckpointIO):
    """Lightning's checkpoints, by our way of writing them. It gives back the one that was read to look at it."""

    def __init__(self, checkpoint: dict[str, Any] | None) -> None:
        self._checkpoint = checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        agreed(lambda: write_checkpoint(Path(path).parent, checkpoint))

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        assert self._checkpoint is not None
        checkpoint, self._checkpoint = self._checkpoint, None
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        raise AssertionError("checkpoints are the caller's to remove")


class _Hooks(L.Callback):
    """Lightning tells the run where it is."""

    state_key = "run"

    def __init__(self, run: Run, learner: _Learner) -> None:
        self.run = run
        self.learner = learner
        self._in_step = False

    def state_dict(self) -> dict[str, Any]:
        return self.run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run.load_state_dict(state_dict)

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.run.ctrl_c.together:  # Lightning's own way with SIGTERM sends a message in the middle of others
            self.run.ctrl_c.take_sigterm_too()
        self.run.begin(trainer.global_step, self.learner.lr)
        trainer.should_stop = self.run.finished

    def on_train_batch_start(self, *_: Any) -> None:
        self._in_step = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._in_step = False
        learner = self.learner
        self.run.step_done(trainer.global_step, learner.lr, learner.figures, images=learner.images)
        trainer.should_stop = self.run.finished

    def on_exception(self, trainer: L.Trainer, learner: L.LightningModule, exception: BaseException) -> None:
        stopped = isinstance(exception, (Interrupted, KeyboardInterrupt, SystemExit))
        if stopped and not self._in_step and trainer.global_step:
            self.run.save()


def _log(loggers: Sequence[Logger], entry: Mapping[str, float]) -> None:
    figures = {name: value for name, value in entry.items() if name != "step"}
    for logger in loggers:
        logger.log_metrics(figures, step=int(entry["step"]))
        logger.save()


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's own news and advice are not for the user of a finished program."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for words in (
            r".*does not have many workers",
            r"Experiment logs directory .* exists and is not empty",
            r"Found \d+ module\(s\) in eval mode",
            r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        ):
            warnings.filterwarnings("ignore", words)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
