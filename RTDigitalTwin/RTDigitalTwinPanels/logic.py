"""What the module can do, also without its panel: the verbs of the Python console, on the scene's nodes."""

from dataclasses import replace
from pathlib import Path

import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from RTDigitalTwinLib.jobs import CUSTOMARY, Choice
from RTDigitalTwinLib.scene.dvh_curves import CHOSEN, CurveChoice, require_curves, show_curves
from RTDigitalTwinLib.scene.measurement_nodes import add_measurement, measurement_table
from RTDigitalTwinLib.scene.scene_twin import SceneTwin
from RTDigitalTwinLib.scene.twin_patient import confirm_names
from RTDigitalTwinPanels.parameters import BandLevel, CurvesOf, RTDigitalTwinParameterNode


class RTDigitalTwinLogic(ScriptedLoadableModuleLogic):
    """Verbs on the twin of the scene. Those that take long wait until it is done, events being let through."""

    def getParameterNode(self):
        return RTDigitalTwinParameterNode(super().getParameterNode())

    def twin(self):
        """The scene's twin, whose nodes the parameter node holds."""
        chosen = self.getParameterNode()
        return SceneTwin(slicer.mrmlScene, chosen, lambda: _curves(chosen))

    def loadSample(self):
        """Load the built-in sample patient with a plan of its own; returns its CT node."""
        return self.twin().load(progress=_letEventsThrough)

    def loadFolder(self, folder, patient="", names=None, fractions=None):
        """Load a patient's folder; returns its CT node.

        ``patient`` is a pseudonym where a DICOM folder has several, ``names`` what the structures' names mean, by name
        in the source, "" for leaving one out.
        """
        return self.twin().load(folder, Choice(patient, dict(names or {}), fractions), _letEventsThrough)

    def useNodes(self, ct, segmentation, dose=None, names=None, fractions=None):
        """Take nodes that are in the scene as the patient."""
        if names:
            confirm_names(segmentation, names)
        self.twin().use(ct, segmentation, dose)
        if fractions is not None:
            self.getParameterNode().fractions = fractions

    def predict(self, samples=None, seed=None, device=None):
        """Predict the dose; what is not given is the parameter node's. Returns the mean dose node."""
        chosen = self.getParameterNode()
        return self.twin().predict(
            chosen.samples if samples is None else samples,
            chosen.seed if seed is None else seed,
            chosen.device.value if device is None else device,
            _letEventsThrough,
        )

    def addMeasurement(self, structure, value, metric="mean", **columns):
        """Add a row to the table of measurements; ``columns`` are named as in measurement files."""
        chosen = self.getParameterNode()
        if chosen.measurements is None:
            chosen.measurements = measurement_table(slicer.mrmlScene)
        unit = "%" if metric.startswith("V") else "Gy"
        row = {"structure": structure, "metric": metric, "value": value, "unit": unit} | columns
        add_measurement(chosen.measurements, **{name: str(entry) for name, entry in row.items()})

    def observe(self, file=None, method=None, absorbOutliers=None):
        """Absorb the measurements that wait, and those of a CSV file; returns the mean dose node after it."""
        chosen = self.getParameterNode()
        return self.twin().observe(
            file,
            _letEventsThrough,
            samples=chosen.samples,
            seed=chosen.seed,
            device=chosen.device.value,
            method=chosen.method.value if method is None else method,
            absorb_outliers=chosen.absorbOutliers if absorbOutliers is None else absorbOutliers,
        )

    def recommend(self, risk=None, samples=None, customary=CUSTOMARY, spare=(), boost=(), actions="", protocol="",
                  uncertaintyWeight=None):  # fmt: skip
        """Rank what could be done next; returns the table. What is not given is the protocol's or the parameter node's.

        ``customary`` are names of ``CUSTOMARY``, ``spare`` and ``boost`` structures besides; ``actions`` and
        ``protocol`` TOML files. Without a recommendation the present dose stays in view.
        """
        chosen = self.getParameterNode()
        return self.twin().recommend(
            _letEventsThrough,
            samples=chosen.decideSamples if samples is None else samples,
            seed=chosen.seed,
            device=chosen.device.value,
            risk=risk,
            uncertainty_weight=uncertaintyWeight,
            customary=tuple(customary),
            spare=tuple(spare),
            boost=tuple(boost),
            actions=str(actions),
            protocol=str(protocol),
        )

    def showAction(self, action, actions="", protocol=""):
        """Show a ranked action's dose, histograms and goals beside the present ones; returns its mean dose node.

        ``keep`` brings back the present dose. ``actions`` and ``protocol`` are the files of the ranking, if any.
        """
        device = self.getParameterNode().device.value
        return self.twin().show_action(
            action, _letEventsThrough, device=device, actions=str(actions), protocol=str(protocol)
        )

    def simulateCourse(self, **settings):
        """Live through a simulated course and watch it; returns its nodes. Settings are those of ``LiveCourse``."""
        chosen = self.getParameterNode()
        return self.twin().live(
            _letEventsThrough,
            **{"samples": chosen.samples, "seed": chosen.seed, "device": chosen.device.value} | settings,
        )

    def undo(self):
        """Go back before the last observing; returns the mean dose node."""
        return self.twin().undo()

    def clear(self):
        """Take every prediction away; the patient stays."""
        self.twin().clear()

    def showOverlay(self, role="mean"):
        """Lay a volume over the CT: mean, std, width, reference, difference, absolute difference, before, change."""
        chosen = self.getParameterNode()
        self.twin().show(role, opacity=chosen.opacity, isodoses=chosen.isodoses)
        chosen.overlay = role

    def showStructures(self, names):
        """Show these structures' curves in the chart and no others; or those of "goals", "visible" or "all"."""
        twin, chosen = self.twin(), self.getParameterNode()
        if isinstance(names, str):
            choice = replace(twin.curves, of=names)
        else:
            choice = replace(twin.curves, of=CHOSEN, names=tuple(names))
            require_curves(twin.shown, choice.names)
        chosen.chosenCurves, chosen.curvesOf = list(choice.names), CurvesOf(choice.of)
        self._showCurves()

    def showCurves(self, band=None, before=None, reference=None, level=None):
        """Say what the chart shows beside the mean, and the band's level: 0.95, 0.9, 0.8 or 0.5; None leaves it."""
        asked = {"band": band, "before": before, "reference": reference, "level": level}
        choice = replace(self.twin().curves, **{name: value for name, value in asked.items() if value is not None})
        chosen = self.getParameterNode()
        chosen.bandCurves, chosen.beforeCurves = choice.band, choice.before
        chosen.referenceCurves, chosen.bandLevel = choice.reference, BandLevel(choice.level)
        self._showCurves()

    def showBandLevel(self, level):
        """Let the chart's dashed curves be the band at 0.95, 0.9, 0.8 or 0.5."""
        self.showCurves(level=level)

    def _showCurves(self):
        """In the chart in view, where there is one; charts to come ask again."""
        twin = self.twin()
        if twin.shown is not None:
            show_curves(twin.shown, twin.curves)

    def writeReport(self, folder):
        """Write report, tables, volumes and pictures to a new folder; returns it."""
        return self.twin().write_report(Path(folder), _letEventsThrough)

    def exportDose(self, folder, source):
        """Write the dose as RTDOSE to a new folder, for the record of the DICOM folder ``source``; returns it."""
        return self.twin().export_dose(Path(folder), Path(source), _letEventsThrough)

    def saveScene(self, path):
        """Save the scene with the twin's whole state as .mrb; returns the path."""
        return self.twin().save_scene(path)


def _curves(chosen):
    """What charts show of the histograms, as a parameter node has it."""
    return CurveChoice(
        chosen.curvesOf.value,
        tuple(chosen.chosenCurves),
        band=chosen.bandCurves,
        before=chosen.beforeCurves,
        reference=chosen.referenceCurves,
        level=chosen.bandLevel.value,
    )


def _letEventsThrough(done_ratio, message):
    slicer.app.processEvents()
