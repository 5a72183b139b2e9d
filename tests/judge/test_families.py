"""Each kind of the judge: programs that have the fault, told at its line, and healthy look-alikes."""

import copy
import inspect
import itertools
from collections import Counter
from threading import Thread

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from gradguard._core import frames
from gradguard._findings.kinds import RUN_KINDS
from gradguard._run.observer import Observer

HERE = "# HERE"


def net(*more):
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), *more, nn.Linear(8, 2))


def batch(count=8):
    return torch.randn(count, 4)


def fit(model, optimizer, steps=3, forward=None):
    for _ in range(steps):
        optimizer.zero_grad()
        (forward or model)(batch()).square().mean().backward()
        optimizer.step()


def judged(program):
    torch.manual_seed(0)
    observer = Observer()
    observer.start()
    try:
        program()
    finally:
        observer.finish(crashed=False)
        torch.set_grad_enabled(True)
    assert observer.failure is None
    return observer.findings()


FAULTS, HEALTHY = [], []


def fault(kind, severity="fault"):
    return lambda program: FAULTS.append((kind, severity, program)) or program


def healthy(kind):
    return lambda program: HEALTHY.append((kind, program)) or program


# stale-parameter


@fault("stale-parameter")
def decoder_rebuilt_in_its_holder():
    holder = nn.ModuleDict({"encoder": nn.Linear(4, 8), "decoder": nn.Linear(8, 2)})
    optimizer = torch.optim.Adam(holder.parameters())
    holder["decoder"] = nn.Sequential(nn.Tanh(), nn.Linear(8, 2))  # HERE
    fit(holder, optimizer, forward=lambda x: holder["decoder"](holder["encoder"](x)))


@fault("stale-parameter")
def scale_made_anew_in_each_forward():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scale = nn.Linear(4, 2), nn.Parameter(torch.ones(2))

        def forward(self, x):
            self.scale = nn.Parameter(self.scale.detach().clamp(min=0.1))  # HERE
            return self.body(x) * self.scale

    model = Scaled()
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1))


@healthy("stale-parameter")
def replaced_and_added():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2] = nn.Linear(8, 3)
    optimizer.add_param_group({"params": model[2].parameters()})
    fit(model, optimizer)


@healthy("stale-parameter")
def replaced_by_what_is_frozen():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2] = nn.Linear(8, 2).requires_grad_(requires_grad=False)
    fit(model, optimizer)


# frozen-moves


@fault("frozen-moves")
def frozen_with_momentum_and_zeroed_in_place():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fit(model, optimizer)
    for p in model[0].parameters():
        p.requires_grad = False  # HERE
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        model(batch()).square().mean().backward()
        optimizer.step()


@fault("frozen-moves")
def frozen_between_backward_and_step():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(batch()).square().mean().backward()
    model[2].requires_grad_(requires_grad=False)  # HERE
    optimizer.step()


@healthy("frozen-moves")
def frozen_and_dropped():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    fit(model, optimizer)
    model[0].requires_grad_(requires_grad=False).zero_grad(set_to_none=True)
    fit(model, optimizer)


@healthy("frozen-moves")
def frozen_with_gradients_of_zero():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, optimizer)
    model[0].requires_grad_(requires_grad=False)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        model(batch()).square().mean().backward()
        optimizer.step()


# no-gradient and its notice


@fault("no-gradient")
def code_rounded_to_numbers():
    encode, decode = nn.Linear(4, 8), nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()])
    for _ in range(3):
        optimizer.zero_grad()
        codes = encode(batch())  # HERE
        decode(torch.tensor(codes.tolist())).square().mean().backward()
        optimizer.step()


@fault("no-gradient")
def branch_under_no_grad():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)

        @torch.no_grad()
        def context(self, x):
            return self.right(x)  # HERE

        def forward(self, x):
            return self.left(x) + self.context(x)

    model = Two()
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1))


@fault("no-gradient", "notice")
def group_of_what_is_frozen():
    model = net()
    model[0].requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    optimizer.add_param_group({"params": model[0].parameters()})  # HERE
    fit(model, optimizer)


@healthy("no-gradient")
def experts_of_which_some_run():
    experts = nn.ModuleList(nn.Linear(4, 2) for _ in range(4))
    optimizer = torch.optim.SGD(experts.parameters(), lr=0.1)
    turns = itertools.cycle([0, 1])
    fit(experts, optimizer, 4, forward=lambda x: experts[next(turns)](x))


@healthy("no-gradient")
def token_for_another_mode():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.token = nn.Linear(4, 2), nn.Parameter(torch.zeros(4))

        def forward(self, x, mask=None):
            return self.body(x if mask is None else torch.where(mask, self.token, x))

    model = Masked()
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1))


@fault("no-gradient")
def lazy_encoder_probed_and_then_under_no_grad():
    encode = nn.Sequential(nn.LazyLinear(8), nn.Tanh())
    encode(batch())
    head = nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*encode.parameters(), *head.parameters()])
    for _ in range(3):
        with torch.no_grad():
            codes = encode(batch())  # HERE
        optimizer.zero_grad()
        head(codes).square().mean().backward()
        optimizer.step()


@fault("no-gradient")
def encoder_asked_for_its_size_and_then_detached():
    encode = nn.Linear(4, 8)
    head = nn.Linear(encode(batch(1)).shape[-1], 2)
    optimizer = torch.optim.SGD([*encode.parameters(), *head.parameters()], lr=0.1)
    for _ in range(3):
        codes = encode(batch()).detach()  # HERE
        optimizer.zero_grad()
        head(codes).square().mean().backward()
        optimizer.step()


@healthy("no-gradient")
def part_probed_and_never_trained():
    encode, other, head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)
    assert encode(batch()).shape == other(batch()).shape
    every = [p for module in (encode, other, head) for p in module.parameters()]
    optimizer = torch.optim.SGD(every, lr=0.1)
    fit(head, optimizer, forward=lambda x: head(encode(x)))


@healthy("no-gradient")
def part_that_is_thawed_after_it_ran():
    model = net()
    model[0].requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    fit(model, optimizer)
    model[0].requires_grad_(requires_grad=True)
    optimizer.add_param_group({"params": model[0].parameters()})
    fit(model, optimizer)


class Growing(nn.Module):
    """Has an output for each stage; the optimizer of a stage holds all."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.outputs = nn.ModuleList(nn.Linear(8, 2) for _ in range(3))

    def forward(self, x):
        return self.outputs[-1](self.body(x))


@healthy("no-gradient")
def outputs_of_earlier_stages():
    model = Growing()
    for _ in range(3):
        fit(model, torch.optim.SGD(model.parameters(), lr=0.1))
        model.outputs.append(nn.Linear(8, 2))


@healthy("no-gradient")
def branches_trained_one_after_the_other():
    model = Growing()
    everything = torch.optim.SGD(model.parameters(), lr=0.1)
    for output in model.outputs:
        optimizer = torch.optim.SGD(output.parameters(), lr=0.1)
        fit(output, optimizer, 2, lambda _, output=output: output(model.body(batch()).detach()))
        del optimizer
        fit(model, everything, 2, lambda x: model.body(x))


@fault("no-gradient")
def output_detached_in_each_stage():
    class Detached(Growing):
        def forward(self, x):
            extra = self.outputs[0](self.body(x)).detach()  # HERE
            return super().forward(x) + extra

    model = Detached()
    for _ in range(2):
        fit(model, torch.optim.SGD(model.parameters(), lr=0.1))
        model.outputs.append(nn.Linear(8, 2))


# empty-step


@fault("empty-step")
def agent_with_a_new_policy():
    policy = net()
    optimizer = torch.optim.Adam(policy.parameters())
    policy = copy.deepcopy(policy)
    for _ in range(3):
        policy.zero_grad()
        policy(batch()).square().mean().backward()
        optimizer.step()  # HERE


@fault("empty-step")
def loss_wrapped_in_a_new_tensor():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        loss = torch.tensor(model(batch()).square().mean().item(), requires_grad=True)
        loss.backward()
        optimizer.step()  # HERE


@healthy("empty-step")
def heads_in_turn():
    body, heads = nn.Linear(4, 8), [nn.Linear(8, 1), nn.Linear(8, 1)]
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (body, *heads)]
    for turn in range(6):
        for each in optimizers:
            each.zero_grad()
        heads[turn % 2](body(batch())).square().mean().backward()
        for each in optimizers:
            each.step()


@healthy("empty-step")
def warm_up_of_a_scheduler():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        model(batch())
    optimizer.step()
    fit(model, optimizer)


@fault("empty-step")
def adapters_added_to_frozen_layers():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model.requires_grad_(requires_grad=False)
    for layer in (model[0], model[2]):
        layer.adapter = nn.Linear(4 if layer is model[0] else 8, layer.out_features)
        layer.register_forward_hook(lambda m, given, out: out + m.adapter(given[0]))
    for _ in range(3):
        model.zero_grad()
        model(batch()).square().mean().backward()
        optimizer.step()  # HERE


@healthy("empty-step")
def frozen_part_waits_with_its_own_optimizer():
    model = net()
    model[0].requires_grad_(requires_grad=False)
    optimizers = [torch.optim.SGD(model[at].parameters(), lr=0.1) for at in (0, 2)]
    for _ in range(4):
        model.zero_grad()
        model(batch()).square().mean().backward()
        for each in optimizers:
            each.step()


@healthy("empty-step")
def schedule_plotted_before_training():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    model(batch())
    for _ in range(20):
        optimizer.step()
        scheduler.step()
    fit(model, optimizer)


@healthy("empty-step")
def remainder_of_an_accumulation():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for half in (1, 2):
            model(batch()).square().mean().backward()
            if half == 2:
                optimizer.step()
                optimizer.zero_grad()
        optimizer.step()


# eval-mode


@fault("eval-mode")
def sampled_before_training():
    model = net(nn.Dropout(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def sample():
        model.eval()  # HERE
        with torch.inference_mode():
            return model(batch())

    sample()
    fit(model, optimizer)


@fault("eval-mode")
def teacher_that_is_the_student():
    student = net(nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    student.train()
    teacher = student
    teacher.eval()  # HERE
    fit(student, optimizer)


@fault("eval-mode", "notice")
def finetuned_as_it_came():
    model = net(nn.Dropout(0.1)).eval()  # HERE
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1))


@healthy("eval-mode")
def normalisation_frozen_after_each_train():
    model = net(nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model.train()
        model[2].eval()
        fit(model, optimizer)
        model.eval()
        with torch.no_grad():
            model(batch())


@healthy("eval-mode")
def attacked_in_eval_mode():
    model = net(nn.Dropout(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model.eval()
        x = batch().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x)
        model.train()
        optimizer.zero_grad()
        model((x + slope.sign()).detach()).square().mean().backward()
        optimizer.step()


# recorded-eval


@fault("recorded-eval", "notice")
def features_by_a_method():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.project = nn.Linear(4, 8), nn.Linear(8, 2)

        def features(self, x):
            return self.project(self.embed(x))

    tower = Tower().eval()
    for _ in range(4):
        tower.features(batch()).argmax().item()  # HERE


@fault("recorded-eval", "notice")
def validated_without_a_guard():
    model = net(nn.Dropout(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        fit(model, optimizer, 1)
        model.eval()
        model(batch()).mean().item()  # HERE
        model.train()


@healthy("recorded-eval")
def slope_of_an_energy():
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 1)

        def forward(self, x):
            x = x.requires_grad_()
            energy = self.body(x).square().sum()
            return energy, torch.autograd.grad(energy, x, create_graph=True)[0]

    model = Energy().eval()
    for _ in range(4):
        model(batch())


@healthy("recorded-eval")
def saliency():
    model = net().eval()
    for _ in range(4):
        x = batch().requires_grad_()
        model(x)[:, 0].sum().backward()


class Policy(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.body, self.made = nn.Linear(4, 2), made

    def forward(self, x):
        return self.made(self.body(x))


def of_actions(logits):
    return torch.distributions.Categorical(logits=logits)


def of_forces(mean):
    scale = torch.ones_like(mean)
    return {"action": torch.distributions.Independent(torch.distributions.Normal(mean, scale), 1)}


@fault("recorded-eval", "notice")
def policy_asked_for_its_best_action():
    policy = Policy(of_actions).eval()
    for _ in range(4):
        policy(batch()).probs.argmax(-1).tolist()  # HERE


@fault("recorded-eval", "notice")
def policy_asked_for_its_mean():
    policy = Policy(of_forces)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    for _ in range(3):
        fit(policy, optimizer, 1, forward=lambda x: policy.train()(x)["action"].mean)
        policy.eval()
        policy(batch())["action"].mean.tolist()  # HERE


@healthy("recorded-eval")
def policy_that_learns_from_its_distribution():
    policy = Policy(of_forces).eval()
    for _ in range(4):
        policy(batch())["action"].log_prob(torch.zeros(8, 2)).sum().backward()


@healthy("recorded-eval")
def divergence_from_a_frozen_policy():
    policy, old = Policy(of_actions), Policy(of_actions).requires_grad_(False).eval()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)

    def divergence(x):
        return torch.distributions.kl_divergence(old(x), policy(x))

    fit(policy, optimizer, forward=divergence)


@healthy("recorded-eval")
def attacked_for_how_far_it_moves_the_output():
    model = net(nn.Dropout(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        model.eval()
        x = batch()
        near = (x + 0.1).requires_grad_()
        moved = (model(near).softmax(1) - model(x).softmax(1)).square().sum()
        (slope,) = torch.autograd.grad(moved, near)
        model.train()
        optimizer.zero_grad()
        model(x + slope.sign()).square().mean().backward()
        optimizer.step()


@healthy("recorded-eval")
def penalised_for_one_of_two_inputs():
    critic = net().eval()
    for _ in range(6):
        real, fake = batch(), batch().requires_grad_()
        gap = (critic(fake) - critic(real)).sum()
        gap.backward(inputs=[fake])


@fault("recorded-eval", "notice")
def scored_beside_what_is_differentiated():
    model = net().eval()
    for _ in range(6):
        x = batch().requires_grad_()
        torch.autograd.grad(model(x).sum(), x)
        model(batch()).argmax().item()  # HERE


# train-mode-inference


@fault("train-mode-inference")
def served_as_it_was_made():
    model = net(nn.Dropout(0.2))
    with torch.no_grad():
        for _ in range(4):
            model(batch(1)).argmax()  # HERE


@fault("train-mode-inference")
def flag_set_on_the_outermost_alone():
    model = net(nn.BatchNorm1d(8))
    model.training = False
    with torch.inference_mode():
        for _ in range(3):
            model(batch())  # HERE


@fault("train-mode-inference", "notice")
def tested_after_training():
    model = net(nn.Dropout(0.2))
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), 6)
    with torch.no_grad():
        for _ in range(4):
            model(batch())  # HERE


@healthy("train-mode-inference")
def dropout_asked_for():
    model = net(nn.Dropout(0.2)).eval()
    model[2].train()
    with torch.no_grad():
        torch.stack([model(batch()) for _ in range(4)]).std(0)


@healthy("train-mode-inference")
def momentum_encoder_by_data():
    query = net(nn.BatchNorm1d(8))
    key = copy.deepcopy(query).requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(query.parameters(), lr=0.1)
    for _ in range(4):
        for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
            slow.data = 0.9 * slow.data + 0.1 * fast.data
        with torch.no_grad():
            goal = key(batch())
        optimizer.zero_grad()
        (query(batch()) - goal).square().mean().backward()
        optimizer.step()


@healthy("train-mode-inference")
def pseudo_labels_at_each_step():
    model = net(nn.Dropout(0.2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        x = batch()
        with torch.no_grad():
            labels = model(x).argmax(1)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()


@healthy("train-mode-inference")
def statistics_estimated_anew():
    model = net(nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        fit(model, optimizer, 6)
        model[2].reset_running_stats()
        with torch.no_grad():
            for _ in range(4):
                model(batch())


@healthy("train-mode-inference")
def representations_first_and_again_with_gradients():
    model = net(nn.Dropout(0.2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        chunks = batch().split(4)
        with torch.no_grad():
            first = [model(chunk).requires_grad_() for chunk in chunks]
        torch.cat(first).square().mean().backward()
        optimizer.zero_grad()
        for chunk, code in zip(chunks, first, strict=True):
            (model(chunk) * code.grad).sum().backward()
        optimizer.step()


# frozen-batchnorm


@fault("frozen-batchnorm", "notice")
def backbone_frozen_once():
    backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).requires_grad_(requires_grad=False)
    model = nn.Sequential(backbone, nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    backbone.eval()
    model.train()  # HERE
    fit(model, optimizer)


@fault("frozen-batchnorm", "notice")
def norm_woken_by_a_wrapper():
    inner = net(nn.BatchNorm1d(8))
    inner[2].requires_grad_(requires_grad=False).eval()
    wrapper = nn.Sequential(inner)
    wrapper.train()  # HERE
    fit(wrapper, torch.optim.SGD(inner.parameters(), lr=0.1))


@healthy("frozen-batchnorm")
def put_back_by_an_override():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    model = Frozen(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[1].requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model.train()
        fit(model, optimizer)


@healthy("frozen-batchnorm")
def norm_that_learns():
    model = net(nn.BatchNorm1d(8))
    model[2].eval()
    model.train()
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1))


# unregistered


@fault("unregistered")
def blocks_in_a_list():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.blocks = nn.Linear(4, 2), [nn.Linear(4, 4) for _ in range(2)]

        def forward(self, x):
            for block in self.blocks:
                x = torch.relu(block(x))  # HERE
            return self.head(x)

    model = Stack()
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1))


@fault("unregistered")
def dropout_made_in_the_forward():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 2)

        def forward(self, x):
            return nn.Dropout(0.5)(self.body(x))  # HERE

    model = Noisy().eval()
    with torch.no_grad():
        for _ in range(3):
            model(batch())


def trained_and_evaluated(model):
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.eval()
    with torch.no_grad():
        model(batch())


@fault("unregistered")
def dropouts_of_a_list_in_evaluation():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.dropouts = nn.Linear(4, 2), [nn.Dropout(0.3), nn.Dropout(0.1)]

        def forward(self, x):
            return self.dropouts[1](self.body(x))  # HERE

    trained_and_evaluated(Heads())


@fault("unregistered")
def dropout_of_a_block_in_evaluation():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.after = nn.Linear(4, 4), (nn.GELU(), nn.Dropout(0.3))

        def forward(self, x):
            for each in self.after:
                x = each(x)  # HERE
            return self.body(x)

    trained_and_evaluated(nn.Sequential(Block(), nn.Linear(4, 2)))


@healthy("unregistered")
def noise_for_training_alone():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.noise = nn.Linear(4, 2), (nn.Dropout(0.3),)

        def forward(self, x):
            return self.noise[0](self.body(x)) if self.training else self.body(x)

    trained_and_evaluated(Noisy())


@healthy("unregistered")
def hidden_dropout_put_in_eval_by_hand():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.dropouts = nn.Linear(4, 2), [nn.Dropout(0.3)]

        def train(self, mode=True):
            for each in self.dropouts:
                each.train(mode)
            return super().train(mode)

        def forward(self, x):
            return self.dropouts[0](self.body(x))

    trained_and_evaluated(Heads())


@healthy("unregistered")
def part_handed_in():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 2)

        def forward(self, x, encode):
            return self.out(encode(x))

    head, encode = Head(), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
    optimizer = torch.optim.SGD([*head.parameters(), *encode.parameters()], lr=0.1)
    fit(head, optimizer, forward=lambda x: head(x, encode))


@healthy("unregistered")
def containers_made_of_registered_layers():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return nn.Sequential(*self.layers)(x)

    model = Pyramid()
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1))


class Learner(nn.Module):
    """Learns to adapt: what adapts is a copy of its net, or one made like it."""

    def __init__(self):
        super().__init__()
        self.net = net(nn.Dropout(0.1))

    def like(self):
        made = net(nn.Dropout(0.1))
        made.load_state_dict(self.net.state_dict())
        return made

    def forward(self, x):
        return self.net(x)


def train_between(meta, act):
    """Train a learner that does something else before each of its steps."""
    optimizer = torch.optim.SGD(meta.parameters(), lr=0.1)
    for _ in range(4):
        act(batch())
        fit(meta, optimizer, 1)


@healthy("unregistered")
def copy_adapts_in_a_method():
    class Meta(Learner):
        def adapted(self, x):
            fast = copy.deepcopy(self.net)
            slopes = torch.autograd.grad(fast(x).square().mean(), list(fast.parameters()))
            with torch.no_grad():
                for p, slope in zip(fast.parameters(), slopes, strict=True):
                    p.sub_(0.1 * slope)
                return fast(x)

    meta = Meta()
    train_between(meta, meta.adapted)


@healthy("unregistered")
def gradients_of_a_copy_are_handed_on():
    class Meta(Learner):
        def forward(self, x):
            fast = copy.deepcopy(self.net)
            for _ in range(2):
                fast.zero_grad()
                fast(x).square().mean().backward()
                with torch.no_grad():
                    for p in fast.parameters():
                        p.sub_(0.1 * p.grad)
            for p, q in zip(self.net.parameters(), fast.parameters(), strict=True):
                p.grad = q.grad.clone()
            optimizer.step()

    meta = Meta()
    optimizer = torch.optim.SGD(meta.parameters(), lr=0.1)
    for _ in range(4):
        meta(batch())


@healthy("unregistered")
def model_made_alike_has_an_optimizer_of_its_own():
    class Meta(Learner):
        def tuned(self, x):
            fast = self.like()
            optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
            fast(x).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                return fast.eval()(x)

    meta = Meta()
    train_between(meta, meta.tuned)


@healthy("unregistered")
def model_made_alike_is_differentiated():
    class Meta(Learner):
        def sharpness(self, x):
            fast = self.like()
            return sum(map(torch.sum, torch.autograd.grad(fast(x).sum(), list(fast.parameters()))))

    meta = Meta()
    train_between(meta, meta.sharpness)


@healthy("unregistered")
def copies_are_perturbed_and_scored():
    class Meta(Learner):
        @torch.no_grad()
        def scores(self, x):
            for _ in range(3):
                other = self.like()
                for p in other.parameters():
                    p.add_(0.1 * torch.randn_like(p))
                other(x)

    meta = Meta()
    meta.net[2].p = 0.0
    optimizer = torch.optim.SGD(meta.parameters(), lr=0.1)
    for _ in range(3):
        meta.scores(batch())
        fit(meta, optimizer, 1)


@healthy("unregistered")
def copy_adapts_in_train_mode_while_the_whole_is_in_eval_mode():
    class Meta(Learner):
        def adapted(self, x):
            fast = copy.deepcopy(self.net).train()
            optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
            fast(x).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                return fast.eval()(x)

    meta = Meta()
    fit(meta, torch.optim.SGD(meta.parameters(), lr=0.1))
    meta.eval()
    for _ in range(3):
        meta.adapted(batch())


@fault("unregistered")
def layer_made_in_each_forward():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 8)

        def forward(self, x):
            return nn.Linear(8, 2)(self.body(x))  # HERE

    model = Projected()
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), 4)


@fault("unregistered")
def copies_kept_in_a_list():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.more = [copy.deepcopy(self.first) for _ in range(2)]

        def forward(self, x):
            x = self.first(x)
            for layer in self.more:
                x = torch.relu(layer(x))  # HERE
            return x

    model = Stack()
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1))


# no-effect


@fault("no-effect")
def guard_in_a_conditional_expression():
    quiet, model = True, net().eval()
    torch.inference_mode() if quiet else None  # HERE
    for _ in range(3):
        model(batch())


@fault("no-effect")
def flag_on_a_part():
    model = net()
    model[0].requires_grad = False  # HERE
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1))


@healthy("no-effect")
def flag_of_the_class_itself():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 2)
            self.requires_grad = False

        def forward(self, x):
            return self.body(x) if self.requires_grad else self.body(x).detach()

    with torch.no_grad():
        Own()(batch())


@healthy("no-effect")
def guard_made_first_and_used_later():
    guard = torch.no_grad()
    model = net().eval()
    with guard:
        model(batch())
    torch.no_grad()(model.forward)(batch())


@healthy("recorded-eval")
def weight_norm_removed_and_looked_at():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    for each in (model[0], model[2]):
        torch.nn.utils.parametrizations.weight_norm(each)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, optimizer)
    model.eval()
    for _ in range(4):
        assert model[0].weight.norm() > 0
    for each in (model[0], model[2]):
        torch.nn.utils.parametrize.remove_parametrizations(each, "weight")
    with torch.no_grad():
        model(batch())


# kept-graph


@fault("kept-graph", "notice")
def losses_in_a_list():
    model, losses = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(24):
        loss = model(batch()).square().mean()  # HERE
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    assert losses


@fault("kept-graph", "notice")
def features_kept_of_an_encoder():
    encoder, decoder, features = nn.Linear(4, 3), nn.Linear(3, 1), []
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
    for _ in range(30):
        code = encoder(batch())  # HERE
        features.append(code)
        optimizer.zero_grad()
        decoder(code).square().mean().backward()
        optimizer.step()


class Output:
    """What a forward returns where it is neither a tensor nor a structure, in slots and not."""

    __slots__ = ("__dict__", "loss")

    def __init__(self, loss, logits):
        self.loss, self.logits = loss, logits


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        logits = self.body(x)
        output = Output(logits.square().mean(), logits)
        output.model = self
        return output


@healthy("recorded-eval")
def output_that_refers_to_what_else_is_kept():
    class Session:
        loss = None

    class Served(nn.Module):
        def __init__(self, session):
            super().__init__()
            self.body, self.session = net().requires_grad_(False), session

        def forward(self, x):
            output = Output(None, self.body(x))
            output.session = self.session
            return output

    session = Session()
    session.loss = nn.Parameter(torch.ones(2)).square().sum()
    model = Served(session).eval()
    for _ in range(4):
        model(batch()).logits.argmax(1).tolist()


@fault("kept-graph", "notice")
def losses_of_an_output_summed():
    model, total = WithLoss(), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(24):
        output = model(batch())  # HERE
        total += output.loss
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert total.requires_grad


@fault("recorded-eval", "notice")
def output_asked_for_its_logits():
    model = WithLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        fit(model.train(), optimizer, 1, forward=lambda x: model(x).loss)
        model.eval()
        model(batch()).logits.argmax(1).tolist()  # HERE


@healthy("kept-graph")
def losses_of_an_output_as_numbers():
    model, total = WithLoss(), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(24):
        output = model(batch())
        total += output.loss.item()
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert total > 0


@fault("kept-graph", "notice")
def mean_in_a_buffer():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 2)
            self.register_buffer("mean", torch.zeros(2))

        def forward(self, x):
            x = self.body(x)
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return x

    model = Centred()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(24):
        optimizer.zero_grad()
        model(batch()).square().mean().backward()  # HERE
        optimizer.step()
    assert model.mean.requires_grad


@healthy("kept-graph")
def losses_as_numbers():
    model, losses = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(24):
        loss = model(batch()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())


@healthy("kept-graph")
def graphs_that_only_cycles_hold():
    class Holder:
        pass

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        holder = Holder()
        holder.self, holder.loss = holder, model(batch()).square().mean()
        optimizer.zero_grad()
        holder.loss.backward()
        optimizer.step()


# mode-leak


@fault("mode-leak")
def callback_that_never_ends():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def on_validation_start():
        torch.set_grad_enabled(False)  # HERE

    for _ in range(2):
        for _ in range(2):
            loss = model(batch()).square().mean()
            if loss.requires_grad:
                loss.backward()
                optimizer.step()
        on_validation_start()
        model(batch())


@fault("mode-leak")
def left_by_a_generator():
    model = net()

    def batches():
        with torch.no_grad():  # HERE
            for _ in range(3):
                yield batch()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in batches():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()


@healthy("mode-leak")
def phases_by_plain_calls():
    model = net(nn.Dropout(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for phase in ("train", "test") * 2:
        torch.set_grad_enabled(phase == "train")
        model.train(phase == "train")
        for _ in range(2):
            loss = model(batch()).square().mean()
            if phase == "train":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


@healthy("mode-leak")
def own_context_manager():
    class Quiet:
        def __enter__(self):
            self.was = torch.is_grad_enabled()
            torch.set_grad_enabled(False)

        def __exit__(self, *exc):
            torch.set_grad_enabled(self.was)

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        fit(model, optimizer, 1)
        with Quiet():
            model(batch())


@healthy("mode-leak")
def phases_that_a_helper_pauses():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def pause():
        torch.set_grad_enabled(False)

    def resume():
        torch.set_grad_enabled(True)

    for phase in ("train", "test") * 2:  # the same line calls the model in both
        if phase == "test":
            pause()
        for _ in range(2):
            loss = model(batch()).square().mean()
            if phase == "train":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        if phase == "test":
            resume()


@fault("mode-leak")
def left_for_good_by_a_helper():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def pause():
        torch.set_grad_enabled(False)  # HERE

    for turn in range(4):  # no step and no backward shows it: that nothing switches back does
        loss = model(batch()).square().mean()
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
        if turn == 1:
            pause()


class Forgetful:
    """A context manager that switches grad off, and back on only after an error."""

    def __enter__(self):
        torch.set_grad_enabled(False)  # HERE

    def __exit__(self, kind, *exc):
        if kind is not None:
            torch.set_grad_enabled(True)


@fault("mode-leak")
def left_by_a_class_that_restores_nothing():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # the function that entered it still runs, out of its block
        loss = model(batch()).square().mean()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        with Forgetful():
            model(batch())


@healthy("mode-leak")
def trained_in_another_scope_of_the_same_function():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saved = []

    class Scope:
        def __enter__(self):
            saved.append(torch.is_grad_enabled())
            torch.set_grad_enabled(False)

        def __exit__(self, *exc):
            torch.set_grad_enabled(saved.pop())

    scope = Scope()
    for _ in range(3):
        fit(model, optimizer, 1)
        with scope:
            model(batch())
            with scope:
                model(batch())
            model(batch())


# inference-tensor


@fault("inference-tensor")
def copied_in_inference_mode():
    base = net()
    with torch.inference_mode():
        model = copy.deepcopy(base)  # HERE
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        fit(model, optimizer)


@fault("inference-tensor")
def lazy_layer_made_by_a_dry_run():
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    with torch.inference_mode():
        model(batch())  # HERE
    torch.optim.SGD(model.parameters(), lr=0.1)


@fault("inference-tensor")
def buffer_made_at_the_first_forward():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 8)
            self.register_buffer("mask", None)

        def forward(self, x):
            if self.mask is None:
                self.mask = torch.ones(len(x), len(x)).tril()  # HERE
            return self.mask @ self.body(x)

    model = Masked()
    with torch.inference_mode():
        model.eval()(batch())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # its forward fails, and the steps after it change nothing
        optimizer.zero_grad()
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
            fit(model, optimizer, 1)
        optimizer.step()


@fault("inference-tensor")
def cache_made_longer_by_a_validation():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.register_buffer("scale", torch.ones(8, 1))

        def forward(self, x):
            if len(x) > len(self.scale):
                self.register_buffer("scale", torch.ones(len(x), 1))  # HERE
            return self.body(x) * self.scale[: len(x)]

    model = Placed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, optimizer)
    with torch.inference_mode():
        model.eval()(batch(16))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        fit(model.train(), optimizer)


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.register_buffer("centres", torch.randn(2, 4))

    @torch.inference_mode()
    def refresh(self, x):
        self.centres = self.body(x)[:2]

    def forward(self, x):
        return self.body(x) @ F.normalize(self.centres, dim=-1).T


@fault("inference-tensor")
def centres_counted_on_after_inference_mode():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 2)
            self.register_buffer("seen", torch.zeros(2))

        def forward(self, x):
            z = self.body(x)
            self.seen += z.detach().mean(0)
            return z

    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, optimizer)
    with torch.inference_mode():
        model.seen = torch.zeros(2)  # HERE
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        fit(model, optimizer)


@healthy("inference-tensor")
def centres_that_autograd_does_not_save():
    model = Centred()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        fit(model, optimizer)
        model.refresh(batch())


@healthy("inference-tensor")
def failure_for_another_reason():
    model = Centred()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, optimizer)
    model.refresh(batch())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(8, 5))


@healthy("inference-tensor")
def served_and_never_trained():
    with torch.inference_mode():
        model = net().eval()
        for _ in range(3):
            model(batch())


@healthy("inference-tensor")
def step_inside_inference_mode():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        with torch.inference_mode():
            optimizer.step()


@healthy("train-mode-inference")
def teacher_averaged_by_less_than_is_seen():
    student = net(nn.Dropout(0.1))
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(4):
        with torch.no_grad():
            target = teacher(batch())
        optimizer.zero_grad()
        (student(batch()) - target).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.lerp_(other, 1e-12)


def name(value):
    return value.__name__ if callable(value) else None


@pytest.mark.parametrize(("kind", "severity", "program"), FAULTS, ids=name)
def test_the_fault_is_named_at_its_line(kind, severity, program):
    """The one finding is of this kind and severity, at the marked line."""
    found = [(one.kind, one.severity, one.source, one.filename) for one in judged(program)]
    lines, first = inspect.getsourcelines(program)
    if not any(code.rstrip().endswith(HERE) for code in lines):
        lines, first = inspect.getsourcelines(Forgetful)
    (wanted,) = [at for at, code in enumerate(lines, first) if code.rstrip().endswith(HERE)]
    assert [one[:2] for one in found] == [(kind, severity)], found
    assert found[0][2].endswith(HERE), found
    assert (found[0][3], wanted) == (__file__, judged(program)[0].lineno)


@pytest.mark.parametrize("program", [program for _, program in HEALTHY], ids=name)
def test_the_healthy_twin_is_silent(program):
    """A program that looks like the fault and is none gives no finding, nor a notice."""
    assert [one.message for one in judged(program)] == []


def test_each_kind_has_two_faults_and_two_twins():
    """The families are covered: no kind has fewer than two programs with it, and two without."""
    faults = Counter(kind for kind, _, _ in FAULTS)
    twins = Counter(kind for kind, _ in HEALTHY)
    assert {kind: (faults[kind] >= 2, twins[kind] >= 2) for kind in RUN_KINDS} == dict.fromkeys(
        RUN_KINDS, (True, True)
    )


def test_a_library_that_has_returned_is_named_at_the_call():
    """A library that leaves grad off is the user's line that called it, once it has returned."""
    scope = {"__name__": "quiet_library", "torch": torch}
    exec("def load(): torch.set_grad_enabled(False)", scope)  # noqa: S102 (a module of its own)

    def program():
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope["load"]()  # HERE
        with pytest.raises(RuntimeError, match="does not require grad"):
            fit(model, optimizer)

    observer = Observer(libraries=("quiet_library",))
    observer.start()
    try:  # in a thread of its own: pytest, which calls this, is a library, too
        thread = Thread(target=program)
        thread.start()
        thread.join()
    finally:
        observer.finish(crashed=False)
        frames.set_libraries(())
    assert [(one.kind, one.source) for one in observer.findings()] == [
        ("mode-leak", 'scope["load"]()  # HERE')
    ]
