"""test.py: which prompts, what it writes, what can be repeated; and both scripts on the original's data and files."""

import csv
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch

import sam_med2d
import test as scoring
from sam_med2d import drawing
from sam_med2d.evaluation.parts import Measured, Part, merged
from sam_med2d.evaluation.rows import COLUMNS, write_rows
from sam_med2d.evaluation.surface import surface_metrics
from sam_med2d.prompts.files import write_prompts
from segment_anything import sam_model_registry
from segment_anything.checkpoint import open_weights, save_weights
from segment_anything.modeling import ImageEncoder
from tests.conftest import ROOT, fails
from tests.training.conftest import small_and_repeatable, work  # noqa: F401
from tests.training.helpers import SIZE, SPOILED, make_data, write, write_index

DEFAULT = ["bbox", "1pt", "3pts", "5pts"]
ALL_MODES = [*DEFAULT, "5shot", "bbox+2pts", "bbox_jitter4", "mask"]
OBJECTS = 15  # in the six images of `data`


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), ("test",))


@pytest.fixture(scope="module")
def weights(small_and_repeatable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini model with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mini.safetensors"
    save_weights(sam_model_registry["mini"](image_size=SIZE).state_dict(), path)
    return path


Row = SimpleNamespace  # what a line of rows.csv says, numbers as numbers, None where it is empty


def read_lines(folder: Path) -> list[Row]:
    with open(folder / "rows.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert not lines or [*lines[0]] == [*COLUMNS]
    kind = {"string": str, "int32": int, "int64": int, "double": float}
    return [
        Row(**{name: kind[str(COLUMNS[name])](text) if text else None for name, text in line.items()}) for line in lines
    ]


@pytest.fixture
def score(data: Path, weights: Path, work: Path) -> Callable[..., list[Row]]:
    """Run test.py here, without a report; later flags win."""

    def run(*flags: object) -> list[Row]:
        return read_lines(
            scoring.main(
                [
                    "--model_type",
                    "mini",
                    "--image_size",
                    str(SIZE),
                    "--sam_checkpoint",
                    str(weights),
                    "--data_path",
                    str(data),
                    "--work_dir",
                    str(work),
                    "--device",
                    "cpu",
                    "--num_workers",
                    "0",
                    "--report",
                    "False",
                    *map(str, flags),
                ]
            )
        )

    return run


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize(
    "flags, modes",
    [
        ("", DEFAULT),
        ("--boxes_prompt", ["bbox"]),
        ("--boxes_prompt True", ["bbox"]),
        ("--boxes_prompt True --iter_point 1 --point_num 1", ["bbox"]),  # the original's defaults, written out
        ("--boxes_prompt False", ["1pt"]),
        ("--boxes_prompt False --iter_point 5", ["5pts"]),
        ("--iter_point 5", ["5pts"]),
        ("--iter_point 5 --point_num 1", ["5pts"]),
        ("--boxes_prompt False --point_num 3", ["3shot"]),
        ("--point_num 3", ["3shot"]),
        ("--iter_point 1 --point_num 1", ["1pt"]),
        ("--prompt_modes 5shot bbox 2pts bbox", ["5shot", "bbox", "2pts"]),
        ("--prompt_modes mask bbox+2pt 3pt", ["mask", "bbox+2pts", "3pts"]),
        ("--box_jitter 2 5", [*DEFAULT, "bbox_jitter2", "bbox_jitter5"]),
        ("--boxes_prompt True --box_jitter 5", ["bbox", "bbox_jitter5"]),
        ("--prompt_modes bbox_jitter5 --box_jitter 5 5", ["bbox_jitter5"]),
    ],
)
def test_modes_asked_for(flags: str, modes: list[str]) -> None:
    assert [mode.name for mode in scoring.parse_args(flags.split()).modes] == modes


@pytest.mark.parametrize(
    "flags",
    [
        "--boxes_prompt True --iter_point 5",
        "--boxes_prompt --point_num 3",
        "--iter_point 5 --point_num 3",
        "--iter_point 0",
        "--point_num -1",
        "--prompt_modes bbox --boxes_prompt False",
        "--prompt_modes bbox --iter_point 1",
        "--prompt_modes circle",
        "--prompt_modes",
        "--batch_size 0",
        "--box_jitter 0",
        "--box_jitter -2",
        "--nsd_tolerance -1",
        "--nsd_tolerance nan",
        "--click_strategy best",
        "--metrics accuracy",
    ],
)
def test_contradictions_are_refused(flags: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        scoring.parse_args(flags.split())
    assert end.value.code == 2 and "error: " in capsys.readouterr().err


def test_flags_and_defaults_of_the_original() -> None:
    args = vars(scoring.parse_args([]))
    defaults = dict(
        work_dir="workdir",
        run_name="sammed",
        batch_size=1,
        image_size=None,  # what the weights are: 256, vit_b and True for the default file
        data_path="data_demo",
        model_type=None,
        sam_checkpoint="pretrain_model/sam-med2d_b.pth",
        multimask=True,
        encoder_adapter=None,
        prompt_path=None,
        save_pred=False,
    )
    assert {name: args[name] for name in defaults} == defaults
    assert {"device", "boxes_prompt", "point_num", "iter_point"} <= args.keys() and {*args["metrics"]} == {
        "iou",
        "dice",
        "nsd",
        "hd95",
    }
    for name in ("multimask", "encoder_adapter", "save_pred", "boxes_prompt", "use_amp", "report"):
        assert [getattr(scoring.parse_args([f"--{name}", *words]), name) for words in ([], ["True"], ["False"])] == [
            True,
            True,
            False,
        ]


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_image_is_encoded_once(batch_size: int, score, monkeypatch) -> None:
    encoded = []
    original = ImageEncoder.forward
    monkeypatch.setattr(ImageEncoder, "forward", lambda self, x: encoded.extend(x) or original(self, x))
    rows = score("--batch_size", batch_size)
    assert len(encoded) == 6 and len(rows) == OBJECTS * len(DEFAULT)


def test_batches_and_workers_change_nothing(score, work: Path) -> None:
    """Not one byte."""
    rows = score("--prompt_modes", *ALL_MODES)
    assert len({row.dice for row in rows}) > OBJECTS  # no mere zeros and ones
    first = (work / "sammed/rows.csv").read_bytes(), (work / "sammed/prompts.json").read_bytes()
    for flags in (["--batch_size", 4], ["--num_workers", 2], ["--batch_size", 3, "--num_workers", 1], []):
        score("--prompt_modes", *ALL_MODES, *flags, "--run_name", "again")
        assert ((work / "again/rows.csv").read_bytes(), (work / "again/prompts.json").read_bytes()) == first, flags


def test_two_processes_change_nothing(data: Path, tmp_path: Path) -> None:
    """Real ones, started by torchrun; seven images, so that their shares differ."""
    folder = make_data(tmp_path / "data", ("test",), images=7)
    write(folder / "masks/0_0.png", np.zeros((50, 40), np.uint8))  # an empty mask, in the share of process 0
    save_weights(sam_model_registry["vit_t"](image_size=SIZE).state_dict(), tmp_path / "t.safetensors")
    flags = [
        "--model_type",
        "vit_t",
        "--image_size",
        SIZE,
        "--sam_checkpoint",
        tmp_path / "t.safetensors",
        "--data_path",
        folder,
        "--device",
        "cpu",
        "--num_workers",
        0,
        "--prompt_modes",
        "bbox",
        "3pts",
        "--work_dir",
        tmp_path / "work",
    ]
    scoring.main([*map(str, flags), "--run_name", "one"])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            ROOT / "test.py",
            *map(str, flags),
            "--run_name",
            "two",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = tmp_path / "work/one", tmp_path / "work/two"
    for name in ("rows.csv", "prompts.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert json.loads((two / "results.json").read_text())["processes"] == 2
    assert done.stdout.count("weights:") == 1 and "in 7 images" in done.stdout


def test_saved_masks_are_those_that_were_scored(score, data: Path, work: Path) -> None:
    rows = score("--save_pred", "--prompt_modes", *ALL_MODES)
    folder = work / "sammed"
    written = {path.relative_to(folder / "masks") for path in (folder / "masks").rglob("*.png")}
    assert written == {Path(row.mode) / Path(row.mask).name for row in rows} and len(rows) == OBJECTS * len(ALL_MODES)
    for row in rows:
        predicted = cv2.imread(str(folder / "masks" / row.mode / Path(row.mask).name), cv2.IMREAD_UNCHANGED)
        truth = cv2.imread(str(data / row.mask), cv2.IMREAD_UNCHANGED) > 0
        assert predicted.shape == truth.shape and {*np.unique(predicted)} <= {0, 255}
        overlap, sizes = (truth & (predicted > 0)).sum(), (truth.sum(), (predicted > 0).sum())
        assert (row.true_area, row.predicted_area) == sizes
        assert row.image_area == truth.size and row.status == "ok"
        assert np.float32(row.dice) == np.float32(2 * overlap) / np.float32(sum(sizes))
        assert np.float32(row.iou) == np.float32(overlap) / np.float32(sum(sizes) - overlap)
    overlays = {path.relative_to(folder / "overlays") for path in (folder / "overlays").rglob("*.png")}
    assert overlays == {Path(mode) / f"{i}.png" for mode in ALL_MODES for i in range(6)}
    for overlay in overlays:  # a row of tiles, one an object
        count = sum(row.image == f"images/{overlay.name}" for row in rows) // len(ALL_MODES)
        picture = cv2.imread(str(folder / "overlays" / overlay))
        assert picture.shape[1] == 256 * count and picture.std() > 20
        of_row = [(row.image, vars(row)["class"]) for row in rows]
        legend, colours = picture[drawing.CAPTION_HEIGHT + 256 :], drawing.class_colours(name for _, name in of_row)
        classes = {name for image, name in of_row if image == f"images/{overlay.name}"}
        for name, colour in colours.items():
            assert (legend == colour).all(axis=2).any() == (name in classes)


def prompts_written(work: Path) -> dict:
    """The objects of a prompts file, without the settings that stand beside them."""
    content = json.loads((work / "sammed/prompts.json").read_text())
    assert [content.pop(name) for name in ("image_size", "click_strategy", "protocol")] == [SIZE, "random", "exact"]
    return content


def test_files_of_one_name_in_two_folders_do_not_overwrite_each_other(
    score, data: Path, tmp_path: Path, work: Path
) -> None:
    folder, groups = tmp_path / "twins", {}
    for case, number in (("a", 0), ("b", 2)):
        for kind, name in (("images", f"{number}.png"), ("masks", f"{number}_0.png")):
            (folder / case / kind).mkdir(parents=True)
            shutil.copy(data / kind / name, folder / case / kind / "slice.png")
        groups[f"{case}/images/slice.png"] = [f"{case}/masks/slice.png"]
    write_index(folder, groups, "test")
    rows = score("--data_path", folder, "--save_pred", "--prompt_modes", "bbox")
    assert len(rows) == len(prompts_written(work)) == 2
    for what in ("masks", "overlays"):
        assert len([*(work / "sammed" / what).rglob("*.png")]) == 2, what


def test_table_rows_and_results_agree(score, work: Path, capsys) -> None:
    rows = score("--prompt_modes", *ALL_MODES)
    printed = capsys.readouterr().out
    results = json.loads((work / "sammed/results.json").read_text())
    assert (results["objects"], results["images"], results["unscored"]) == (OBJECTS, 6, 0)
    assert results["flags"]["prompt_modes"] == ALL_MODES and results["images_per_second"] > 0
    for mode in ALL_MODES:
        own = [row for row in rows if row.mode == mode]
        means = {
            metric: sum(getattr(row, metric) for row in own) / OBJECTS for metric in ("dice", "iou", "nsd", "hd95")
        }
        assert {metric: results[metric][mode] for metric in means} == pytest.approx(means, rel=1e-9)
        assert re.search(
            rf"^{re.escape(mode)} +{OBJECTS} +{100 * means['dice']:.2f} .* {100 * means['iou']:.2f} ",
            printed,
            re.MULTILINE,
        )
    assert [*results["dice"]] == ALL_MODES
    assert {row["metric"] for row in results["tables"]["overall"]} == {"dice", "iou", "nsd", "hd95"}


def test_results_say_what_they_were_made_from(score, data: Path, weights: Path, work: Path) -> None:
    score("--seed", 3)
    results = json.loads((work / "sammed/results.json").read_text())
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    assert results["weights_hash"] == digest(weights) and results["data_hash"] == digest(data / "label2image_test.json")
    assert results["seed"] == 3 and results["flags"]["sam_checkpoint"] == str(weights) and results["device"] == "cpu"
    assert results["versions"]["torch"] == torch.__version__ and results["python"].startswith("3.")
    assert results["versions"]["sam-med2d"] == sam_med2d.__version__
    assert "commit" in results and "prompts_hash" not in results
    prompts = work / "sammed/prompts.json"
    score("--prompt_path", prompts, "--run_name", "again")
    assert json.loads((work / "again/results.json").read_text())["prompts_hash"] == digest(prompts)


def test_surface_metrics_are_of_the_saved_masks(score, data: Path, work: Path) -> None:
    for row in score("--save_pred", "--prompt_modes", "bbox", "2pts", "--nsd_tolerance", 3):
        predicted = cv2.imread(str(work / "sammed/masks" / row.mode / Path(row.mask).name), cv2.IMREAD_UNCHANGED) > 0
        truth = cv2.imread(str(data / row.mask), cv2.IMREAD_UNCHANGED) > 0
        assert {"nsd": row.nsd, "hd95": row.hd95} == pytest.approx(surface_metrics(predicted, truth, 3.0), rel=1e-9)
    rows = score("--metrics", "dice", "nsd", "--prompt_modes", "bbox")
    assert all(row.hd95 is None and row.nsd is not None for row in rows)


def test_clicks_until_a_dice(score) -> None:
    every = score("--prompt_modes", *(f"{n}pts" for n in range(1, 6)))
    found = score("--prompt_modes", "bbox", "5pts", "3pts")
    dice = {(row.mask, row.clicks): row.dice for row in every}
    assert dice.keys() >= {(row.mask, n) for row in found for n in range(1, 6)}
    for row in found:
        for name, target in (("noc80", 0.8), ("noc85", 0.85), ("noc90", 0.9)):
            reached = [n for n in range(1, row.clicks + 1) if dice[row.mask, n] >= target] if row.mode != "bbox" else []
            assert getattr(row, name) == (reached[0] if reached else None)


def test_rows_as_parquet_say_the_same(score, work: Path) -> None:
    rows = score("--prompt_modes", "bbox", "3pts")
    folder = scoring.main([*flags_of_run(work / "sammed"), "--rows_format", "parquet"])
    assert [Row(**row) for row in pyarrow.parquet.read_table(folder / "rows.parquet").to_pylist()] == rows
    assert not (folder / "rows.csv").exists()  # of the earlier run


def flags_of_run(folder: Path) -> list[str]:
    """The command line that repeats a run."""
    flags = json.loads((folder / "results.json").read_text())["flags"]
    return [
        str(word)
        for name, value in flags.items()
        if value is not None and value != []
        for word in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]


# ---------------------------------------------------------------- names


def test_names_come_from_the_metadata_table(score, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    groups = json.loads((folder / "label2image_test.json").read_text())
    header = "mask,image,dataset,modality,case,axis,slice,class,instance,spacing\n"
    lines = [
        f"{mask},{image},set,mr,case {image[7]},z,{number},spot {number % 3},0,\n"
        for number, (mask, image) in enumerate(groups.items())
    ]
    (folder / "metadata.csv").write_text(header + "".join(lines))
    for rows in (score("--data_path", folder), score("--metadata", folder / "metadata.csv")):
        number = {mask: i for i, mask in enumerate(groups)}
        for row in rows:
            i = number[row.mask]
            assert (row.dataset, row.modality, row.case, row.axis) == ("set", "mr", f"case {row.image[7]}", "z")
            assert (row.slice, getattr(row, "class")) == (i, f"spot {i % 3}")
    (folder / "metadata.csv").write_text(header + "".join(lines[1:]))
    message = fails(lambda: score("--data_path", folder))
    assert "metadata.csv" in message and next(iter(groups)) in message


def renamed_as_in_sa_med2d(data: Path, folder: Path) -> Path:
    """The same data with names of SA-Med2D-20M."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    groups: dict[str, list[str]] = {}
    for mask, image in json.loads((data / "label2image_test.json").read_text()).items():
        case = Path(image).stem
        stem = f"mr_t1--{'Brain' if int(case) % 2 else 'Heart'}--case_{case}--z_00{case}0"
        number = len(groups.setdefault(f"images/{stem}.png", []))
        target = f"masks/{stem}--000{number + 1}_000.png"
        shutil.copy(data / image, folder / f"images/{stem}.png")
        shutil.copy(data / mask, folder / target)
        groups[f"images/{stem}.png"].append(target)
    write_index(folder, groups, "test")
    return folder


def test_names_come_from_sa_med2d_file_names(score, data: Path, tmp_path: Path) -> None:
    folder = renamed_as_in_sa_med2d(data, tmp_path / "data")
    for row in score("--data_path", folder, "--prompt_modes", "bbox"):
        case = int(row.case.removeprefix("case_"))
        assert (row.dataset, row.modality, row.axis, row.slice) == (
            "Brain" if case % 2 else "Heart",
            "mr",
            "z",
            case * 10,
        )
        assert getattr(row, "class") == f"{row.dataset} {int(row.mask[-12:-8])}"
    names = {dataset: {f"{dataset} part {i}": i for i in range(1, 6)} for dataset in ("Brain", "Heart")}
    (folder / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(names))
    for row in score("--data_path", folder, "--prompt_modes", "bbox"):
        assert getattr(row, "class") == f"{row.dataset} part {int(row.mask[-12:-8])}"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"Brain": names["Brain"]}))
    assert (
        str(other) in (message := fails(lambda: score("--data_path", folder, "--class_names", other)))
        and "Heart" in message
    )


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A hundred times as many images, handed through parts, rows and prompts, take no more memory at once."""

    def peak(images: int) -> int:
        tracemalloc.start()
        parts = [Part(tmp_path, rank) for rank in range(2)]
        for number in range(images):
            row = {
                "image": f"{number}.png",
                "mask": f"{number}_0.png",
                "mode": "bbox",
                "dice": number / images,
                "status": "ok",
            }
            parts[number % 2].add(Measured(number, [row] * 4, {f"{number}_0.png": {"boxes": [[1, 2, 3, 4]]}}))
        for part in parts:
            part.close()
        write_rows(tmp_path / "rows.csv", (row for one in merged(tmp_path, 2) for row in one.rows))
        with open(tmp_path / "prompts.json", "w") as file:
            write_prompts(
                file, {"image_size": 64}, (item for one in merged(tmp_path, 2) for item in one.prompts.items())
            )
        return tracemalloc.get_traced_memory()[1], tracemalloc.stop()

    assert peak(5000)[0] < 1.5 * peak(50)[0] + 2**17
    with open(tmp_path / "rows.csv") as file:
        assert [line.split(",")[1] for line in file][1::4] == [f"{number}_0.png" for number in range(50)]


def test_empty_masks_are_skipped_and_counted(score, tmp_path: Path, work: Path, capsys) -> None:
    folder = make_data(tmp_path / "data", ("test",), images=2)
    for name, size in (("masks/0_0.png", (50, 40)), ("masks/0_1.png", (50, 40)), ("masks/1_2.png", (90, 70))):
        write(folder / name, np.zeros(size, np.uint8))
    rows = score("--data_path", folder, "--save_pred")
    assert {row.mask for row in rows if row.status == "ok"} == {"masks/1_0.png", "masks/1_1.png"}
    left_out = [row for row in rows if row.status != "ok"]
    assert {row.mask for row in left_out} == {"masks/0_0.png", "masks/0_1.png", "masks/1_2.png"} and len(
        left_out
    ) == 3 * len(DEFAULT)
    assert all(row.status == "empty truth" and row.dice is None and row.image for row in left_out)
    assert "2 objects in 2 images" in (said := capsys.readouterr().out) and "3 empty mask(s) skipped" in said
    assert json.loads((work / "sammed/results.json").read_text())["unscored"] == 3
    for name, size in (("masks/1_0.png", (90, 70)), ("masks/1_1.png", (90, 70))):
        write(folder / name, np.zeros(size, np.uint8))
    assert "empty" in fails(lambda: score("--data_path", folder))


@pytest.fixture
def vanishing(tmp_path: Path) -> Path:
    """Images of 50 x 40 and of 90 x 70 pixels; in the second an object of one pixel between those that are shown."""
    folder = make_data(tmp_path / "data", ("test",), images=2)
    mask = np.zeros((90, 70), np.uint8)
    mask[3, 11] = 255
    write(folder / "masks/1_1.png", mask)
    return folder


def test_an_object_that_vanishes_is_no_empty_mask(score, vanishing: Path, work: Path, capsys) -> None:
    write(vanishing / "masks/0_0.png", np.zeros((50, 40), np.uint8))
    rows = score("--data_path", vanishing)
    gone = [row for row in rows if row.status == "vanished"]
    assert {row.mask for row in gone} == {"masks/1_1.png"} and len(gone) == len(DEFAULT)
    assert all((row.true_area, row.image_area, row.dice, row.predicted_area) == (1, 6300, None, None) for row in gone)
    assert {row.mask for row in rows if row.status == "empty truth"} == {"masks/0_0.png"}
    said = capsys.readouterr().out
    assert "3 objects in 2 images" in said and "1 empty mask(s) skipped, such as masks/0_0.png\n" in said
    assert (
        f"1 object(s) vanish in the frame of {SIZE} pixels, such as masks/1_1.png of 1 pixel(s); --image_size 96 would "
        "show all of them; in no mean, unless --vanished zero counts them as 0\n" in said
    )
    results = json.loads((work / "sammed/results.json").read_text())
    assert (results["objects"], results["unscored"], results["vanished"]) == (3, 2, 1)
    shown = score("--data_path", vanishing, "--image_size", 96, "--sam_checkpoint", larger(work))
    assert {row.status for row in shown if row.mask == "masks/1_1.png"} == {"ok"}


def larger(work: Path) -> Path:
    """A mini model of 96 pixels."""
    torch.manual_seed(0)
    path = work / "mini96.safetensors"
    save_weights(sam_model_registry["mini"](image_size=96).state_dict(), path)
    return path


def test_what_vanishes_may_count_as_not_found(score, vanishing: Path, work: Path, capsys) -> None:
    left_out = score("--data_path", vanishing)
    rows = score("--data_path", vanishing, "--vanished", "zero", "--report", True)
    gone = [row for row in rows if row.status == "vanished"]
    assert len(gone) == len(DEFAULT)
    for row in gone:
        assert (row.dice, row.iou, row.nsd, row.predicted_area) == (0, 0, 0, 0)
        assert row.predicted_iou is None and row.noc80 is None
        assert row.hd95 == pytest.approx((90**2 + 70**2) ** 0.5)
    assert [row for row in rows if row not in gone] == [row for row in left_out if row.status == "ok"]
    assert "they count as 0" in capsys.readouterr().out
    results = json.loads((work / "sammed/results.json").read_text())
    assert (results["objects"], results["unscored"], results["vanished"]) == (5, 0, 1)
    found = [row.dice for row in rows if row.mode == "bbox"]
    assert results["dice"]["bbox"] == pytest.approx(sum(found) / 5) and len(found) == 5
    assert "vanish in the frame" in (work / "sammed/report.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------- cases, tables, tolerances


@pytest.fixture
def described(data: Path, tmp_path: Path) -> Path:
    """The data with a table: two cases of three slices, of pixels of 0.5 x 2 mm, and two classes."""
    folder = Path(shutil.copytree(data, tmp_path / "described"))
    lines = ["mask,image,dataset,modality,case,axis,slice,class,instance,spacing"]
    for mask, image in json.loads((folder / "label2image_test.json").read_text()).items():
        number, k = (int(part) for part in Path(mask).stem.split("_"))
        lines.append(f"{mask},{image},A,ct,case{number % 2},z,{number},{'organ' if k < 2 else 'other'},{k},0.5x2")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_cases_are_those_of_the_saved_masks(score, described: Path, work: Path, capsys) -> None:
    """Of each case and class: the masks of its slices joined, as numbers of pixels; classes and cases are printed."""
    rows = score("--data_path", described, "--save_pred", "--prompt_modes", "bbox", "3pts")
    said = capsys.readouterr().out
    cases = pandas.read_csv(work / "sammed/cases.csv")
    assert [*zip(cases["class"], cases["case"], cases["mode"])] == [
        (name, case, mode)
        for case, name in (("case0", "organ"), ("case1", "organ"), ("case1", "other"))
        for mode in ("bbox", "3pts")
    ]
    for one in cases.itertuples():
        mine = [row for row in rows if (row.case, row.mode) == (one.case, one.mode) and vars(row)["class"] == one[3]]
        overlap = true = predicted = 0
        for image in {row.image for row in mine}:
            here = [row.mask for row in mine if row.image == image]
            truth = np.any([cv2.imread(str(described / name), 0) > 0 for name in here], axis=0)
            found = [cv2.imread(str(work / f"sammed/masks/{one.mode}" / Path(name).name), 0) > 0 for name in here]
            found = np.any(found, axis=0)
            overlap, true, predicted = overlap + (found & truth).sum(), true + truth.sum(), predicted + found.sum()
        assert (one.true_volume, one.predicted_volume, one.objects) == (true, predicted, len(mine))
        assert one.dice == pytest.approx(2 * overlap / (true + predicted))
        assert one.volume_error == pytest.approx(abs(predicted - true) / true) and one.hd95_mm > one.hd95 / 2
    tables = json.loads((work / "sammed/results.json").read_text())["tables"]
    organ = [row for row in tables["case"] if (row["class"], row["mode"], row["metric"]) == ("organ", "bbox", "dice")]
    own = cases[(cases["class"] == "organ") & (cases["mode"] == "bbox")]["dice"]
    assert organ[0]["mean"] == pytest.approx(own.mean()) and organ[0]["clusters"] == 2
    assert "Dice % by class" in said and "Dice % by dataset" not in said and "HD95 mm" in said
    assert "† from fewer than 10 clusters" in said


def test_tables_as_asked_for(score, described: Path, capsys) -> None:
    score("--data_path", described, "--tables", "class", "case", "--format", "latex", "--prompt_modes", "bbox")
    said = capsys.readouterr().out
    assert said.count(r"\begin{tabular}") == 2 and r"Dice \% by class" in said and "volume error" in said
    assert "overall" not in said and r"\textdagger{}" in said
    with pytest.raises(SystemExit):
        score("--data_path", described, "--tables", "patients")


def test_a_table_of_what_nobody_knows_is_refused_before_the_model_runs(score, data: Path) -> None:
    said = fails(lambda: score("--data_path", data, "--tables", "case"))
    assert said.startswith("error: --tables case: the case of no mask is known; metadata.csv") and "--case" in said


def test_an_expression_tells_the_cases(score, data: Path, capsys) -> None:
    rows = score("--data_path", data, "--case", r"images/(\d)", "--prompt_modes", "bbox", "--tables", "overall", "case")
    assert {row.case for row in rows} == set("012345")
    assert "† from fewer than 10 clusters" in capsys.readouterr().out
    said = fails(lambda: score("--data_path", data, "--case", "(x.*)"))
    assert "--case (x.*): does not fit images/0 (the whole path" in said
    hint = re.search(r"'(.*)' does", said)[1]
    assert re.fullmatch(hint, "images/0")[1] == "0"
    assert "needs a group" in fails(lambda: score("--case", "images/.*"))
    assert "not a regular expression" in fails(lambda: score("--case", "("))


def test_tolerances_of_three_kinds(score, described: Path, capsys) -> None:
    """Pixels of 0.5 x 2 mm: 4 mm are two pixels of the wider side, and more of the other."""
    nsd = {}
    for tolerance in ("2", "2px", "4mm", "3%"):
        rows = score("--data_path", described, "--prompt_modes", "bbox", "--nsd_tolerance", tolerance)
        nsd[tolerance] = [row.nsd for row in rows]
    assert nsd["2"] == nsd["2px"] != nsd["4mm"] and all(one <= other for one, other in zip(nsd["2"], nsd["4mm"]))
    assert "warning" not in capsys.readouterr().err
    score("--data_path", described, "--prompt_modes", "bbox", "--nsd_tolerance", "1.2")
    said = capsys.readouterr().err
    assert "warning: --nsd_tolerance 1.2 px is less than a pixel of the model's frame in 2 of 6 image(s)" in said
    assert "1.2 times the tolerance" in said  # 90 / 64 pixels


def test_millimetres_need_a_spacing(score, data: Path) -> None:
    said = fails(lambda: score("--data_path", data, "--nsd_tolerance", "1mm"))
    assert said.startswith("error: --nsd_tolerance 1 mm: the spacing of masks/0_0.png is not known")


def test_flags_reach_the_model(score) -> None:
    """Each of them changes what comes out, and a repeated run does not."""
    first = score()
    assert score() == first
    for flags in (
        ["--seed", 1],
        ["--multimask", "False"],
        ["--use_amp"],
        ["--image_size", 96],
        ["--click_strategy", "center"],
    ):
        assert [row.dice for row in score(*flags)] != [row.dice for row in first], flags


# ---------------------------------------------------------------- frozen prompts


def test_written_prompts_repeat_every_row(score, work: Path) -> None:
    first = score("--prompt_modes", *ALL_MODES)
    assert score("--prompt_modes", *ALL_MODES, "--seed", 1, "--run_name", "other") != first
    frozen = ["--prompt_path", work / "sammed/prompts.json", "--seed", 1]
    assert score("--prompt_modes", *ALL_MODES, *frozen, "--run_name", "again") == first
    assert (work / "sammed/prompts.json").read_text() == (work / "again/prompts.json").read_text()
    assert score("--boxes_prompt", "False", "--iter_point", 3, *frozen, "--run_name", "third") == [
        row for row in first if row.mode == "3pts"
    ]


def test_a_prompt_file_of_the_original_is_followed(score, tmp_path: Path, work: Path) -> None:
    """Its keys: mask file names. It holds a box and clicks of one kind, those of our other file."""
    first = score("--prompt_modes", *ALL_MODES)
    ours = prompts_written(work)
    for mode, points in (("5shot", lambda p: p["others"]["5shot"]), ("5pts", lambda p: p)):
        path = tmp_path / f"{mode}.json"
        path.write_text(
            json.dumps(
                {
                    os.path.basename(name): {
                        "boxes": prompts["boxes"],
                        "point_coords": points(prompts)["point_coords"],
                        "point_labels": points(prompts)["point_labels"],
                    }
                    for name, prompts in ours.items()
                }
            )
        )
        rows = score("--prompt_modes", "bbox", mode, "--prompt_path", path, "--seed", 9)
        assert rows == [row for row in first if row.mode in ("bbox", mode)]

    shifted = json.loads(path.read_text())
    for prompts in shifted.values():
        prompts["boxes"] = [[0, 0, 9, 9]]
    path.write_text(json.dumps(shifted))
    assert [r.dice for r in score("--boxes_prompt", "--prompt_path", path)] != [
        r.dice for r in first if r.mode == "bbox"
    ]


def test_a_prompt_file_of_another_image_size_is_refused(score, tmp_path: Path, work: Path) -> None:
    score()
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**json.loads((work / "sammed/prompts.json").read_text()), "image_size": 2 * SIZE}))
    assert f"p.json: was made in a frame of {2 * SIZE} pixels" in fails(lambda: score("--prompt_path", path))


def test_a_skipped_mask_needs_no_prompts_the_second_time(score, data: Path, tmp_path: Path, work: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    name = json.loads((folder / "label2image_test.json").read_text())
    empty = next(iter(name))
    write(folder / empty, 0 * cv2.imread(str(folder / empty), cv2.IMREAD_GRAYSCALE))
    first = score("--data_path", folder)
    assert (
        sum(row.status == "ok" for row in first) == 4 * (OBJECTS - 1)
        and prompts_written(work)[os.path.basename(empty)] == {}
    )
    shutil.copy(work / "sammed/prompts.json", tmp_path / "p.json")
    assert score("--data_path", folder, "--prompt_path", tmp_path / "p.json", "--seed", 5) == first


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[]", "must hold"),
        ("without the last", "5_2.png"),
        ("three clicks", "clicks"),
        ("words", "0_0.png"),
    ],
)
def test_bad_prompt_files_end_in_one_line(content: str | None, said: str, score, tmp_path: Path, work: Path) -> None:
    path = tmp_path / "p.json"
    if content in ("without the last", "three clicks", "words"):
        score()
        prompts = prompts_written(work)
        if content == "without the last":
            del prompts["5_2.png"]
        elif content == "words":
            prompts["0_0.png"] = {"boxes": "here", "point_coords": "there", "point_labels": "x", "others": []}
        else:
            prompts = {name: {key: rows[:3] for key, rows in entry.items()} for name, entry in prompts.items()}
        content = json.dumps(prompts)
    if content is not None:
        path.write_text(content)
    message = fails(lambda: score("--prompt_path", path))
    assert str(path) in message and said.rstrip("s") in message


def test_prompts_that_windows_wrote_are_found(score, work: Path, tmp_path: Path) -> None:
    rows = score()
    prompts = json.loads((work / "sammed/prompts.json").read_text())
    renamed = {f"masks\\{name}" if name.endswith(".png") else name: entry for name, entry in prompts.items()}
    (tmp_path / "p.json").write_text(json.dumps(renamed))
    assert score("--prompt_path", tmp_path / "p.json") == rows


def test_a_lacking_object_is_found_before_the_model_runs(score, tmp_path: Path, work: Path, monkeypatch) -> None:
    score()
    prompts = json.loads((work / "sammed/prompts.json").read_text())
    del prompts["5_2.png"]
    (tmp_path / "p.json").write_text(json.dumps(prompts))
    monkeypatch.setattr(ImageEncoder, "forward", lambda *_: pytest.fail("an image was encoded"))
    assert "5_2.png" in fails(lambda: score("--prompt_path", tmp_path / "p.json"))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("spoil", SPOILED)
def test_bad_data_ends_in_one_line_naming_the_file(spoil: Callable, score, tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data")  # spoils the train index, which becomes the test index
    named = spoil(folder).replace("_train", "_test")
    if (train_index := folder / "image2label_train.json").exists():
        train_index.rename(folder / "image2label_test.json")
    assert named in fails(lambda: score("--data_path", folder))


def test_bad_weights_end_in_one_line(score, data: Path, weights: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--model_type mini" in fails(lambda: score("--model_type", "vit_t"))
    assert "nowhere.pth" in fails(lambda: score("--sam_checkpoint", "nowhere.pth"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-1000])
    assert str(cut) in fails(lambda: score("--sam_checkpoint", cut))
    message = fails(lambda: score("--sam_checkpoint", scoring.DEFAULT_CHECKPOINT))
    assert scoring.DEFAULT_CHECKPOINT in message and "--sam_checkpoint" in message


# ---------------------------------------------------------------- as people call it


def run_script(name: str, folder: Path, *flags: object) -> str:
    """A script of the repository as a process of its own, started in `folder`. -> what it printed."""
    done = subprocess.run(
        [sys.executable, ROOT / name, *map(str, flags)], cwd=folder, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_from_another_working_directory(tmp_path: Path) -> None:
    """Relative paths, and the work folder does not exist yet."""
    make_data(tmp_path / "mine", ("test",), images=2)
    save_weights(sam_model_registry["vit_t"](image_size=SIZE).state_dict(), tmp_path / "t.safetensors", torch.float16)
    printed = run_script(
        "test.py",
        tmp_path,
        "--model_type",
        "vit_t",
        "--image_size",
        SIZE,
        "--sam_checkpoint",
        "t.safetensors",
        "--data_path",
        "mine",
        "--save_pred",
        "--prompt_modes",
        "bbox",
        "3pts",
    )
    assert "5 objects in 2 images" in printed
    (tmp_path / "t.safetensors").unlink()
    assert {path.name for path in (tmp_path / "workdir/sammed").iterdir()} == {
        "rows.csv",
        "results.json",
        "prompts.json",
        "masks",
        "overlays",
        "report.html",
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """ViT-B with random weights in the layouts people download: Meta's (bare, 1024 px), and SAM-Med2D's (256 px, with
    adapters and a pickled Adam). 1.4 GB, removed afterwards."""
    folder = tmp_path_factory.mktemp("published")
    paths = {"meta": folder / "sam_vit_b_01ec64.pth", "sam-med2d": folder / "sam-med2d_b.pth"}
    torch.save(sam_model_registry["vit_b"](image_size=1024, encoder_adapter=False).state_dict(), paths["meta"])
    model = sam_model_registry["vit_b"](image_size=256)
    optimizer = torch.optim.Adam(model.mask_decoder.iou_token.parameters(), lr=1e-4)
    model.mask_decoder.iou_token.weight.sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer}, paths["sam-med2d"])
    yield paths
    shutil.rmtree(folder)


@pytest.fixture(params=["inside", "outside"])
def demo(request, shared: Path, tmp_path: Path) -> tuple[Path, str]:
    """The folder to start in, and --data_path there: the original's CT slices, whose index starts with data_demo/."""
    folder = shared / "data" / "sam_med2d"
    return (folder, "data_demo") if request.param == "inside" else (tmp_path, str(folder / "data_demo"))


# the layout, pixels for train and test, and the adapters that are trained: what they learn by takes twice their memory
SETTINGS = {"inside": ("meta", 256, 320, range(12)), "outside": ("sam-med2d", 224, 256, range(10, 12))}
GIGABYTES = 2**20  # in units of ru_maxrss


def test_training_on_the_originals_data_and_weights(demo, published, work: Path, request) -> None:
    folder, data_path = demo
    layout, size, _, blocks = SETTINGS[request.node.callspec.params["demo"]]
    printed = run_script(
        "train.py",
        folder,
        "--epochs",
        1,
        "--data_path",
        data_path,
        "--sam_checkpoint",
        published[layout],
        "--image_size",
        size,
        "--work_dir",
        work,
        "--mask_num",
        1,
        "--iter_point",
        1,
        "--num_workers",
        0,
        "--tune_blocks",
        "last",
        len(blocks),
    )
    assert ("newly started: adapters of 12 blocks" in printed) == (layout == "meta")
    assert f"resized to {size} px: pos_embed, rel_pos of 4 blocks" in printed
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 8 * GIGABYTES

    given = torch.load(published[layout], mmap=True, weights_only=False)
    given = given.get("model", given)
    after = torch.load(work / "models/sam-med2d/best.pth", mmap=True, weights_only=True)["model"]
    same = lambda name: torch.equal(given[name], after[name])
    assert same("image_encoder.blocks.3.mlp.lin1.weight") and same("image_encoder.neck.0.weight")
    assert not same("mask_decoder.mask_tokens.weight") and not same("prompt_encoder.not_a_point_embed.weight")
    for i in range(12):
        assert after[f"image_encoder.blocks.{i}.Adapter.norm.bias"].any() == (i in blocks), i


def test_scoring_the_originals_data_and_weights(demo, published, work: Path, request) -> None:
    folder, data_path = demo
    layout, _, size, _ = SETTINGS[request.node.callspec.params["demo"]]
    printed = run_script(
        "test.py",
        folder,
        "--data_path",
        data_path,
        "--sam_checkpoint",
        published[layout],
        "--image_size",
        size,
        "--work_dir",
        work,
        "--encoder_adapter",
        layout != "meta",
        "--prompt_modes",
        "bbox",
        "3pts",
    )
    assert "11 objects in 2 images" in printed
    results = json.loads((work / "sammed/results.json").read_text())
    assert all(0 < results["dice"][mode] < 1 for mode in ("bbox", "3pts"))
    masks = json.loads((folder / data_path / "label2image_test.json").read_text())
    prompts = json.loads((work / "sammed/prompts.json").read_text())
    assert prompts.pop("image_size") == size
    assert {*prompts} - {"click_strategy", "protocol", "frame"} == {Path(mask).name for mask in masks}
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 8 * GIGABYTES


# ---------------------------------------------------------------- pictures of other kinds


@pytest.fixture(scope="module")
def fine_tuned(small_and_repeatable, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of train.py whose run started from `weights`; its decoder was changed a little."""
    path = tmp_path_factory.mktemp("tuned") / "best.pth"
    tensors = {name: tensor.clone() for name, tensor in open_weights(weights).tensors.items()}
    tensors["mask_decoder.mask_tokens.weight"] += 0.5
    flags = {"model_type": "mini", "image_size": SIZE, "encoder_adapter": True, "sam_checkpoint": str(weights)}
    torch.save({"model": tensors, "flags": flags}, path)
    return path


def lost(work: Path) -> list[dict]:
    return json.loads((work / "sammed/results.json").read_text())["tables"].get("elsewhere", [])


def test_what_fine_tuning_lost_is_said(score, fine_tuned: Path, weights: Path, work: Path, capsys) -> None:
    """Beside the weights it started from, on the same phantoms; scored as those weights score themselves there."""
    rows = score("--sam_checkpoint", fine_tuned, "--prompt_modes", "bbox", "--report", "True")
    found = lost(work)
    assert [(row["data"], row["mode"], row["objects"]) for row in found] == [
        ("phantoms", "bbox", 48),
        ("phantoms", "5pts", 48),
    ]
    assert all(row["change"] == pytest.approx(row["Dice"] - row["before"]) and row["change"] != 0 for row in found)
    assert "before" in capsys.readouterr().out and "Elsewhere" in (work / "sammed/report.html").read_text()
    assert {row.mode for row in rows} == {"bbox"}, "rows are of the trained data alone"

    score("--prompt_modes", "bbox", "--also", "phantoms")
    assert [row["Dice"] for row in lost(work)] == [row["before"] for row in found]
    assert "before" not in lost(work)[0], "weights that are of no training have no before"


def test_other_data_is_asked_by_its_folder(score, fine_tuned: Path, data: Path, work: Path, tmp_path: Path) -> None:
    score("--sam_checkpoint", fine_tuned, "--prompt_modes", "bbox", "--also", data)
    results = json.loads((work / "sammed/results.json").read_text())
    assert lost(work)[0]["Dice"] == pytest.approx(results["dice"]["bbox"])
    with pytest.raises(SystemExit, match="nowhere"):
        score("--also", tmp_path / "nowhere")


def test_elsewhere_is_not_asked_of_other_weights_or_when_told_so(score, fine_tuned: Path, work: Path) -> None:
    score("--prompt_modes", "bbox")
    assert lost(work) == []
    score("--prompt_modes", "bbox", "--sam_checkpoint", fine_tuned, "--also", "none")
    assert lost(work) == []
