"""AdaLoRA's penalty and ranks, against PEFT's own penalty and the budget that was asked for."""

import pytest
import torch
from accelerate import Accelerator

from qa import UserError, loop
from qa.methods import METHODS, get_method
from qa.model import attach, load_base
from qa.windows import build_windows
from tests.conftest import small_settings, toy_split

PARAMS = {name: param.default for name, param in METHODS["adalora"].params.items()}


def make_model(encoder, **changes):
    base = load_base(str(encoder), encoder_dropout=0.0)
    return base, attach(base, get_method("adalora"), {**PARAMS, **changes}, 64)


def test_the_penalty_is_pefts(encoder):
    """PEFT adds it to a loss that the model computes; without the penalty that loss is plain."""
    _, model = make_model(encoder, orth_reg_weight=0.3)
    ids = torch.arange(5, 17)[None]
    inputs = {"input_ids": ids, "start_positions": torch.tensor([4]), "end_positions": torch.tensor([5])}  # fmt: skip
    with_penalty = model.network.base_model(**inputs).loss
    model.network.peft_config["default"].orth_reg_weight = 0.0
    plain = model.network.base_model(**inputs).loss
    model.network.peft_config["default"].orth_reg_weight = 0.3
    torch.testing.assert_close(model.allocator.penalty(), with_penalty - plain)


def test_the_penalty_counts_once_an_update(encoder):
    """Whatever the micro-batches: the gradient is that of the mean loss plus the penalty."""
    base, model = make_model(encoder)
    model.train()
    windows = build_windows(toy_split(8), base.tokenizer, 64, 16)
    found = []
    for size in (8, 3):
        model.zero_grad()
        loop.gradients(Accelerator(cpu=True), model, windows, torch.arange(8).numpy(), size)
        found.append([p.grad.clone() for p in model.trainable().values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    model.zero_grad()
    model.allocator.penalty().backward()  # at the start, with E at zero, A's whole gradient
    for (name, p), gradient in zip(model.trainable().items(), found[0], strict=True):
        if "lora_A" in name:
            torch.testing.assert_close(gradient, p.grad, atol=1e-6, rtol=1e-4)


def test_ranks_go_down_to_the_budget(encoder):
    base, model = make_model(encoder, init_r=6, target_r=2)
    split = toy_split(24)
    windows = build_windows(split, base.tokenizer, 64, 16)
    settings = small_settings(learning_rate=1e-2, num_train_epochs=10, early_stopping_patience=0)
    ranks = []

    def evaluate():
        kept = [int((p != 0).sum()) for name, p in model.trainable().items() if "lora_E" in name]
        ranks.append(sum(kept))
        return {"eval_loss": 1.0 / len(ranks)}  # the last is the best

    loop.fit(Accelerator(cpu=True), model, windows, settings, evaluate)
    layers = len(model.architecture.linear)
    assert ranks[0] == 6 * layers
    assert ranks[5:] == [2 * layers] * 5, "settled after half of the updates"


def test_a_budget_that_is_no_smaller_is_refused(encoder):
    with pytest.raises(UserError, match=r"target_r: 12 must be below init_r \(12\)"):
        make_model(encoder, target_r=12)


def test_the_plan_is_there_after_a_resume_without_an_update(encoder, tmp_path):
    """What is saved with a run says when its ranks moved."""
    split = toy_split(24)
    settings = small_settings(num_train_epochs=4)
    plans = []
    for _ in range(2):  # the second goes on from the checkpoint of the last update
        base, model = make_model(encoder)
        windows = build_windows(split, base.tokenizer, 64, 16)
        losses = iter((3.0, 2.0, 1.0, 0.5))
        loop.fit(Accelerator(cpu=True), model, windows, settings,
                 lambda losses=losses: {"eval_loss": next(losses)}, checkpoint_dir=tmp_path)  # fmt: skip
        config = model.network.peft_config["default"]
        plans.append((config.total_step, config.tinit, config.tfinal, config.deltaT))
    assert plans[0] == plans[1] == (12, 1, 6, 10)
