"""Mix fine-tuned weights with those that training started from, so that less is forgotten.

    sam-med2d mix-weights workdir/models/mine/best.pth --data_path data_demo
    sam-med2d mix-weights workdir/models/mine/best.pth --data_path data/mine --also data/other phantoms
    sam-med2d mix-weights fine_tuned.safetensors --start small --shares 0 0.5 1

In a clone, `python scripts/mix_weights.py ...` is the same.

Between the start (share 0) and the end of a training (share 1) lie weights that know more of the trained pictures than
the one and more of others than the other. Each of a few shares is judged by its mean Dice on the val split of the
trained data and on pictures of other kinds, which are drawn phantoms unless --also names data with a val split. Written
is the share that is best elsewhere among those whose mean on the own val split is at most --most_lost below the best.
Beside mixed.pth, which is read wherever a checkpoint is expected, stand mixed.json, the table with what it was made
from, and mixed.png, both curves.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from sam_med2d.cli import Parser, ending_in_one_line
from sam_med2d.data.datasets import TestingDataset
from sam_med2d.data.phantoms import PHANTOMS
from sam_med2d.device import best_device
from sam_med2d.errors import UsageError
from sam_med2d.evaluation.elsewhere import sets_of
from sam_med2d.evaluation.grids import format_table
from sam_med2d.inference.models import SMALL, Plan, plan_model, weights_file
from sam_med2d.outputs import check_no_input
from sam_med2d.ownership import check_writable
from sam_med2d.prompts.modes import DEFAULT_MODES, mode_name, parse_modes
from sam_med2d.provenance import provenance
from sam_med2d.training.mixing import Judged, Mixture, choose, draw, judge
from sam_med2d.training.start import FROM_SCRATCH
from segment_anything.checkpoint import open_weights
from segment_anything.files import replacing
from segment_anything.weight_files import FRAME, WINDOW, save_checkpoint


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    # fmt: off
    parser.add_argument("end", help="The fine-tuned weights, such as the best.pth of a run of train.py.")
    parser.add_argument("--start",
        help="What the training of these weights started from, a file or small. Default: as a best.pth says.")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
        help="How far from start to end mixtures lie; each is judged once. Default: 0 0.25 0.5 0.6 0.7 0.8 0.9 1.")
    parser.add_argument("--data_path", default="data_demo",
        help="Folder of the data of the training, with a val split. Default: %(default)s.")
    parser.add_argument("--prompt_modes", nargs="+", type=mode_name, default=[*DEFAULT_MODES],
        help="Prompt modes that are asked on the own val split, named as for test.py. Default: "
             f"{' '.join(DEFAULT_MODES)}.")
    parser.add_argument("--also", nargs="+", default=[PHANTOMS], metavar="DATA",
        help="Pictures of other kinds that mixtures are judged on: folders with a val split, or phantoms, which "
             "are drawn; each is asked a box and five clicks. Default: phantoms.")
    parser.add_argument("--most_lost", type=float, default=0.005, metavar="DICE",
        help="By how much the mixture's mean Dice on the own val split may lie below that of the best share. "
             "Default: %(default)s, half a point.")
    parser.add_argument("--output", type=Path,
        help="The .pth to write. Default: mixed.pth beside the fine-tuned weights.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the output if it exists.")
    parser.add_argument("--device",
        help="Where the model runs, such as cuda, cuda:1, mps or cpu. Default: the best there is.")
    # fmt: on
    args = parser.parse_args(argv)
    args.shares = sorted({*args.shares})
    if not all(0 <= share <= 1 for share in args.shares):
        parser.error("each of --shares must be between 0 and 1")
    if not args.most_lost >= 0:
        parser.error(f"--most_lost must be at least 0, not {args.most_lost}")
    args.modes = parse_modes(args.prompt_modes)
    return args


@ending_in_one_line(kept="nothing was written; the same command starts anew")
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    end = plan_model(args.end)
    start = weights_file(start_of(args, end))
    output = args.output or end.file.path.with_name("mixed.pth")
    if output.suffix != ".pth":
        raise UsageError(f"{output}: the output is a checkpoint; end its name in .pth")
    outputs = [output.with_suffix(ending) for ending in (".pth", ".json", ".png")]
    if not args.overwrite and (there := next((path for path in outputs if path.exists()), None)):
        raise UsageError(f"{there}: exists; choose another --output, or replace it with --overwrite")
    check_no_input(outputs, [end.file.path, start])
    closer = any(mode.zoomed for mode in args.modes)
    own = TestingDataset(args.data_path, end.image_size, "val", end.frame, closer)
    also = sets_of(args.also, end.image_size, end.frame, "val")
    mixture = Mixture(end, open_weights(start))
    check_writable(output.parent)
    device = best_device(args.device)
    files: dict[str, str | os.PathLike] = {"end": end.file.path, "start": start, "data": own.index.source}
    made_by = {"command": [str(word) for word in sys.argv], **provenance(device, files)}

    mixture.to(device)
    judged = judge(mixture, args.shares, own, args.modes, also)
    chosen = choose(judged, args.most_lost)
    print(format_table(table_of(judged, chosen)))
    mixed = {"share": chosen.share, "start": str(start), "end": str(end.file.path), "most_lost": args.most_lost}
    save(mixture, chosen, end, mixed, made_by, outputs[0])
    rows = [{**one._asdict(), "own_mean": one.own_mean, "elsewhere_mean": one.elsewhere_mean} for one in judged]
    with replacing(outputs[1]) as path:
        path.write_text(json.dumps({**mixed, "shares": rows, "made_by": made_by}, indent=1), encoding="utf-8")
    with replacing(outputs[2]) as path:
        draw(judged, chosen, path)
    print(f"\nshare {chosen.share:g}: {output}; the table and both curves: {outputs[1]}, {outputs[2]}")


def start_of(args: argparse.Namespace, end: Plan) -> str:
    """What a person calls the weights that training started from. Raises UsageError where they are not known."""
    if args.start:
        return args.start
    said = str(end.file.flags.get("sam_checkpoint", ""))
    if said == FROM_SCRATCH:
        raise UsageError(f"{end.file.path}: its training started from random weights, which know nothing to mix in")
    if said != SMALL and not Path(said).is_file():
        what = f"started from {said}, which is not there" if said else "does not say what its training started from"
        raise UsageError(f"{end.file.path}: {what}; name those weights with --start")
    return said


def save(
    mixture: Mixture, chosen: Judged, end: Plan, mixed: dict[str, Any], made_by: dict[str, object], output: Path
) -> None:
    """A checkpoint as best.pth is one. Its flags are those of the run, so that test.py finds what it started from."""
    model = mixture.at(chosen.share)
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    about = {FRAME: model.frame} | ({WINDOW: list(model.window)} if model.window else {})
    flags = {**end.file.flags, "sam_checkpoint": mixed["start"]}
    save_checkpoint({"model": weights, **about, "mixed": mixed, "made_by": made_by, "flags": flags}, output)


def table_of(judged: list[Judged], chosen: Judged) -> pd.DataFrame:
    """Mean Dice, a row a share; * is the chosen one."""
    return pd.DataFrame(
        [
            {
                "share": f"{one.share:g}" + " *" * (one is chosen),
                "own": one.own_mean,
                **{f"own {mode}": value for mode, value in one.own.items()},
                "elsewhere": one.elsewhere_mean,
                **one.elsewhere,
            }
            for one in judged
        ]
    )


if __name__ == "__main__":
    main()
