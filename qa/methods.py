"""Which parameters train: one row a method.

Everything else derives from the rows: `--help`, the settings, the tests, the tables. A row is
data; only `config` (which builds a fresh PEFT config, since PEFT mutates the one it is given)
and `trains` are code, and PEFT is imported when a config is built, not before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qa import UserError


@dataclass(frozen=True)
class Param:
    """A hyperparameter of a method: `--set name=value`."""

    default: Any
    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    choices: tuple | None = None


@dataclass(frozen=True)
class Range:
    """A search draws from low to high, both included; whole numbers if both ends are."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Method:
    """One row of the table.

    kind: "none" (nothing trains), "weights" (some of the encoder's own), "adapter" (weights put
    beside the encoder's layers) or "prompt" (virtual tokens put before the input).
    """

    name: str
    summary: str
    kind: str
    learning_rate: float = 1e-3
    params: Mapping[str, Param] = field(default_factory=dict)
    # (encoder facts of `model.Architecture`, hyperparameters) → a fresh PEFT config
    config: Callable[[Any, Mapping[str, Any]], Any] | None = None
    # What a search varies: hyperparameters and settings, each a Range or a tuple of choices.
    space: Mapping[str, Range | tuple] = field(default_factory=dict)
    # for kind "weights": does the encoder parameter of this name train?
    trains: Callable[[str], bool] = lambda name: False
    paper: str = ""


def _lora(architecture, params):
    from peft import LoraConfig

    return LoraConfig(
        r=params["r"],
        lora_alpha=params["lora_alpha"],
        lora_dropout=params["lora_dropout"],
        target_modules=architecture.target_modules(params["target_modules"]),
    )


def _prompt_tuning(architecture, params):
    from peft import PromptTuningConfig

    return PromptTuningConfig(
        num_virtual_tokens=params["num_virtual_tokens"],
        prompt_tuning_init=params["prompt_tuning_init"],
        token_dim=architecture.embedding_size,
        num_layers=architecture.num_layers,
        num_attention_heads=architecture.num_attention_heads,
        num_transformer_submodules=1,
    )


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method("pretrained", "the model as it comes: nothing trains", "none"),
        Method(
            "full",
            "all weights train",
            "weights",
            3e-4,
            space={"learning_rate": Range(3e-5, 3e-3, log=True)},
            trains=lambda name: True,
        ),
        Method(
            "head",
            "only the span head trains",
            "weights",
            1e-3,
            space={"learning_rate": Range(1e-4, 1e-1, log=True)},
        ),
        Method(
            "lora",
            "low-rank updates beside the linear layers, and the head",
            "adapter",
            1e-3,
            {
                "r": Param(8, "rank of the update", at_least=1, at_most=4096),
                "lora_alpha": Param(16, "the update is scaled by lora_alpha / r", above=0),
                "lora_dropout": Param(0.0, "dropout before the update", at_least=0, at_most=0.9),
                "target_modules": Param(
                    "all-linear",
                    "all-linear, or names of linear layers joined by commas (query,value)",
                ),
            },
            _lora,
            space={
                "learning_rate": Range(2e-4, 1e-2, log=True),
                "r": (2, 4, 8, 16, 32),
                "lora_alpha": (8, 16, 32, 64),
            },
            paper="https://arxiv.org/abs/2106.09685",
        ),
        Method(
            "prompt_tuning",
            "virtual tokens before the input, and the head",
            "prompt",
            1e-2,
            {
                "num_virtual_tokens": Param(
                    20, "length of the prompt in tokens", at_least=1, at_most=100_000
                ),
                "prompt_tuning_init": Param(
                    "SAMPLE_VOCAB",
                    "start from embeddings of random words, or from noise",
                    choices=("SAMPLE_VOCAB", "RANDOM"),
                ),
            },
            _prompt_tuning,
            space={
                "learning_rate": Range(3e-3, 1e-1, log=True),
                "head_learning_rate": Range(3e-4, 1e-2, log=True),
                "num_virtual_tokens": Range(5, 80, log=True),
            },
            paper="https://arxiv.org/abs/2104.08691",
        ),
    )
}
ALIASES = {"prompt": "prompt_tuning"}


def get_method(name: str) -> Method:
    """The row of this name or alias. Raises UserError with the valid list."""
    row = METHODS.get(ALIASES.get(name, name))
    if row is None:
        raise UserError(f"method: {name!r} is unknown; choose one of {', '.join(METHODS)}")
    return row
