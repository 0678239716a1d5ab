"""Record which names a release of TensorRT has.

    python -m tests.engines.backends.tensorrt.api.record tensorrt_cu12_bindings==10.3.0

NVIDIA's bindings are small wheels on PyPI that load without their libraries' gigabytes: all but a handful of calls go
through virtual tables.  Those few are given here by a library of our own that answers nothing, and what is imported is
then the real module, with its real classes, enums and signatures; no object of it can be made.  Needs pip and a C
compiler.  Writes VERSION.json beside this file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

CLASSES = (
    "Builder", "IBuilderConfig", "INetworkDefinition", "ILayer", "ITensor", "OnnxParser", "ParserError", "Runtime",
    "ICudaEngine", "IExecutionContext", "EngineInspector", "ILogger", "IProfiler", "IProgressMonitor", "ITimingCache",
    "IHostMemory", "OnnxParserRefitter", "Refitter", "IErrorRecorder", "IRuntimeConfig", "IRuntimeCache",
)  # fmt: skip
ENUMS = (
    "BuilderFlag", "NetworkDefinitionCreationFlag", "OnnxParserFlag", "MemoryPoolType", "HardwareCompatibilityLevel",
    "ProfilingVerbosity", "DataType", "DeviceType", "LayerInformationFormat", "LayerType", "TensorIOMode",
    "ComputeCapability", "ExecutionContextAllocationStrategy",
)  # fmt: skip


def record(requirement: str) -> Path:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", name]
        subprocess.run([*pip, requirement], check=True)
        (wheel,) = folder.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(folder)
        module = folder / "tensorrt_bindings" / "tensorrt.so"
        _stub_libraries(module, folder)
        version = re.search(r'__version__ = "([^"]+)"', (module.parent / "__init__.py").read_text())
        assert version
        code = f"from tests.engines.backends.tensorrt.api.record import show; show({str(module.parent)!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], env={"LD_LIBRARY_PATH": name}, check=True, stdout=subprocess.PIPE, text=True
        )
    path = Path(__file__).parent / f"{version[1]}.json"
    return _write(path, {"version": version[1], "source": requirement, **json.loads(done.stdout)})


def record_installed() -> Path:
    import tensorrt_rtx as sdk

    path = Path(__file__).parent / f"rtx-{sdk.__version__}.json"
    return _write(path, {"version": sdk.__version__, "source": f"tensorrt_rtx=={sdk.__version__}", **_api(sdk)})


def _write(path: Path, body: dict[str, Any]) -> Path:
    """One name a line."""
    parts = [f'"{key}": {json.dumps(body[key])}' for key in ("version", "source")]
    for key in ("classes", "enums"):
        groups = []
        for name, members in body[key].items():
            lines = ",\n".join(f'  "{member}": {json.dumps(value)}' for member, value in members.items())
            groups.append(f' "{name}": {{\n{lines}\n }}')
        parts.append(f'"{key}": {{\n' + ",\n".join(groups) + "\n}")
    path.write_text("{" + ",\n".join(parts) + "}\n")
    return path


def show(folder: str) -> None:
    """Print the API of the `tensorrt` module in `folder`."""
    sys.path.insert(0, folder)
    import tensorrt as sdk

    print(json.dumps(_api(sdk)))


def _api(sdk: Any) -> dict[str, Any]:
    classes = {name: _members(getattr(sdk, name)) for name in CLASSES if hasattr(sdk, name)}
    enums = {
        name: {key: int(value) for key, value in getattr(sdk, name).__members__.items()}
        for name in ENUMS
        if hasattr(sdk, name)
    }
    return {"classes": classes, "enums": enums}


def _members(cls: Any) -> dict[str, Any]:
    """Of each public name: ``["read"]`` or ``["read", "write"]`` for a property, else the parameters after self, with
    ``=`` behind the optional ones; None for what has several signatures."""
    found: dict[str, Any] = {}
    for name in dir(cls):
        member = getattr(cls, name)
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, property):
            found[name] = ["read"] if member.fset is None else ["read", "write"]
        elif callable(member):
            found[name] = _parameters(member.__doc__ or "")
    return found


def _parameters(doc: str) -> list[str] | None:
    """``f(self: A, flags: int = 0) -> B`` -> ["flags="]."""
    match = re.match(r"\w+\((.*)\) ->", doc.strip().splitlines()[0]) if doc.strip() else None
    if match is None or "Overloaded" in doc:
        return None
    parts = re.split(r",\s*(?=\w+:)", match[1])[1:]
    return [re.match(r"\w+", part)[0] + ("=" if " = " in part else "") for part in parts]  # type: ignore[index]


def _stub_libraries(module: Path, folder: Path) -> None:
    """Libraries by the names that `module` needs, with the functions that it takes from no one else."""
    wanted = [line.split()[-1] for line in _output("nm", "-D", "--undefined-only", str(module)).splitlines()]
    missing = [name for name in wanted if "@" not in name and not re.match(r"_?Py|_ITM|__gmon|__cxa", name)]
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in missing))
    for library in re.findall(r"\[(libnv\w+\.so\.\d+)\]", _output("readelf", "-d", str(module))):
        subprocess.run(["cc", "-w", "-shared", "-fPIC", str(source), "-o", str(folder / library)], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(record_installed() if argument == "tensorrt_rtx" else record(argument))
