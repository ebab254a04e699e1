"""Timings, each with a baseline measured in the same run: medians with their range, and the ratio to the baseline.

    python scripts/benchmark.py all                     # the next nine, one after the other
    python scripts/benchmark.py all --device cuda --compile --json workdir/gpu.json     # the same on a GPU
    python scripts/benchmark.py encode --references     # pictures encoded; also the plain ways that ours replaced
    python scripts/benchmark.py decode                  # a further click, with and without the refinement network
    python scripts/benchmark.py train                   # a training batch
    python scripts/benchmark.py evaluate --data_path ../data_demo   # four prompt modes against encoder passes alone
    python scripts/benchmark.py everything              # a grid of 16 x 16 clicks on one picture
    python scripts/benchmark.py volume --rounds 2       # one object through 150 slices
    python scripts/benchmark.py start                   # from the start of predict to a mask: time and memory
    python scripts/benchmark.py app                     # clicks at the page, over HTTP
    python scripts/benchmark.py serve                   # clicks in a tool that asks the server
    python scripts/benchmark.py curves --help           # time and memory against size, batch, objects, clicks, slices
    python scripts/benchmark.py tuning --help           # embeddings once; what each --tune takes
    python scripts/benchmark.py processes --help        # two processes that share every step, against one
    python scripts/benchmark.py data --help             # reading, the cache, an index of 20 million masks
    python scripts/benchmark.py deploy --help           # ONNX Runtime and OpenVINO against PyTorch

The first nine first measure what the machine can do at most (products of the model's shapes, a copy), and print beside
each figure the share of that limit which the counted operations reach. --json keeps the sheet, --compare prints the
ratios to one that was kept. Machines are noisy: the contenders take turns, and only ratios of one run compare. Tables:
docs/performance.md.
"""

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import benchmark_model
import benchmark_use
from timing import Sheet, ceilings, machine

from sam_med2d.device import best_device
from sam_med2d.provenance import commit

RUN = {**benchmark_model.RUN, **benchmark_use.RUN}
OTHER_AREAS = ("curves", "data", "deploy", "processes", "tuning")  # each a module benchmark_{area}.py


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    areas = parser.add_subparsers(dest="area", required=True)
    for area in (*RUN, "all"):
        own = areas.add_parser(area)
        benchmark_model.add_arguments(own)
        benchmark_use.add_arguments(own)
        own.add_argument(
            "--rounds",
            type=int,
            default=7,
            help="Number of rounds that are measured; one more warms up. Default: %(default)s.",
        )
        own.add_argument("--device", help="Where the model runs. Default: the best there is.")
        own.add_argument("--json", type=Path, metavar="FILE", help="Keep the figures in this file.")
        own.add_argument(
            "--compare",
            type=Path,
            metavar="FILE",
            help="Print the ratios to the figures of this file, which --json wrote.",
        )
    for area in OTHER_AREAS:
        if area in words[:1]:  # its libraries are extras
            importlib.import_module(f"benchmark_{area}").add_arguments(areas.add_parser(area))
        else:
            areas.add_parser(area, add_help=False)
    return parser.parse_args(words)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.area in OTHER_AREAS:
        importlib.import_module(f"benchmark_{args.area}").run(args)
        return
    device = best_device(args.device)
    print(f"{args.model_type}, {args.image_size} px, {machine(device)}; median of {args.rounds} [least, most]")
    sheet = Sheet(args.rounds, device, ceilings(device))
    print("at most: " + ", ".join(f"{kind} {value / 1000:.3g} T" for kind, value in sheet.limits.items()) + " a second")
    for area in RUN if args.area == "all" else [args.area]:
        RUN[area](args, sheet)
    if args.json:
        sheet.save(
            args.json, commit=commit(), command=" ".join(["benchmark.py", *(sys.argv[1:] if argv is None else argv)])
        )
    if args.compare:
        sheet.print_beside(args.compare)


if __name__ == "__main__":
    main()
