"""On a GPU: the CPU's numbers, the same bits from the same command, and memory that runs out."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from qa import loop
from qa.methods import get_method
from qa.model import attach, load_base
from qa.study import ROOT
from qa.windows import build_windows
from tests.conftest import command_flags, make_encoder, small_settings, toy_split
from tests.test_loop import gradient, make_task, reference_gradient, run_fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)  # another's device stays in it
    yield Accelerator()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("method", ["full", "lora", "prompt_tuning", "prefix_tuning", "ia3"])
def test_gradients_and_logits_are_the_cpus(accelerator, encoder, method):
    model, _, windows = make_task(encoder, count=8, method=method)
    rows = np.arange(len(windows))
    expected, loss = reference_gradient(model.train(), windows, rows)
    batch = loop.to_device(windows.batch(rows), torch.device("cpu"))
    with torch.no_grad():
        logits = model.eval()(**batch)
    model.train().to(accelerator.device)
    found, total = gradient(accelerator, model, windows, rows, 8)
    assert total == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(found.cpu(), expected.float(), atol=1e-5, rtol=1e-3)
    with torch.no_grad():
        on_gpu = model.eval()(**{name: x.to(accelerator.device) for name, x in batch.items()})
    for one, other in zip(on_gpu, logits):
        torch.testing.assert_close(one.cpu(), other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_same_command_gives_the_same_bytes(encoder, toy_files, tmp_path, precision):
    made = []
    for name in ("one", "two"):
        flags = command_flags(encoder, toy_files, tmp_path / name)
        command = [sys.executable, "train.py", *flags, "--mixed_precision", precision]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        made.append(tmp_path / name / "lora/seed-42")
    for file in ("adapter_model.safetensors", "eval_nbest_predictions.json"):
        one, other = ((folder / file).read_bytes() for folder in made)
        assert one == other
    results = json.loads((made[0] / "eval_results.json").read_text())
    assert torch.cuda.get_device_name() in results["environment"]["machine"]
    assert results["peak_memory_mb"] > 0


def test_a_full_gpu_halves_the_micro_batch_and_keeps_the_effective_batch(accelerator, tmp_path):
    base = load_base(str(make_encoder(tmp_path, hidden=256)))
    split = toy_split(600)
    windows = build_windows(split, base.tokenizer, 64, 16)
    settings = small_settings(per_device_train_batch_size=128, num_train_epochs=1)

    def fitted():
        base = load_base(str(tmp_path), encoder_dropout=0.0)
        model = attach(base, get_method("full"), {}, 64).to(accelerator.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return run_fit(accelerator, (model, split, windows), settings)

    before, expected = fitted()
    peak, total = torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()[1]
    try:
        torch.cuda.set_per_process_memory_fraction(0.75 * peak / total)
        progress, found = fitted()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert before.most_windows == float("inf") and progress.most_windows < 512
    assert progress.step == before.step == 2
    losses = [row["train_loss"] for one in (before, progress) for row in one.history]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert found.keys() == expected.keys()
