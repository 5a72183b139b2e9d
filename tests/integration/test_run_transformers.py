"""The front over a transformers Trainer, and over a plain loop with its models."""

from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("accelerate") is None,
    reason="transformers and accelerate are not installed (extra `integration`)",
)

MODEL = """
    import sys
    import torch
    from transformers import (
        BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel,
    )

    faulty = "faulty" in sys.argv
    torch.manual_seed(0)
    inputs = torch.randint(0, 64, (32, 12))
    labels = inputs[:, 0] % 2
"""

# https://huggingface.co/docs/transformers/training, on a small model and made-up data.
TRAINER = (
    MODEL
    + """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Leaves(TrainerCallback):
        def on_evaluate(self, args, state, control, model, **kwargs):
            model.eval()
            model(input_ids=inputs[:2])  # forgotten

    data = [{"input_ids": row, "labels": label} for row, label in zip(inputs, labels)]
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=2,
    )
    arguments = TrainingArguments(
        sys.argv[1], num_train_epochs=2, per_device_train_batch_size=8, eval_strategy="epoch",
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        gradient_accumulation_steps=2,
    )
    trainer = Trainer(
        model=BertForSequenceClassification(config), args=arguments,
        train_dataset=data, eval_dataset=data, callbacks=[Leaves()] if faulty else [],
    )
    trainer.train()
    print(trainer.evaluate())
"""
)

LOOP = (
    MODEL
    + """
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(3):
        if not (faulty and epoch):
            model.train()
        for batch in inputs.split(8):
            outputs = model(input_ids=batch, labels=batch)
            outputs.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()  # eval
        with torch.no_grad():
            print(model(input_ids=inputs, labels=inputs).loss.item())
    print(model.generate(inputs[:1, :4], max_new_tokens=4, pad_token_id=0))
    if faulty:
        model(input_ids=inputs)  # forgotten
"""
)


def test_healthy(run, tmp_path):
    """Nothing is found in the quickstart."""
    assert run(TRAINER, str(tmp_path)).findings == []


def test_faulty(run, tmp_path):
    """A forward in a callback that forgets no_grad is named at its line."""
    ran = run(TRAINER, str(tmp_path), "faulty")
    assert ran.kinds() == {("recorded-eval", ran.at("forgotten"))}


def test_healthy_loop(run):
    """Nothing is found in a plain loop."""
    assert run(LOOP).findings == []


def test_faulty_loop(run):
    """Faults put into it are named at their lines."""
    ran = run(LOOP, "faulty")
    assert ran.kinds() == {("eval-mode", ran.at("eval")), ("recorded-eval", ran.at("forgotten"))}
