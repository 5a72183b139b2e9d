"""Stand-ins for the CUDA libraries that torch's Linux wheel names and that no test on a CPU calls.

    python tests/matrix/stand_ins.py SITE_PACKAGES/torch

torch's wheel as pip gets it on Linux wants three gigabytes of them, and does not load without. Here
each is a small library that has the names which torch's own libraries look for, and whose functions
say "error 100": no device. Needs gcc and binutils.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

CUDA = re.compile(r"lib(cu|nv|nccl)")
CUDA_NAMES = re.compile(r"_*(cu|nv|nccl|NV|dfftw)")
# A name that is bound to no library by its version belongs to the one whose names begin so.
PREFIXES = {
    "libcublas": "cublas",
    "libcublasLt": "cublasLt",
    "libcuda": "cu",
    "libcudart": "cuda",
    "libcudnn": "cudnn",
    "libcufft": "cufft",
    "libcufile": "cuFile",
    "libcupti": "cupti",
    "libcurand": "curand",
    "libcusolver": "cusolver",
    "libcusparse": "cusparse",
    "libcusparseLt": "cusparseLt",
    "libnccl": "nccl",
    "libnvToolsExt": "nvtx",
    "libnvrtc": "nvrtc",
    "libnvshmem": "nvshmem",
}
# The linker wants these to have a version of their own, whether torch asks for one or not.
VERSIONED = {"libcublas", "libcublasLt", "libcudart", "libcufft", "libcusolver", "libcusparse"}


def output(*command: object) -> str:
    """What a command of binutils prints."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=True
    ).stdout


class Symbols:
    """What torch's libraries need, look for and define."""

    def __init__(self, lib: Path) -> None:
        self.libraries: set[str] = set()
        self.wanted: defaultdict[str, set[str]] = defaultdict(set)  # name: the versions asked for
        defined: set[str] = set()
        files = [path for path in lib.iterdir() if ".so" in path.name]
        for path in files:
            dynamic = output("readelf", "-dW", path)
            self.libraries |= set(re.findall(r"NEEDED.*\[(.*?)\]", dynamic))
            for line in output("nm", "-D", path).splitlines():
                *_, kind, name = line.split()
                name, _, version = name.replace("@@", "@").partition("@")
                if kind == "U":
                    self.wanted[name].add(version)
                else:
                    defined.add(name)
        there = {path.name for path in files}
        self.libraries = {name for name in self.libraries - there if CUDA.match(name)}
        self.missing = sorted(
            name
            for name, versions in self.wanted.items()
            if name not in defined
            and name != "cuInit_dummy"
            and (CUDA_NAMES.match(name) or versions & self.libraries)
        )

    def of(self, library: str) -> tuple[str, list[str]]:
        """The version under which a library's names are looked for, and the names."""
        base = library.split(".so", maxsplit=1)[0].removesuffix("_host")
        if base == "libnvshmem":
            return "NVSHMEM", [name for name in self.missing if name.startswith("nvshmem")]
        prefix = PREFIXES.get(base, "\0")
        return library, [
            name
            for name in self.missing
            if library in self.wanted[name]
            or (self.wanted[name] == {""} and name.startswith(prefix))
        ]


def build(lib: Path, library: str, symbols: Symbols) -> None:
    """Compile one stand-in into torch's own folder of libraries, where the loader looks first."""
    version, names = symbols.of(library)
    body = [
        f'const char *{name}(void) {{ return "stand-in"; }}'
        if "String" in name or "ErrorName" in name
        else f"long {name}(void) {{ return 100; }}"
        for name in names
        if not re.search(r"\W", name)
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stand_in.c"), Path(folder, "stand_in.map")
        source.write_text("\n".join([*body, ""]), encoding="utf-8")
        script.write_text(f"{version} {{ global: *; }};\n", encoding="utf-8")
        flags = [f"-Wl,-soname,{library}"]
        base = library.split(".so", maxsplit=1)[0]
        if base in VERSIONED or any(version in symbols.wanted[name] for name in names):
            flags.append(f"-Wl,--version-script={script}")
        output("gcc", "-shared", "-fPIC", "-w", "-fno-builtin", *flags, "-o", lib / library, source)


def make(torch: Path) -> list[str]:
    """Make a stand-in for each missing CUDA library of the torch that is installed in `torch`."""
    lib = torch / "lib"
    symbols = Symbols(lib)
    for library in sorted(symbols.libraries):
        build(lib, library, symbols)
    return sorted(symbols.libraries)


if __name__ == "__main__":
    print(*make(Path(sys.argv[1])), sep="\n")
