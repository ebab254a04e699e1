#!/usr/bin/env bash
# Build the wheel, install it into a fresh environment outside the clone, and run it there: what users get, not what lies here.
#
#     make wheel-check                                    # with the environment of the clone, .venv
#     PYTHON=path/to/python scripts/check_wheel.sh        # with another that has the dependencies and setuptools
set -euo pipefail
cd "$(dirname "$0")/.."
clone=$PWD
python=${PYTHON:-.venv/bin/python}
[[ $python == */* ]] && python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# from a copy, because a build leaves a folder behind whose stale files would be in the next wheel
mkdir "$work/source" "$work/elsewhere"
git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -cf - -T - | tar -xf - -C "$work/source"
"$python" -m pip wheel -q --no-deps --no-build-isolation -w "$work" "$work/source"

# The dependencies come from the environment at hand, through a .pth file: torch is not downloaded again, so that this takes
# seconds. A .pth file adds a folder without reading its own .pth files, so the clone itself is not on the path.
"$python" -m venv "$work/venv"
site_packages='import sysconfig; print(sysconfig.get_path("purelib"))'
"$python" -c "$site_packages" > "$("$work/venv/bin/python" -c "$site_packages")/dependencies.pth"
"$work/venv/bin/python" -m pip install -q --no-deps --ignore-installed "$work"/sam_med2d-*.whl

cd "$work/elsewhere"
export PATH="$work/venv/bin:$PATH"
unset PYTHONPATH
set -x
sam-med2d --version
sam-med2d --help
sam-med2d predict --help > /dev/null
python - "$clone" <<'CODE'
import sys
from pathlib import Path

import sam_med2d
import segment_anything
from sam_med2d.inference.models import small_weights
from sam_med2d.provenance import commit

site = Path(sam_med2d.__file__).parents[1]
assert Path(sys.prefix) in site.parents, f"{site} is not in the fresh environment"
assert Path(segment_anything.__file__).parents[1] == site
assert small_weights().is_relative_to(site) and not small_weights().is_symlink()
for package in ("sam_med2d", "segment_anything"):
    assert (site / package / "py.typed").is_file(), package
assert (site / "sam_med2d/evaluation/report_template.html").is_file()
beside = {path.stem for path in site.iterdir()} & {"train", "test", "tests", "utils", "metrics", "DataLoader", "app", "scripts"}
assert not beside, f"in site-packages: {beside}"
assert commit() is None, commit()
CODE
cp "$clone/data_demo/images/mni152_axial_094.png" scan.png
sam-med2d predict --input scan.png --box 20 20 150 180 --sam_checkpoint small --image_size 128
mkdir images masks
cp "$clone"/data_demo/images/mni152_axial_07*.png images
for image in images/*.png; do cp "$clone/data_demo/masks/$(basename "$image" .png)"_*.png masks; done
sam-med2d make-index masks --images images --masks masks --case '(.+)' --output data
sam-med2d check-index data
set +x
[[ -s workdir/predict/masks/scan_object_000.png && -s data/image2label_train.json ]]
echo "the wheel works: $(basename "$work"/sam_med2d-*.whl)"
