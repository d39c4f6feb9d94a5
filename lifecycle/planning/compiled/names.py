"""Names of instructions: those from the model's code, without JAX's transformations, and those of kernels."""

import re

from lifecycle.kernels.row_blocks import AT_MOST
from lifecycle.kernels.seldom import SELDOM
from lifecycle.planning.compiled.hlo import Instruction

# Calls of kernels whose products are not in the text: Pallas kernels, on GPUs Triton's; cuDNN's attention on GPUs
_KERNEL = re.compile(
    r'custom_call_target="(tpu_custom_call|(?P<triton>__gpu\$xla\.gpu\.triton)|__cudnn\$(?P<cudnn>fmha\w+))"'
)
_UNMASKED = re.compile(r'"mask_type":\s*"NO_MASK"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_COPY_NUMBER = re.compile(r"\.(\d+|clone|cloned|remat\d*)(\..*)?$")  # and the name of its result, as in `rotate.8.q`
_TRANSFORMED = re.compile(r"(transpose|jvp|jit|vmap|checkpoint|rematted_computation|shard_map|custom_vjp_call)_")


def is_seldom(loop: Instruction) -> bool:
    """Whether the model's code marks this loop as seldom needed."""
    name = _OP_NAME.search(loop.attributes)
    return name is not None and re.search(rf"\b{SELDOM}\b", name[1]) is not None


def most_trips(loop: Instruction) -> int | None:
    """The most trips of this loop, if the model's code says it; `None` if not."""
    name = _OP_NAME.search(loop.attributes)
    most = None if name is None else re.search(rf"\b{AT_MOST}(\d+)/while$", name[1])
    return None if most is None else int(most[1])


def operation(instruction: Instruction) -> str:
    """Its name in the model's code: the end of JAX's name, without the loops and transformations around it."""
    full_name = _OP_NAME.search(instruction.attributes)
    if full_name is None:
        return f"({instruction.opcode})"
    parts = [p for p in full_name[1].split("/") if p not in ("while", "body", "eval_jaxpr", "closed_call", "cond")]
    backward = any("transpose(" in p for p in parts)
    remade = "rematted_computation" in parts
    names = [p for p in parts if "(" not in p and p not in ("shard_map", "checkpoint", "rematted_computation")]
    names = [p for p in names if not p.startswith(AT_MOST)]
    name = "/".join(names[-2:]) or f"({instruction.opcode})"
    name = re.sub(r"\.\d+$", "", name)  # the compiler numbers its own instructions: broadcast.1859
    return f"{name}{' recomputed' if remade else ' backward' if backward else ''}"


def is_kernel(instruction: Instruction) -> bool:
    """Whether it is a call of a Pallas kernel, or of cuDNN's attention."""
    return instruction.opcode == "custom-call" and _KERNEL.search(instruction.attributes) is not None


def is_causal(kernel: Instruction) -> bool:
    """Whether a kernel may leave out what the mask hides. cuDNN leaves it out only for a mask that it knows itself."""
    return _UNMASKED.search(kernel.attributes) is None


def kernel_name(instruction: Instruction) -> str:
    """The kernel's own name: cuDNN's of the call's target, Pallas' without its number and JAX's transformations, in
    Triton of the operation.

    `transpose(jvp(jit(gmm)))` appears as `transpose_jvp_jit_gmm___`.
    """
    target = _KERNEL.search(instruction.attributes)
    if target is not None and target["cudnn"]:
        return target["cudnn"]
    if target is not None and target["triton"]:
        return operation(instruction).partition("/")[0]
    name = _COPY_NUMBER.sub("", instruction.name)
    while name.endswith("_") and (wrapper := _TRANSFORMED.match(name)) is not None:
        name = name[wrapper.end() : -1]
    return name
