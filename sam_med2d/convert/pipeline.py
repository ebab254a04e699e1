"""The conversion: all cases of a source through several processes, then the indexes. Resumable: see writer.py."""

import errno
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
from tqdm import tqdm

from sam_med2d.convert.cases import Case, Converter, Tally
from sam_med2d.convert.saturation import Ends, lines
from sam_med2d.convert.splits import SPLITS, Splits
from sam_med2d.convert.writer import (
    PARTIAL,
    IndexFiles,
    check_apart,
    folder_of,
    index_files,
    read_receipt,
    receipts,
    remove_case,
    remove_stale_indexes,
    write_case,
)
from sam_med2d.errors import DataError, OutputError
from sam_med2d.seeds import seed_of
from sam_med2d.stopping import leave_signals_to_the_parent

VERSION = 2  # of what a conversion writes; raised when the same source would give other files
MANY_NUMBERS = 20  # classes without a name, from which on they may be objects
SHOWN = 5  # bad cases that an error lists
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def convert(
    cases: Sequence[Case],
    converter: Converter,
    output: Path,
    dataset: str,
    splits: Splits,
    *,
    sources: Iterable[Path],
    num_workers: int = 0,
    skip_bad_cases: bool = False,
    prune: bool = False,
) -> None:
    """Convert what is new or has changed, then write the indexes of everything in `output`, and print what came of it.

    sources: folders that are only read. skip_bad_cases: leave out cases that cannot be converted, instead of ending
    without new indexes. prune: remove cases of this data set that are no longer among `cases`.
    Raises DataError, UsageError.
    """
    check_apart(output, sources)
    by_folder: dict[str, Case] = {}
    for case in cases:
        other = by_folder.setdefault(
            folder_of(dataset, case).casefold(), case
        )  # some file systems do not tell A from a
        if other is not case:
            raise DataError(f"two cases are called '{other.name}' and '{case.name}'; give them names of their own")
    if not cases:
        raise DataError("no case was found; check the folders and the patterns")
    for case in cases:
        splits.check(case.group, case.name, case.split)  # before the work
    try:
        output.mkdir(parents=True, exist_ok=True)
        failures = _convert_changed(cases, converter, output, dataset, num_workers)
        gone = [name for name, receipt in receipts(output, skip=by_folder) if receipt["dataset"] == dataset]
        if prune:
            for name in gone:
                remove_case(output, name)
        if failures and (not skip_bad_cases or len(failures) == len(cases)):
            kinds = _of_each_kind(failures)
            for failure in kinds[1:SHOWN]:  # the first is said below
                print(f"bad case: {failure}")
            raise DataError(
                f"{len(failures)} of {len(cases)} case(s) could not be converted"
                f"{', such as' if len(kinds) > 1 else ':'} {kinds[0].rstrip('.')}. The others are done and stay; "
                "run again when these are corrected, or with --skip_bad_cases"
            )
        _write_indexes(output, splits)
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
    except OSError as error:
        raise _writing(error, output) from error
    for failure in _of_each_kind(failures):
        print(f"left out: {failure}")
    if gone:
        print(
            f"{len(gone)} case(s) of '{dataset}' from earlier runs are no longer in the source, such as {gone[0]}: "
            + ("removed" if prune else "kept; --prune removes them")
        )


def _of_each_kind(failures: Sequence[str]) -> list[str]:
    """ "CASE: what is wrong", of each case -> the same once for all cases of which it is said, with their number."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for failure in failures:
        name, _, wrong = failure.partition(": ")
        kinds.setdefault(wrong.replace(name, "*"), []).append((name, failure))
    lines = []
    for (_, failure), *others in kinds.values():
        names = ", ".join(name for name, _ in others[:SHOWN]) + ", ..." * (len(others) > SHOWN)
        lines.append(failure + f" (and {len(others)} more in the same way: {names})" * bool(others))
    return lines


def _writing(error: OSError, output: Path) -> OutputError:
    return OutputError(
        f"{error.filename or output}: cannot be written ({error.strerror}); make room or choose another "
        "--output, and run again: what is done stays"
    )


def _convert_changed(
    cases: Sequence[Case], converter: Converter, output: Path, dataset: str, num_workers: int
) -> list[str]:
    """-> one line for each case that could not be converted."""
    todo = []
    for case in tqdm(cases, desc="looking for changes", unit="case", leave=False, dynamic_ncols=True):
        fingerprint = _fingerprint(case, converter)
        receipt = read_receipt(output, folder_of(dataset, case))
        if receipt is None or receipt["fingerprint"] != fingerprint:
            todo.append((case, fingerprint))
    work = partial(_convert_one, converter, output, dataset)
    failures = []
    with tqdm(
        total=len(cases), initial=len(cases) - len(todo), desc="converting", unit="case", dynamic_ncols=True
    ) as bar:
        for failure in _run(work, todo, num_workers):
            bar.update()
            if failure:
                failures.append(failure)
    return sorted(failures)


def _fingerprint(case: Case, converter: Converter) -> str:
    """Of everything that decides what a case becomes: files by size and time, settings, the version of this program."""
    files = []
    for path in case.files:
        try:
            status = os.stat(path)
            files.append((os.path.basename(path), status.st_size, status.st_mtime_ns))
        except OSError:
            files.append((os.path.basename(path), 0, 0))  # reading it will say what is wrong
    data = json.dumps(_without_folders(case.data, set(case.files)), sort_keys=True)
    limits = {field.name for field in fields(converter) if field.metadata.get("limit")}
    deciding = {name: value for name, value in asdict(converter).items() if name not in limits}
    settings = json.dumps(deciding, sort_keys=True)
    return f"{seed_of(VERSION, type(converter).__name__, settings, case.group, case.split, data, files):016x}"


def _without_folders(data: object, files: set[str]) -> object:
    """The same with the names of files in place of their paths: a source that was moved is the same source."""
    if isinstance(data, dict):
        return {key: _without_folders(value, files) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_folders(value, files) for value in data]
    return os.path.basename(data) if isinstance(data, str) and data in files else data


def _convert_one(converter: Converter, output: Path, dataset: str, case: Case, fingerprint: str) -> str:
    """-> what is wrong with the case, or nothing. Raises OutputError if the output cannot be written."""
    tally = Tally()
    try:
        write_case(output, dataset, case, converter.pictures(case, tally), fingerprint, tally)
        return ""
    except DataError as error:
        failure = f"{case.name}: {error}"
    except OSError as error:
        if error.errno in NO_ROOM and error.filename not in case.files:
            raise _writing(error, output) from error
        failure = f"{case.name}: {error.filename}: cannot be read ({error.strerror})"
    remove_case(output, folder_of(dataset, case))  # what an earlier run made of it is no longer what the source holds
    return failure


def _run(work: Callable[[Case, str], str], todo: list[tuple[Case, str]], num_workers: int) -> Iterator[str]:
    """Results of work(case, fingerprint) as they come, from num_workers processes or, with 0, from this one."""
    if not num_workers:
        yield from (work(*one) for one in todo)
        return
    waiting = iter(todo)
    while suspects := (yield from _in_processes(work, waiting, num_workers)):
        for one in suspects:  # each by itself, with all the memory: the one that ends its process again is the culprit
            if (yield from _in_processes(work, iter([one]), 1)):
                yield f"{one[0].name}: its process was killed, for want of memory or by what is in its files"


def _in_processes(
    work: Callable[[Case, str], str], waiting: Iterator[tuple[Case, str]], num_workers: int
) -> Generator[str, None, list[tuple[Case, str]]]:
    """Yields results until nothing is waiting, or a process dies. -> what was begun then, and is not done."""
    pool = ProcessPoolExecutor(num_workers, initializer=_start_worker)  # which starts them when they are needed
    running: dict[Future, tuple[Case, str]] = {}
    try:
        while True:
            for one in islice(waiting, 2 * num_workers - len(running)):
                running[pool.submit(work, *one)] = one
            if not running:
                return []
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                del running[future]
                yield result
    except BrokenProcessPool:
        return [*running.values()]
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    leave_signals_to_the_parent(end_on_sigterm=True)  # which lets running cases finish
    cv2.setNumThreads(0)  # processes are the parallelism; threads inside them only compete


# ---------------------------------------------------------------- indexes


@dataclass
class _Totals:
    cases: dict[str, set]  # split -> groups
    classes: Counter
    left_out: Counter
    empty: list[str]  # cases without an object
    notes: dict[str, list[str]]  # what was assumed -> the cases of which it was
    ends: dict[str, Ends]  # of each case
    flat: Counter[bool]  # pictures of one value, and others


def _write_indexes(output: Path, splits: Splits) -> None:
    """From the receipts of all cases in `output`, of this data set and of others."""
    there = [(one["dataset"], one["group"], one["split"]) for _, one in receipts(output) if one["pictures"]]
    splits = replace(splits, tested=frozenset(dataset for dataset, _, given in there if given == "test"))
    by_chance = {(dataset, group) for dataset, group, given in there if not given}
    splits = splits.settled(output, by_chance, {given for *_, given in there if given})
    if splits.auto and not splits.fixed and splits.seed:
        print(f"--split_seed {splits.seed} makes the splits")
    folders = [output / f"fold_{fold}" for fold in range(splits.folds)] or [output]
    totals = _Totals({split: set() for split in SPLITS}, Counter(), Counter(), [], {}, {}, Counter())
    with index_files(folders) as files:
        for _, receipt in receipts(output):
            _add_case(files, receipt, splits, totals)
    remove_stale_indexes(output, keep=folders)
    _report(output, files, folders, splits, totals)


def _add_case(files: list[IndexFiles], receipt: dict, splits: Splits, totals: _Totals) -> None:
    homes = splits.of(receipt["dataset"], receipt["group"], receipt["case"], receipt["split"])
    totals.left_out.update(receipt["left_out"])
    for note in receipt.get("notes", ()):  # receipts of earlier versions have none
        totals.notes.setdefault(note, []).append(receipt["case"])
    totals.ends[f"{receipt['dataset']}/{receipt['case']}"] = receipt.get("ends", {})
    flat = receipt.get("flat", 0)
    totals.flat.update({True: flat, False: len(receipt["pictures"]) - flat})
    if not receipt["pictures"]:
        totals.empty.append(receipt["case"])
        return
    totals.cases[homes[0]].add((receipt["dataset"], receipt["group"]))
    for picture in receipt["pictures"]:
        spacing = picture["spacing"] and "x".join(f"{mm:g}" for mm in picture["spacing"])
        rows = [
            {
                "mask": mask,
                "dataset": receipt["dataset"],
                "modality": picture["modality"],
                "case": receipt["group"],
                "axis": picture["axis"],
                "slice": picture["slice"],
                "class": class_name,
                "instance": instance,
                "spacing": spacing,
            }
            for mask, class_name, instance in picture["masks"]
        ]
        totals.classes.update(row["class"] for row in rows)
        for one, split in zip(files, homes):
            one.add(split, picture["image"], rows)


def _report(output: Path, files: list[IndexFiles], folders: list[Path], splits: Splits, totals: _Totals) -> None:
    for folder, one in zip(folders, files):
        where = f"{folder.name}: " if len(folders) > 1 else ""
        said = [
            f"{split} {one.counts[split]['images']} images, {one.counts[split]['masks']} masks"
            + (f" of {len(totals.cases[split])} case(s)" if folder is folders[0] else "")
            for split in SPLITS
        ]
        print(where + "; ".join(said))
    names = [f"{name} {count}" for name, count in totals.classes.most_common()]
    print(f"{len(names)} class(es): " + ", ".join(names[:20]) + (", ..." if len(names) > 20 else ""))
    if totals.left_out:
        print("left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(totals.left_out.items())))
    for note, cases in totals.notes.items():
        print(f"note: {note} ({len(cases)} case(s), such as {cases[0]})")
    for line in [*lines(totals.ends, totals.flat), *_many_numbers(totals.classes)]:
        print(line)
    if totals.empty:
        print(f"{len(totals.empty)} case(s) have no object and are in no index, such as {totals.empty[0]}")
    if not totals.classes:
        raise DataError(
            f"{output}: no object is left; check the labels, and what --min_area, --min_aspect and --only leave out"
        )
    missing = [split for split, share in zip(SPLITS, splits.ratios) if share and not totals.cases[split]]
    if missing and not splits.folds and not splits.fixed:
        groups = set.union(*totals.cases.values())
        print(_why_empty(missing, groups, splits))
    elif any(one.counts["train"]["images"] for one in files):
        print(f"now: python train.py --data_path {folders[0]}")


def _many_numbers(classes: Counter[str]) -> list[str]:
    """Values of label maps that are many and rare look like objects of one kind, each with a number of its own."""
    numbers = {name: count for name, count in classes.items() if re.fullmatch(r"label_\d{3,}", name)}
    masks = sum(numbers.values())
    if len(numbers) < MANY_NUMBERS or masks >= 2 * len(numbers):
        return []
    return [
        f"warning: {masks} mask(s) are of {len(numbers)} classes that are called by numbers; if every value of a "
        "label map is one object, give --instances CLASS"
    ]


def _why_empty(missing: list[str], groups: set[tuple[str, str]], splits: Splits) -> str:
    """groups: (data set, group) of all cases."""
    said = f"no case fell to {' and '.join(missing)}, as there are only {len(groups)}"
    wanted = sum(share > 0 for share in splits.ratios)
    if len(groups) < wanted:
        return f"{said} for {wanted} splits: add cases, choose --ratios such as 1 0 0, or name them in a --split_file"
    seed, counts = splits.evenest_seed(groups)
    would = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    return f"{said}: --split_seed {seed} would give {would}; or name them in a --split_file"
