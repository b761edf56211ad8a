"""A kernel that says what you say: ``python echo_kernel.py install``, and Jupyter has *echo*."""

from __future__ import annotations

import trio_subshells as ts


class EchoKernel(ts.Kernel):
    implementation = "echo"
    implementation_version = "1.0"
    banner = "Echo: says what you say"
    language_info = ts.LanguageInfo(
        name="echo", mimetype="text/plain", file_extension=".txt", pygments_lexer="text"
    )
    subshells = True  # opt in; without it nothing is advertised

    async def execute(self, cell: ts.Cell) -> None:
        cell.stdout(cell.code)  # publishing is synchronous, and never blocks the loop


if __name__ == "__main__":
    ts.main(EchoKernel)  # -f connection_file, install, uninstall
