"""The silent errors of PEFT on extractive QA; each test fails without its fix in qa/model.py."""

import copy
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

from qa import UserError, kernels, loop, metrics
from qa.methods import METHODS, get_method
from qa.model import Architecture, attach, load_base
from qa.windows import build_windows
from tests.conftest import make_adapter, make_encoder, small_settings, toy_split

FAMILIES = ["bert", "roberta", "electra", "distilbert", "modernbert"]
WITH_PREFIX = FAMILIES[:3]


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    return {f: make_encoder(tmp_path_factory.mktemp(f), f) for f in FAMILIES}


def defaults(method):
    return {name: param.default for name, param in METHODS[method].params.items()}


def attached(folder, method, **changes):
    base = load_base(str(folder))
    params = {**defaults(method), **changes}
    return attach(base, get_method(method), params, max_seq_length=64).eval()


def batch(vocabulary=100):
    """Two windows of 12 and 9 tokens: question first, context from token 4."""
    ids = torch.randint(5, vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    segments = torch.zeros_like(ids)
    segments[:, 4:] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments * mask}


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "prefix_tuning", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_train_like_the_libraries_own(encoders, family, method, monkeypatch):
    """Same logits and gradients as PEFT's and transformers' forward, which evaluation keeps."""
    from peft.tuners.lora import Linear

    if method == "prefix_tuning" and family not in WITH_PREFIX:
        pytest.skip("this family takes no prefix")

    base = load_base(str(encoders[family]), encoder_dropout=0.0)
    model = attach(base, get_method(method), defaults(method), max_seq_length=64).train()
    torch.manual_seed(0)
    for name, parameter in model.trainable().items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    inputs, attentions = batch(), []
    forward = kernels._Attention.forward
    monkeypatch.setattr(
        kernels._Attention, "forward", lambda *args: attentions.append(1) or forward(*args)
    )

    def run():
        model.zero_grad()
        start, _ = model(**inputs)
        start[inputs["attention_mask"] == 1].square().sum().backward()
        return start.detach(), [p.grad.clone() for p in model.trainable().values()]

    fast, used = run(), len(attentions)
    assert used == model.architecture.num_layers  # all of these families let it be chosen
    layers = [m for m in model.modules() if isinstance(m, Linear)]
    assert bool(layers) == (method == "lora") and all("forward" in vars(m) for m in layers)
    for layer in layers:
        vars(layer).pop("forward")
    monkeypatch.setattr(kernels, "CACHED_PROBABILITIES", 0)
    plain = run()
    assert len(attentions) == used
    torch.testing.assert_close(fast[0], plain[0], atol=1e-4, rtol=1e-4)
    for one, other in zip(fast[1], plain[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_in_bfloat16_kernels_are_about_as_near_to_float32_as_the_libraries_own(encoders):
    from peft.tuners.lora import Linear

    base = load_base(str(encoders["bert"]), encoder_dropout=0.0)
    model = attach(base, get_method("lora"), defaults("lora"), max_seq_length=64).train()
    torch.manual_seed(0)
    for name, parameter in model.trainable().items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    layers = [m for m in model.modules() if isinstance(m, Linear)]

    def gradient(lower):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            start, end = model(**batch())
        (start[0].square().sum() + end[0].square().sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.trainable().values()]), end.detach()[0]

    exact, ours = gradient(lower=False), gradient(lower=True)
    for layer in layers:
        vars(layer).pop("forward")
    model.network.get_base_model().set_attn_implementation("sdpa")
    theirs = gradient(lower=True)
    for k in range(2):
        distance = [
            float((found[k] - exact[k]).norm() / exact[k].norm()) for found in (ours, theirs)
        ]
        assert 0 < distance[0] < 2 * distance[1] < 0.06, distance


PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "linear", "matmul")


class Seen(TorchDispatchMode):
    """Notes which products of bfloat16 matrices PyTorch computes."""

    def __init__(self):
        super().__init__()
        self.products = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS and args[0].dtype == torch.bfloat16:
            self.products.append(name)
        return func(*args, **kwargs or {})


@pytest.fixture
def accelerator_in_bfloat16():
    AcceleratorState._reset_state(reset_partial_state=True)  # another's precision stays in it
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_without_bfloat16_its_products_take_the_way_of_float32(
    encoders, accelerator_in_bfloat16, monkeypatch
):
    base = load_base(str(encoders["bert"]), encoder_dropout=0.0)
    model = attach(base, get_method("lora"), defaults("lora"), max_seq_length=64)
    split = toy_split(8)
    windows = build_windows(split, base.tokenizer, 64, 16)

    def step(capability):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        model.train().zero_grad()
        with Seen() as seen:
            loss = loop.gradients(accelerator_in_bfloat16, model, windows, np.arange(8), 8)
            trained = torch.cat([p.grad.flatten() for p in model.trainable().values()])
            loop.predict(accelerator_in_bfloat16, model, windows, split.examples, small_settings())
        return loss, trained, seen.products

    theirs, ours = step("AVX512"), step("AVX2")
    assert {"mm", "addmm", "addmm_"} <= set(theirs[2]) and not ours[2]
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=0)
    assert (ours[1] - theirs[1]).norm() / theirs[1].norm() < 0.02
    for device, precision in (("cpu", "no"), ("cuda", "bf16")):
        other = SimpleNamespace(device=torch.device(device), mixed_precision=precision)
        assert isinstance(kernels.products(other), nullcontext)


def test_products_by_way_of_float32_are_rounded_once():
    draw = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(n, 64, generator=draw).bfloat16() for n in (7, 64, 7))
    with kernels.Float32Products():
        found = x @ y, torch.addmm(z, x, y), z.clone().addmm_(x, y), torch.bmm(x[None], y[None])[0]
    exact = x.double() @ y.double()
    for result, expected in zip(found, (exact, exact + z, exact + z, exact), strict=True):
        assert result.dtype == torch.bfloat16
        # the distance between two neighbours is at most 2 ** -7 of them; rounding goes half of it
        assert ((result - expected).abs() <= 2**-8 * expected.abs() + 1e-5).all()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_base_itself_is_what_transformers_computes(encoders, family):
    inputs = batch()
    base = load_base(str(encoders[family]))
    plain = copy.deepcopy(base.model).eval()
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if family in ("bert", "electra") else []
    expected = plain(**{name: inputs[name] for name in names})
    start, end = attach(base, get_method("pretrained"), {}, 64).eval()(**inputs)
    real = inputs["attention_mask"] == 1
    assert torch.equal(start[real], expected.start_logits[real])
    assert torch.equal(end[real], expected.end_logits[real])


@pytest.mark.parametrize("method", ["full", "lora", "prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_have_the_inputs_length_and_padding_is_never_chosen(encoders, family, method):
    if method == "prefix_tuning" and family not in WITH_PREFIX:
        pytest.skip("this family takes no prefix")
    inputs = batch()
    model = attached(encoders[family], method)
    for logits in model(**inputs):
        assert logits.shape == (2, 12) and logits.dtype == torch.float32
        assert (logits[inputs["attention_mask"] == 0] == torch.finfo(torch.float32).min).all()
    # … and a window's logits do not depend on what it is padded with
    alone = {name: tensor[1:, :9] for name, tensor in inputs.items()}
    torch.testing.assert_close(model(**alone)[0], model(**inputs)[0][1:, :9], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "first"), [("bert", 0), ("roberta", 2), ("distilbert", 0)])
@torch.no_grad()
def test_a_prompt_stands_before_the_words_which_keep_their_positions(encoders, family, first):
    """Against the plain model fed with the same embeddings and positions by hand."""
    model = attached(encoders[family], "prompt_tuning", num_virtual_tokens=5)
    qa_model = model.network.get_base_model()
    inputs = batch()
    prompt = model.network.prompt_encoder["default"].embedding.weight
    words = qa_model.get_input_embeddings()(inputs["input_ids"])
    segments = torch.nn.functional.pad(inputs["token_type_ids"], (5, 0), value=0)
    expected = qa_model(
        inputs_embeds=torch.cat((prompt.expand(2, 5, -1), words), dim=1),
        attention_mask=torch.nn.functional.pad(inputs["attention_mask"], (5, 0), value=1),
        position_ids=first + torch.tensor([[*range(5), *range(12)]]),
        **({"token_type_ids": segments} if family == "bert" else {}),
    ).start_logits[:, 5:]
    real = inputs["attention_mask"] == 1
    assert torch.equal(model(**inputs)[0][real], expected[real])


@torch.no_grad()
def test_a_prefix_stands_before_every_layers_keys(encoders):
    """The start of a prefix is what real words leave: as if they stood before, for all to see."""
    model = attached(encoders["bert"], "prefix_tuning", num_virtual_tokens=3, prefix_init="RANDOM")
    qa_model = model.network.get_base_model()
    words = torch.tensor([[7, 8, 9]])
    inputs = {name: tensor[:1] for name, tensor in batch().items()}
    # keys and values of three words among themselves, by hooks on the plain model's layers
    seen, hooks = [], []
    for layer in qa_model.bert.encoder.layer:
        for part in (layer.attention.self.key, layer.attention.self.value):
            hooks.append(part.register_forward_hook(lambda m, i, out: seen.append(out[0])))
    qa_model(input_ids=words)
    for hook in hooks:
        hook.remove()
    model.network.prompt_encoder["default"].load_prompt_embeddings(torch.cat(seen, dim=1))
    # … the words of the window see them and each other; a mask does the same in the plain model
    both = torch.cat((words, inputs["input_ids"]), dim=1)
    sees = torch.ones(15, 15, dtype=torch.bool)
    sees[:3, 3:] = False
    expected = qa_model(
        input_ids=both,
        attention_mask=sees[None, None],
        token_type_ids=torch.nn.functional.pad(inputs["token_type_ids"], (3, 0), value=0),
        position_ids=torch.tensor([[*range(3), *range(12)]]),
    ).start_logits[:, 3:]
    torch.testing.assert_close(model(**inputs)[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_prefix_begins_as_what_random_words_leave(encoders):
    from qa.model import _prefix_of_words

    qa_model = load_base(str(encoders["bert"]), encoder_dropout=0.0).model.eval()
    torch.manual_seed(5)
    prefix = _prefix_of_words(qa_model, 4)
    torch.manual_seed(5)
    words = torch.randint(qa_model.config.vocab_size, (1, 4))
    states = qa_model.bert(words, output_hidden_states=True).hidden_states
    attention = qa_model.bert.encoder.layer[1].attention.self
    assert prefix.shape == (4, 2 * 2 * 32)
    torch.testing.assert_close(prefix[:, 64:96], attention.key(states[1])[0])
    torch.testing.assert_close(prefix[:, 96:], attention.value(states[1])[0])


def test_biases_norms_prompts_and_factors_do_not_decay(encoders):
    for method in ("full", "lora", "ia3", "boft", "prompt_tuning", "prefix_tuning"):
        model = attached(encoders["bert"], method)
        for name, p in model.trainable().items():
            plain = p.ndim == 1 or "prompt" in name or bool((p == 1).all())
            assert model.decays(name, p) != plain


def test_the_head_can_be_frozen(encoders):
    for method in ("lora", "prompt_tuning"):
        base = load_base(str(encoders["modernbert"]))
        model = attach(base, get_method(method), defaults(method), 64, train_head=False)
        assert model.trainable() and not any(model.is_head(n) for n in model.trainable())


def test_architecture_is_read_off_the_model(encoders):
    found = {f: Architecture.of(load_base(str(p)).model) for f, p in encoders.items()}
    assert found["bert"].head == ("qa_outputs",)
    assert found["modernbert"].head == ("head", "classifier")
    assert found["roberta"].positions == 512  # 514, of which two are reserved
    assert found["bert"].positions == 512 and found["modernbert"].positions is None
    assert found["electra"].embedding_size == 16
    assert all(name.startswith("bert.encoder") for name in found["bert"].linear)


def test_target_modules_can_be_named(encoders):
    model = attached(encoders["bert"], "lora", target_modules="query,value")
    adapted = {n.split(".lora_")[0].rsplit(".", 1)[1] for n in model.trainable() if ".lora_" in n}
    assert adapted == {"query", "value"}
    with pytest.raises(UserError, match="no linear layer 'q_lin'; this encoder has: dense, key"):
        attached(encoders["bert"], "lora", target_modules="q_lin")


def test_prompt_and_window_must_each_fit_the_positions(encoders):
    base = load_base(str(encoders["bert"]))
    params = {**defaults("prompt_tuning"), "num_virtual_tokens": 513}
    with pytest.raises(UserError, match="num_virtual_tokens: 513 tokens exceed"):
        attach(base, get_method("prompt_tuning"), params, 384)
    model = attach(base, get_method("prompt_tuning"), {**params, "num_virtual_tokens": 512}, 512)
    ids = torch.ones(1, 512, dtype=torch.int64)
    assert model(ids, ids, ids)[0].shape == (1, 512), "together they may be more than the positions"


def test_a_checkpoint_without_head_is_noticed_and_one_without_layers_refused(tmp_path, encoder):
    from safetensors.torch import load_file, save_file

    assert load_base(str(encoder)).head_trained
    folder = make_encoder(tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "qa_outputs" not in k}, folder / "model.safetensors"
    )
    first, second = load_base(str(folder), seed=3), load_base(str(folder), seed=3)
    assert not first.head_trained
    assert first.fingerprint == second.fingerprint != load_base(str(folder), seed=4).fingerprint
    save_file(
        {k: v for k, v in weights.items() if "layer.1" not in k}, folder / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"do not fit its config.json \(bert.encoder.layer.1"):
        load_base(str(folder))


def test_encoder_dropout_reaches_every_dropout(encoders):
    for folder in encoders.values():
        model = load_base(str(folder), encoder_dropout=0.0).model
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        assert layers and all(layer.p == 0.0 for layer in layers)
        assert any(m.p > 0 for m in load_base(str(folder), encoder_dropout=0.3).model.modules()
                   if isinstance(m, torch.nn.Dropout))  # fmt: skip


def test_prompt_tuning_solves_a_span_task(tmp_path):
    """Find the one rare word: only with labels and logits both aligned does this reach 0.95.

    Random encoder, so the task is one that attention by word identity can solve.
    """
    folder = make_encoder(tmp_path, hidden=64)
    split = marked_split(64)
    base = load_base(str(folder), encoder_dropout=0.0)
    model = attach(base, get_method("prompt_tuning"), defaults("prompt_tuning"), 64)
    settings = small_settings(
        learning_rate=3e-2, head_learning_rate=1e-2, num_train_epochs=60, eval_steps=160,
        early_stopping_patience=0, num_threads=1,
    )  # fmt: skip
    windows = build_windows(split, base.tokenizer, 64, 16)
    accelerator = Accelerator(cpu=True)

    def evaluate():
        found, loss = loop.predict(accelerator, model, windows, split.examples, settings)
        texts = {id: best[0].text for id, best in found.items()}
        return {"eval_loss": loss, "em": metrics.score(texts, split.examples).exact_match}

    progress = loop.fit(accelerator, model, windows, settings, evaluate)
    assert max(row["em"] for row in progress.history) >= 95.0


def marked_split(count):
    """Contexts of common words around one of two rare words, which is the answer."""
    from qa import squad
    from tests.conftest import WORDS

    random = np.random.default_rng(0)
    examples = []
    for n in range(count):
        words = [str(w) for w in random.choice(WORDS[:20], 12)]
        place = int(random.integers(12))
        words[place] = WORDS[-1 - n % 2]
        start = len(" ".join(words[:place])) + (place > 0)
        context = " ".join(words)
        examples.append(squad.Example(str(n), "t", context, WORDS[40], ((words[place], start),)))
    return squad.Split("toy", examples, "toy")


def with_adapter(base, adapter, inputs):
    """Start and end logits by PEFT's own loader, not merged."""
    from peft import PeftModel
    from transformers import AutoModelForQuestionAnswering

    plain = AutoModelForQuestionAnswering.from_pretrained(base)
    output = PeftModel.from_pretrained(plain, adapter).eval()(**inputs)
    return torch.stack((output.start_logits, output.end_logits))[:, inputs["attention_mask"] == 1]


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("LoraConfig", {}),
        ("LoraConfig", {"task_type": "QUESTION_ANS", "modules_to_save": None}),
        ("LoraConfig", {"init_lora_weights": "pissa"}),
        ("IA3Config", {"feedforward_modules": []}),
        ("VeraConfig", {"r": 4}),
        ("RandLoraConfig", {"r": 4, "target_modules": ["query", "output.dense"]}),
    ],
)
@torch.no_grad()
def test_a_plain_adapter_is_merged_with_its_base(encoders, tmp_path, method, config):
    adapter = make_adapter(tmp_path / "adapter", encoders["electra"], method, **config)
    base = load_base(str(adapter))
    names = ("bert", "query", "lora_", "base_layer")
    assert type(base.model).__module__.startswith("transformers.models.electra")
    assert not any(name in key for key, _ in base.model.named_parameters() for name in names[2:])
    inputs = batch()
    expected = with_adapter(encoders["electra"], adapter, {**inputs, "token_type_ids": None})
    output = base.model.eval()(**{**inputs, "token_type_ids": None})
    found = torch.stack((output.start_logits, output.end_logits))[:, inputs["attention_mask"] == 1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    own = load_base(str(encoders["electra"]))
    assert base.head_trained and base.tokenizer.get_vocab() == own.tokenizer.get_vocab()
    assert base.fingerprint != own.fingerprint and base.num_parameters == own.num_parameters


def test_an_adapters_head_and_tokenizer_count(encoders, tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    headless = shutil.copytree(encoders["bert"], tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if "qa_outputs" not in key}
    save_file(kept, headless / "model.safetensors", {"format": "pt"})
    assert load_base(str(make_adapter(tmp_path / "with", headless))).head_trained
    bare = make_adapter(tmp_path / "without", headless, modules_to_save=None)
    assert not load_base(str(bare)).head_trained
    tokenizer = AutoTokenizer.from_pretrained(headless)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[MORE]"]})
    tokenizer.save_pretrained(bare)
    with pytest.raises(UserError, match="has a tokenizer with ids up to"):
        load_base(str(bare))
    (bare / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=f"{bare} has no tokenizer: its vocabulary is empty"):
        load_base(str(bare))


def test_an_adapter_of_a_short_name(tmp_path):
    adapter = make_adapter(tmp_path / "adapter", "embedded")
    assert (
        load_base(str(adapter)).tokenizer.get_vocab() == load_base("embedded").tokenizer.get_vocab()
    )


def cased_vocabulary(folder, kind):
    """The encoder's tokenizer in one of the forms that people's folders have."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    if kind == "vocab.txt":
        words = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        (folder / "vocab.txt").write_text("\n".join(word for word, _ in words))
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    elif kind == "tokenizer.json":
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer_config.json").unlink()
    else:
        core = tokenizer.backend_tokenizer
        core.normalizer = {"sequence": sequence, "no normalizer": lambda: None}[kind]()
        PreTrainedTokenizerFast(
            tokenizer_object=core, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
            unk_token="[UNK]",
        ).save_pretrained(folder)  # fmt: skip


def sequence():
    from tokenizers import normalizers

    return normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])


@pytest.mark.parametrize("kind", ["vocab.txt", "tokenizer.json", "sequence", "no normalizer"])
def test_case_can_be_chosen_and_is_kept_when_saved(tmp_path, kind):
    folder = make_encoder(tmp_path / "encoder")
    cased_vocabulary(folder, kind)
    for lower in (True, False):
        base = load_base(str(folder), do_lower_case=lower)
        base.model.save_pretrained(tmp_path / str(lower))
        base.tokenizer.save_pretrained(tmp_path / str(lower))
        for tokenizer in (base.tokenizer, load_base(str(tmp_path / str(lower))).tokenizer):
            high, low = (tokenizer("BOB Kad", add_special_tokens=False).input_ids,
                         tokenizer("bob kad", add_special_tokens=False).input_ids)  # fmt: skip
            assert (high == low) == lower and tokenizer.unk_token_id not in low
            windows = build_windows(toy_split(2), tokenizer, 64, 16)
            assert len(windows) == 2


def test_case_that_is_part_of_the_vocabulary_is_left_alone(encoders):
    with pytest.raises(
        UserError, match=r"whose case is part of its vocabulary.*leave do_lower_case"
    ):
        load_base(str(encoders["roberta"]), do_lower_case=True)
    kept = load_base(str(encoders["roberta"]), do_lower_case=False).tokenizer
    assert kept("Bob").input_ids == load_base(str(encoders["roberta"])).tokenizer("Bob").input_ids


def test_an_adapter_that_holds_shared_tensors_once(encoders, tmp_path):
    """As runs of this program are saved."""
    from safetensors.torch import load_file, save_file

    config = {"r": 4, "target_modules": ["query", "output.dense"]}
    adapter = make_adapter(tmp_path / "adapter", encoders["bert"], "RandLoraConfig", **config)
    whole = load_base(str(adapter)).fingerprint
    weights = load_file(adapter / "adapter_model.safetensors")
    shared = [key for key in weights if key.endswith((".randlora_A", ".randlora_B"))]
    for key in shared:
        if key.count(".") > 2:  # of a layer, not of the model
            del weights[key]
    save_file(weights, adapter / "adapter_model.safetensors")
    assert len(weights) > 3 and load_base(str(adapter)).fingerprint == whole
