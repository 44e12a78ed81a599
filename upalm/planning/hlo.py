"""Cost of a compiled program, read from its HLO text.

Loop bodies count as often as they run, and collectives by mesh axis; XLA's own cost analysis does neither.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"}
_FREE |= {"after-all", "partition-id", "replica-id", "copy-done", "slice-done", "optimization-barrier"}
_FREE |= {"async-start", "async-update", "async-done"}  # the computation that they call is counted
_SLICES = ("dynamic-slice", "slice", "gather")
_CALLERS = ("fusion", "fusion-start", "async-start")


class Buffer(NamedTuple):
    """Array of a program."""

    dtype: str
    shape: tuple[int, ...]
    space: int
    """Memory space: 0 is the chip's main memory; others are on the chip."""

    @property
    def n_bytes(self) -> int:
        """Size in bytes, without padding to tiles."""
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
        """Return the text of an attribute, or an empty one."""
        match = re.search(rf"(?:^|[ ,]){name}=(.*?)(?=, [a-z_]+=|$)", self.rest)
        return match.group(1) if match else ""


class Computation(NamedTuple):
    """Instructions by name, in the order they run."""

    name: str
    by_name: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """Instruction whose result the computation returns."""
        return next(i for i in self.by_name.values() if i.is_root)

    def origin(self, instruction: Instruction) -> Instruction:
        """Return the instruction whose result this one copies, however often."""
        while instruction.opcode in ("bitcast", "copy", "copy-done", "copy-start"):
            instruction = self.by_name[instruction.operands[0]]
        return instruction

    def users(self, name: str) -> list[Instruction]:
        """Return the instructions that read a value."""
        return [i for i in self.by_name.values() if name in i.operands]


class Collective(NamedTuple):
    """Collective between chips."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes that its groups span."""
    n_devices: int
    """Devices of a group."""
    n_bytes: int
    """Bytes that a chip sends, by the algorithms that send least."""


@dataclass
class Work:
    """Work of one chip in one run of a program."""

    flops: float = 0.0
    """FLOPs of matrix products."""
    remat_flops: float = 0.0
    """FLOPs that the backward pass repeats."""
    memory_bytes: float = 0.0
    """Bytes to and from main memory."""
    collectives: Counter[Collective] = field(default_factory=Counter)
    """Runs of each collective."""
    loops_counted_once: int = 0
    """Loops of unknown length."""

    @property
    def collective_bytes(self) -> int:
        """Bytes that a chip sends."""
        return sum(c.n_bytes * n for c, n in self.collectives.items())


# --- Text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """Compiled module."""

    computations: Mapping[str, Computation]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Read HLO text.

        Raises:
            ValueError: no entry computation in the text.
        """
        computations: dict[str, Computation] = {}
        entry, current = "", None
        text = re.sub(r'\{\n("[^}]*)\n\}', r"{\1}", text)  # metadata of kernels, which have lines of their own
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = computations[header.group(2)] = Computation(header.group(2), {})
                entry = header.group(2) if header.group(1) else entry
            elif current is not None and (instruction := _instruction(line)):
                current.by_name[instruction.name] = instruction
        if not entry:
            raise ValueError("no HLO text: it has no ENTRY computation.")
        return cls(computations, entry)

    def work(self, mesh_shape: Mapping[str, int]) -> Work:
        """Return the work of one chip in one run."""
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
        """Return the loops in the order they begin, each with the runs of its body if that number is known."""
        runs = self._run(self.entry, 1)
        return [(i, self._trips(c, i)) for c, i, _, _ in runs if i.opcode == "while"]

    def stacked(self, loop: Instruction) -> list[Buffer]:
        """Return the arrays that a loop fills slice by slice, for later use."""
        body = self.computations[_called(loop, "body")]
        root = body.root
        buffers = []
        for i, name in enumerate(root.operands):
            buffer, producer = body.by_name[name].result[0], body.origin(body.by_name[name])
            source = body.by_name.get(producer.operands[0]) if producer.operands else None
            if producer.opcode == "get-tuple-element" and source is not None and source.opcode == "fusion":
                inner = self.computations[_called(source, "calls")]
                producer = inner.by_name[inner.root.operands[int(producer.attribute("index"))]]
            elif producer.opcode == "fusion":
                producer = self.computations[_called(producer, "calls")].root
            if producer.opcode == "dynamic-update-slice" and loop.result[i].shape == buffer.shape:
                buffers.append(buffer)
        return buffers

    def _run(self, name: str, n: int, within_fusion: bool = False) -> Iterator:
        computation = self.computations[name]
        for instruction in computation.by_name.values():
            yield computation, instruction, n, within_fusion
            if instruction.opcode == "while":
                yield from self._run(_called(instruction, "body"), n * (self._trips(computation, instruction) or 1))
            elif instruction.opcode in _CALLERS and (called := _called(instruction, "calls")):
                yield from self._run(called, n, within_fusion or instruction.opcode != "async-start")
            elif instruction.opcode == "call":
                yield from self._run(_called(instruction, "to_apply"), n)
            elif instruction.opcode == "conditional":
                branches = re.findall(r"%([\w.\-]+)", instruction.attribute("branch_computations"))
                branches += [_called(instruction, f"{which}_computation") for which in ("true", "false")]
                for branch in filter(None, branches):
                    yield from self._run(branch, n)

    # --- Loops ---

    def _trips(self, computation: Computation, loop: Instruction) -> int | None:
        """Return the runs of a loop's body, from XLA's count or from the counter; None if unknown."""
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
        n = self._constant(condition, bound, computation, loop)
        start = self._constant(computation, self._element(computation, loop, index), None, None) or 0
        step = self._step(body, index)
        return max(-(-(n - start) // step), 1) if n is not None and step else None

    def _step(self, body: Computation, index: int) -> int | None:
        producer, scope = body.origin(body.by_name[body.root.operands[index]]), body
        if producer.opcode == "fusion":
            scope = self.computations[_called(producer, "calls")]
            producer = scope.root
        if producer.opcode != "add":
            return None
        steps = [scope.by_name[name] for name in producer.operands]
        return next((int(i.constant) for i in steps if i.opcode == "constant" and i.constant.isdigit()), None)

    def _element(self, computation: Computation, loop: Instruction, index: int) -> Instruction | None:
        producer = computation.by_name.get(loop.operands[0])
        return computation.by_name.get(producer.operands[index]) if producer and producer.opcode == "tuple" else None

    def _constant(self, computation, instruction, outer, loop) -> int | None:
        if instruction is None:
            return None
        instruction = computation.origin(instruction)
        if instruction.opcode == "constant" and instruction.constant.lstrip("-").isdigit():
            return int(instruction.constant)
        if instruction.opcode == "get-tuple-element" and outer is not None:
            return self._constant(outer, self._element(outer, loop, int(instruction.attribute("index"))), None, None)
        return None

    # --- Costs of an instruction ---

    def _flops(self, computation: Computation, i: Instruction) -> float:
        if i.opcode == "custom-call" and (match := re.search(r'kernel_metadata=\{"flops":"(\d+)', i.rest)):
            return float(match.group(1))
        if i.opcode == "dot":
            left = computation.by_name[i.operands[0]].result[0].shape
            contracted = [int(d) for d in re.findall(r"\d+", i.attribute("lhs_contracting_dims"))]
            return 2.0 * np.prod(i.result[0].shape) * np.prod([left[d] for d in contracted])
        if i.opcode == "convolution":
            left, right = (computation.by_name[name].result[0].shape for name in i.operands[:2])
            return _convolution_flops(i, left, right)
        return 0.0

    def _memory_bytes(self, computation: Computation, i: Instruction) -> float:
        """Return the reads and writes of main memory; a slice of an array counts as the slice."""
        if i.opcode in _FREE or i.opcode.endswith("-done"):
            return 0.0
        operands = [computation.by_name[name].result for name in i.operands if name in computation.by_name]
        if i.opcode == "copy-start":  # the result holds the copy first, then the source
            return _moved_bytes(i.result[0], operands[0], i.result)
        opcode, results = i.opcode.removesuffix("-start"), _results(i, operands)
        if opcode in _SLICES:
            return _moved_bytes(results[0], operands[0], results)
        if opcode == "dynamic-update-slice":
            return _moved_bytes(operands[1][0], operands[1], results)
        if opcode == "fusion":
            return self._fusion_bytes(operands, results, i)
        return float(sum(map(_main, results)) + sum(_main(b) for buffers in operands for b in buffers))

    def _fusion_bytes(self, operands, results: tuple[Buffer, ...], i: Instruction) -> float:
        inner = self.computations[_called(i, "calls")]
        parameters = {p.constant: p for p in inner.by_name.values() if p.opcode == "parameter"}
        updated, total = set(), 0.0
        outputs = [inner.by_name[n] for n in inner.root.operands] if inner.root.opcode == "tuple" else [inner.root]
        for buffer, producer in zip(results, outputs, strict=False):
            while producer.opcode in ("bitcast", "copy", "convert") and producer.operands[0] in inner.by_name:
                producer = inner.by_name[producer.operands[0]]
            if producer.opcode == "dynamic-update-slice":
                updated.add(producer.operands[0])
                total += inner.by_name[producer.operands[1]].result[0].n_bytes if buffer.space == 0 else 0
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


def _results(i: Instruction, operands: list[tuple[Buffer, ...]]) -> tuple[Buffer, ...]:
    """Return the arrays that an instruction makes. The tuple of an asynchronous start has its operands before them."""
    n = sum(map(len, operands))
    if not i.opcode.endswith("-start") or len(i.result) <= n:
        return i.result
    return tuple(b for b in i.result[n:] if (b.dtype, b.shape) not in (("u32", ()), ("s32", ())))  # its state


def _moved_bytes(moved: Buffer, source: Sequence[Buffer], target: Sequence[Buffer]) -> float:
    """Return the bytes of an array that is read and written. Either place may be on the chip, which counts nothing."""
    return float(moved.n_bytes * sum(end[0].space == 0 for end in (source, target)))


def _main(buffer: Buffer) -> int:
    return buffer.n_bytes if buffer.space == 0 else 0


def _called(instruction: Instruction, key: str) -> str:
    return instruction.attribute(key).removeprefix("%").split(",")[0].strip()


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    at = match.end()
    end = _closing(line, at) if line[at] == "(" else line.index(" ", at)
    result, rest = line[at:end], line[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    begin = len(opcode)
    close = _closing(rest, begin)
    inside, attributes = rest[begin + 1 : close - 1], rest[close:].lstrip(", ")
    return Instruction(
        name=match.group(2),
        result=tuple(_buffers(result)),
        opcode=opcode.strip(),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        rest=attributes,
        is_root=bool(match.group(1)),
        constant=inside.strip() if opcode.strip() in ("constant", "parameter") else "",
    )


def _closing(text: str, at: int) -> int:
    """Return the index after the parenthesis that closes the one at `at`."""
    depth = 0
    for match in re.finditer(r"[()]", text[at:]):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return at + match.end()
    raise ValueError(f"no HLO text: parentheses do not close in {text[:80]!r}.")


def _buffers(text: str) -> Iterator[Buffer]:
    for dtype, shape, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(n.lstrip("<=")) for n in shape.split(",") if n)
        yield Buffer(dtype, sizes, int(space.group(1)) if space else 0)


def _group(i: Instruction) -> list[int]:
    """Return the devices of the first group (or of a permutation's first pair), by index in the mesh."""
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
    """Return the devices in an order such as [4,2]T(1,0): counted row by row, then transposed."""
    match = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    sizes, order = ([int(n) for n in (part or "").split(",") if n] for part in match.groups()) if match else ([1], [])
    devices = np.arange(np.prod(sizes)).reshape(sizes)
    return devices.transpose(order) if order else devices


def _convolution_flops(i: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Return the FLOPs of positions inside the window. Batch dimensions of a product are windows that meet once."""
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
