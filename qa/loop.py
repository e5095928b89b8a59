"""What happens in a step: THE training loop, and its forward-only sibling.

`fit` trains, `predict` answers; train.py, tune.py and the tests call the same two. Everything
random in a step is a pure function of (seed, step, process), and the batches of (seed, epoch), so
that a checkpoint needs no generator states and a resumed run repeats an uninterrupted one bit for
bit. Progress goes out through callbacks: this file knows no console, no search and no flags.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from torch.nn.functional import cross_entropy

from qa import Interrupted, UserError, checkpoint, kernels, spans
from qa.model import SpanModel
from qa.squad import Example
from qa.study import Settings
from qa.windows import Windows, epoch_batches

# Tokens of one forward when micro-batches are merged. On a CPU larger batches fall out of the
# caches and gain nothing; on a GPU they fill it.
MERGED_TOKENS = {"cpu": 4096, "cuda": 65536}


class NonFiniteLoss(Exception):
    """The loss or its gradient is infinite or no number; nothing was updated with it."""


@dataclass
class Progress:
    """Where a training stands; saved with every checkpoint, except what the weights are."""

    step: int = 0  # updates done
    bad_evaluations: int = 0  # in a row without a lower eval_loss
    best_step: int = 0
    best_loss: float = math.inf
    train_seconds: float = 0.0  # evaluation apart
    loss_sum: float = 0.0  # since the last evaluation, and the windows it is over
    windows_seen: int = 0
    seconds_at_evaluation: float = 0.0
    most_windows: float = math.inf  # that a forward was seen to have memory for
    scaler: dict = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    finished: bool = False
    deterministic: bool = True  # as far as it goes: no operation fell back (see `determinism`)


def to_device(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    pinned = device.type == "cuda"  # copies from there need not be waited for
    if pinned:
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=pinned) for name, tensor in tensors.items()}


def span_losses(start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Cross entropy of both ends, averaged: logits (B, T), labels (B,) → (B,)."""
    at_start = cross_entropy(start_logits, start, reduction="none")
    return (at_start + cross_entropy(end_logits, end, reduction="none")) / 2


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Linear from 0 over `warmup` updates to 1, then linear to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (total - step) / max(1, total - warmup))


def parameter_groups(model: SpanModel, settings: Settings) -> list[dict[str, Any]]:
    """AdamW's groups: the head's own rate, and weight decay only where it belongs."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.trainable().items():
        key = model.is_head(name), model.decays(name, parameter)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": (head and settings.head_learning_rate) or settings.learning_rate,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (head, decays), parameters in groups.items()
    ]


def shard(rows: np.ndarray, process: int, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """This process's part of a batch, and the weight of each row.

    All processes get equally many, or those with fewer would leave the others waiting: the batch
    is filled up with its first row at weight 0.
    """
    missing = -len(rows) % processes
    weights = np.ones(len(rows) + missing, np.float32)
    weights[len(rows) :] = 0.0
    rows = np.concatenate((rows, np.repeat(rows[:1], missing)))
    return rows[process::processes], weights[process::processes]


def micro_batch_size(windows: Windows, rows: np.ndarray, settings: Settings, device: str) -> int:
    """Windows of one forward: those of the recipe, or as many as fit where they are merged."""
    if not settings.merge_accumulation:
        return settings.per_device_train_batch_size
    longest = int(windows.lengths[rows].max())
    fitting = MERGED_TOKENS.get(device, MERGED_TOKENS["cuda"]) // longest
    return min(len(rows), max(settings.per_device_train_batch_size, fitting))


def gradients(
    accelerator: Accelerator,
    model: torch.nn.Module,
    windows: Windows,
    rows: np.ndarray,
    size: int,
) -> Tensor:
    """Backward through one update's windows in micro-batches of `size`; their summed loss.

    rows: the update's windows over all processes. The gradient is that of the mean over all of
    them, however they are cut into micro-batches and processes: each summed loss is divided by
    the global count (Accelerate would divide by the number of micro-batches, which is wrong for
    short ones), and multiplied by the processes, over which DDP averages.
    """
    allocator = accelerator.unwrap_model(model).allocator
    mine, weights = shard(rows, accelerator.process_index, accelerator.num_processes)
    total = torch.zeros((), device=accelerator.device)
    for i in range(0, len(mine), size):
        part = mine[i : i + size]
        batch = to_device(windows.batch(part), accelerator.device)
        labels = to_device(
            {
                "start": windows.start_positions[part],
                "end": windows.end_positions[part],
                "weight": weights[i : i + size],
            },
            accelerator.device,
        )
        last = i + size >= len(mine)
        sync = nullcontext() if last else accelerator.no_sync(model)
        with sync, kernels.products(accelerator):
            with accelerator.autocast():
                start_logits, end_logits = model(**batch)
            losses = span_losses(start_logits, end_logits, labels["start"], labels["end"])
            loss = (losses * labels["weight"]).sum()
            objective = loss * (accelerator.num_processes / len(rows))
            if last and allocator:  # once an update, whatever its micro-batches
                objective = objective + allocator.penalty()
            accelerator.backward(objective)
        total += loss.detach()
    return total


def fit(
    accelerator: Accelerator,
    model: SpanModel,
    windows: Windows,
    settings: Settings,
    evaluate: Callable[[], dict[str, float]],
    *,
    checkpoint_dir: Path | None = None,
    on_step: Callable[[Progress, int, float], None] = lambda progress, total, loss: None,
    on_evaluation: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], int] = lambda: 0,
) -> Progress:
    """Train `model` until the epochs end or eval_loss no longer falls; leave it at its best.

    evaluate: → eval_loss and more, the same on all processes. checkpoint_dir: where to save, and
    to go on from if something is there. stop: → number of a received signal, or 0. Raises
    Interrupted after saving when asked to stop, NonFiniteLoss before an update that would spoil
    the weights, UserError where memory does not do for a single window.
    """
    trainable = model.trainable()
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=0.0, fused=True)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    batch_size = (
        settings.per_device_train_batch_size
        * settings.gradient_accumulation_steps
        * accelerator.num_processes
    )
    steps_per_epoch = math.ceil(len(windows) / batch_size)
    total_steps = settings.num_train_epochs * steps_per_epoch
    warmup_steps = round(settings.warmup_ratio * total_steps)
    evaluate_every = settings.eval_steps or steps_per_epoch
    progress, best = Progress(), {}
    if model.allocator:
        model.allocator.plan(total_steps)
    if accelerator.scaler:  # a fit before this one has left its scale
        scaler = torch.amp.GradScaler(accelerator.device.type)
        accelerator.scaler.load_state_dict(scaler.state_dict())
    if checkpoint_dir:
        progress, best = _restore(checkpoint_dir, model, optimizer, accelerator)
    last_epoch = -1
    model.train()

    while not progress.finished:
        began = time.perf_counter()
        epoch, position = divmod(progress.step, steps_per_epoch)
        if epoch != last_epoch:
            batches = epoch_batches(windows.lengths, batch_size, settings.seed, epoch)
            last_epoch = epoch
        rows = batches[position]
        factor = learning_rate_factor(progress.step, total_steps, warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor

        size = micro_batch_size(windows, rows, settings, accelerator.device.type)
        while True:
            _seed(accelerator, settings.seed, progress.step)
            size = int(min(size, progress.most_windows))
            try:
                loss = gradients(accelerator, wrapped, windows, rows, size)
                break
            except RuntimeError as error:
                if _falls_back(error):
                    optimizer.zero_grad()
                    continue
                if accelerator.num_processes > 1 or not should_reduce_batch_size(error):
                    raise
                if size == 1:
                    longest = windows.lengths[rows].max()
                    raise UserError(
                        f"max_seq_length: no memory for a window of {longest} tokens; lower it"
                    ) from None
                progress.most_windows = size // 2
                optimizer.zero_grad()

        # One exchange tells all processes the global loss and whether any was asked to stop.
        shared = torch.stack((loss, loss.new_tensor(float(stop() > 0))))
        loss_sum, asked_to_stop = accelerator.reduce(shared, "sum").tolist()
        _check_finite("loss", loss_sum, progress, epoch)
        norm = accelerator.clip_grad_norm_(trainable.values(), settings.max_grad_norm)
        if not accelerator.scaler:  # fp16's skips such updates by itself, and lowers its scale
            _check_finite("gradient norm", float(norm), progress, epoch)
        try:
            optimizer.step()
        except RuntimeError as error:  # the first step makes room for its moments
            if accelerator.num_processes > 1 or not should_reduce_batch_size(error):
                raise
            number = sum(parameter.numel() for parameter in trainable.values())
            raise UserError(
                f"method: no memory for AdamW's state of {number:,} trained parameters; choose one "
                "that trains fewer, or a smaller encoder"
            ) from None
        progress.step += 1
        if model.allocator:
            model.allocator.after_update(progress.step)
        optimizer.zero_grad()

        progress.loss_sum += loss_sum
        progress.windows_seen += len(rows)
        progress.train_seconds += time.perf_counter() - began
        on_step(progress, total_steps, loss_sum / len(rows))

        if progress.step % evaluate_every == 0 or progress.step == total_steps:
            metrics = broadcast_object_list([evaluate()])[0]
            model.train()
            if not math.isfinite(metrics["eval_loss"]):
                raise NonFiniteLoss(
                    f"eval_loss {metrics['eval_loss']} after update {progress.step}"
                )
            _record(progress, metrics, steps_per_epoch, settings.learning_rate * factor)
            if metrics["eval_loss"] < progress.best_loss:
                progress.best_loss, progress.best_step = metrics["eval_loss"], progress.step
                progress.bad_evaluations = 0
                best = {name: p.detach().clone() for name, p in trainable.items()}
            else:
                progress.bad_evaluations += 1
            exhausted = 0 < settings.early_stopping_patience <= progress.bad_evaluations
            progress.finished = progress.step == total_steps or exhausted
            _save(checkpoint_dir, progress, model, best, optimizer, accelerator)
            on_evaluation(progress)
        if asked_to_stop and not progress.finished:
            _save(checkpoint_dir, progress, model, best, optimizer, accelerator)
            raise Interrupted(stop() or signal.SIGTERM)

    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(best[name])
    if model.allocator:
        model.allocator.forget_pattern()
    return progress


def _check_finite(name: str, value: float, progress: Progress, epoch: int) -> None:
    if not math.isfinite(value):
        raise NonFiniteLoss(f"{name} {value} at update {progress.step + 1}, epoch {epoch + 1}")


@contextmanager
def determinism(device: torch.device) -> Iterator[Callable[[], bool]]:
    """One run's own account of whether the same command gives the same bits.

    Where an operation has no deterministic kind, `fit` and `predict` let it through, with a warning
    of torch, until the end of this context. Yields a function: has every one been deterministic?
    (On a CPU each is; on other devices only where torch was told to see to it.)
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield lambda: (device.type == "cpu" or enabled) and not _fell_back()
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)


def _fell_back() -> bool:
    return torch.is_deterministic_algorithms_warn_only_enabled()


def _falls_back(error: RuntimeError) -> bool:
    """Whether it was of an operation that has no deterministic kind, which is now let through."""
    found = "use_deterministic_algorithms" in str(error)
    if found:
        torch.use_deterministic_algorithms(True, warn_only=True)
    return found


def _seed(accelerator: Accelerator, seed: int, step: int) -> None:
    """Seed this step's dropout. (torch.manual_seed looks for every kind of device each time.)"""
    sequence = np.random.SeedSequence([seed, step, accelerator.process_index])
    number = int(sequence.generate_state(1)[0])
    torch.default_generator.manual_seed(number)
    if accelerator.device.type != "cpu":  # cuda, mps, xpu: each has a generator of its own
        torch.get_device_module(accelerator.device).manual_seed(number)


def _record(progress: Progress, metrics: dict, steps_per_epoch: int, rate: float) -> None:
    """Append a row of history, and begin the sums of the next."""
    seconds = progress.train_seconds - progress.seconds_at_evaluation
    progress.history.append(
        {
            "step": progress.step,
            "epoch": round(progress.step / steps_per_epoch, 4),
            "train_loss": progress.loss_sum / progress.windows_seen,
            **metrics,
            "learning_rate": rate,
            "examples_per_second": round(progress.windows_seen / seconds, 2),
        }
    )
    progress.loss_sum, progress.windows_seen = 0.0, 0
    progress.seconds_at_evaluation = progress.train_seconds


def _save(folder, progress, model, best, optimizer, accelerator) -> None:
    if folder is None:
        return
    progress.scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
    progress.deterministic &= not _fell_back()
    if accelerator.is_main_process:
        moments = {
            f"optimizer.{index}.{name}": tensor
            for index, state in optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        weights = {f"weights.{name}": p for name, p in model.trainable().items()}
        weights |= {f"best.{name}": tensor for name, tensor in best.items()}
        if model.allocator:
            weights |= {f"allocator.{name}": t for name, t in model.allocator.state().items()}
        checkpoint.save(folder, progress.step, weights | moments, vars(progress))
    accelerator.wait_for_everyone()


def _restore(folder, model, optimizer, accelerator) -> tuple[Progress, dict[str, Tensor]]:
    found = checkpoint.load(folder)
    if found is None:
        return Progress(), {}
    tensors, state = found
    trainable = model.trainable()
    if model.allocator:
        learned = {key.removeprefix("allocator."): tensor for key, tensor in tensors.items()
                   if key.startswith("allocator.")}  # fmt: skip
        model.allocator.load_state(learned)
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(tensors[f"weights.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    progress = Progress(**state)
    if accelerator.scaler and progress.scaler:
        accelerator.scaler.load_state_dict(progress.scaler)
    best = {name: tensors[f"best.{name}"] for name in trainable if f"best.{name}" in tensors}
    return progress, {name: tensor.to(trainable[name].device) for name, tensor in best.items()}


@torch.inference_mode()
def predict(
    accelerator: Accelerator,
    model: SpanModel,
    windows: Windows,
    examples: list[Example],
    settings: Settings,
    n_best: int = 1,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, list[spans.Span]], float]:
    """Answer all questions: {id: spans, best first}, and the mean loss over the windows.

    Windows are taken in order of length, the longest first so that too little memory shows at once,
    and dealt to the processes; all get the whole result.
    Raises UserError where memory does not do for a batch.
    """
    model.eval()
    order = np.argsort(-windows.lengths, kind="stable")
    size = settings.per_device_eval_batch_size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    batches = batches[accelerator.process_index :: accelerator.num_processes]
    parts, loss = [], 0.0
    for done, rows in enumerate(batches, start=1):
        given = to_device(
            {
                "start": windows.start_positions[rows],
                "end": windows.end_positions[rows],
                "answerable": windows.answerable(rows),
            },
            accelerator.device,
        )
        while True:
            try:
                with kernels.products(accelerator), accelerator.autocast():
                    start, end = model(**to_device(windows.batch(rows), accelerator.device))
                break
            except RuntimeError as error:
                if _falls_back(error):
                    continue
                if accelerator.num_processes > 1 or not should_reduce_batch_size(error):
                    raise
                raise UserError(
                    f"per_device_eval_batch_size: no memory for {len(rows)} windows of "
                    f"{windows.lengths[rows].max()} tokens in a forward; lower it"
                ) from None
        loss += span_losses(start, end, given["start"], given["end"]).sum().item()
        found = spans.window_spans(
            start, end, given["answerable"], settings.max_answer_length, n_best
        )
        parts.append((rows, *(_wide(tensor, n_best) for tensor in found)))
        on_batch(done, len(batches))
    losses = [loss]
    if accelerator.num_processes > 1:
        parts, losses = gather_object(parts), gather_object(losses)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    kept = spans.question_spans(windows, *columns, n_best)
    return spans.answers(examples, *kept), math.fsum(losses) / len(windows)


def _wide(found: Tensor, n_best: int) -> np.ndarray:
    """(B, ≤N) → (B, N): windows of a short batch may have fewer spans than asked for."""
    missing = n_best - found.shape[1]
    fill = -torch.inf if found.is_floating_point() else 0
    return torch.nn.functional.pad(found, (0, missing), value=fill).cpu().numpy()
