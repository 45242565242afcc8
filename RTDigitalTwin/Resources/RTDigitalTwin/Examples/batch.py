"""Predict every patient in a folder: a scene, a report and tables each, and a list of what came of all.

In Slicer:  Slicer --no-splash --no-main-window --python-script batch.py -- PATIENTS OUT [--samples 32] [--device auto]
In Python:  python batch.py PATIENTS OUT [--samples 32] [--device auto]

A patient is a folder in PATIENTS. One whose results are in OUT already is passed over, so a batch that was broken off
goes on when it is started again. Ends with 0 where all are done, with 1 where any failed, and with 2 where it was
called wrongly. ``batch.csv`` in OUT says of each what came of it.
"""

import argparse
import csv
import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("RTDigitalTwinLib") is None:  # a source checkout
    sys.path.append(str(Path(__file__).resolve().parents[4]))

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.files import require_apart, whole_file
from RTDigitalTwinLib.scene.scene_twin import SceneTwin
from RTDigitalTwinLib.scene.session import headless_session, in_application

FAILED = 1


def batch(patients, out, samples=32, device="auto", say=print):
    """Predict all patients; returns rows of (patient, state, remark)."""
    require_apart(out, patients)
    out.mkdir(parents=True, exist_ok=True)
    folders = sorted(path for path in patients.iterdir() if path.is_dir())
    if not folders:
        raise RTDigitalTwinError(
            "There is no patient's folder.", where=patients.name, remedy="Give a folder of folders."
        )
    rows = []
    for number, folder in enumerate(folders, start=1):
        place = out / f"patient-{number:03d}"  # a folder's name may be a patient's
        state, remark = one(folder, place, samples, device)
        say(f"{number} of {len(folders)}: {place.name} {state}{': ' if remark else ''}{remark}")
        rows.append((place.name, state, remark))
    with whole_file(out / "batch.csv") as aside, aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("patient", "state", "remark"), *rows])
    return rows


def one(folder, place, samples, device):
    """Predict one patient, in a scene of its own; returns state and remark."""
    scene_file = place.with_suffix(".mrb")
    if scene_file.is_file() and place.is_dir():  # the scene is written last
        return "done before", ""
    with headless_session() as session:
        session.scene.Clear(0)
        twin = SceneTwin(session.scene)
        try:
            twin.load(folder)
            twin.predict(samples, device=device)
            if not place.is_dir():
                twin.write_report(place)
            twin.save_scene(scene_file)
        except RTDigitalTwinError as error:
            return "failed", str(error)
        finally:
            session.scene.Clear(0)
    return "done", ""


def main(arguments):
    parser = argparse.ArgumentParser(prog="batch.py", description=__doc__.split("\n")[0])
    parser.add_argument("patients", type=Path, metavar="PATIENTS")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args(arguments)
    if not options.patients.is_dir():
        parser.error(f"there is no folder {options.patients}")
    try:
        rows = batch(options.patients, options.out, options.samples, options.device)
    except RTDigitalTwinError as error:
        print(f"Error: {error}", file=sys.stderr)
        return FAILED
    return FAILED if any(state == "failed" for _, state, _ in rows) else 0


if __name__ == "__main__":
    if in_application():
        import slicer

        given = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]
        try:
            code = main(given)
        except SystemExit as ended:  # of the parser
            code = ended.code or 0
        slicer.util.exit(code)
    else:
        sys.exit(main(sys.argv[1:]))
