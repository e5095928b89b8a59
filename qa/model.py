"""A batch → span logits aligned with its tokens, whatever the method.

This file is where the silent errors of PEFT on extractive QA are handled:

- PEFT's question-answering wrapper drops the segment ids. No task type is given to it here, and
  the encoder receives them wherever its architecture has segments (`SpanModel.forward`).
- Prompt methods return one logit too many for each virtual token. `SpanModel.forward` puts the
  prompt before the embeddings itself and cuts its logits off, so that logits and labels align.
- The span head is what the architecture has outside its encoder, by whatever name; it trains and
  is saved with every method (`attach`).
- An encoder weight missing from the checkpoint would be random: refused (`load_base`).
- Positions are finite: window and prompt are held against them (`check`).

B batch, T tokens of the longest window, V virtual tokens, H size of the embeddings.
"""

import hashlib
import inspect
import math
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from qa import UserError, kernels
from qa.adalora import RankAllocator
from qa.methods import Method, peft_config
from qa.pretrained import (
    check_finite,
    check_vocabulary,
    has_tokenizer,
    is_adapter,
    is_local,
    load_config,
    load_tokenizer,
    loading,
    locate,
)
from qa.windows import Template, plain


@dataclass(frozen=True)
class Architecture:
    """What the methods need to know of an encoder, read off the model itself."""

    head: tuple[str, ...]  # modules outside the encoder: the span head
    linear: dict[str, tuple[int, int]]  # all linear layers inside it: inputs, outputs
    embedding_size: int  # of the word embeddings, H
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    positions: int | None  # tokens it has learned positions for; None: no table of positions
    first_position: int  # the first token's row in that table
    segments: bool  # does it tell question from context by segment ids?
    prefix: bool  # do its layers take keys and values from before the input?

    @classmethod
    def of(cls, model: Any) -> "Architecture":
        encoder = model.base_model
        head = [
            name
            for name, module in model.named_children()
            if name != model.base_model_prefix and any(True for _ in module.parameters())
        ]
        linear = {
            f"{model.base_model_prefix}.{name}": (module.in_features, module.out_features)
            for name, module in encoder.named_modules()
            if isinstance(module, nn.Linear)
        }
        arguments = inspect.signature(encoder.forward).parameters
        table = next(
            (m for n, m in encoder.named_modules() if n.endswith("position_embeddings")
             and isinstance(m, nn.Embedding)), None,
        )  # fmt: skip
        reserved = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
        return cls(
            tuple(head),
            linear,
            model.get_input_embeddings().embedding_dim,
            model.config.hidden_size,
            model.config.num_hidden_layers,
            model.config.num_attention_heads,
            None if table is None else table.num_embeddings - reserved,
            reserved,
            getattr(model.config, "type_vocab_size", 0) > 1 and "token_type_ids" in arguments,
            "past_key_values" in arguments,
        )

    def target_modules(self, wanted: str) -> list[str]:
        """Full names of the linear layers that `wanted` names. Raises UserError if none."""
        if wanted == "all-linear":
            return list(self.linear)
        ends = tuple(f".{name.strip()}" for name in wanted.split(","))
        found = [name for name in self.linear if name.endswith(ends)]
        for end in ends:
            if not any(name.endswith(end) for name in found):
                last = sorted({name.rsplit(".", 1)[-1] for name in self.linear})
                raise UserError(
                    f"target_modules: no linear layer {end[1:]!r}; this encoder has: {', '.join(last)}"
                )
        return found


@dataclass(frozen=True)
class Base:
    """A pretrained encoder with its span head, and what was seen when it was loaded."""

    model: Any
    tokenizer: Any
    head_trained: bool
    revision: str | None  # the hub commit
    num_parameters: int  # before a method adds its own

    @property
    def fingerprint(self) -> str:
        """Hash of all weights."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


REMEDY = "give a folder saved by save_pretrained, with safetensors weights"
REMEDY_FOR_HUB = "is the hub reachable? Else give a local folder, or use --study embedded"


def load_base(
    name: str | None,
    revision: str | None = None,
    seed: int = 0,
    encoder_dropout: float | None = None,
    do_lower_case: bool | None = None,
) -> Base:
    """The encoder with a span head, in fp32; of a PEFT adapter's folder, merged with its base.

    name: hub id, folder, or a short name. seed: of a head that the checkpoint lacks.
    encoder_dropout: for all of its dropouts; None leaves its own. do_lower_case: whether its
    tokenizer lower-cases texts; None leaves its own way. Weights come from safetensors only and no
    code of the checkpoint runs. Raises UserError.
    """
    if not name:
        raise UserError(
            "model_name_or_path: no encoder named; give a hub id, a folder, embedded or minilm-l6"
        )
    remedy = REMEDY if is_local(name) else REMEDY_FOR_HUB
    with loading("model_name_or_path", name, remedy):
        place = locate(name)
        if is_adapter(place, revision):
            base = _merged(place, revision, seed, encoder_dropout, do_lower_case)
        else:
            tokenizer = load_tokenizer(place, revision, do_lower_case)
            base = _whole(place, revision, seed, encoder_dropout, tokenizer)
        Template.of(plain(base.tokenizer), 0)  # raises where pairs are joined in unknown ways
        check_vocabulary(base.model, base.tokenizer)
        check_finite(dict(base.model.named_parameters()))
    return base


def _whole(
    place: str, revision: str | None, seed: int, encoder_dropout: float | None, tokenizer: Any
) -> Base:
    """The model that a place holds. Use within `loading`."""
    from transformers import AutoModelForQuestionAnswering

    config = load_config(place, revision)
    if encoder_dropout is not None:
        for key, value in config.to_dict().items():
            if "dropout" in key and isinstance(value, (int, float)):
                setattr(config, key, encoder_dropout)
    torch.manual_seed(seed)
    model, report = AutoModelForQuestionAnswering.from_pretrained(
        place,
        config=config,
        revision=revision,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, in one line
    )
    architecture = Architecture.of(model)
    missing = [key for key in report["missing_keys"] if not key.startswith(architecture.head)]
    if missing or report["mismatched_keys"]:
        first = (missing or [key[0] for key in report["mismatched_keys"]])[0]
        raise UserError(
            f"has weights that do not fit its config.json ({first} is missing or of another shape) "
            "and would be random; give a complete checkpoint"
        )
    commit = getattr(model.config, "_commit_hash", None)
    return Base(model, tokenizer, not report["missing_keys"], commit, model.num_parameters())


def _merged(
    place: str,
    revision: str | None,
    seed: int,
    encoder_dropout: float | None,
    do_lower_case: bool | None,
) -> Base:
    """The model that the PEFT adapter of a place makes of its base. Use within `loading`.

    The tokenizer is the adapter's where it has one, else its base's.
    """
    from peft import PeftConfig, PeftModel
    from safetensors import safe_open
    from transformers.utils.hub import cached_file, extract_commit_hash

    config = PeftConfig.from_pretrained(place, revision=revision)
    kind = getattr(config.peft_type, "value", config.peft_type)
    name = config.base_model_name_or_path
    what = f"is a PEFT adapter ({kind} on {name})"
    if config.is_prompt_learning:
        raise UserError(f"{what}, which cannot be merged into weights; give a plain model")
    if not name:
        raise UserError(f"{what} that does not name its base; give a merged model")
    file = cached_file(
        place,
        "adapter_model.safetensors",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
    )
    if file is None:  # pickles are not opened
        raise UserError(f"{what} without adapter_model.safetensors; save it as safetensors")
    own = has_tokenizer(place, revision)
    tokenizer = load_tokenizer(place, revision, do_lower_case) if own else None
    with loading(f"{what}; its base", name, "put it there, or give a merged model"):
        base_place = locate(name)
        if is_adapter(base_place, config.revision):
            raise UserError("is an adapter, too; merge the two first")
        if not own:
            tokenizer = load_tokenizer(base_place, config.revision, do_lower_case)
        base = _whole(base_place, config.revision, seed, encoder_dropout, tokenizer)
    # Not by the wrapper of its task: the head is what the architecture has, by whatever name.
    layers = _head_layers(base.model, Architecture.of(base.model))
    with safe_open(file, "pt") as tensors:
        head = [one for one in layers if any(f".{one}." in key for key in tensors.keys())]  # noqa: SIM118
    config.task_type, config.modules_to_save, config.inference_mode = None, head or None, True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is missing, which is an error here
        network = PeftModel(base.model, config)
        found = network.load_adapter(str(Path(file).parent), "default")
    state = network.state_dict()  # RandLoRA's bases are in it many times, and in the file once
    there = {tensor.data_ptr() for key, tensor in state.items() if key not in found.missing_keys}
    missing = [key for key in found.missing_keys if state[key].data_ptr() not in there]
    for key in (*found.unexpected_keys, *missing):
        raise UserError(f"{what} and does not fit it (see {key}); give the base it was made for")
    return replace(
        base,
        model=network.merge_and_unload(),
        head_trained=base.head_trained or bool(head),
        revision=extract_commit_hash(file, None),
    )


class SpanModel(nn.Module):
    """An encoder with its span head under one method: batch in, aligned span logits out."""

    def __init__(self, network: nn.Module, architecture: Architecture, method: Method):
        super().__init__()
        self.network = network
        self.architecture = architecture
        self.method = method
        self.allocator = RankAllocator(network) if method.config == "AdaLoraConfig" else None

    @property
    def num_virtual_tokens(self) -> int:
        if self.method.kind not in ("prompt", "prefix"):
            return 0
        return self.network.active_peft_config.num_virtual_tokens

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Three (B, T) int64 → start and end logits, (B, T) fp32, lowest at padding."""
        inputs = {"attention_mask": attention_mask}  # (B, T)
        if self.architecture.segments:
            inputs["token_type_ids"] = token_type_ids
        before = 0  # tokens of the output that come before the window's own
        virtual = self.num_virtual_tokens
        if virtual:
            inputs["attention_mask"] = pad(attention_mask, (virtual, 0), value=1)  # (B, V + T)
            if self.architecture.positions is not None:
                inputs["position_ids"] = self._positions(virtual, input_ids)
        if self.method.kind == "prompt":
            qa_model = self.network.get_base_model()
            prompt = self.network.get_prompt(len(input_ids))  # (B, V, H)
            words = qa_model.get_input_embeddings()(input_ids)  # (B, T, H)
            if self.architecture.segments:  # the prompt belongs to the first segment
                inputs["token_type_ids"] = pad(token_type_ids, (virtual, 0), value=0)
            output = qa_model(inputs_embeds=torch.cat((prompt.to(words), words), dim=1), **inputs)
            before = virtual
        elif self.method.kind == "prefix":
            qa_model = self.network.get_base_model()
            with _prefix(qa_model.base_model, self.network.get_prompt(len(input_ids))):
                output = qa_model(input_ids=input_ids, **inputs)
        else:
            output = self.network(input_ids=input_ids, **inputs)
        # Padding never takes part in the softmax: a window's loss and answer do not depend on
        # the windows it is batched with, and merged micro-batches have the same gradient. (But for
        # MobileBERT, where each token sees the embeddings beside it: [SEP] may see one [PAD].)
        padding = attention_mask == 0
        lowest = torch.finfo(torch.float32).min
        start = output.start_logits[:, before:].float().masked_fill(padding, lowest)
        end = output.end_logits[:, before:].float().masked_fill(padding, lowest)
        return start, end

    def _positions(self, virtual: int, input_ids: Tensor) -> Tensor:
        """Rows of the table of positions: (1, V + T) with a prompt, (1, T) with a prefix.

        Words keep those that they have without virtual tokens. Moved along, as transformers does
        by itself, they would no longer be what the encoder knows: it has learned what [CLS] and
        the question's first words are by where they stand.
        """
        words = torch.arange(input_ids.shape[1], device=input_ids.device)
        if self.method.kind == "prompt":
            words = torch.cat((torch.arange(virtual, device=input_ids.device), words))
        return words[None] + self.architecture.first_position

    def is_head(self, name: str) -> bool:
        """Does the parameter of this name belong to the span head?"""
        return any(part in self.architecture.head for part in name.split("."))

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Is the parameter of this name subject to weight decay?

        Not prompts, biases and norms, and not the factors of IA3 and BOFT, which start at 1.
        """
        kept = ("prompt_encoder", "ia3_l", "boft_s")
        return parameter.ndim > 1 and not any(part in kept for part in name.split("."))

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


@contextmanager
def _prefix(encoder: nn.Module, cache: Any):
    """Within this context the encoder's layers see `cache`'s keys and values before their own.

    The span models of transformers do not pass them on to their encoder, so they are added where
    it is called.
    """

    def add(module, arguments, named):
        return arguments, {**named, "past_key_values": cache}

    handle = encoder.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _prefix_of_words(model: Any, count: int) -> Tensor:
    """Keys and values of all layers for `count` random words: (count, layers · 2 · hidden size).

    Activations of real words are the start that Li & Liang (2021, section 7.4 of
    https://arxiv.org/abs/2101.00190) found best.
    """
    from transformers import DynamicCache

    words = torch.randint(model.config.vocab_size, (1, count))
    cache, was_training = DynamicCache(), model.training
    with _prefix(model.base_model.eval(), cache):
        model(input_ids=words)
    model.train(was_training)
    both = [state for layer in cache.layers for state in (layer.keys, layer.values)]
    return torch.cat([state[0].transpose(0, 1).flatten(1) for state in both], dim=1)


def check(
    model: Any, method: Method, hyperparameters: dict, max_seq_length: int, train_head: bool = True
) -> None:
    """Raise UserError where the method cannot go together with the encoder of this model.

    max_seq_length: tokens of a window, held against the encoder's positions (of which virtual
    tokens take none away, see `SpanModel`).
    """
    architecture = Architecture.of(model)
    lengths = {"max_seq_length": max_seq_length}
    lengths["num_virtual_tokens"] = hyperparameters.get("num_virtual_tokens", 0)
    for name, length in lengths.items():
        if architecture.positions is not None and length > architecture.positions:
            raise UserError(
                f"{name}: {length} tokens exceed the encoder's {architecture.positions} positions; "
                "lower it"
            )
    kind = model.config.model_type
    if method.kind == "prefix" and not architecture.prefix:
        raise UserError(
            f"method: {method.name} does not work with {kind}: its layers take no keys and values "
            "from before the input; choose prompt_tuning, or another encoder"
        )
    if method.kind == "weights" and not _own(model, method):
        if method.name != "head":
            raise UserError(
                f"method: {method.name} does not work with {kind}: it trains {method.summary}, and "
                "there are none; choose another method"
            )
        if not train_head:
            raise UserError("train_head: head trains nothing without the head; let it train")
    if method.config:
        method.values(architecture, hyperparameters)  # raises for what it cannot do
    for name, param in method.params.items():
        if param.divides:
            targets = architecture.target_modules(hyperparameters["target_modules"])
            common = math.gcd(*(size for target in targets for size in architecture.linear[target]))
            if common % hyperparameters[name]:
                valid = [str(d) for d in range(1, common + 1) if common % d == 0]
                raise UserError(
                    f"{name}: {hyperparameters[name]} does not divide the sizes of all target "
                    f"layers; these do: {', '.join(valid)}"
                )


def _own(model: Any, method: Method) -> list[nn.Parameter]:
    """The encoder's own parameters that train under a method of kind "weights"."""
    return [
        parameter
        for module in model.base_model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if method.trains(module, name)
    ]


def _head_layers(model: Any, architecture: Architecture) -> list[str]:
    """The layers of the head: PEFT cannot merge around a module that holds others."""
    return [
        ".".join(filter(None, (name, inner)))
        for name in architecture.head
        for inner, module in model.get_submodule(name).named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]


def merge(model: SpanModel) -> Any:
    """The transformers model alone that computes what `model` does. Raises UserError.

    Uses `model` up.
    """
    method = model.method
    if method.kind in ("prompt", "prefix"):
        raise UserError(
            f"method: {method.name} cannot be merged: {method.summary} are no weights of the "
            "encoder; keep the run's folder, which qa.answer and qa.runs.load_run take"
        )
    network = model.network.merge_and_unload() if method.config else model.network
    if network.config._attn_implementation == kernels.ATTENTION:
        network.set_attn_implementation("sdpa")
    return network


def attach(
    base: Base,
    method: Method,
    hyperparameters: dict,
    max_seq_length: int,
    train_head: bool = True,
    seed: int = 0,
    trained: bool = False,
) -> SpanModel:
    """`base` under a method: exactly the declared parameters train. Changes base.model.

    seed: of the new weights. trained: they will be loaded, and not trained further. Raises
    UserError where method and encoder cannot go together (see `check`).
    """
    model = base.model
    check(model, method, hyperparameters, max_seq_length, train_head)
    architecture = Architecture.of(model)
    torch.manual_seed(seed)
    model.requires_grad_(False)
    network: nn.Module = model
    if method.config:
        from peft import PeftModel

        config = peft_config(method, architecture, hyperparameters)
        if method.kind == "adapter":
            config.modules_to_save = _head_layers(model, architecture) if train_head else None
        else:  # a trained prompt is kept as it is, not as the network that it came from
            config.inference_mode = trained
        # Not get_peft_model: without a task type it knows no prompt methods.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its defaults; what matters is checked here
            try:
                network = PeftModel(model, config)
            except ValueError as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{method.name}: {reason}; see --set") from None
    if method.kind == "prefix" and hyperparameters["prefix_init"] == "SAMPLE_VOCAB":
        prefix = _prefix_of_words(model, hyperparameters["num_virtual_tokens"])
        network.prompt_encoder["default"].load_prompt_embeddings(prefix)
    kernels.install(network, model)
    if method.kind == "weights":
        for parameter in _own(model, method):
            parameter.requires_grad_(True)
    if method.kind not in ("none", "adapter"):
        for name in architecture.head:
            model.get_submodule(name).requires_grad_(train_head)
    return SpanModel(network, architecture, method)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
