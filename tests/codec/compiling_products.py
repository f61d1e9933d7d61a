"""Compiles the products as the published network uses them: `compiling_products.py CAPABILITY`.

Prints what the assembler and its disassembler say of each, one JSON object a line.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stae_cli.codec.cuda import products

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Bytes of shared memory that a program may have.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
VECTORS = {"bias_at": "*fp32", "lacking_at": "*fp32", "parts_at": "*fp32"}
NORM = {"squares_at": "*fp32", "shift_at": "*fp32"}
CASES = {  # inputs, outputs, form, adds, pointers that are not given
    "geglu": (512, 2048, "geglu", False, {"lacking_at", *NORM}),
    "normed geglu": (512, 2048, "geglu", False, {"lacking_at"}),
    "normed gelu": (512, 512, "tanh", False, {"lacking_at"}),
    "exact gelu": (512, 512, "exact", False, {"lacking_at", *NORM}),
    "gelu of latents": (16, 512, "exact", False, {"lacking_at", *NORM}),
    "pixels": (192, 512, "plain", False, set(NORM)),
    "latents": (512, 16, "plain", False, {"lacking_at", *NORM}),
    "add": (1024, 512, "plain", True, {"bias_at", "lacking_at", *NORM}),
    "add and squares": (1024, 512, "plain", True, {"bias_at", *NORM}),
}


def build(name, capability, tiles=None, dtype="fp16"):
    inputs, outputs, form, adds, absent = CASES[name]
    engine = capability // 10 == products.HOPPER
    cut = tiles or products.tiles_for(
        outputs, SHARED[capability], size=products.HALF, engine=engine, adds=adds
    )
    columns, step = min(cut.columns, outputs), min(products.STEP, inputs)
    span = columns // 2 if form == "geglu" else min(columns, products.SPAN)
    constants = {
        "inputs": inputs, "outputs": outputs, "parts": 4, "form": form, "adds": adds,
        "rows": cut.rows, "columns": columns, "step": step, "span": span,
        "group": products.GROUP, "eps": 1e-8, "stays": bool(cut.programs),
        **dict.fromkeys(absent),
    }  # fmt: skip
    shapes = {"left": (cut.rows, step), "right": (columns, step), "result": (cut.rows, span)}
    kinds = dict.fromkeys(shapes, f"*{dtype}")
    if cut.programs:
        kinds = {
            each: f"tensordesc<{dtype}[{tall},{wide}]>" for each, (tall, wide) in shapes.items()
        }
    kinds |= {"count": "i32", **VECTORS, **NORM} | dict.fromkeys(constants, "constexpr")
    signature = {each: kinds[each] for each in products._multiply.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(products._multiply, signature, constants, aligned)
    options = {"num_warps": cut.warps, "num_stages": cut.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def disassembled(compiled, what):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run(
            [DISASSEMBLER, what, file.name], capture_output=True, text=True, check=True
        ).stdout


def main():
    capability = int(sys.argv[1])
    for name in CASES:
        compiled = build(name, capability)
        usage = disassembled(compiled, "-res-usage")
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        code = disassembled(compiled, "-sass")
        mnemonics = re.findall(
            r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)", code, re.M
        )
        facts = {
            "name": name, "registers": registers, "stack": stack,
            "shared": compiled.metadata.shared,
            "most_shared": SHARED[capability], "code": Counter(mnemonics),
        }  # fmt: skip
        sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
