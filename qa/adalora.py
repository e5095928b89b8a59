"""AdaLoRA's part of a step: a penalty in the loss, and ranks that move between layers.

Zhang et al. 2023, https://arxiv.org/abs/2303.10512. PEFT has the updates and the allocation of
their ranks, but it must be told of every step, and it adds the penalty only to a loss that the
model computes itself, in evaluation too. What the allocation has learned belongs to a checkpoint.
"""

from typing import Any

import torch
from torch import Tensor

# Shares of the training: before the first rank goes, and after the last.
UNTOUCHED, SETTLED = 0.1, 0.5
EVERY = 10  # updates between two allocations
AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of each weight's importance


class RankAllocator:
    """Moves the ranks of a `PeftModel` under AdaLoRA from init_r everywhere to target_r on average.

    Ranks that are gone stay in the tensors, with their singular value at zero: the same function
    as PEFT's cut-out tensors, and weights of an earlier evaluation can come back.
    """

    def __init__(self, network: Any):
        self.tuner = network.base_model
        self.config = network.peft_config["default"]

    def penalty(self) -> Tensor:
        """How far singular vectors are from orthogonal: mean norm of A Aᵀ - I and Bᵀ B - I."""
        norms = []
        for name, p in self.tuner.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                products = p @ p.T if "lora_A" in name else p.T @ p  # (r, r)
                eye = torch.eye(len(products), device=p.device)
                norms.append(torch.linalg.matrix_norm(products - eye))
        return self.config.orth_reg_weight * torch.stack(norms).mean()

    def plan(self, total: int) -> None:
        """Settle when ranks move in a training of `total` updates."""
        self.config.total_step, self.config.deltaT = total, EVERY
        self.config.tinit, self.config.tfinal = int(UNTOUCHED * total), int(SETTLED * total)

    def after_update(self, step: int) -> None:
        """Allocate, by the plan. Gradients of update `step` (from 1) must still be there."""
        # Nothing is learnt of an update that overflowed, which fp16's scaler skips.
        for p in self.tuner.parameters():
            if p.grad is not None:
                p.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self.tuner.update_and_allocate(step)

    def state(self) -> dict[str, Tensor]:
        """What the allocation has learned, for a checkpoint."""
        inner = self.tuner.rankallocator
        tensors = {
            f"{kind}.{name}": tensor
            for kind in AVERAGES
            for name, tensor in getattr(inner, kind).items()
        }
        for name, kept in (self.config.rank_pattern or {}).items():
            tensors[f"rank_pattern.{name}"] = torch.tensor(kept)
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        inner, device = self.tuner.rankallocator, next(self.tuner.parameters()).device
        pattern = {}
        for key, tensor in tensors.items():
            kind, name = key.split(".", 1)
            if kind == "rank_pattern":
                pattern[name] = tensor.tolist()
            else:
                getattr(inner, kind)[name] = tensor.to(device)
        self.config.rank_pattern = pattern or None

    def forget_pattern(self) -> None:
        """Leave it to the tensors which ranks are gone: weights of an earlier step came back."""
        self.config.rank_pattern = None
