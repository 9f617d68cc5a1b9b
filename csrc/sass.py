"""What a kernel's disassembly (nvdisasm -c) tells: how wide its accesses are, how many instructions it issues.

Every warp issues each instruction on its way, those that its predicates switch off too; so the instructions on the
way through one tile, over the elements that a thread handles in it, bound a kernel that is not bound by memory.
"""

import heapq
import re
from typing import NamedTuple


class Instruction(NamedTuple):
    """One line of the disassembly."""

    opcode: str
    text: str
    predicated: bool
    target: str | None  # the label that a branch goes to


class Kernel(NamedTuple):
    """The instructions of one kernel, and the place of each label among them."""

    name: str  # mangled
    instructions: list[Instruction]
    labels: dict[str, int]


def kernels(disassembly: str) -> list[Kernel]:
    """The kernels in the output of nvdisasm -c."""
    found: list[Kernel] = []
    for line in disassembly.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            found.append(Kernel(section[1], [], {}))
        elif not found:
            continue
        elif label := re.match(r"(\.L_\w+):", line):
            found[-1].labels[label[1]] = len(found[-1].instructions)
        elif code := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:(@!?U?P\w+)\s+)?(([A-Z][\w.]*).*?)\s*;", line):
            target = re.search(r"`\((\.L_\w+)\)", code[2])
            found[-1].instructions.append(
                Instruction(code[3], code[2], code[1] is not None, target[1] if target else None)
            )
    return found


def global_accesses(kernel: Kernel, kind: str) -> list[int]:
    """The bytes of each of the kernel's loads ("LD") or stores ("ST") of global memory."""
    widths = []
    for instruction in kernel.instructions:
        if re.fullmatch(rf"{kind}G?\.E\b.*", instruction.opcode):
            bits = re.search(r"\.(?:[US])?(8|16|64|128|256)\b", instruction.opcode)
            widths.append(int(bits[1]) // 8 if bits else 4)
    return widths


def issued_per_tile(kernel: Kernel) -> int:
    """The instructions on the shortest way once round the kernel's outermost loop past all its global accesses.

    The shortest way leaves out what happens rarely or not at all: calls of a slow path, 64-bit division, the
    offset noise. Of accesses that exclude each other, the first counts. Raises ValueError without a loop.
    """
    code = kernel.instructions
    loops = [
        (kernel.labels[i.target], at)
        for at, i in enumerate(code)
        if i.opcode.startswith("BRA") and i.target in kernel.labels and kernel.labels[i.target] <= at
    ]
    loops = [(begin, end) for begin, end in loops if end > begin]  # BRA to itself ends a kernel's code
    if not loops:
        raise ValueError(f"{kernel.name}: no loop")
    begin, end = max(loops, key=lambda loop: loop[1] - loop[0])
    stops = [at for at in range(begin, end) if re.match(r"(LD|ST)G?\.E\b", code[at].opcode)]
    issued, here = 1, begin
    for stop in [*stops, end]:
        way = _shortest(kernel, here, stop, end)
        if way is not None:
            issued, here = issued + way, stop
    return issued


def _shortest(kernel: Kernel, start: int, goal: int, end: int) -> int | None:
    """Instructions from start, not counted, to goal; None where no way leads there within the loop."""
    waiting, seen = [(0, start)], set()
    while waiting:
        steps, at = heapq.heappop(waiting)
        if at == goal:
            return steps
        if at in seen or at == end:
            continue
        seen.add(at)
        instruction = kernel.instructions[at]
        ends = instruction.opcode.startswith(("BRA", "EXIT", "RET")) and not _conditional(instruction)
        following = [] if ends else [at + 1]
        if instruction.opcode.startswith("BRA") and instruction.target in kernel.labels:
            following.append(kernel.labels[instruction.target])
        for index in following:
            if index < len(kernel.instructions):
                heapq.heappush(waiting, (steps + 1, index))
    return None


def _conditional(instruction: Instruction) -> bool:
    return instruction.predicated or re.match(r"BRA\S*\s+!?U?P\d", instruction.text) is not None
