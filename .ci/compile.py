"""Build hook: compiles the request path with mypyc into the wheel.

It is on when HATCH_BUILD_HOOKS_ENABLE=1 is set; `make compiled` and the image set it. The modules
are the same, and run as plain Python where nobody has compiled them. It needs mypy, setuptools and
a C compiler. Refuses editable installs: a compiled module would hide the source that is edited.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from mypyc.build import mypycify
from setuptools import Distribution

# Of protobuf's generated modules and of C extensions nothing is known; none is compiled.
MYPY_OPTIONS = ("--ignore-missing-imports", "--follow-imports=silent", "--no-warn-return-any")


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds compiled modules beside their sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile what `modules` in the hook's configuration names."""
        if version == "editable":
            return
        modules = sorted(
            str(path.relative_to(self.root))
            for pattern in self.config["modules"]
            for path in Path(self.root).glob(pattern)
        )
        self._made = Path(tempfile.mkdtemp(prefix="turnout-compile-"))
        extensions = mypycify(
            [*MYPY_OPTIONS, *modules],
            opt_level="3",
            debug_level="0",
            target_dir=str(self._made / "c"),
            group_name="turnout",
        )
        command = Distribution({"name": "turnout", "ext_modules": extensions}).get_command_obj(
            "build_ext"
        )
        command.build_lib = str(self._made / "lib")
        command.build_temp = str(self._made / "o")
        command.ensure_finalized()
        command.run()
        built = self._made / "lib"
        for path in built.rglob("*.so"):
            build_data["force_include"][str(path)] = str(path.relative_to(built))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing but the wheel."""
        if version != "editable":
            shutil.rmtree(self._made)
