"""The kinds of findings of ``python -m gradguard run``: each fault is named, at its line."""

import asyncio
import inspect
import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn

import gradguard
from gradguard._core.state import grad_state
from gradguard._run.observer import Observer


def found_in(program, *, crashed=False):
    """Run a function as a run does, and return what was found, the mode put back."""
    torch.manual_seed(0)
    observer = Observer()
    observer.start()
    try:
        program()
    finally:
        observer.finish(crashed=crashed)
        torch.set_grad_enabled(True)
    found = observer.findings()
    assert observer.failure is None
    assert grad_state() == (True, False)
    return found


def line(program, text):
    """Return the number of the only line of a function that holds the text."""
    lines, first = inspect.getsourcelines(program)
    (number,) = [first + at for at, code in enumerate(lines) if text in code]
    return number


def only(found, kind):
    (one,) = found
    assert one.kind == kind
    assert one.filename == __file__
    return one


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)
        self.cut = False

    def forward(self, given):
        features = self.body(given)  # the call of the body
        return self.head(features.detach() if self.cut else features)


def trained(model=None, optimizer=None, steps=3):
    model = Net() if model is None else model
    optimizer = optimizer or torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()  # the step
    return model, optimizer


def test_left_and_trained_on():
    """A mode that a validation leaves off is named by its switch once a step follows on nothing."""

    def validate(model):
        torch.set_grad_enabled(False)  # left
        model(torch.randn(6, 4))

    def program():
        model, optimizer = trained()
        validate(model)
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(torch.randn(6, 4)).sum()
            if loss.requires_grad:
                loss.backward()
            optimizer.step()

    one = only(found_in(program), "mode-leak")
    assert (one.lineno, one.function) == (line(validate, "# left"), "validate")
    assert one.message.startswith("Grad mode was left off, and training went on in it")
    assert "To do: switch it by `with torch.no_grad():`" in one.message
    assert one.severity == "fault"


def test_inference_mode_left():
    """Inference mode entered by hand and never left is found at a backward that fails."""
    opened = []

    def program():
        model, _ = trained()
        opened.append(torch.inference_mode())
        opened[0].__enter__()  # left
        try:
            model(torch.randn(6, 4)).sum().backward()
        except RuntimeError:
            return

    observer = Observer()
    observer.start()
    program()
    observer.finish(crashed=False)
    opened[0].__exit__(None, None, None)
    one = only(observer.findings(), "mode-leak")
    assert one.lineno == line(program, "# left")
    assert one.message.startswith("Inference mode was left on")
    assert "element 0 of tensors does not require grad" in one.message


@pytest.mark.parametrize("work", ["none", "step", "eval"])
def test_left_without_training(work):
    """A mode that is off at the end, around a step or for predictions stopped no learning."""

    def program():
        model, optimizer = trained()
        model(torch.randn(6, 4)).sum().backward()
        torch.set_grad_enabled(False)
        if work == "step":
            optimizer.step()
        if work == "eval":
            model.eval()(torch.randn(6, 4))

    assert found_in(program) == []


def test_inference_tensors_in_buffers_and_state():
    """Buffers and optimizer state are looked at, too, where a step outside meets them."""
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def program():
        model(torch.randn(6, 4)).sum().backward()
        with torch.inference_mode():
            optimizer.step()  # made
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
            optimizer.step()

    one = only(found_in(program), "inference-tensor")
    assert one.lineno == line(program, "# made")
    assert "among the optimizer state" in one.message

    def buffers():
        other = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        with torch.inference_mode():
            other[1].running_mean = torch.zeros(2)  # made
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
            other(torch.randn(6, 4))

    one = only(found_in(buffers), "inference-tensor")
    assert one.parameters == ("1.running_mean",)
    assert one.lineno == line(buffers, "# made")


def learn(model, optimizer):
    """Step on what the model makes of a batch, if that was recorded."""
    loss = model(torch.randn(6, 4)).sum()
    if loss.requires_grad:
        loss.backward()
    optimizer.step()


SUSPENDED = "suspended in it, at a `yield` or `await`"


@pytest.mark.parametrize("isolate", [False, True])
def test_left_by_a_generator(isolate):
    """A block around a yield reaches the loop that steps, and what the message advises mends it."""

    def batches():
        with torch.no_grad():  # left
            yield from range(3)

    def program():
        model, optimizer = trained()
        for _ in (gradguard.isolated(batches) if isolate else batches)():
            learn(model, optimizer)

    found = found_in(program)
    if isolate:
        assert found == []
    else:
        one = only(found, "mode-leak")
        assert one.lineno == line(batches, "# left")
        assert SUSPENDED in one.message
        assert "`gradguard.isolated`" in one.message


@pytest.mark.parametrize("isolate", [False, True])
def test_left_by_a_task(isolate):
    """A block around an await reaches the task that steps meanwhile."""

    async def predict():
        with torch.no_grad():  # left
            for _ in range(4):
                await asyncio.sleep(0)

    async def train():
        model, optimizer = trained()
        for _ in range(3):
            learn(model, optimizer)
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(train(), (gradguard.isolated(predict) if isolate else predict)())

    found = found_in(lambda: asyncio.run(main()))
    if isolate:
        assert found == []
    else:
        one = only(found, "mode-leak")
        assert one.lineno == line(predict, "# left")
        assert SUSPENDED in one.message


class Off:
    """Switches as it is entered, and not back."""

    def __enter__(self):
        torch.set_grad_enabled(False)  # left

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("by_stack", [False, True])
def test_left_by_what_is_over(by_stack):
    """A coroutine that has returned is not said to be suspended."""
    stack = ExitStack()

    async def prepare():
        stack.enter_context(torch.no_grad())  # left

    async def prepare_within():
        with Off():
            await asyncio.sleep(0)

    def program():
        model, optimizer = trained()
        asyncio.run(prepare() if by_stack else prepare_within())
        for _ in range(3):
            learn(model, optimizer)

    one = only(found_in(program), "mode-leak")
    assert one.lineno == line(prepare if by_stack else Off, "# left")
    assert "nothing switched it back" in one.message
    stack.close()


def test_thread_that_goes_on():
    """A thread that is in the midst of a block at the end has left nothing."""
    inside, leave = threading.Event(), threading.Event()

    def work():
        with torch.no_grad():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=work)

    def program():
        trained()
        thread.start()
        inside.wait()

    found = found_in(program)
    leave.set()
    thread.join()
    assert found == []


def test_empty_step():
    """A step with no gradient at all is named, and counted."""

    def program():
        model, optimizer = trained()
        for _ in range(2):
            model(torch.randn(6, 4)).sum().backward()
            optimizer.zero_grad()
            optimizer.step()  # empty

    one = only(found_in(program), "empty-step")
    assert (one.lineno, one.count) == (line(program, "# empty"), 2)
    assert "none of its 6 trainable parameters has a gradient" in one.message
    assert "zero_grad() was called between backward() and step()" in one.message


def test_empty_step_with_closure():
    """With a closure a step is judged after it."""

    def program():
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.step(lambda: model(torch.ones(1, 4)).sum())  # empty

    assert only(found_in(program), "empty-step").lineno == line(program, "# empty")


def test_nothing_to_learn():
    """A step of an optimizer that holds only frozen parameters changes nothing, as it shall."""

    def program():
        model = nn.Linear(4, 1).requires_grad_(requires_grad=False)
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    assert found_in(program) == []


def test_no_gradient():
    """Parameters that never get a gradient are all named, at the call of their module."""

    def program():
        model = Net()
        model.cut = True
        trained(model)

    one = only(found_in(program), "no-gradient")
    assert (one.filename, one.lineno, one.function) == (
        __file__,
        line(Net, "# the call of the body"),
        "forward",
    )
    assert one.parameters == ("body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias")
    assert "4 trainable parameters of AdamW never had a gradient in 3 steps" in one.message
    assert "To do: let the loss depend on it" in one.message


def test_no_gradient_at_the_recorded_call():
    """The call that is named is one that was recorded, not an earlier one under no_grad."""

    def program():
        model, other = nn.Linear(4, 2), nn.Linear(4, 2)
        with torch.no_grad():
            model(torch.randn(1, 4))
        optimizer = torch.optim.AdamW([*model.parameters(), *other.parameters()])
        trained(lambda given: model(given).detach() + other(given), optimizer)  # call

    assert only(found_in(program), "no-gradient").lineno == line(program, "# call")


def test_no_gradient_after_the_model():
    """They are named also where model and optimizer are gone at the end, in a wrapper as well."""

    def program():
        model = Net()
        model.cut = True
        trained(torch.compile(model, backend="eager"), torch.optim.AdamW(model.parameters()))

    # What Dynamo compiles is not seen to be called: the run's own step is.
    assert found_in(program) == []

    def uncompiled():
        model = Net()
        model.cut = True
        trained(nn.Sequential(model))

    found = found_in(uncompiled)
    assert only(found, "no-gradient").parameters[0] == "0.body.0.weight"


def test_gradient_later():
    """A gradient at any step is enough."""

    def program():
        model, _ = Net(), None
        optimizer = torch.optim.AdamW(model.parameters())
        model.cut = True
        trained(model, optimizer)
        model.cut = False
        trained(model, optimizer, 1)

    assert found_in(program) == []


def test_frozen_before_the_end():
    """A parameter that was frozen meanwhile has not taken part in the whole run."""

    def program():
        model = Net()
        model.cut = True
        _, optimizer = trained(model)
        model.body.requires_grad_(requires_grad=False)
        trained(model, optimizer)

    assert found_in(program) == []


def test_inference_tensors_that_are_not_trained():
    """A model that serves, made in inference mode, is not one that is trained."""

    def program():
        with torch.inference_mode():
            model = Net().eval()
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
            model(torch.randn(6, 4))

    assert found_in(program, crashed=True) == []


def test_inference_tensors_given_to_an_optimizer():
    """Parameters made in inference mode are named where they were made, once an optimizer has them."""

    def program():
        with torch.inference_mode():
            model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))  # made
        torch.optim.AdamW(model.parameters())

    one = only(found_in(program), "inference-tensor")
    assert one.lineno == line(program, "# made")
    assert one.parameters == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert "Inference tensors among the parameters" in one.message
    assert "outside torch.inference_mode()" in one.message


def test_inference_tensors_at_the_first_forward():
    """A model that is trained and was converted is named there; such a script dies."""
    model = Net()

    def program():
        with torch.inference_mode():
            model.double()  # converted
        model(torch.randn(6, 4).double())

    observer = Observer()
    observer.start()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        program()
    observer.finish(crashed=True)
    one = only(observer.findings(), "inference-tensor")
    assert one.lineno == line(program, "# converted")
    assert one.parameters[0] == "body.0.weight"


def test_inference_tensors_of_a_lazy_module():
    """A lazy module whose first forward ran in inference mode, after the optimizer was made.

    Its backward succeeds, and gives no gradient.
    """
    observer = Observer()
    observer.start()
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.inference_mode():
        model(torch.randn(2, 4))
    model(torch.randn(2, 4)).sum().backward()
    observer.finish(crashed=True)
    (one,) = observer.findings()
    assert (one.kind, one.parameters) == ("inference-tensor", ("0.weight", "0.bias"))


def test_left_in_eval_mode():
    """A model left in eval mode is named by the call that put it there, with the steps since."""

    def validate(model):
        model.eval()  # left
        with torch.no_grad():
            model(torch.randn(6, 4))

    def program():
        model, optimizer = trained()
        validate(model)
        trained(model, optimizer, 4)

    one = only(found_in(program), "eval-mode")
    assert (one.lineno, one.function) == (line(validate, "# left"), "validate")
    assert one.count == 4
    assert "The Net was left in eval mode: after an evaluation" in one.message
    assert "gradguard.evaluating(model)" in one.message


def test_left_in_eval_mode_by_an_override():
    """Where a model overrides train(), it is still the line of eval()."""

    class Own(Net):
        def train(self, mode=True):
            return super().train(mode)

        def eval(self):
            return self.train(False)

    def program():
        model, optimizer = trained(Own())
        model.eval()  # left
        trained(model, optimizer, 1)

    assert only(found_in(program), "eval-mode").lineno == line(program, "# left")


def test_left_in_eval_mode_by_its_holder():
    """Models that only a holder has put in eval mode are named by that call, a step once."""

    def program():
        holder = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Dropout(), nn.Linear(4, 1))])
        optimizer = torch.optim.AdamW(holder.parameters())

        def together(given):
            return holder[1](holder[0](given))

        trained(together, optimizer)
        holder.eval()  # left
        trained(together, optimizer, 2)

    one = only(found_in(program), "eval-mode")
    assert (one.lineno, one.count) == (line(program, "# left"), 2)


def test_left_in_eval_mode_compiled():
    """A compiled model is counted once."""

    def program():
        model = torch.compile(Net(), backend="eager")
        _, optimizer = trained(model)
        model.eval()  # left
        trained(model, optimizer, 2)

    one = only(found_in(program), "eval-mode")
    assert (one.lineno, one.count) == (line(program, "# left"), 2)


def test_recorded_eval():
    """A forward in eval mode whose graph nobody uses is named by its call, and counted."""

    def program():
        model, optimizer = trained()
        for _ in range(3):
            model.eval()
            model(torch.randn(6, 4)).mean().item()  # forgotten
            model.train()
            trained(model, optimizer, 1)

    one = only(found_in(program), "recorded-eval")
    assert (one.lineno, one.count) == (line(program, "# forgotten"), 3)
    assert "recorded a graph that nobody used (3 times)" in one.message
    assert "torch.inference_mode()" in one.message


def test_recorded_eval_that_is_kept():
    """A graph that is alive at the end is one nobody used, but not when the script crashed."""
    kept = []

    def program():
        kept.append(Net().eval()(torch.randn(6, 4)))

    assert only(found_in(program), "recorded-eval").count == 1
    assert found_in(program, crashed=True) == []


def test_recorded_eval_nested_outputs():
    """Outputs in structures are looked at, and a backward on one of them is enough."""

    class Pair(Net):
        def forward(self, given):
            return {"out": super().forward(given), "features": self.body(given)}

    def used():
        Pair().eval()(torch.randn(6, 4))["out"].sum().backward()

    def unused():
        Pair().eval()(torch.randn(6, 4))

    assert found_in(used) == []
    assert only(found_in(unused), "recorded-eval").count == 1


def test_nothing_stays():
    """After a run torch is as it was before, hooks and methods."""
    train = nn.Module.train
    add, call = torch.optim.Optimizer.add_param_group, torch._C._set_grad_enabled
    hooks = [name for name in vars(nn.modules.module) if name.endswith("_hooks")]
    assert "_global_forward_hooks" in hooks
    before = {name: dict(getattr(nn.modules.module, name)) for name in hooks}
    found_in(trained)
    assert nn.Module.train is train
    assert torch.optim.Optimizer.add_param_group is add
    assert torch._C._set_grad_enabled is call
    assert {name: dict(getattr(nn.modules.module, name)) for name in hooks} == before


def test_own_failure():
    """A check that fails is told, and does not reach the script."""
    observer = Observer()
    observer.start()
    observer.judge.steps.good = None
    trained()
    observer.finish(crashed=False)
    assert "a check failed by itself (TypeError" in observer.failure
