"""The parts of a step that run faster here than in the libraries, with equal results.

Small encoders on a CPU spend a fifth of a step on passes over memory and on small products around
the large ones. LoRA's layers and short windows' attention are therefore written out here, forward
and backward. In evaluation the libraries' own code runs, so that what is saved behaves elsewhere
exactly as it was scored. Products in bfloat16 take float32's way on a CPU that knows no other.

B batch, H heads, T queries, S keys, D size of a head, N = B · T tokens, r the rank.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

# Attention probabilities of a forward, in numbers, that still fit the caches of common CPUs
# (4 MiB). Beyond that PyTorch's kernel, which never stores them, is faster.
CACHED_PROBABILITIES = 2**20
ATTENTION = "spantune"  # the name transformers knows it by
_aten = torch.ops.aten
PRODUCTS = {_aten.mm, _aten.addmm, _aten.addmm_, _aten.bmm}
PRODUCTS |= {_aten.linear, _aten.matmul}  # not taken apart into those in inference mode


class Float32Products(TorchDispatchMode):
    """bfloat16 products, forward and backward, by way of float32: summed in it and rounded once.

    That is what processors with bfloat16 do. On those without, PyTorch sums one number after the
    other, and takes eight times as long as for float32.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs or {})
        wide = (x.float() if isinstance(x, Tensor) else x for x in args)
        result = func(*wide, **kwargs or {}).to(torch.bfloat16)
        return args[0].copy_(result) if func.overloadpacket is _aten.addmm_ else result


def products(accelerator: Any) -> AbstractContextManager:
    """In what to run a step of `accelerator`, backward pass included."""
    # "AVX2" names a processor without AVX-512, and so without its dot products of bfloat16.
    lacking = torch.backends.cpu.get_cpu_capability() == "AVX2"
    if lacking and accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        return Float32Products()
    return nullcontext()


class _Lora(torch.autograd.Function):
    """x (N, in), weight (out, in), bias (out), a (r, in), b (out, r) → x (W + s · b a)ᵀ + bias.

    PEFT computes x Wᵀ + s · (x aᵀ) bᵀ, and writes a tensor of the layer's size for every term and
    again for its gradient. Adding the small weights instead costs next to nothing, and the full
    gradient of W is never formed. Each thin product is written with its short side r first,
    (r, k) @ (k, n): on a CPU that is two to five times as fast as the same product lying on its
    side.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scaling):
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        return linear(x, torch.addmm(weight, b, a, alpha=scaling), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, a, b = ctx.saved_tensors
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = gradient @ torch.addmm(weight, b, a, alpha=ctx.scaling)
        low = (a * ctx.scaling) @ x.t()  # (r, N)
        back = (b.t() * ctx.scaling) @ gradient.t()  # (r, N)
        return to_x, None, None, back @ x, (low @ gradient).t(), None


class _LowerLora(torch.autograd.Function):
    """The same in bfloat16 or half precision (`dtype`), where weights are not added up: small
    updates would be rounded away. The update is added to the layer's result in place instead.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scaling, dtype):
        ctx.kinds = x.dtype, a.dtype
        x, weight, bias, a, b = (t if t is None else t.to(dtype) for t in (x, weight, bias, a, b))
        b = b * scaling
        low = linear(x, a)  # (N, r)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        return linear(x, weight, bias).addmm_(low, b.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, a, b, low = ctx.saved_tensors
        of_x, of_update = ctx.kinds
        back = b.t() @ gradient.t()  # (r, N)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (gradient @ weight).addmm_(back.t(), a).to(of_x)
        to_b = (gradient.t() @ low).to(of_update) * ctx.scaling
        return to_x, None, None, (back @ x).to(of_update), to_b, None, None


def _lora_forward(layer: nn.Module, plain, x: Tensor, *args, **kwargs) -> Tensor:
    if not layer.training or layer.disable_adapters or layer.merged or args or kwargs:
        return plain(x, *args, **kwargs)
    base, name, kind = layer.get_base_layer(), layer.active_adapters[0], x.device.type
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    given = (x.reshape(-1, x.shape[-1]), base.weight, base.bias, a, b, layer.scaling[name])
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            result = _LowerLora.apply(*given, torch.get_autocast_dtype(kind))
    else:
        result = _Lora.apply(*given)
    return result.view(*x.shape[:-1], -1)


class _Attention(torch.autograd.Function):
    """query (B, H, T, D), key and value (B, H, S, D), mask or None → (B, T, H, D).

    mask: (B, 1, T or 1, S) bool, False where no attention is paid. PyTorch's kernel computes the
    probabilities anew in the backward pass; here they are kept, and every product is a batched one
    over whole windows.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling):
        heads = query.shape[:2]
        query, key, value = (x.flatten(0, 1) for x in (query, key, value))
        bias = query.new_zeros(())
        if mask is not None:
            bias = torch.where(mask, 0.0, torch.finfo(query.dtype).min)
            bias = bias.expand(*heads, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scaling)
        probabilities = scores.softmax(-1)  # (B · H, T, S)
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.heads, ctx.scaling = heads, scaling
        result = torch.bmm(probabilities, value)
        return result.unflatten(0, heads).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, probabilities = ctx.saved_tensors
        gradient = gradient.transpose(1, 2).flatten(0, 1)
        to_value = torch.bmm(probabilities.transpose(1, 2), gradient)
        to_scores = torch._softmax_backward_data(
            torch.bmm(gradient, value.transpose(1, 2)), probabilities, -1, query.dtype
        )
        to_query = torch.bmm(to_scores, key).mul_(ctx.scaling)
        to_key = torch.bmm(to_scores.transpose(1, 2), query).mul_(ctx.scaling)
        return *(x.unflatten(0, ctx.heads) for x in (to_query, to_key, to_value)), None, None


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """What transformers calls in place of its own attention: → (B, T, H, D) and no weights."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    trains = torch.is_grad_enabled() and module.training
    trains = trains and any(x.requires_grad for x in (query, key, value))
    ours = trains and query.device.type == "cpu" and not dropout
    kind = query.dtype
    if ours and kind != torch.float32:  # PyTorch's backward pass is half as fast in bfloat16
        query, key, value = (x.float() for x in (query, key, value))
    size = query.shape[:3].numel() * key.shape[2]
    with torch.autocast("cpu", enabled=False) if ours else nullcontext():
        if not ours or size > CACHED_PROBABILITIES or key.shape[1] != query.shape[1]:
            result, _ = sdpa_attention_forward(
                module, query, key, value, attention_mask,
                dropout=dropout, scaling=scaling, **kwargs,
            )  # fmt: skip
        else:
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            result = _Attention.apply(query, key, value, attention_mask, scaling)
    return result.to(kind), None


def _mask(**kwargs) -> Tensor | None:
    """As transformers' own, but where only padding is masked without a row for every query."""
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    padding = kwargs["attention_mask"]
    if padding is None or kwargs["mask_function"] is not bidirectional_mask_function:
        return sdpa_mask(**kwargs)
    if padding.device.type == "cpu" and padding.all():  # a GPU would have to be waited for
        return None
    return padding[:, None, None].bool()


def install(network: nn.Module, qa_model: nn.Module) -> None:
    """Give `network`, and the transformers model in it, these kernels where they apply.

    LoRA: a plain linear layer under one adapter, without dropout and without a variant such as
    DoRA. Attention: every architecture that lets transformers choose its attention.
    """
    from peft.tuners.lora import Linear
    from transformers import AttentionInterface, AttentionMaskInterface

    for layer in network.modules():
        if (
            type(layer) is Linear
            and type(layer.get_base_layer()) is nn.Linear
            and all(isinstance(dropout, nn.Identity) for dropout in layer.lora_dropout.values())
            and not any(layer.lora_bias.values())
            and not layer.lora_variant
        ):
            layer.forward = partial(_lora_forward, layer, layer.forward)
    if qa_model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, _attention)
        AttentionMaskInterface.register(ATTENTION, _mask)
        qa_model.set_attn_implementation(ATTENTION)
