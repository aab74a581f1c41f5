"""What the machine must have in common with that of training for a step done again to give the same bits.

A sum of floating-point numbers depends on its order, and that on how many threads share it out and on how many numbers
the processor adds at a time. Library versions and the device matter likewise.
"""

from __future__ import annotations

import torch

from lightning_sgdinf.log.records import Header


def why_bits_differ(header: Header) -> str:
    """What differs between the recorded machine and this one, and the way out, for an error message."""
    recorded = header.environment
    now = {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
    differing = [name for name, value in now.items() if name in recorded and recorded[name] != value]
    machine = ", ".join(
        f"{label} {recorded.get(name, 'not recorded')} (now {now[name]})"
        for name, label in (("threads", "threads"), ("cpu_capability", "instruction set"), ("torch", "torch"))
    )
    if differing == ["threads"]:
        way_out = f"Call torch.set_num_threads({recorded['threads']}) before, or record with keep='every_step'"
    elif differing:
        way_out = "Replay on a machine and with a torch like those of training, or record with keep='every_step'"
    else:
        way_out = (
            "None of these differs, so look for another device, operations that are not deterministic, or a gradient "
            "summed over more than two processes; or record with keep='every_step'"
        )
    return f"A step done again gives the same bits only where these are as in training: {machine}. {way_out}."
