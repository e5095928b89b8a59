"""The loop against references: gradients, schedule, stopping, resuming, several processes."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from qa import Interrupted, UserError, checkpoint, loop, metrics
from qa.methods import get_method
from qa.model import attach, load_base
from qa.windows import build_windows
from tests.conftest import small_settings, toy_split


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def make_model(encoder, method="lora", dropout=0.0):
    base = load_base(str(encoder), encoder_dropout=dropout)
    row = get_method(method)
    params = {name: param.default for name, param in row.params.items()}
    return base, attach(base, row, params, 64)


def make_task(encoder, count=37, **options):
    base, model = make_model(encoder, **options)
    split = toy_split(count)
    return model, split, build_windows(split, base.tokenizer, 64, 16)


def gradient(accelerator, model, windows, rows, size):
    model.zero_grad()
    total = loop.gradients(accelerator, model, windows, rows, size)
    flat = torch.cat([p.grad.flatten() for p in model.trainable().values()])
    return flat.clone(), total.item()


def reference_gradient(model, windows, rows):
    """Mean over the windows, each forwarded alone, by autograd and nothing of the loop."""
    model.zero_grad()
    total = 0.0
    for row in rows:
        batch = {k: torch.from_numpy(v) for k, v in windows.batch(np.array([row])).items()}
        for logits, label in zip(model(**batch), (windows.start_positions, windows.end_positions)):
            total = total - torch.log_softmax(logits[0].double(), -1)[label[row]] / 2
    (total / len(rows)).backward()
    return torch.cat([p.grad.flatten() for p in model.trainable().values()]), total.item()


@pytest.mark.parametrize("method", ["lora", "full", "prompt_tuning"])
@pytest.mark.parametrize("rows", [8, 7, 3, 1])
def test_gradients_of_merged_and_separate_micro_batches_agree(accelerator, encoder, method, rows):
    """1 × 8 = 4 × 2 = the windows one by one; also for short last batches (7, 3, 1)."""
    model, _, windows = make_task(encoder, method=method)
    model.train()
    rows = np.arange(5, 5 + rows)
    expected, loss = reference_gradient(model, windows, rows)
    for size in (8, 2, 3):
        found, total = gradient(accelerator, model, windows, rows, size)
        assert total == pytest.approx(loss, rel=1e-5)
        assert (found - expected).norm() < 2e-5 * expected.norm()


def test_shards_of_several_processes_make_up_the_global_gradient(accelerator, encoder):
    """What DDP averages over 3 processes equals the gradient of one, though 8 = 3 + 3 + 2."""
    model, _, windows = make_task(encoder)
    rows = np.arange(8)
    expected, _ = gradient(accelerator, model, windows, rows, 8)

    class Process:  # of three; everything else is the real accelerator's
        num_processes = 3

        def __init__(self, index):
            self.process_index = index

        def __getattr__(self, name):
            return getattr(accelerator, name)

    parts = [gradient(Process(i), model, windows, rows, 2)[0] for i in range(3)]
    assert (sum(parts) / 3 - expected).norm() < 2e-5 * expected.norm()
    shards = [loop.shard(rows, i, 3) for i in range(3)]
    assert {len(part) for part, _ in shards} == {3}
    used = [row for part, weights in shards for row, w in zip(part, weights) if w]
    assert sorted(used) == list(range(8))


def test_schedule_equals_transformers(encoder):
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 40)
    for step in range(40):
        assert loop.learning_rate_factor(step, 40, 0) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    warm = [loop.learning_rate_factor(step, 40, 4) for step in range(40)]
    assert warm[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])  # never an update at rate 0
    assert np.diff(warm[4:]).max() < 0 and warm[-1] > 0


def test_groups_give_the_head_its_rate_and_decay_where_it_belongs(encoder):
    model = make_model(encoder, "full")[1]
    settings = small_settings(learning_rate=1e-4, head_learning_rate=1e-2, weight_decay=0.1)
    rates = {}
    for group in loop.parameter_groups(model, settings):
        for parameter in group["params"]:
            rates[id(parameter)] = group["peak"], group["weight_decay"]
    found = {name: rates[id(p)] for name, p in model.trainable().items()}
    assert len(found) == len(rates)
    assert found["network.qa_outputs.weight"] == (1e-2, 0.1)
    assert found["network.qa_outputs.bias"] == (1e-2, 0.0)
    assert found["network.bert.encoder.layer.0.output.dense.weight"] == (1e-4, 0.1)
    assert found["network.bert.encoder.layer.0.output.LayerNorm.weight"] == (1e-4, 0.0)
    prompt = make_model(encoder, "prompt_tuning")[1]
    decays = [group["weight_decay"] for group in loop.parameter_groups(prompt, settings)]
    assert sorted(decays) == [0.0, 0.0, 0.1]  # prompt, head's bias, head's weight


def run_fit(accelerator, task, settings, losses=None, **options):
    """fit on a toy task; validation is the training data, or a given series of losses."""
    model, split, windows = task
    series = iter(losses or [])

    def evaluate():
        found, loss = loop.predict(accelerator, model, windows, split.examples, settings)
        texts = {id: best[0].text for id, best in found.items()}
        scores = metrics.score(texts, split.examples)
        return {
            "eval_loss": next(series) if losses else loss,
            "eval_f1": scores.f1,
            "eval_exact_match": scores.exact_match,
        }

    progress = loop.fit(accelerator, model, windows, settings, evaluate, **options)
    return progress, {n: p.detach().clone() for n, p in model.trainable().items()}


def test_training_learns(accelerator, encoder):
    settings = small_settings(learning_rate=1e-2, num_train_epochs=12, early_stopping_patience=0)
    progress, _ = run_fit(accelerator, make_task(encoder, method="full"), settings)
    first, last = progress.history[0], progress.history[-1]
    assert last["train_loss"] < 0.5 * first["train_loss"]
    assert last["eval_f1"] > first["eval_f1"] + 20
    assert [row["step"] for row in progress.history] == [5 * n for n in range(1, 13)]
    assert len(progress.history) == 12 and progress.finished


def test_early_stopping_and_best_weights(accelerator, encoder):
    """Losses 3 2 2.5 2 …: the second is best (equal is no better), and patience 2 ends it."""
    seen = []
    settings = small_settings(num_train_epochs=9, learning_rate=1e-2)
    task = make_task(encoder)
    model = task[0]

    def snapshot(progress):
        seen.append({n: p.detach().clone() for n, p in model.trainable().items()})

    losses = [3, 2, 2.5, 2, 1]
    progress, final = run_fit(accelerator, task, settings, losses, on_evaluation=snapshot)
    assert len(progress.history) == 4 and progress.best_step == 10 and progress.best_loss == 2
    assert all(torch.equal(final[name], seen[1][name]) for name in final)
    assert not all(torch.equal(final[name], seen[3][name]) for name in final)


def test_patience_is_a_setting_and_zero_never_stops(accelerator, encoder):
    losses = [1, 2, 3, 4, 5, 6]
    for patience, evaluations in ((1, 2), (3, 4), (0, 6)):
        settings = small_settings(num_train_epochs=6, early_stopping_patience=patience)
        progress, _ = run_fit(accelerator, make_task(encoder, 10), settings, losses)
        assert len(progress.history) == evaluations


@pytest.mark.parametrize("method", ["lora", "adalora", "prompt_tuning", "p_tuning"])
def test_stop_and_resume_is_bit_identical(accelerator, encoder, tmp_path, method):
    """Stopped by a signal in mid-epoch, twice, with dropout on."""
    settings = small_settings(num_train_epochs=3, learning_rate=1e-2)
    task = lambda: make_task(encoder, method=method, dropout=0.1)  # noqa: E731
    whole, expected = run_fit(accelerator, task(), settings, checkpoint_dir=tmp_path / "a")
    for limit in (3, 7):
        seen = [0]
        with pytest.raises(Interrupted):
            run_fit(
                accelerator,
                task(),
                settings,
                checkpoint_dir=tmp_path / "b",
                on_step=lambda progress, total, loss, seen=seen: seen.append(progress.step),
                stop=lambda seen=seen, limit=limit: 15 * (seen[-1] >= limit - 1),
            )
        assert seen[-1] == limit
    progress, resumed = run_fit(accelerator, task(), settings, checkpoint_dir=tmp_path / "b")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    timed = {"examples_per_second"}
    for one, other in zip(whole.history, progress.history, strict=True):
        assert all(one[key] == other[key] for key in one.keys() - timed)


def test_dropout_is_on_in_training_and_off_in_evaluation(accelerator, encoder):
    model, split, windows = make_task(encoder, dropout=0.5)
    settings = small_settings()
    first, second = (
        loop.predict(accelerator, model, windows, split.examples, settings) for _ in range(2)
    )
    assert first == second
    model.train()
    gradients = [gradient(accelerator, model, windows, np.arange(8), 8)[0] for _ in range(2)]
    assert not torch.equal(*gradients)


@pytest.mark.parametrize("where", ["loss", "eval_loss"])
def test_a_non_finite_loss_stops_before_the_update(accelerator, encoder, where):
    task = make_task(encoder)
    model = task[0]
    before = {n: p.detach().clone() for n, p in model.trainable().items()}
    if where == "loss":
        with torch.no_grad():
            model.network.get_base_model().bert.embeddings.LayerNorm.weight[0] = math.inf
        with pytest.raises(loop.NonFiniteLoss, match="at update 1, epoch 1"):
            run_fit(accelerator, task, small_settings())
        assert all(torch.equal(before[n], p) for n, p in model.trainable().items())
    else:
        with pytest.raises(loop.NonFiniteLoss, match="after update 5"):
            run_fit(accelerator, task, small_settings(), losses=[math.nan])


def test_an_infinite_gradient_of_a_finite_loss_stops_before_the_update(accelerator, encoder):
    task = make_task(encoder)
    model = task[0]
    before = {n: p.detach().clone() for n, p in model.trainable().items()}
    weight = next(p for n, p in model.trainable().items() if "lora_B" in n)
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), math.inf))
    with pytest.raises(loop.NonFiniteLoss, match=r"gradient norm (inf|nan) at update 1, epoch 1"):
        run_fit(accelerator, task, small_settings())
    assert all(torch.equal(before[n], p) for n, p in model.trainable().items())


def test_the_longest_windows_are_predicted_first(accelerator, encoder):
    """So that too little memory shows at once."""
    base, model = make_model(encoder)
    short, long = toy_split(12), toy_split(12, seed=1, words=30)
    split = replace(
        short, examples=[e for pair in zip(short.examples, long.examples) for e in pair]
    )
    windows = build_windows(split, base.tokenizer, 64, 16)
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    settings = small_settings(per_device_eval_batch_size=4)
    loop.predict(accelerator, model, windows, split.examples, settings)
    assert len(set(seen)) > 1 and seen == sorted(seen, reverse=True)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_batch(accelerator, encoder):
    """A forward that fails above 3 windows, as a full GPU would; same weights as without."""
    settings = small_settings(learning_rate=1e-2)
    _, expected = run_fit(accelerator, make_task(encoder), settings)
    task = make_task(encoder)
    model, sizes = task[0], []
    forward = model.network.forward

    def limited(*args, **inputs):
        sizes.append(len(inputs["input_ids"]))
        if model.training and sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(*args, **inputs)

    model.network.forward = limited
    progress, found = run_fit(accelerator, task, settings)
    assert sizes[:3] == [8, 4, 2] and progress.step == 10
    for name in expected.keys() - {n for n in expected if "qa_outputs" in n and "bias" in n}:
        # (a softmax ignores a bias on all positions: Adam makes steps of its rounding errors)
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3)
    model.network.forward = lambda **inputs: (_ for _ in ()).throw(RuntimeError("another error"))
    with pytest.raises(RuntimeError, match="another error"):
        run_fit(accelerator, task, settings)


def test_no_memory_for_the_optimizers_state_is_one_line(accelerator, encoder, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(UserError, match=r"AdamW's state of \d[\d,]* trained parameters"):
        run_fit(accelerator, make_task(encoder), small_settings())


def test_an_operation_without_a_deterministic_way_is_let_through(accelerator, encoder, tmp_path):
    """As train.py asks for on a GPU: same bits, but where a model cannot, it trains all the same."""
    settings = small_settings(learning_rate=1e-2)
    _, expected = run_fit(accelerator, make_task(encoder), settings)
    model, split, windows = task = make_task(encoder)
    answers = loop.predict(accelerator, model, windows, split.examples, settings)

    def put(module, inputs):
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))

    model.register_forward_pre_hook(put)
    try:
        torch.use_deterministic_algorithms(True)
        with pytest.raises(RuntimeError, match="deterministic"):
            put(model, None)
        with (
            pytest.warns(UserWarning, match="put_"),
            loop.determinism(accelerator.device) as deterministic,
        ):
            again = loop.predict(accelerator, model, windows, split.examples, settings)
            assert not deterministic()
        with (
            pytest.warns(UserWarning, match="put_"),
            loop.determinism(accelerator.device) as deterministic,
        ):
            assert deterministic()
            progress, found = run_fit(accelerator, task, settings, checkpoint_dir=tmp_path)
            assert not deterministic() and not progress.deterministic
        resumed, _ = run_fit(accelerator, task, settings, checkpoint_dir=tmp_path)
        assert not resumed.deterministic, "what was so before a kill stays so"
        with pytest.raises(RuntimeError, match="deterministic"):
            put(model, None)  # what runs next is held to it again
    finally:
        torch.use_deterministic_algorithms(False)
    assert again == answers
    assert progress.step == 10 and all(torch.equal(found[n], expected[n]) for n in expected)


def test_only_what_torch_sees_to_is_called_deterministic():
    for kind, expected in (("cpu", True), ("mps", False)):
        with loop.determinism(torch.device(kind)) as deterministic:
            assert deterministic() is expected


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_every_kind_of_device_is_seeded(monkeypatch, kind):
    seeded = []
    module = SimpleNamespace(manual_seed=seeded.append)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    process = SimpleNamespace(process_index=1, device=torch.device(kind))
    for step in (3, 3, 4):
        loop._seed(process, 42, step)
    assert seeded[0] == seeded[1] != seeded[2]


def test_a_scale_of_losses_is_not_carried_from_one_fit_to_the_next(
    accelerator, encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cpu"))
    for name in ("first", "second"):
        folder = tmp_path / name
        progress, _ = run_fit(
            accelerator, make_task(encoder), small_settings(), checkpoint_dir=folder
        )
        assert progress.scaler["_growth_tracker"] == progress.step == 10


def test_micro_batches_are_merged_where_memory_allows(encoder):
    windows = copy.copy(make_task(encoder)[2])
    settings = small_settings()
    rows = np.arange(8)
    assert loop.micro_batch_size(windows, rows, settings, "cpu") == 8
    apart = small_settings(merge_accumulation=False)
    assert loop.micro_batch_size(windows, rows, apart, "cpu") == 2
    windows.__dict__["lengths"] = np.full(400, 1000)
    assert loop.micro_batch_size(windows, np.arange(8), settings, "cpu") == 4
    assert loop.micro_batch_size(windows, np.arange(400), settings, "cuda") == 65


def test_predictions_do_not_depend_on_batches(accelerator, encoder):
    model, split, windows = make_task(encoder)
    one, loss = loop.predict(
        accelerator, model, windows, split.examples, small_settings(per_device_eval_batch_size=1), 5
    )
    many, same = loop.predict(accelerator, model, windows, split.examples, small_settings(), 5)
    assert loss == pytest.approx(same, rel=1e-5)
    for id in one:
        assert [s.score for s in one[id]] == pytest.approx([s.score for s in many[id]], abs=1e-4)
        assert len(one[id]) == 5


def test_checkpoints_hold_no_pickle(accelerator, encoder, tmp_path):
    run_fit(accelerator, make_task(encoder), small_settings(), checkpoint_dir=tmp_path)
    files = sorted(p.name for p in next(tmp_path.iterdir()).iterdir())
    assert files == ["state.json", "state.safetensors"]
    tensors, state = checkpoint.load(tmp_path)
    assert state["step"] == 10 and any(name.startswith("optimizer.0.exp_avg") for name in tensors)
