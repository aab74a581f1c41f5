"""Conditions under which a step taken again gives the same bits: what this machine has in common with training's.

A sum of floating-point numbers depends on its order, and that on how many threads share it out and on how many numbers
the processor adds at a time. Library versions and the device matter likewise.
"""

from __future__ import annotations

from typing import Any

import torch

from lightning_sgdinf.log import Header


def why_bits_differ(header: Header) -> str:
    """Name in an error message's words what differs between the recorded machine and this one, and the way out."""
    recorded, now = header.environment, _here()
    differing = [name for name, value in now.items() if name in recorded and recorded[name] != value]
    conditions = ", ".join(
        f"{label} {recorded.get(name, 'not recorded')} (now {now[name]})"
        for name, label in (("threads", "threads"), ("cpu_capability", "instruction set"), ("torch", "torch"))
    )
    if differing == ["threads"]:
        way_out = (
            f"Call torch.set_num_threads({recorded['threads']}) before, or let states be rebuilt but for rounding: "
            "InfluenceRunner(rebuild='close'); or record with keep='every_step'"
        )
    elif differing:
        way_out = (
            "Replay on a machine and with a torch like those of training, or let states be rebuilt but for rounding: "
            "InfluenceRunner(rebuild='close'); or record with keep='every_step'"
        )
    else:
        way_out = (
            "None of these differs, so look for another device, operations that are not deterministic, or a gradient "
            "summed over more than two processes; let states be rebuilt but for rounding, "
            "InfluenceRunner(rebuild='close'), or record with keep='every_step'"
        )
    if hooks := acting_hooks(header):
        way_out += f". {hooks.rstrip('.')}"
    return f"A step taken again gives the same bits only where these are as in training: {conditions}. {way_out}."


def _here() -> dict[str, Any]:
    """Return what a step's bits depend on, of this machine."""
    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def same_machine(header: Header, device: torch.device) -> bool:
    """Tell if a step can be expected to give the recorded bits here: where this machine is like the recorded one.

    Args:
        header: Of the run.
        device: What is computed on.
    """
    recorded = header.environment
    device_kind = str(recorded.get("device", device)).partition(":")[0]
    if device_kind != device.type or not repeatable(header):
        return False
    now = _here() | {"device_name": _device_name(device)}
    if device.type == "cpu":
        del now["device_name"]  # what the processor is called says less than its instructions
    else:
        del now["threads"], now["cpu_capability"]
    return all(recorded.get(name, value) == value for name, value in now.items())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def repeatable(header: Header) -> bool:
    """Tell if a step of a run gives the same bits when it is taken again where it was recorded."""
    recorded, processes = header.environment, header.extra.get("world_size", 1)
    on_cpu = str(recorded.get("device", "cpu")).startswith("cpu")
    # Of two gradients the sum does not depend on the order, of more it may.
    alone = not isinstance(processes, int) or processes <= 2
    return alone and (on_cpu or bool(recorded.get("deterministic_algorithms")))


def acting_hooks(header: Header) -> str:
    """Name the hooks of a run that act between a backward pass and the step, with the way out; empty if it had none."""
    known = header.extra.get("overrides")
    names = [str(name) for name in known if str(name).rpartition(".")[2] in _ACTING] if isinstance(known, list) else []
    if not names:
        return ""
    return (
        f"This run has {' and '.join(names)}, between the backward pass and the step, and what is done to gradients "
        "there is not recorded. Clip with Trainer(gradient_clip_val=..., gradient_clip_algorithm=...), or with "
        "self.clip_gradients(...) in configure_gradient_clipping, which are; scale or mask a gradient with "
        "parameter.register_hook; or use an estimator of the final model alone (FinalParameters)."
    )


_ACTING = (
    "backward",
    "configure_gradient_clipping",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "optimizer_step",
)
"""Hooks in which gradients are there and the step is not taken."""
