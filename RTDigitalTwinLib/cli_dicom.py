"""What the command line offers for DICOM: options to choose and confirm; inspect, anonymize and sample."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from RTDigitalTwinLib.cli_terminal import RESEARCH_USE
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.progress import Progress, part
from RTDigitalTwinLib.words import counted

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
    from RTDigitalTwinLib.patient.patient import Patient

EXIT_LEFT_OUT = 3  # as of other commands that were carried out, but not to what one hopes for
ProgressBar = Callable[[], AbstractContextManager[Progress]]


def add_dicom_commands(commands: Any, seed: Callable[[str], int], progress_bar: ProgressBar) -> None:
    """Add the commands to a parser's commands; ``seed`` reads one, ``progress_bar`` shows what is done."""
    inspect = commands.add_parser(
        "inspect",
        help="what a folder of DICOM files holds, and what is wrong with it",
        epilog="Ends with 0 where a patient can be used, be it after names are confirmed, and with 1 where none can.",
    )
    inspect.set_defaults(command=lambda options: _inspect(options, progress_bar))
    inspect.add_argument("folder", type=Path, metavar="FOLDER")
    inspect.add_argument("--show-identity", action="store_true", help="show patients' identifiers beside pseudonyms")
    inspect.add_argument(
        "--write-map", type=Path, metavar="FILE", help="write what the names may mean, to be confirmed"
    )
    add_dicom_options(inspect)

    anonymize = commands.add_parser(
        "anonymize",
        help="a copy of a DICOM folder for handing on, without identities",
        epilog=f"Ends with 0 where every DICOM file was copied, with {EXIT_LEFT_OUT} where some were left out.",
    )
    anonymize.set_defaults(command=lambda options: _anonymize(options, progress_bar))
    anonymize.add_argument("folder", type=Path, metavar="FOLDER")
    anonymize.add_argument("--out", type=Path, required=True, help="folder for the copy; new or empty")
    anonymize.add_argument(
        "--show-files", action="store_true", help="name the files that were left out; their paths may name a patient"
    )

    sample = commands.add_parser("sample", help="write the built-in sample patient as a DICOM-RT set")
    sample.set_defaults(command=lambda options: _sample(options, progress_bar))
    sample.add_argument("--out", type=Path, required=True, help="folder for the set; new or empty")
    sample.add_argument("--seed", type=seed, default=0, help="of the anatomy (default 0)")


def add_dicom_options(parser: ArgumentParser, fractions: str = "--fractions", *, sums: bool = False) -> None:
    """Options to choose among DICOM files and to confirm what their names mean.

    ``fractions`` names the option for how many are prescribed; ``sums``: the command sums doses of days, so that the
    checks of that can be passed over too.
    """
    from RTDigitalTwinLib.patient.overrides import OF_FILES, OF_SUMS

    checks = OF_FILES | OF_SUMS if sums else OF_FILES
    dicom = parser.add_argument_group("of DICOM folders")
    dicom.add_argument("--patient", dest="person", default="", metavar="WHO", help="pseudonym or identifier")
    dicom.add_argument("--structure-set", default="", metavar="LABEL", help="one of several structure sets")
    dicom.add_argument("--plan", default="", metavar="LABEL", help="one of several plans")
    dicom.add_argument(
        "--map", action="append", default=[], metavar="NAME=TG263", help='confirm a name: "Parotida Izq=Parotid_L"'
    )
    dicom.add_argument("--map-file", type=Path, metavar="FILE", help="confirmed names, as inspect --write-map writes")
    dicom.add_argument(fractions, dest="prescribed_fractions", type=int, metavar="N", help="where no plan says them")
    dicom.add_argument(
        "--accept",
        action="append",
        default=[],
        choices=sorted(checks),
        help="pass over a failed check, recorded in the results: "
        + "; ".join(f"{name}: {meaning}" for name, meaning in sorted(checks.items())),
    )


def dicom_choice(options: Namespace) -> DicomChoice:
    """The options as the reader takes them. Raises PatientDataError for a mapping that cannot be read."""
    from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
    from RTDigitalTwinLib.patient.overrides import Overrides
    from RTDigitalTwinLib.patient.plan import MOST_FRACTIONS
    from RTDigitalTwinLib.patient.structure_map import parse_mappings, read_mapping

    if options.prescribed_fractions is not None and not 1 <= options.prescribed_fractions <= MOST_FRACTIONS:
        raise PatientDataError(
            f"Fractions must be 1 to {MOST_FRACTIONS}, not {options.prescribed_fractions}.", where="--fractions"
        )
    return DicomChoice(
        options.person,
        options.structure_set,
        options.plan,
        parse_mappings(options.map),
        read_mapping(options.map_file) if options.map_file else {},
        options.prescribed_fractions,
        Overrides(frozenset(options.accept)),
    )


def _inspect(options: Namespace, progress_bar: ProgressBar) -> int:
    from RTDigitalTwinLib.patient.dicom_inspection import Line, Weight, inspect_folder
    from RTDigitalTwinLib.patient.structure_map import write_mapping

    colours = {Weight.PLAIN: "", Weight.GOOD: "green", Weight.WARNING: "yellow", Weight.PROBLEM: "bold red"}
    words = {Weight.PLAIN: "", Weight.GOOD: "", Weight.WARNING: "Note: ", Weight.PROBLEM: "Problem: "}

    def grown(line: Line, tree: Tree) -> Tree:
        for child in line.below:
            grown(child, tree.add(Text(words[child.weight] + " ".join(child.text.split()), colours[child.weight])))
        return tree

    _require_files(options.folder)
    with progress_bar() as shown:
        found = inspect_folder(
            options.folder,
            dicom_choice(options),
            accept=_as_predicted,
            show_identity=options.show_identity,
            progress=shown,
        )
    Console(highlight=False).print(grown(found.tree, Tree(Text(found.tree.text))))
    if options.write_map:
        write_mapping(found.names_of(options.person), options.write_map)
        print(f"Names to confirm: {options.write_map}")
    found.require_usable(options.person)
    return 0


def _as_predicted(patient: Patient) -> list[str]:
    """What a prediction changes of a patient, volumes too. Raises PatientDataError where none is possible."""
    from RTDigitalTwinLib.model.network_patient import network_patient

    shown = network_patient(patient).shown
    return [f"In predictions: {note}" for note in shown.warnings if note not in patient.warnings]


def _anonymize(options: Namespace, progress_bar: ProgressBar) -> int:
    from RTDigitalTwinLib.patient.dicom_anonymize import anonymize_folder
    from RTDigitalTwinLib.patient.dicom_deidentification import COVERED, NOT_COVERED
    from RTDigitalTwinLib.patient.dicom_inspection import NO_DICOM

    _require_files(options.folder)
    with progress_bar() as shown:
        done = anonymize_folder(options.folder, options.out, shown)
    tree = Tree(Text(f"{options.out}: {counted(len(done.patients), 'patient')}"))
    for patient in done.patients:
        branch = tree.add(Text(f"{patient.pseudonym} is {patient.identifier}: {counted(patient.files, 'file')}"))
        if patient.structure_names:
            branch.add(Text(f"Names of structures, kept: {', '.join(patient.structure_names)}"))
        if patient.renamed:
            branch.add(
                Text(f"{patient.renamed} names of structures held a word of a person and were replaced", "yellow")
            )
    if options.show_files:
        for problem in done.left_out:
            told = f"Left out: {problem.where}: {problem.what} {problem.remedy}"
            tree.add(Text(" ".join(told.split()), "bold red"))
    else:
        for reason, count in done.reasons.items():
            tree.add(Text(f"Left out: {counted(count, 'file')}: {reason}", "bold red"))
        if done.reasons:
            tree.add(Text("Their paths may name a patient: --show-files shows them", "yellow"))
    if done.other_files:
        tree.add(Text(f"Left out: {counted(done.other_files, *NO_DICOM)}", "yellow"))
    for title, lines in (("Taken out", COVERED), ("Not covered: look yourself before you hand it on", NOT_COVERED)):
        branch = tree.add(Text(title))
        for line in lines:
            branch.add(Text(line))
    Console(highlight=False).print(tree)
    return EXIT_LEFT_OUT if done.left_out else 0


def _require_files(folder: Path) -> None:
    """Raises PatientDataError for the word that stands for the built-in patient, who has no files."""
    from RTDigitalTwinLib.source import SAMPLE

    if str(folder) == SAMPLE and not folder.exists():
        raise PatientDataError(
            "The built-in patient has no files.",
            where=SAMPLE,
            remedy="Write them first: rt-digital-twin sample --out FOLDER.",
        )


def _sample(options: Namespace, progress_bar: ProgressBar) -> int:
    from RTDigitalTwinLib.dosimetry.planning import planned
    from RTDigitalTwinLib.patient.dicom_export import write_patient
    from RTDigitalTwinLib.patient.patient import Patient

    with progress_bar() as shown:
        shown(0.0, "making the patient")
        patient = planned(Patient.sample(options.seed), progress=part(shown, 0.1, 0.6))
        write_patient(patient, options.out, part(shown, 0.6, 1.0))
    print(f"{options.out}: CT, RTSTRUCT, RTPLAN and RTDOSE of {patient.pseudonym}, no person's data.")
    print(RESEARCH_USE)
    return 0
