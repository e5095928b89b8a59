"""Which parameters train: one row a method.

Everything else derives from the rows: `--help`, `--list_methods`, the settings, the search, the
tests, the tables. A row is data: what PEFT's config class is called, what it is always given, and
which of its fields are hyperparameters, under PEFT's own names. PEFT is imported when a config is
built, not before. The span head trains with every row but `pretrained`, besides what the summary
says. Learning rates were chosen on the validation split of the embedded study.
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
    divides: bool = False  # inputs and outputs of every layer it is applied to


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
    beside the encoder's layers), "prompt" (virtual tokens put before the input) or "prefix"
    (virtual keys and values put before those of every layer).
    """

    name: str
    summary: str
    kind: str
    learning_rate: float = 1e-3
    head_learning_rate: float | None = None  # the span head's own; None: learning_rate
    params: Mapping[str, Param] = field(default_factory=dict)
    # What a search varies: hyperparameters and settings, each a Range or a tuple of choices.
    space: Mapping[str, Range | tuple] = field(default_factory=dict)
    config: str = ""  # PEFT's config class
    # (encoder facts of `model.Architecture`, hyperparameters) → what it is given
    values: Callable[[Any, Mapping[str, Any]], dict[str, Any]] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)  # and what it is always given
    # for kind "weights": does the encoder parameter of this name, owned by this module, train?
    trains: Callable[[Any, str], bool] = lambda module, name: False
    paper: str = ""


def rates(low: float, high: float) -> Range:
    return Range(low, high, log=True)


TARGETS = Param(
    "all-linear", "all-linear, or names of linear layers joined by commas (query,value)"
)
HEAD_AT_MOST = 2e-3  # beside weights that want a higher rate than a trained head bears


def rank(default: int, help: str = "rank of the update") -> Param:
    return Param(default, help, at_least=1, at_most=4096)


def _beside_layers(architecture, params):
    return {**params, "target_modules": architecture.target_modules(params["target_modules"])}


def _ia3(architecture, params):
    # Layers that narrow (the second of a feed-forward) have their inputs scaled, others their
    # outputs: the places of the paper, and the remaining layers.
    values, sizes = _beside_layers(architecture, params), architecture.linear
    narrowing = [name for name in values["target_modules"] if sizes[name][0] > sizes[name][1]]
    return {**values, "feedforward_modules": narrowing}


def _adalora(architecture, params):
    if params["target_r"] >= params["init_r"]:
        raise UserError(f"target_r: {params['target_r']} must be below init_r ({params['init_r']})")
    return _beside_layers(architecture, params)


def _before_the_input(architecture, params):
    return {
        **params,
        "token_dim": architecture.embedding_size,
        "num_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_attention_heads,
    }


def _before_every_layer(architecture, params):
    values = _before_the_input(architecture, params) | {"token_dim": architecture.hidden_size}
    del values["prefix_init"]  # `model.attach` sees to that
    return values


def lora(name: str, summary: str, paper: str, learning_rate: float, **fixed: Any) -> Method:
    """A row of LoRA's own kind: its config with one switch set."""
    params = {
        "r": rank(8),
        "lora_alpha": Param(16, "the update is scaled by it and the rank", above=0),
        "lora_dropout": Param(0.0, "dropout before the update", at_least=0, at_most=0.9),
    }
    space = {"r": (2, 4, 8, 16, 32), "lora_alpha": (8, 16, 32, 64)}
    return adapter(name, summary, "LoraConfig", paper, learning_rate, params, space, **fixed)


def adapter(
    name: str,
    summary: str,
    config: str,
    paper: str,
    learning_rate: float,
    params: Mapping[str, Param],
    space: Mapping[str, Range | tuple],
    values: Callable = _beside_layers,
    **fixed: Any,
) -> Method:
    """A row whose adapters stand beside linear layers; its learning rate is always searched."""
    return Method(
        name,
        summary,
        "adapter",
        learning_rate,
        head_learning_rate=HEAD_AT_MOST if learning_rate > HEAD_AT_MOST else None,
        params={**params, "target_modules": TARGETS},
        space={"learning_rate": rates(learning_rate / 5, learning_rate * 5), **space},
        config=config,
        values=values,
        fixed=fixed,
        paper=paper,
    )


def prompt(
    name: str,
    summary: str,
    config: str,
    paper: str,
    learning_rate: float,
    params: Mapping[str, Param],
    kind: str = "prompt",
    values: Callable = _before_the_input,
) -> Method:
    """A row of virtual tokens; their number and the head's own learning rate are searched."""
    tokens = Param(20, "length of the prompt in tokens", at_least=1, at_most=100_000)
    return Method(
        name,
        summary,
        kind,
        learning_rate,
        head_learning_rate=5e-3,
        params={"num_virtual_tokens": tokens, **params},
        space={
            "learning_rate": rates(learning_rate / 5, learning_rate * 5),
            "head_learning_rate": rates(5e-4, 2e-2),
            "num_virtual_tokens": Range(5, 80, log=True),
        },
        config=config,
        values=values,
        fixed={"num_transformer_submodules": 1},
        paper=paper,
    )


START = Param(
    "SAMPLE_VOCAB",
    "start from random words of the vocabulary, or from noise",
    choices=("SAMPLE_VOCAB", "RANDOM"),
)

# Of updates that are products of two low-rank ones: hyperparameters and space.
PRODUCT = (
    {"r": rank(8), "alpha": Param(16, "the update is scaled by alpha / r", above=0)},
    {"r": (2, 4, 8, 16), "alpha": (8, 16, 32, 64)},
)

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method("pretrained", "the model as it comes: nothing trains", "none"),
        Method(
            "full",
            "all weights",
            "weights",
            1e-3,
            space={"learning_rate": rates(1e-4, 5e-3)},
            trains=lambda module, name: True,
        ),
        Method(
            "head",
            "the span head alone",
            "weights",
            1e-2,
            space={"learning_rate": rates(1e-4, 1e-1)},
        ),
        Method(
            "bitfit",
            "the encoder's biases",
            "weights",
            2e-2,
            HEAD_AT_MOST,
            space={"learning_rate": rates(1e-3, 5e-2)},
            trains=lambda module, name: name == "bias",
            paper="arxiv.org/abs/2106.10199",
        ),
        Method(
            "ln_tuning",
            "the encoder's layer norms",
            "weights",
            5e-3,
            HEAD_AT_MOST,
            space={"learning_rate": rates(1e-3, 5e-2)},
            trains=lambda module, name: "norm" in type(module).__name__.lower(),
            paper="arxiv.org/abs/2312.11420",
        ),
        lora("lora", "low-rank updates", "arxiv.org/abs/2106.09685", 2e-3),
        lora(
            "rslora",
            "LoRA scaled by the root of its rank",
            "arxiv.org/abs/2312.03732",
            1e-3,
            use_rslora=True,
        ),
        lora(
            "dora",
            "LoRA on directions, and magnitudes apart",
            "arxiv.org/abs/2402.09353",
            2e-3,
            use_dora=True,
        ),
        lora(
            "pissa",
            "LoRA from the weights' largest singular vectors",
            "arxiv.org/abs/2404.02948",
            1e-3,
            init_lora_weights="pissa",
        ),
        lora(
            "olora",
            "LoRA from the weights' QR decomposition",
            "arxiv.org/abs/2406.01775",
            5e-4,
            init_lora_weights="olora",
        ),
        adapter(
            "adalora",
            "low-rank updates whose ranks move between layers",
            "AdaLoraConfig",
            "arxiv.org/abs/2303.10512",
            5e-3,
            {
                "init_r": rank(12, "rank of every update at first"),
                "target_r": rank(8, "mean rank of the updates at last"),
                "lora_alpha": Param(32, "scale of the update", above=0),
                "orth_reg_weight": Param(
                    0.1, "weight of the penalty on vectors that are not orthogonal", at_least=0
                ),
            },
            {"target_r": (2, 4, 8)},
            _adalora,
            total_step=1,  # until the loop knows better
        ),
        adapter(
            "ia3",
            "scales of the layers' activations",
            "IA3Config",
            "arxiv.org/abs/2205.05638",
            3e-2,
            {},
            {},
            _ia3,
        ),
        adapter(
            "vera",
            "scales of one random low-rank update",
            "VeraConfig",
            "arxiv.org/abs/2310.11454",
            1e-1,
            {
                "r": rank(64, "rank of the shared random update"),
                "d_initial": Param(0.1, "first value of the inner scales", above=0),
            },
            {"r": (32, 64, 128, 256)},
        ),
        adapter(
            "loha",
            "Hadamard products of low-rank updates",
            "LoHaConfig",
            "arxiv.org/abs/2108.06098",
            1e-2,
            *PRODUCT,
        ),
        adapter(
            "lokr",
            "Kronecker products as updates",
            "LoKrConfig",
            "arxiv.org/abs/2309.14859",
            1e-2,
            *PRODUCT,
        ),
        adapter(
            "oft",
            "rotations of blocks of the inputs",
            "OFTConfig",
            "arxiv.org/abs/2306.07280",
            2e-3,
            {"oft_block_size": Param(32, "size of the rotated blocks", at_least=2, divides=True)},
            {"oft_block_size": (8, 16, 32, 64)},
        ),
        adapter(
            "boft",
            "rotations of blocks, in butterflies",
            "BOFTConfig",
            "arxiv.org/abs/2311.06243",
            8e-3,
            {
                "boft_block_size": Param(4, "size of the rotated blocks", at_least=2, divides=True),
            },
            {"boft_block_size": (4, 8, 16)},
            boft_n_butterfly_factor=1,  # without its CUDA extension PEFT allows no other
        ),
        adapter(
            "fourierft",
            "a few coefficients of the updates' spectrum",
            "FourierFTConfig",
            "arxiv.org/abs/2405.03003",
            5e-2,
            {
                "n_frequency": Param(500, "coefficients a layer", at_least=1),
                "scaling": Param(150.0, "scale of the update", above=0),
            },
            {"n_frequency": (200, 500, 1000, 2000)},
            init_weights=True,
        ),
        adapter(
            "miss",
            "one small matrix, repeated over the inputs",
            "MissConfig",
            "arxiv.org/abs/2409.15371",
            1e-3,
            {"r": rank(16, "groups of the inputs")},
            {"r": (4, 8, 16, 32)},
        ),
        adapter(
            "randlora",
            "scales of random low-rank updates of full rank together",
            "RandLoraConfig",
            "arxiv.org/abs/2502.00987",
            1e-3,
            {
                "r": rank(32, "rank of each random update"),
                "randlora_alpha": Param(640, "the update is scaled by it and the rank", above=0),
            },
            {"r": (16, 32, 64)},
        ),
        adapter(
            "shira",
            "some entries of the weights, drawn at random",
            "ShiraConfig",
            "arxiv.org/abs/2406.13175",
            3e-3,
            {"r": rank(8, "as many entries as LoRA of this rank has weights")},
            {"r": (2, 4, 8, 16)},
        ),
        adapter(
            "hra",
            "reflections of the inputs in a row",
            "HRAConfig",
            "arxiv.org/abs/2405.17484",
            2e-2,
            {"r": rank(8, "reflections; an even number starts at the base model")},
            {"r": (2, 4, 8, 16)},
        ),
        adapter(
            "road",
            "rotations and scales of pairs of the outputs",
            "RoadConfig",
            "arxiv.org/abs/2409.00119",
            3e-2,
            {
                "variant": Param(
                    "road_1",
                    "angles and scales a pair of outputs: 1, 2 or 4",
                    choices=("road_1", "road_2", "road_4"),
                ),
                "group_size": Param(32, "outputs that are paired", at_least=2, divides=True),
            },
            {"variant": ("road_1", "road_2", "road_4")},
        ),
        adapter(
            "hira",
            "Hadamard products of the weights and low-rank updates",
            "HiraConfig",
            "openreview.net/forum?id=TwJrTz9cRS",
            3e-2,
            {"r": rank(8)},
            {"r": (4, 8, 16, 32)},
        ),
        adapter(
            "c3a",
            "circular convolutions of blocks",
            "C3AConfig",
            "arxiv.org/abs/2407.19342",
            2e-1,
            {"block_size": Param(32, "size of the convolved blocks", at_least=1, divides=True)},
            {"block_size": (16, 32, 64)},
            init_weights=True,
        ),
        adapter(
            "vblora",
            "low-rank updates put together from a bank of vectors",
            "VBLoRAConfig",
            "arxiv.org/abs/2405.15179",
            1e-2,
            {
                "r": rank(4),
                "num_vectors": Param(256, "vectors in the bank", at_least=2),
                "vector_length": Param(32, "their length", at_least=1, divides=True),
                "topk": Param(2, "vectors mixed for a part of an update", at_least=1),
            },
            {"r": (2, 4, 8), "num_vectors": (64, 128, 256)},
        ),
        prompt(
            "prompt_tuning",
            "virtual tokens before the input",
            "PromptTuningConfig",
            "arxiv.org/abs/2104.08691",
            6e-2,
            {"prompt_tuning_init": START},
        ),
        prompt(
            "p_tuning",
            "virtual tokens before the input, from a network",
            "PromptEncoderConfig",
            "arxiv.org/abs/2103.10385",
            1e-2,
            {"encoder_hidden_size": Param(128, "hidden size of the network", at_least=1)},
        ),
        prompt(
            "prefix_tuning",
            "virtual keys and values in every layer (P-tuning v2)",
            "PrefixTuningConfig",
            "arxiv.org/abs/2110.07602",
            1e-1,
            {"prefix_init": START},
            "prefix",
            _before_every_layer,
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


def peft_config(method: Method, architecture: Any, hyperparameters: Mapping[str, Any]) -> Any:
    """A fresh PEFT config (PEFT mutates the one it is given).

    architecture: of the encoder, a `model.Architecture`.
    """
    import peft

    values = method.values(architecture, hyperparameters)
    return getattr(peft, method.config)(**method.fixed, **values)
