"""Compiles the CUDA kernels as the published network uses them: `compiling.py CAPABILITY...`."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stae_cli.codec.cuda import kernels

ASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NORM = {"width": 512, "span": 512, "rows": 4, "eps": 1e-8}
CUT = {
    "patch": 8, "rows": 8, "colours": 3, "values": kernels.VALUES // 8, "scale": 1 / 128,
    "offset": -1.0,
}  # fmt: skip
PAINT = {
    "width": 32, "patches": kernels.PATCHES, "pixels": kernels.PIXELS, "side": 8,
    "lanes": kernels.LANES, "colours": 3, "floor": 1e-12,
}  # fmt: skip
CASES = [
    ("_cut", CUT | {"column_step": 3, "colour_step": 1}),
    ("_cut", CUT | {"column_step": 1}),
    ("_norm", NORM | {"adds": False}),
    ("_norm", NORM | {"adds": True}),
    ("_geglu", {"hidden": 1024, "span": 1024, "rows": 2}),
    ("_paint", PAINT | {"levels": True}),
    ("_paint", PAINT | {"levels": False}),
]
BYTES = {"images_at", "finite_at"}
FLOATS = {"deferred_at"}


def type_of(name, constants):
    if name in constants:
        return "constexpr"
    if name.endswith("_at"):
        if name in FLOATS:
            return "*fp32"
        is_levels = name == "result_at" and constants.get("levels")
        return "*u8" if name in BYTES or is_levels else "*fp16"
    return "i32"


def main():
    for capability in map(int, sys.argv[1:]):
        compile_all(capability)


def compile_all(capability):
    for name, constants in CASES:
        kernel = getattr(kernels, name)
        signature = {each: type_of(each, constants) for each in kernel.arg_names}
        aligned = {
            (index,): [["tt.divisibility", 16]]
            for index, kind in enumerate(signature.values())
            if kind.startswith("*")
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = subprocess.run(
                [ASSEMBLER, "-res-usage", file.name], capture_output=True, text=True, check=True
            ).stdout
        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
        print(f"{capability} {name}: {registers} registers, {stack} spilled")


if __name__ == "__main__":
    main()
