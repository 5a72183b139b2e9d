"""watch_training and watch_inference under a real transformers Trainer."""

import pytest
import torch

from gradguard import GradModeError, watch_inference, watch_training

REASON = "transformers and accelerate are not installed (extra `integration`)"
transformers = pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("accelerate", reason=REASON)

# The libraries' own warnings are not this project's.
pytestmark = pytest.mark.filterwarnings("default")


def tiny():
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16)
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config)


def data():
    return [{"input_ids": ids, "labels": ids} for ids in torch.arange(64).view(8, 8) % 32]


def fit(tmp_path, model, watched, **options):
    """Train for four steps of two batches each; return the watch."""
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data(), eval_dataset=data())
    trainer.create_optimizer()
    with watch_training(watched, trainer.optimizer, **options) as watch:
        trainer.train()
    return watch


def test_a_healthy_run_is_silent(tmp_path):
    """Training with accumulation and evaluation has no finding, and every step is seen."""
    model = tiny()
    watch = fit(tmp_path, model, model)
    assert watch.report() == "watch_training: 4 optimizer steps, nothing found"


def test_a_module_that_never_runs_is_no_fault(tmp_path):
    """Its parameters get no gradient, and nobody meant them to."""
    model = tiny()
    model.extra = torch.nn.Linear(2, 2)
    watch = fit(tmp_path, model, model)
    assert watch.report() == "watch_training: 4 optimizer steps, nothing found"


def test_a_reentrant_checkpoint_of_frozen_embeddings_is_found(tmp_path):
    """Reentrant checkpoints of frozen embeddings cut every layer off, which torch only warns of."""
    model = tiny()
    model.transformer.wte.requires_grad_(False)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # untied
    model.transformer.wpe.requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.disable_input_require_grads()  # what transformers does against it, where it knows
    with pytest.raises(
        GradModeError, match=r"12 trainable parameters of AdamW never had a gradient"
    ):
        fit(tmp_path, model, model)


def test_generate_is_silent_and_a_bare_forward_is_told(tmp_path):
    """generate() guards its forwards; a forward after training, without a guard, is told."""
    model = tiny()
    fit(tmp_path, model, model)
    model.eval()
    with watch_inference(model, on_violation=(found := []).append) as watch:
        model.generate(torch.ones(1, 2, dtype=torch.long), max_new_tokens=2, pad_token_id=0)
        assert (watch.forwards, watch.violations) == (2, 0)
        model(input_ids=torch.ones(1, 2, dtype=torch.long))
    assert (watch.forwards, watch.violations) == (3, 1)
    assert "A forward of the GPT2LMHeadModel in eval mode recorded a graph" in str(found[0])
