"""What a compiled program does: read from its HLO text, with loop bodies counted as often as they run.

XLA's own cost analysis counts a loop's body once, and knows no mesh axes.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0}


_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"}


_FREE |= {"after-all", "partition-id", "replica-id", "copy-done", "slice-done", "async-done", "optimization-barrier"}


_SLICES = ("dynamic-slice", "slice", "gather")


class Buffer(NamedTuple):
    """An array of the program."""

    dtype: str
    shape: tuple[int, ...]
    space: int
    """Memory space: 0 is the chip's main memory, others are beside its arithmetic."""

    @property
    def n_bytes(self) -> int:
        """Without padding to tiles."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype) if self.dtype in _BITS else int(digits.group()) if digits else 0
        return int(np.prod(self.shape, dtype=np.int64)) * (bits or 0) // 8


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    result: tuple[Buffer, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    """Attributes."""
    is_root: bool
    constant: str = ""

    def attribute(self, name: str) -> str:
        """Text of an attribute up to the next, or empty."""
        found = re.search(rf"(?:^|[ ,]){name}=(.*?)(?=, [a-z_]+=|$)", self.rest)
        return found.group(1) if found else ""


class Computation(NamedTuple):
    """Instructions by name, in the order they run."""

    name: str
    by_name: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(i for i in self.by_name.values() if i.is_root)

    def users(self, name: str) -> list[Instruction]:
        """Instructions that read a value."""
        return [i for i in self.by_name.values() if name in i.operands]


class Collective(NamedTuple):
    """An exchange between chips."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes that it goes along."""
    n_devices: int
    """Of a group."""
    n_bytes: int
    """That a chip sends, by the algorithms that send least."""


@dataclass
class Work:
    """Sums over a run of the program, on one chip."""

    flops: float = 0.0
    """Of matrix products."""
    remat_flops: float = 0.0
    """Of them, those that the backward pass repeats."""
    memory_bytes: float = 0.0
    """To and from main memory."""
    collectives: Counter[Collective] = field(default_factory=Counter)
    """How often each runs."""
    loops_counted_once: int = 0
    """Loops whose length the program does not say."""

    @property
    def collective_bytes(self) -> int:
        """Sent by a chip."""
        return sum(c.n_bytes * n for c, n in self.collectives.items())


# --- Text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A compiled module."""

    computations: Mapping[str, Computation]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Program":
        """From HLO text.

        Raises:
            ValueError: there is no entry computation in it.
        """
        found: dict[str, Computation] = {}
        entry, current = "", None
        text = re.sub(r'\{\n("[^}]*)\n\}', r"{\1}", text)  # metadata of kernels, which have lines of their own
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = found[header.group(2)] = Computation(header.group(2), {})
                entry = header.group(2) if header.group(1) else entry
            elif current is not None and (instruction := _instruction(line)):
                current.by_name[instruction.name] = instruction
        if not entry:
            raise ValueError("no HLO text: there is no ENTRY computation in it.")
        return cls(found, entry)

    def work(self, mesh_shape: Mapping[str, int]) -> Work:
        """What a run of it takes."""
        total = Work()
        for computation, instruction, n, within_fusion in self._run(self.entry, 1):
            flops = n * self._flops(computation, instruction)
            total.flops += flops
            total.remat_flops += flops if "rematted_computation" in instruction.rest else 0
            if instruction.opcode == "while":
                total.loops_counted_once += self._trips(computation, instruction) is None
            if not within_fusion:
                total.memory_bytes += n * self._memory_bytes(computation, instruction)
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                scatters = within_fusion and computation.name.startswith("all-reduce-scatter")
                kind = "reduce-scatter" if scatters else kind
                total.collectives[self._collective(kind, computation, instruction, mesh_shape)] += n
        return total

    def loops(self) -> list[tuple[Instruction, int | None]]:
        """Loops in the order they begin, and how often their bodies run, if the program says."""
        runs = self._run(self.entry, 1)
        return [(i, self._trips(c, i)) for c, i, _, _ in runs if i.opcode == "while"]

    def stacked(self, loop: Instruction) -> list[Buffer]:
        """What a loop fills slice by slice: values that it keeps for later."""
        body = self.computations[_called(loop, "body")]
        root = body.root
        found = []
        for i, name in enumerate(root.operands):
            made = body.by_name[name]
            buffers = made.result
            while made.opcode in ("bitcast", "copy", "copy-done", "copy-start"):
                made = body.by_name[made.operands[0]]
            if made.opcode == "get-tuple-element" and (source := body.by_name[made.operands[0]]).opcode == "fusion":
                inner = self.computations[_called(source, "calls")]
                made = inner.by_name[inner.root.operands[int(made.attribute("index"))]]
            elif made.opcode == "fusion":
                made = self.computations[_called(made, "calls")].root
            if made.opcode == "dynamic-update-slice" and loop.result[i].shape == buffers[0].shape:
                found.append(buffers[0])
        return found

    def _run(self, name: str, n: int, within_fusion: bool = False) -> Iterator:
        computation = self.computations[name]
        for instruction in computation.by_name.values():
            yield computation, instruction, n, within_fusion
            if instruction.opcode == "while":
                yield from self._run(_called(instruction, "body"), n * (self._trips(computation, instruction) or 1))
            elif instruction.opcode in ("fusion", "async-start") and (called := _called(instruction, "calls")):
                yield from self._run(called, n, within_fusion or instruction.opcode == "fusion")
            elif instruction.opcode == "call":
                yield from self._run(_called(instruction, "to_apply"), n)
            elif instruction.opcode == "conditional":
                branches = re.findall(r"%([\w.\-]+)", instruction.attribute("branch_computations"))
                branches += [_called(instruction, f"{which}_computation") for which in ("true", "false")]
                for branch in filter(None, branches):
                    yield from self._run(branch, n)

    # --- Loops ---

    def _trips(self, computation: Computation, loop: Instruction) -> int | None:
        """From XLA's own count, or the bound, start and step of the counter; None if there is none."""
        if known := re.search(r'known_trip_count[":{]+n"?:"?(\d+)', loop.rest):
            return int(known.group(1))
        condition, body = (self.computations[_called(loop, key)] for key in ("condition", "body"))
        compare = condition.root
        if compare.opcode == "fusion":
            compare = self.computations[_called(compare, "calls")].root
        if compare.opcode != "compare":
            return None
        counter, bound = (condition.by_name.get(name) for name in compare.operands[:2])
        if counter is None or bound is None or counter.opcode != "get-tuple-element":
            return None
        index = int(counter.attribute("index"))
        n = self._number(condition, bound, computation, loop)
        start = self._number(computation, self._element(computation, loop, index), None, None) or 0
        step = self._step(body, index)
        return max(-(-(n - start) // step), 1) if n is not None and step else None

    def _step(self, body: Computation, index: int) -> int | None:
        made = body.by_name[body.root.operands[index]]
        while made.opcode in ("bitcast", "copy", "copy-done", "copy-start"):
            made = body.by_name[made.operands[0]]
        scope = body
        if made.opcode == "fusion":
            scope = self.computations[_called(made, "calls")]
            made = scope.root
        if made.opcode != "add":
            return None
        steps = [scope.by_name[name] for name in made.operands]
        return next((int(i.constant) for i in steps if i.opcode == "constant" and i.constant.isdigit()), None)

    def _element(self, computation: Computation, loop: Instruction, index: int) -> Instruction | None:
        made = computation.by_name.get(loop.operands[0])
        return computation.by_name.get(made.operands[index]) if made and made.opcode == "tuple" else None

    def _number(self, computation, instruction, outer, loop) -> int | None:
        while instruction is not None and instruction.opcode in ("bitcast", "copy", "copy-done", "copy-start"):
            instruction = computation.by_name.get(instruction.operands[0])
        if instruction is None:
            return None
        if instruction.opcode == "constant" and instruction.constant.lstrip("-").isdigit():
            return int(instruction.constant)
        if instruction.opcode == "get-tuple-element" and outer is not None:
            return self._number(outer, self._element(outer, loop, int(instruction.attribute("index"))), None, None)
        return None

    # --- Costs of an instruction ---

    def _flops(self, computation: Computation, i: Instruction) -> float:
        if i.opcode == "custom-call" and (found := re.search(r'kernel_metadata=\{"flops":"(\d+)', i.rest)):
            return float(found.group(1))
        if i.opcode == "dot":
            left = computation.by_name[i.operands[0]].result[0].shape
            contracted = [int(d) for d in re.findall(r"\d+", i.attribute("lhs_contracting_dims"))]
            return 2.0 * np.prod(i.result[0].shape) * np.prod([left[d] for d in contracted])
        if i.opcode == "convolution":
            left, right = (computation.by_name[name].result[0].shape for name in i.operands[:2])
            return _convolution_flops(i, left, right)
        return 0.0

    def _memory_bytes(self, computation: Computation, i: Instruction) -> float:
        """Reads and writes of main memory; a slice of an array counts as the slice."""
        if i.opcode in _FREE or i.opcode.endswith("-done"):
            return 0.0
        operands = [computation.by_name[name].result for name in i.operands if name in computation.by_name]
        if i.opcode in ("copy-start", "slice-start"):  # the result holds the source, too
            moved = i.result[1:2]
            there = [*operands[0][:1], *moved] if operands else [*moved]
            return sum(moved[0].n_bytes for b in there if b.space == 0) if moved else 0.0
        if i.opcode in _SLICES:
            return sum(2 * _main(b) for b in i.result)
        if i.opcode == "dynamic-update-slice":
            return 2.0 * sum(_main(b) for b in operands[1])
        if i.opcode == "fusion":
            return self._fusion_bytes(operands, i)
        return float(sum(map(_main, i.result)) + sum(_main(b) for buffers in operands for b in buffers))

    def _fusion_bytes(self, operands, i: Instruction) -> float:
        inner = self.computations[_called(i, "calls")]
        parameters = {p.constant: p for p in inner.by_name.values() if p.opcode == "parameter"}
        updated, total = set(), 0.0
        outputs = [inner.by_name[n] for n in inner.root.operands] if inner.root.opcode == "tuple" else [inner.root]
        for buffer, made in zip(i.result, outputs, strict=False):
            while made.opcode in ("bitcast", "copy", "convert") and made.operands[0] in inner.by_name:
                made = inner.by_name[made.operands[0]]
            if made.opcode == "dynamic-update-slice":
                updated.add(made.operands[0])
                total += inner.by_name[made.operands[1]].result[0].n_bytes if buffer.space == 0 else 0
            else:
                total += _main(buffer)
        for number, buffers in enumerate(operands):
            parameter = parameters.get(str(number))
            if parameter is None or parameter.name in updated:
                continue
            users = inner.users(parameter.name)
            if users and all(u.opcode in _SLICES and u.operands[0] == parameter.name for u in users):
                total += sum(b.n_bytes for u in users for b in u.result) if buffers[0].space == 0 else 0
            else:
                total += sum(map(_main, buffers))
        return total

    def _collective(self, kind, computation, i: Instruction, mesh_shape) -> Collective:
        group = _group(i)
        n = len(group)
        given = sum(b.n_bytes for name in i.operands for b in computation.by_name[name].result)
        sent = {
            "all-gather": given * (n - 1),
            "reduce-scatter": given * (n - 1) // n,
            "all-reduce": 2 * given * (n - 1) // n,
            "all-to-all": given * (n - 1) // n,
            "collective-permute": given,
        }[kind]
        places = np.array(np.unravel_index(group, tuple(mesh_shape.values())))
        axes = tuple(a for a, along in zip(mesh_shape, places, strict=True) if len(set(along.tolist())) > 1)
        return Collective(kind, axes, n, sent)


def _main(buffer: Buffer) -> int:
    return buffer.n_bytes if buffer.space == 0 else 0


def _called(instruction: Instruction, key: str) -> str:
    return instruction.attribute(key).removeprefix("%").split(",")[0].strip()


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    at = found.end()
    end = _closing(line, at) if line[at] == "(" else line.index(" ", at)
    result, rest = line[at:end], line[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    begin = len(opcode)
    close = _closing(rest, begin)
    inside, attributes = rest[begin + 1 : close - 1], rest[close:].lstrip(", ")
    return Instruction(
        name=found.group(2),
        result=tuple(_buffers(result)),
        opcode=opcode.strip(),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        rest=attributes,
        is_root=bool(found.group(1)),
        constant=inside.strip() if opcode.strip() in ("constant", "parameter") else "",
    )


def _closing(text: str, at: int) -> int:
    """The place after the parenthesis that closes the one at `at`."""
    depth = 0
    for match in re.finditer(r"[()]", text[at:]):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return at + match.end()
    raise ValueError(f"no HLO: parentheses do not close in {text[:80]!r}.")


def _buffers(text: str) -> Iterator[Buffer]:
    for dtype, shape, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(n.lstrip("<=")) for n in shape.split(",") if n)
        yield Buffer(dtype, sizes, int(space.group(1)) if space else 0)


def _group(i: Instruction) -> list[int]:
    """Devices of the first group (or two of a permutation), by their place in the mesh."""
    if i.opcode.startswith("collective-permute"):
        pairs = re.findall(r"\{(\d+),(\d+)\}", i.attribute("source_target_pairs"))
        return next(([int(a), int(b)] for a, b in pairs if a != b), [0, 0])
    if meshed := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? ?\{(.*?)\}", i.rest):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", meshed.group(1))}
        over = re.findall(r"'(\w+)'", meshed.group(3))
        devices = _iota(meshed.group(2) or f"[{np.prod(list(sizes.values()))}]").reshape(list(sizes.values()))
        return devices[tuple(slice(None) if name in over else 0 for name in sizes)].ravel().tolist()
    text = i.attribute("replica_groups")
    if explicit := re.match(r"\{\{([\d,]+)\}", text):
        return [int(n) for n in explicit.group(1).split(",")]
    if tiled := re.match(r"\[(\d+),(\d+)\]<=(.*)", text):
        return _iota(tiled.group(3)).reshape(int(tiled.group(1)), int(tiled.group(2)))[0].tolist()
    return [0]


def _iota(text: str) -> np.ndarray:
    """Devices in an order such as [4,2]T(1,0): counted row by row, and transposed."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    sizes, order = ([int(n) for n in (part or "").split(",") if n] for part in found.groups()) if found else ([1], [])
    devices = np.arange(np.prod(sizes)).reshape(sizes)
    return devices.transpose(order) if order else devices


def _convolution_flops(i: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Multiply-adds of positions inside the window; batch dimensions of a product are windows that meet once."""
    lhs, rhs, out = re.match(r"(\w+)_(\w+)->(\w+)", i.attribute("dim_labels")).groups()  # pyright: ignore
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", i.attribute("window").strip("{}")))
    n_spatial = sum(c.isdigit() for c in lhs)

    def values(name: str, default: str) -> list[str]:
        return window.get(name, "x".join([default] * n_spatial)).split("x") if n_spatial else []

    strides, base, dilation = ([int(v) for v in values(n, "1")] for n in ("stride", "lhs_dilate", "rhs_dilate"))
    pads = [int(v.split("_")[0]) for v in values("pad", "0_0")]
    met = 1
    for d in range(n_spatial):
        n_in, n_window, n_out = left[lhs.index(str(d))], right[rhs.index(str(d))], i.result[0].shape[out.index(str(d))]
        at = np.arange(n_out)[:, None] * strides[d] + np.arange(n_window)[None] * dilation[d] - pads[d]
        met *= int(np.sum((at >= 0) & (at < (n_in - 1) * base[d] + 1) & (at % base[d] == 0)))
    n_groups = int(i.attribute("batch_group_count") or 1)
    shape = i.result[0].shape
    return 2.0 * met * right[rhs.index("i")] * shape[out.index("b")] * shape[out.index("f")] / n_groups
