"""Build the C++ kernels into the wheel, if there is a C++ compiler. All else is in pyproject.toml.

Setuptools runs the build, rather than a build system of its own: there are no libraries to find, and the
compiler and its flags are those with which the kernels are compiled at first use where a wheel has none.
Without a compiler the wheel has Python files alone. The libraries use no headers of Python or PyTorch, so one
wheel serves all versions.
"""

import importlib
import logging
import shutil
import sys
import types
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CPU = Path("kernels", "cpu")
# Imported as a package of another name, because the real one imports torch.
sys.modules["cpu_kernels"] = types.ModuleType("cpu_kernels")
sys.modules["cpu_kernels"].__path__ = [str(ROOT / CPU)]
wheel_library = importlib.import_module("cpu_kernels.wheel_library")
CompilerError = importlib.import_module("cpu_kernels._compiler").CompilerError

log = logging.getLogger(__name__)


def built_folder(build: Path) -> Path:
    return build / "fastcyclegan" / CPU / wheel_library.BUILT.name


class BuildLibraries(build_py):
    """Copy the Python files, and compile the C++ kernels beside them."""

    def run(self) -> None:
        # In an editable installation, they are compiled at first use, because their sources can change.
        if self.editable_mode:
            super().run()
            return
        # An earlier build may have left files that no longer exist.
        shutil.rmtree(Path(self.build_lib) / "fastcyclegan", ignore_errors=True)
        super().run()
        built = built_folder(Path(self.build_lib))
        try:
            for file in wheel_library.build(built.with_name("source"), built):
                log.info("compiled %s (%d kB)", file, file.stat().st_size // 1000)
        except CompilerError as error:
            log.warning("without the C++ kernels, which PyTorch's operators replace: impl='cpp' %s", error)


class PlatformWheel(bdist_wheel):
    """Name the platform if the wheel has compiled libraries, but no version of Python."""

    def run(self) -> None:
        self.run_command("build")
        build = Path(self.get_finalized_command("build_py").build_lib)
        self.root_is_pure = not built_folder(build).exists()
        if not self.root_is_pure:
            # So that everything is installed where libraries belong.
            self.distribution.has_ext_modules = lambda: True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


setup(cmdclass={"build_py": BuildLibraries, "bdist_wheel": PlatformWheel})
