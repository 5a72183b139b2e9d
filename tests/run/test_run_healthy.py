"""``python -m gradguard run`` finds nothing in healthy programs."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.utils.checkpoint import checkpoint

import gradguard
from gradguard._run.observer import Observer


@pytest.fixture(autouse=True)
def nothing_found(request):
    """Watch each test as a run is watched, and expect no finding from it."""
    torch.manual_seed(0)
    observer = Observer()
    observer.start()
    yield
    observer.finish(crashed=False)
    # Training in eval mode as a model comes is told, as a notice: it may be meant.
    kinds = {("eval-mode", "notice")} if "in_eval" in request.node.name else set()
    found = {(one.kind, one.severity) for one in observer.findings()}
    assert found == kinds, [one.message for one in observer.findings()]
    assert observer.failure is None
    assert observer.models > 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 2)

    def forward(self, given):
        return self.head(self.body(given))


def batch():
    return torch.randn(6, 4)


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        optimizer.step()


@torch.no_grad()
def validate(model):
    model.eval()
    loss = model(batch()).square().mean()
    model.train()
    return loss


def test_training_and_validation():
    """A plain loop with validation between the epochs."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        train(model, optimizer)
        validate(model)
    torch.save(model.eval().state_dict(), "/dev/null")


def test_accumulation():
    """Gradients of several batches for one step."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for number in range(1, 9):
        (model(batch()).square().mean() / 4).backward()
        if number % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def test_gan():
    """Two models whose optimizers alternate, one behind detach()."""
    generator, critic = Net(), nn.Linear(2, 1)
    of_generator = torch.optim.Adam(generator.parameters())
    of_critic = torch.optim.Adam(critic.parameters())
    for _ in range(3):
        fake = generator(batch())
        of_critic.zero_grad()
        (critic(fake.detach()).mean() - critic(torch.randn(6, 2)).mean()).backward()
        of_critic.step()
        of_generator.zero_grad()
        (-critic(fake).mean()).backward()
        of_generator.step()


@pytest.mark.parametrize("given_all", [True, False])
def test_frozen_backbone(given_all):
    """A backbone that is frozen, in eval mode, and given to the optimizer or not."""
    model = Net()
    model.body.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(model.parameters() if given_all else model.head.parameters())
    for _ in range(3):
        model.train()
        model.body.eval()
        train(model, optimizer, 1)
        validate(model)


def test_backbone_under_no_grad():
    """A backbone that is a model of its own, in eval mode and under no_grad."""
    backbone, head = Net().eval(), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(head.parameters())
    for _ in range(3):
        with torch.no_grad():
            features = backbone(batch())
        optimizer.zero_grad()
        head(features).square().mean().backward()
        optimizer.step()


def test_frozen_later():
    """A model that is trained, then frozen and put in eval mode while another is trained."""
    first, second = Net(), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()])
    train(lambda given: second(first(given)), optimizer)
    first.eval().requires_grad_(requires_grad=False)
    for _ in range(2):
        optimizer.zero_grad()
        second(first(batch())).square().mean().backward()
        optimizer.step()


class Adapted(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner.requires_grad_(requires_grad=False)
        self.down = nn.Linear(inner.in_features, 2, bias=False)
        self.up = nn.Linear(2, inner.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, given):
        return self.inner(given) + self.up(self.down(given))


def test_adapters():
    """Adapters as LoRA's: half of them begins at zero, and what they adapt is frozen."""
    model = Net()
    model.requires_grad_(requires_grad=False)
    model.head = Adapted(model.head)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    train(model, optimizer)
    validate(model)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 2) for _ in range(4))
        self.step = 0

    def forward(self, given):
        self.step += 1
        return self.experts[self.step % 3](given)


def test_experts():
    """Experts of which a step uses one, and one that no step uses."""
    model = Experts()
    train(model, torch.optim.AdamW(model.parameters()), 5)


def test_no_elements():
    """Parameters with no elements, and of modules that are never called."""
    model = Net()
    model.empty = nn.Parameter(torch.zeros(0, 4))
    model.unused = nn.Linear(4, 4)
    train(model, torch.optim.AdamW(model.parameters()))


def test_ema():
    """A copy that follows the model, and is what is validated."""
    model = Net()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        train(model, optimizer, 1)
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
            average(batch())


def test_averaged_model():
    """torch's own averaging."""
    model = Net()
    average = torch.optim.swa_utils.AveragedModel(model)
    train(model, torch.optim.AdamW(model.parameters()))
    average.update_parameters(model)
    torch.optim.swa_utils.update_bn([batch()], average)


def test_rollouts():
    """Rollouts under no_grad with the policy in train mode."""
    policy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(policy.parameters())
    for _ in range(3):
        with torch.no_grad():
            states = [batch() for _ in range(3)]
            actions = [policy(state).argmax(1) for state in states]
        for state, action in zip(states, actions, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(policy(state), action).backward()
            optimizer.step()


def test_dropout_at_prediction():
    """MC dropout: eval mode but for the dropouts, under no_grad, between trainings."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        train(model, optimizer)
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        with torch.inference_mode():
            torch.stack([model(batch()) for _ in range(3)]).var(0)
        model.train()


def test_closure():
    """LBFGS, whose gradients its closure makes."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    given = batch()

    def closure():
        optimizer.zero_grad()
        loss = model(given).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure=closure)


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant):
        super().__init__()
        self.net, self.reentrant = Net(), reentrant

    def forward(self, given):
        return checkpoint(self.both, given, use_reentrant=self.reentrant)

    def both(self, given):
        return self.net.head(self.net.body(given))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    "mode", [pytest.param(True, id="in_train"), pytest.param(False, id="in_eval")]
)
def test_checkpoint(reentrant, mode):
    """Checkpoints of both kinds, in train and in eval mode."""
    model = Checkpointed(reentrant=reentrant).train(mode)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(batch().requires_grad_()).square().mean().backward()
        optimizer.step()


def test_step_inside_no_grad():
    """optimizer.step() inside no_grad, as a block and as a decorator."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())

    @torch.no_grad()
    def update():
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        model(batch()).square().mean().backward()
        with torch.no_grad():
            optimizer.step()
        model(batch()).square().mean().backward()
        update()


def test_step_in_backward():
    """An optimizer for each parameter that steps in a hook of backward, where grad is off."""
    model = Net()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        model(batch()).square().mean().backward()


def test_gradient_penalty():
    """A gradient penalty in validation, with enable_grad inside no_grad."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        train(model, optimizer)
        model.eval()
        with torch.no_grad():
            model(batch())
            with torch.enable_grad():
                given = batch().requires_grad_()
                torch.autograd.grad(model(given).sum(), given)
        model.train()


def test_training_in_eval_mode():
    """Deliberate fine-tuning in eval mode from the first step on."""
    model = Net().eval()
    train(model, torch.optim.AdamW(model.parameters()))


@pytest.mark.parametrize(
    "mode", [pytest.param(True, id="in_train"), pytest.param(False, id="in_eval")]
)
def test_compiled(mode):
    """A compiled model, in train mode with validation, and in eval mode from the first step on."""
    model = torch.compile(Net().train(mode), backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    with torch.no_grad():
        model.eval()(batch())
    model.train(mode)
    train(model, optimizer, 1)


def test_torch_is_patched(monkeypatch):
    """gradguard's guards in the place of torch's, and an optimizer step that calls another."""
    for name in ("no_grad", "enable_grad", "set_grad_enabled", "inference_mode"):
        monkeypatch.setattr(torch, name, getattr(gradguard, name))

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            with torch.enable_grad():
                return super().step(closure)

    model = Net()
    optimizer = Own(model.parameters(), lr=0.1)
    train(model, optimizer)
    with torch.inference_mode():
        model.eval()(batch())
    model.train()
    train(model, optimizer, 1)


def test_perceptual_loss():
    """A frozen model in eval mode inside the loss, through which backward goes."""
    model, judge = Net(), Net().eval().requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(judge(F.pad(model(batch()), (0, 2))), torch.zeros(6, 2)).backward()
        optimizer.step()


def test_skipped_batch_in_eval():
    """Fine-tuning in eval mode that leaves out a batch now and then."""
    model = Net().eval()
    optimizer = torch.optim.AdamW(model.parameters())
    for number in range(10):
        loss = model(batch()).square().mean()
        if number != 5:
            loss.backward()
            optimizer.step()


def test_scaler():
    """A GradScaler and autocast."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch()).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def test_threads():
    """A prediction in a thread that ends, with all its blocks closed."""
    model = Net()
    train(model, torch.optim.AdamW(model.parameters()))
    thread = threading.Thread(target=validate, args=[model])
    thread.start()
    thread.join()


def test_functional():
    """torch.func over a model in eval mode."""
    model = nn.Linear(4, 1).eval()
    parameters = dict(model.named_parameters())

    def loss(parameters, given):
        return torch.func.functional_call(model, parameters, (given,)).square().mean()

    torch.func.grad(loss)(parameters, batch())
    torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, batch())


def test_unfrozen_later():
    """A backbone that is unfrozen after some steps."""
    model = Net()
    model.body.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    model.body.requires_grad_(requires_grad=True)
    train(model, optimizer)


def test_serving():
    """A model that is made in inference mode and only predicts."""
    with torch.inference_mode():
        model = Net().eval()
        model(batch())


@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict):
    """A model in eval mode that is traced and exported."""
    model = Net().eval()
    torch.export.export(model, (batch(),), strict=strict)
    with torch.no_grad():
        model(batch())


def scripted(given):
    with torch.no_grad():
        doubled = given * 2
    return doubled + given


def test_scripted_guards():
    """TorchScript compiles the source of torch's guards, whatever stands in their place."""
    assert torch.jit.script(scripted)(torch.ones(2)).tolist() == [3.0, 3.0]
    with torch.no_grad():
        Net().eval()(batch())
