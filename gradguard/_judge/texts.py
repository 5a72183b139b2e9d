"""What the judge says of each kind: what is wrong, where, and what to do."""

from collections.abc import Sequence

PARAMETERS, BUFFERS, STATE = "parameters", "buffers", "optimizer state"

# Why a step changed nothing.
DROPPED = "dropped"
FOREIGN = "foreign"
UNREACHED = "unreached"
NO_BACKWARD = "no backward"
UNRECORDED = "unrecorded"

_NOT_RECORDED = "element 0 of tensors does not require grad and does not have a grad_fn"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def mode_leak(state: tuple[bool, bool], what: str, *, seen: bool) -> str:
    grad, inference = state
    mode = "Inference mode was left on" if inference else "Grad mode was left off"
    if grad and not inference:
        mode = "The mode was left switched"
    went_on = {
        "forward": "a forward in train mode recorded nothing",
        "backward": f"backward() was called on what was not recorded ({_NOT_RECORDED!r})",
        "step": "an optimizer step followed for which nothing was recorded",
    }[what]
    where = (
        "This line switched it, and nothing switched it back.\n"
        if seen
        else "What switched it has returned and was not seen: run the program under "
        "`gradguard run SCRIPT`, or put `with gradguard.trace() as switches:` around it and "
        "print(switches).\n"
    )
    return (
        f"{mode}, and training went on in it: {went_on}. {where}"
        "To do: switch it by `with torch.no_grad():` (or a decorator), which ends with its block."
    )


_WHY_EMPTY = {
    DROPPED: "zero_grad() was called between backward() and step(), and dropped the gradients.",
    FOREIGN: (
        "No module that ran has these parameters: the model was made, copied or loaded again after "
        "the optimizer."
    ),
    UNREACHED: (
        "backward() was called and reached none of them: the loss does not depend on them through "
        "recorded operations (detach(), .item(), numpy, a new tensor)."
    ),
    NO_BACKWARD: "No backward() came before it.",
    UNRECORDED: ("The forward before it recorded nothing: it ran under no_grad or inference mode."),
}
_FILL_IT = {
    DROPPED: "call zero_grad() before backward(), or after step().",
    FOREIGN: (
        "make the optimizer from the parameters() of the model that is called, after it has its "
        "final form."
    ),
    UNREACHED: "compute the loss from what the model returned, by torch's operations alone.",
    NO_BACKWARD: "call loss.backward() before optimizer.step().",
    UNRECORDED: (
        "run the forward and the loss outside no_grad and inference_mode, or under "
        "`with torch.enable_grad():`."
    ),
}


def empty_step(optimizer: str, trainable: int, why: str) -> str:
    return (
        f"A step of {optimizer} in which none of its {_counted(trainable, 'trainable parameter')} "
        f"has a gradient: it changes nothing. {_WHY_EMPTY[why]}\nTo do: {_FILL_IT[why]}"
    )


def why_none(module: str, *, recorded: bool, reentrant: bool) -> str:
    if reentrant:
        return (
            f"The {module} ran in a reentrant checkpoint none of whose inputs requires grad ('None "
            "of the inputs have requires_grad=True. Gradients will be None')."
        )
    if not recorded:
        return f"The {module} was called under no_grad or inference mode only."
    return f"The {module} ran, and what it returned did not reach the loss with its graph."


def no_gradient(optimizer: str, steps: int, count: int, why: str) -> str:
    todo = (
        "pass use_reentrant=False to checkpoint()"
        if "reentrant" in why
        else "let the loss depend on it (no detach(), no no_grad around it)"
    )
    return (
        f"{_counted(count, 'trainable parameter')} of {optimizer} never had a gradient in "
        f"{_counted(steps, 'step')}: what is called here does not learn. {why}\n"
        f"To do: {todo}; or freeze it (requires_grad_(False)), or leave it out of the optimizer."
    )


def frozen_group(optimizer: str, at: int, count: int) -> str:
    return (
        f"Parameter group {at} of {optimizer} ({_counted(count, 'parameter')}) has no trainable "
        "parameter, and never had at a step: it does nothing.\n"
        "To do: leave the group out, or unfreeze it by requires_grad_(True) if it should learn."
    )


def inference_tensor(what: str, count: int) -> str:
    return (
        f"Inference tensors among the {what} that are trained ({count}): they were created in "
        "inference mode, and autograd leaves them out or fails on them ('Inference tensors cannot "
        "be saved for backward').\n"
        "To do: create, copy, load and convert the model outside torch.inference_mode() (a lazy "
        "module makes its parameters at its first forward), or use torch.no_grad() there."
    )


def stale_parameter(optimizer: str, owner: str, name: str) -> str:
    return (
        f"{owner}.{name} was replaced after {optimizer} was made: the optimizer still holds what "
        "was there before, and what is there now is not trained.\n"
        "To do: make the optimizer after the model has its final parameters, or add the new ones: "
        '`optimizer.add_param_group({"params": module.parameters()})`.'
    )


def frozen_moves(optimizer: str, count: int) -> str:
    return (
        f"{_counted(count, 'frozen parameter')} (requires_grad False) moved in a step of "
        f"{optimizer}: a gradient was left from before, and the optimizer goes on with it, its "
        "momentum and its weight decay.\n"
        "To do: drop the gradients with the freezing: "
        "`module.requires_grad_(False); module.zero_grad(set_to_none=True)`."
    )


def eval_mode(model: str, *, fault: bool, evaluated: bool) -> str:
    if not fault:
        return (
            f"The {model} is trained in eval mode: Dropout is off and BatchNorm uses its running "
            "statistics. If that is meant, nothing is wrong.\n"
            "To do: if not, call model.train() before the training steps."
        )
    cause = "an evaluation" if evaluated else "this call, which took back a train(),"
    return (
        f"The {model} was left in eval mode: after {cause} optimizer steps ran so, with Dropout "
        "off and BatchNorm not learning its statistics.\n"
        "To do: evaluate under `with gradguard.evaluating(model):`, which brings the flags back, "
        "or call model.train() before training goes on."
    )


def recorded_eval(model: str, count: int) -> str:
    return (
        f"A forward of the {model} in eval mode recorded a graph that nobody used "
        f"({_counted(count, 'time')}): it keeps the activations for a backward that never comes.\n"
        "To do: call it under `with torch.inference_mode():` or `with torch.no_grad():`."
    )


def kept_graph(model: str, count: int, holder: str | None) -> str:
    held = f" {holder} holds them." if holder else ""
    return (
        f"The graphs of {count} earlier forwards of the {model} are still alive, ever more of "
        f"them: memory grows with every step.{held}\n"
        "To do: keep loss.item() or output.detach() instead of the tensor with its graph; where "
        "no backward follows, call the model under `with torch.no_grad():`."
    )


def train_mode_inference(model: str, count: int, acting: Sequence[str]) -> str:
    return (
        f"The {model} ran in train mode where nothing is recorded ({_counted(count, 'time')}): "
        f"{' and '.join(acting)} acted as in training, so its results are random or change its "
        "statistics.\n"
        "To do: call model.eval() before, or use @gradguard.inference_method."
    )


def frozen_batchnorm(norm: str, parent: str) -> str:
    return (
        f"A {norm} with frozen parameters was put in eval mode by a call of its own, and this "
        f"train() of the {parent} put it back in train mode: its running statistics drift.\n"
        "To do: call its eval() again after each train(), best in an override of train()."
    )


def _where_kept(root: str, held_by: str | None) -> str:
    if held_by is None:
        return f"is not registered in the {root} that calls it"
    return f"is kept in {held_by} and not registered there"


def unregistered_learns(root: str, module: str, held_by: str | None, count: int) -> str:
    learns = f" ({count} get gradients)" if count else ""
    return (
        f"A {module} {_where_kept(root, held_by)}: its parameters{learns} are in no optimizer, "
        "since parameters() does not know them.\n"
        "To do: put it in an nn.ModuleList, nn.ModuleDict or nn.Sequential, made in __init__."
    )


def unregistered_acts(root: str, module: str, held_by: str | None) -> str:
    return (
        f"A {module} {_where_kept(root, held_by)}: the {root} is in eval mode, and eval() did not "
        "reach it, so it acts as in training.\n"
        "To do: put it in an nn.ModuleList, nn.ModuleDict or nn.Sequential, made in __init__."
    )


def dropped_guard(guard: str) -> str:
    return (
        f"{guard}() as a statement has no effect: the guard is made and dropped, and operations "
        "are recorded as before.\n"
        f"To do: write `with torch.{guard}():` around the code, or decorate the function with "
        f"@torch.{guard}()."
    )


def flag_on_module(module: str) -> str:
    return (
        f"requires_grad was set on a {module}, which is a Module: that makes a plain attribute, "
        "and freezes nothing.\n"
        "To do: call module.requires_grad_(False), which sets it on all its parameters."
    )
