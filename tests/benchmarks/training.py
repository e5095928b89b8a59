"""How fast is the training loop, beside transformers.Trainer and beside the processor's ceiling?

    python -m tests.benchmarks.training [--rounds 5] [--examples 2000]

bert-tiny's shape with random weights, LoRA r = 8 on all linear layers, no dropout, SQuAD windows
of 384/128, the starting report's recipe: batch 2 × accumulation 4, fp32, AdamW. The two run in
turn in one process, on an idle machine; the ratio is the median over the rounds. Each begins from
the same weights and sees the same questions; their loss curves stand below each other. The
ceiling is what one large matrix product of the same process reaches.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from qa import loop, squad
from qa.methods import get_method, peft_config
from qa.model import Architecture, SpanModel, attach, load_base, num_cores
from qa.study import Settings
from qa.windows import Windows, build_windows
from tests.benchmarks import read_questions

SETTINGS = Settings(
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,
    num_train_epochs=1,
    learning_rate=1e-3,
    warmup_ratio=0.0,
    weight_decay=0.0,
    early_stopping_patience=0,
)


def make_encoder(folder: Path) -> Path:
    """bert-tiny's shape with random weights and the bert-base-uncased vocabulary."""
    from transformers import BertConfig, BertForQuestionAnswering

    tokenizer = load_base("minilm-l6").tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
    )
    torch.manual_seed(0)
    BertForQuestionAnswering(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_model(folder: Path) -> SpanModel:
    method = get_method("lora")
    params = {name: param.default for name, param in method.params.items()}
    return attach(load_base(str(folder), encoder_dropout=0.0), method, params, 384)


def make_plain_model(folder: Path):
    """The same model as PEFT's users build it."""
    from peft import PeftModel

    base = load_base(str(folder), encoder_dropout=0.0)
    method = get_method("lora")
    params = {name: param.default for name, param in method.params.items()}
    config = peft_config(method, Architecture.of(base.model), params)
    config.modules_to_save = ["qa_outputs"]
    torch.manual_seed(0)
    return PeftModel(base.model, config)


class WindowDataset(Dataset):
    """The same windows as Trainer takes them."""

    def __init__(self, windows: Windows):
        self.items = []
        for row in range(len(windows)):
            batch = windows.batch(np.array([row]))
            item = {name: values[0].tolist() for name, values in batch.items()}
            item["start_positions"] = int(windows.start_positions[row])
            item["end_positions"] = int(windows.end_positions[row])
            self.items.append(item)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


def run_trainer(folder: Path, data: WindowDataset, output: str) -> tuple[float, list[float]]:
    """(examples a second, training losses in tenths of the run)."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    model = make_plain_model(folder)
    updates = -(-len(data) // 8)
    arguments = TrainingArguments(
        output_dir=output,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_train_epochs=1,
        learning_rate=SETTINGS.learning_rate,
        weight_decay=0.0,
        lr_scheduler_type="linear",
        logging_steps=max(1, updates // 10),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        label_names=["start_positions", "end_positions"],
    )
    collator = DataCollatorWithPadding(load_base(str(folder)).tokenizer)
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collator)
    trainer.log = lambda logs, *rest, **more: trainer.state.log_history.append(dict(logs))
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return len(data) / seconds, losses


def run_loop(folder: Path, windows: Windows) -> tuple[float, list[float]]:
    """The same for qa.loop.fit."""
    model = make_model(folder)
    losses: list[float] = []
    began = time.perf_counter()
    loop.fit(
        Accelerator(cpu=True),
        model,
        windows,
        SETTINGS,
        lambda: {"eval_loss": 0.0},
        on_step=lambda progress, total, loss: losses.append(loss),
    )
    seconds = time.perf_counter() - began
    tenth = max(1, len(losses) // 10)
    means = [statistics.mean(losses[i : i + tenth]) for i in range(0, len(losses), tenth)]
    return len(windows) / seconds, means


def gigaflops() -> float:
    """GFLOP/s of a large fp32 matrix product: what the processor gives at best."""
    a, b = torch.randn(2, 2048, 2048)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began) / 1e9)
    return best


def flops_per_example(folder: Path, windows: Windows) -> float:
    """Forward and backward, counted by PyTorch itself over a few batches."""
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model(folder)
    rows = np.arange(0, len(windows), max(1, len(windows) // 16))[:16]
    with FlopCounterMode(display=False) as counter:
        for row in rows:
            loop.gradients(Accelerator(cpu=True), model, windows, np.array([row]), 1)
    return counter.get_total_flops() / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=2000, help="windows a run, about")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(num_cores())
    split = squad.draw(read_questions("train"), arguments.examples, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = make_encoder(Path(name) / "encoder")
        windows = build_windows(split, load_base(str(folder)).tokenizer, 384, 128)
        data = WindowDataset(windows)
        ceiling = gigaflops()
        needed = flops_per_example(folder, windows)
        run_loop(folder, replace(windows))  # warm-up
        ratios, rates, reached = [], [], []
        print(
            f"{len(windows)} windows, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        for i in range(arguments.rounds):
            theirs, their_losses = run_trainer(folder, data, name)
            ours, our_losses = run_loop(folder, windows)
            ratios.append(ours / theirs)
            rates.append((ours, theirs))
            reached.append(ours * needed / 1e9 / ceiling)
            print(
                f"round {i + 1}: loop {ours:.0f}, Trainer {theirs:.0f} examples/s: {ratios[-1]:.2f}"
            )
    middle = [statistics.median(column) for column in zip(*rates)]
    print(f"median: loop {middle[0]:.0f}, Trainer {middle[1]:.0f} examples/s")
    print(f"ratio loop / Trainer: {statistics.median(ratios):.2f}")
    print(
        f"matrix products: {needed / 1e9:.2f} GFLOP an example, ceiling {ceiling:.0f} GFLOP/s, "
        f"share reached {statistics.median(reached):.0%}"
    )
    print("loss, loop:   ", " ".join(f"{loss:.3f}" for loss in our_losses))
    print("loss, Trainer:", " ".join(f"{loss:.3f}" for loss in their_losses))


if __name__ == "__main__":
    main()
