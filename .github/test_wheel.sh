#!/usr/bin/env bash
# Test a wheel as users get it: install it in an empty virtual environment outside the checkout, train for two
# iterations, translate an image with the result, and inspect it. A wheel for one kind of processor must need no
# compiler. Takes a minute, plus the installation of torch.
set -euo pipefail
if [ $# -ne 1 ] || [ ! -f "$1" ]; then
    echo "usage: .github/test_wheel.sh WHEEL" >&2
    exit 2
fi
trap 'echo "error: $BASH_COMMAND" >&2' ERR
wheel=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
# Nothing but the wheel may provide the package.
unset PYTHONPATH
export PYTHONNOUSERSITE=1
python3 -m venv venv
source venv/bin/activate
python -m pip install --quiet "$wheel"

python - "$wheel" <<'CODE'
import sys
from pathlib import Path

import fastcyclegan
import fastcyclegan.kernels

for module in (fastcyclegan, fastcyclegan.kernels):
    assert Path(module.__file__).is_relative_to(sys.prefix), module.__file__
name = Path(sys.argv[1]).name
assert name.startswith(f"fastcyclegan-{fastcyclegan.__version__}-"), (name, fastcyclegan.__version__)
CODE
if [[ "$wheel" == *linux_* ]]; then
    env -i PATH=/nowhere HOME=/proc/self venv/bin/python - <<'CODE'
import sys

from fastcyclegan.kernels.cpu import library

assert not library.why_not_cpp(), library.why_not_cpp()
assert library.answer().origin.startswith(sys.prefix), library.answer().origin
print(library.answer().origin)
CODE
fi
for command in train translate inspect-checkpoint download-dataset check-dataset make-aligned evaluate compile-kernels; do
    "fastcyclegan-$command" --help >help.txt
done
fastcyclegan-train --device cpu --name tiny --max_iters 2 --netG resnet_1blocks --ngf 4 --netD pixel --ndf 4
fastcyclegan-inspect-checkpoint runs/tiny/latest_net_G_A.pth | tee description.txt
grep -q "generator resnet_1blocks" description.txt
python -c 'from PIL import Image; Image.new("RGB", (40, 36), "orange").save("image.png")'
fastcyclegan-translate --device cpu --weights runs/tiny --input image.png --output translated
python -c 'from PIL import Image; assert Image.open("translated/image.png").size == (40, 36)'
echo "$(basename "$wheel"): trains, translates and inspects"
echo "$(basename "$wheel"): $(($(wc -c <"$wheel") / 1000)) kB"
