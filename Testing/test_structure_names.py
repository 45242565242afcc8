"""Names of structures: what is exact, what is proposed, what is refused, and the mapping file."""

from __future__ import annotations

from pathlib import Path

import pytest

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.structure_map import parse_mappings, read_mapping, write_mapping
from RTDigitalTwinLib.patient.structure_matching import (
    Candidate,
    Match,
    MatchState,
    level_of,
    match_structures,
    words_of,
)


def match(
    source: str, interpreted_type: str = "", level_gy: float | None = None, volume_cc: float | None = None
) -> Match:
    return match_structures([Candidate(source, interpreted_type, level_gy, volume_cc)])[0]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Parotid_L", "Parotid_L"), ("parotid_l", "Parotid_L"), ("PAROTID L", "Parotid_L"),
        ("SpinalCord", "SpinalCord"),
        ("Bone_Mandible", "Bone_Mandible"), ("PTV_7000", "PTV_7000"), ("PTV_6996", "PTV_6996"),
        ("External", "External"),
    ],
)  # fmt: skip
def test_tg263_names_are_exact(source: str, name: str) -> None:
    found = match(source)
    assert (found.name, found.state, found.confidence, found.counts) == (name, MatchState.EXACT, 1.0, True)
    assert found.reason == ("TG-263 name" if source == name else "TG-263 name, written otherwise")


def test_the_dose_mask_is_exact_by_a_name_that_is_not_tg263() -> None:
    found = match("FeasibleDose")
    assert found.counts and found.state is MatchState.EXACT
    assert "TG-263" not in found.reason and "where dose is predicted" in found.reason


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Brain stem", "Brainstem"), ("Hirnstamm", "Brainstem"), ("Tronc cérébral", "Brainstem"),
        ("Hersenstam", "Brainstem"), ("Tronco encefálico", "Brainstem"),
        ("Cord", "SpinalCord"), ("Rückenmark", "SpinalCord"), ("Moelle épinière", "SpinalCord"),
        ("Ruggenmerg", "SpinalCord"), ("Médula espinal", "SpinalCord"),
        ("Left Parotid", "Parotid_L"), ("Ohrspeicheldrüse li", "Parotid_L"), ("Parotide G", "Parotid_L"),
        ("Oorspeekselklier links", "Parotid_L"), ("Parotida Izq", "Parotid_L"),
        ("Rt Parotid Gland", "Parotid_R"), ("Parotis re.", "Parotid_R"), ("Glande parotide droite", "Parotid_R"),
        ("oorspeekselklier_rechts", "Parotid_R"), ("Glándula parótida dcha", "Parotid_R"),
        ("Oesophagus", "Esophagus"), ("Speiseröhre", "Esophagus"), ("Œsophage", "Esophagus"), ("Slokdarm", "Esophagus"),
        ("Esófago", "Esophagus"), ("Kehlkopf", "Larynx"), ("Strottenhoofd", "Larynx"), ("Laringe", "Larynx"),
        ("Lower jaw", "Bone_Mandible"), ("Unterkiefer", "Bone_Mandible"), ("Mâchoire inférieure", "Bone_Mandible"),
        ("Onderkaak", "Bone_Mandible"), ("Mandíbula", "Bone_Mandible"), ("BODY", "External"),
        ("Außenkontur", "External"),
        ("LParotid", "Parotid_L"), ("ParotisLi", "Parotid_L"),
    ],
)  # fmt: skip
def test_synonyms_are_proposed_and_wait(source: str, name: str) -> None:
    found = match(source)
    assert (found.name, found.state) == (name, MatchState.PROPOSED)
    assert found.confidence == pytest.approx(0.95) and not found.counts


@pytest.mark.parametrize("source", ["Hirnstam", "Spinal crd", "Esofagus", "Mandibel", "Larinx"])
def test_a_similar_spelling_is_proposed_with_less_confidence(source: str) -> None:
    found = match(source)
    assert found.state is MatchState.PROPOSED and found.confidence < 0.6 and not found.counts
    assert "spelled like" in found.reason


@pytest.mark.parametrize("source", ["Parotid", "Parotis beidseits li re", "Parotids", "Glandula parotidea L+R"])
def test_no_side_or_two_sides_are_never_guessed(source: str) -> None:
    found = match(source)
    assert found.name == "" and found.state is MatchState.UNKNOWN and "side" in found.reason


@pytest.mark.parametrize(
    "source",
    ["SpinalCord_PRV05", "Brainstem PRV", "cord+5mm", "z_Ring", "~Parotid_L", "Parotid_L-PTV", "Parotid_L_minus_PTV70",
     "Hilfsstruktur Parotis li", "NT_Ring", "Dummy1", "x_cord"],
)  # fmt: skip
def test_planning_helpers_are_excluded(source: str) -> None:
    found = match(source)
    assert found.name == "" and found.state is MatchState.HELPER


@pytest.mark.parametrize("source", ["zPTV_opt", "PTV70 eval", "PTV_7000_crop", "PTV63-PTV70", "PTVboost", "Ring_PTV"])
def test_what_may_be_a_target_is_never_passed_over(source: str) -> None:
    found = match(source)
    assert found.state is MatchState.OPEN and found.waits and not found.counts


def test_a_target_by_type_or_plan_is_never_passed_over() -> None:
    assert (
        match("zOpt", "PTV").state is match("Larynx", "PTV").state is match("CTV", "CTV", 70.0).state is MatchState.OPEN
    )
    assert "the plan prescribes 70 Gy" in match("CTV", "CTV", 70.0).reason
    assert match("Ring_PTV", "AVOIDANCE").state is MatchState.HELPER
    assert match_structures([Candidate("PTV boost", "PTV")], {"PTV boost": ""})[0].waits is False


@pytest.mark.parametrize("source", ["Heart", "Lt Lung", "CTV70", "GTV", "Tongue", "Lens_L", "", "???", "Cochlea re"])
def test_others_are_not_used(source: str) -> None:
    assert match(source).name == "" and match(source).state is MatchState.UNKNOWN


@pytest.mark.parametrize(
    ("source", "level_gy", "name", "reason"),
    [
        ("PTV70", None, "PTV_7000", "70 Gy by its digits"),
        ("ptv 54.25 Gy", None, "PTV_5425", "54.25 Gy by its digits"),
        ("PTV_63Gy_li", None, "PTV_6300", "63 Gy by its digits"),
        ("PTV1", 66.0, "PTV_6600", "66 Gy by the plan"),
        ("PTV_High", 70.0, "PTV_7000", "70 Gy by the plan"),
        ("PTV56", 56.0, "PTV_5600", "56 Gy by its digits and the plan"),
        ("PTV_70Gy_35fx", None, "PTV_7000", "70 Gy by its digits"),
        ("PTV60/30", None, "PTV_6000", "60 Gy by its digits"),
        ("PTV 69,96", None, "PTV_6996", "69.96 Gy by its digits"),
        ("PTV 54 Gy 2021", None, "PTV_5400", "54 Gy by its digits"),
        ("PTV 5400 cGy", None, "PTV_5400", "54 Gy by its digits"),
        ("PTV-63", None, "PTV_6300", "63 Gy by its digits"),
        ("PTVboost66", None, "PTV_6600", "66 Gy by its digits"),
    ],
)
def test_levels_come_from_digits_or_the_plan(source: str, level_gy: float | None, name: str, reason: str) -> None:
    found = match(source, "PTV", level_gy)
    assert (found.name, found.reason, found.state) == (name, reason, MatchState.PROPOSED)


@pytest.mark.parametrize("source", ["PTV1", "PTV_High", "PTV boost", "PTV low", "PTV 3"])
def test_a_level_is_never_taken_from_rank(source: str) -> None:
    found = match(source, "PTV")
    assert found.name == "" and found.reason == "a target of no known dose level" and found.state is MatchState.OPEN


def test_digits_and_plan_that_disagree_are_left_open() -> None:
    found = match("PTV_7000", "PTV", 60.0)
    assert found.name == "" and found.reason == "the name says 70 Gy, the plan 60 Gy"
    for source in ("PTV 70 56", "PTV 70/63"):
        assert match(source, "PTV").reason == "several dose levels in the name"


@pytest.mark.parametrize(
    ("source", "level_gy", "name", "reason"),
    [
        ("PTV_7000", 69.6, "PTV_6960", "69.6 Gy by the plan, its digits say 70 Gy"),
        ("PTV_0070", None, "PTV_7000", "70 Gy by its digits"),
        ("PTV_0070", 70.0, "PTV_7000", "70 Gy by its digits and the plan"),
    ],
)
def test_another_name_than_the_one_written_is_proposed(source: str, level_gy: float, name: str, reason: str) -> None:
    found = match(source, "PTV", level_gy)
    assert (found.name, found.state, found.reason) == (name, MatchState.PROPOSED, reason)
    assert match("PTV_7000", "PTV", 70.005).state is MatchState.EXACT


def test_an_implausible_volume_lowers_the_confidence() -> None:
    assert match("Rückenmark", volume_cc=30).confidence == pytest.approx(0.95)
    doubted = match("Rückenmark", volume_cc=2000)
    assert doubted.confidence == pytest.approx(0.38) and "2000.0 cc is doubtful" in doubted.reason


def test_the_body_is_known_by_its_type() -> None:
    assert match("Kontur1", "EXTERNAL").counts and match("Kontur1", "EXTERNAL").name == "External"


def test_confirmed_names_count_whatever_was_proposed() -> None:
    candidates = [Candidate("Parotida Izq"), Candidate("Tumor", "PTV"), Candidate("cord+5mm")]
    confirmed = {"Parotida Izq": "Parotid_L", "Tumor": "PTV_7000", "cord+5mm": ""}
    found = match_structures(candidates, confirmed)
    assert [(m.name, m.counts) for m in found] == [("Parotid_L", True), ("PTV_7000", True), ("", False)]


@pytest.mark.parametrize(
    ("confirmed", "message"),
    [
        ({"Nobody": "Parotid_L"}, "not there"),
        ({"A": "Parotid"}, "no structure of the model"),
        ({"A": "PTV_0000"}, "no structure of the model"),
        ({"A": "Parotid_L", "B": "Parotid_L"}, "Two structures count as Parotid_L: A and B"),
    ],
)
def test_unfit_mappings(confirmed: dict[str, str], message: str) -> None:
    with pytest.raises(PatientDataError, match=message):
        match_structures([Candidate("A"), Candidate("B")], confirmed)


def test_duplicates_of_what_is_used_block() -> None:
    with pytest.raises(PatientDataError, match="Larynx: Two structures of the source have this name"):
        match_structures([Candidate("Larynx"), Candidate("Larynx")])
    match_structures([Candidate("Heart"), Candidate("Heart")])  # nobody asks for them


def test_words_of_names() -> None:
    assert words_of("ParotisLi_2") == ["parotis", "li", "2"]
    assert words_of("PTV54.25") == ["ptv", "54.25"]
    assert level_of("PTV_5425") == 54.25 and level_of("PTV1") is None


# The mapping file


def test_the_file_is_written_edited_and_used_again(tmp_path: Path) -> None:
    sources = ['Parotida "Izq"', "Larynx", "cord+5mm", "Tumor\x7f\\"]
    candidates = [Candidate(source) for source in sources]
    path = tmp_path / "names.toml"
    write_mapping(match_structures(candidates), path)
    assert read_mapping(path) == {"Larynx": "Larynx", "cord+5mm": ""}  # the proposals wait
    text = path.read_text(encoding="utf-8")
    assert text.count("confirmed = false") == 2
    path.write_text(text.replace("confirmed = false", "confirmed = true"), encoding="utf-8")
    confirmed = read_mapping(path)
    assert confirmed['Parotida "Izq"'] == "Parotid_L" and confirmed["Tumor\x7f\\"] == ""
    assert [m.counts for m in match_structures(candidates, confirmed)] == [True, True, False, False]


def test_what_was_left_out_stays_so_in_the_file(tmp_path: Path) -> None:
    candidates = [Candidate("Parotida Izq"), Candidate("PTV boost"), Candidate("Larynx")]
    decided = match_structures(candidates, {"Parotida Izq": "", "PTV boost": ""})
    assert [m.state for m in decided] == [MatchState.LEFT_OUT, MatchState.LEFT_OUT, MatchState.EXACT]
    write_mapping(decided, tmp_path / "names.toml")
    again = match_structures(candidates, read_mapping(tmp_path / "names.toml"))
    assert [m.state for m in again] == [MatchState.LEFT_OUT, MatchState.LEFT_OUT, MatchState.CONFIRMED]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source = ", "no TOML"),
        ("[[structure]]\nsource = 'A'\n", "incomplete"),
        ("[[structure]]\nsource = 'A'\nname = 'B'\nconfirmed = 'yes'\n", "incomplete"),
        ("structure = 3\n", r"no \[\[structure\]\]"),
        ("[[structure]]\nsource='A'\nname='B'\nconfirmed=true\n[[structure]]\nsource='A'\nname='C'\nconfirmed=true\n",
         "two things of A"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "names.toml"
    path.write_text(content)
    with pytest.raises(PatientDataError, match=rf"names\.toml: .*{message}"):
        read_mapping(path)


def test_options_as_mappings() -> None:
    assert parse_mappings(["Parotida Izq=Parotid_L", "a=b=Larynx", "ring="]) == {
        "Parotida Izq": "Parotid_L", "a=b": "Larynx", "ring": "",
    }  # fmt: skip
    for texts in (["Parotid_L"], ["=Larynx"], ["A=B", "A=C"]):
        with pytest.raises(PatientDataError):
            parse_mappings(texts)
