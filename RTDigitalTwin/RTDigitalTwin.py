"""The module's thin shell in Slicer: what the user chooses goes to the library, what it answers goes to the scene."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import qt
import slicer
import vtk
from slicer import packaging
from slicer.i18n import tr as _, translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

# In a source checkout Slicer knows this module's folder only; installed, the library lies beside the module.
if importlib.util.find_spec("RTDigitalTwinLib") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from RTDigitalTwinLib.errors import RTDigitalTwinError


class RTDigitalTwin(ScriptedLoadableModule):
    """Name, place and description of the module."""

    def __init__(self, parent):
        super().__init__(parent)
        self.parent.title = _("RT Digital Twin")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Radiotherapy")]
        self.parent.contributors = ["RTDigitalTwin contributors"]
        self.parent.helpText = _(
            "Predicts the dose of a radiotherapy patient with its uncertainty and shows it in the scene."
            " <b>For research use only: not a medical device, not for clinical decisions.</b>"
        )
        self.parent.acknowledgementText = _("Built on 3D Slicer, SlicerRT's conventions, MONAI and PyTorch.")
        if slicer.app.palette().color(qt.QPalette.Window).lightness() < 128:
            self.parent.icon = qt.QIcon(self.resourcePath("Icons/RTDigitalTwin-dark.png"))


@parameterNodeWrapper
class RTDigitalTwinParameterNode:
    """The user's choices, kept in the scene: hence no folder of a patient among them."""

    useSample: bool = True
    samples: Annotated[int, WithinRange(2, 256)] = 32
    seed: Annotated[int, WithinRange(0, 2**31 - 1)] = 0


class RTDigitalTwinWidget(ScriptedLoadableModuleWidget, slicer.util.VTKObservationMixin):
    """The module's panel."""

    # Of the class, for the base class calls setup from its constructor where there is no parent.
    _parameterNode = _parameterNodeGuiTag = None
    _shown = None  # nodes of the last prediction

    def setup(self):
        super().setup()
        panel = slicer.util.loadUI(self.resourcePath("UI/RTDigitalTwin.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = RTDigitalTwinLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.exit)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.ui.patientFolderLineEdit.connect("currentPathChanged(QString)", self.updateApplyButton)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.ui.overlayComboBox.connect("currentTextChanged(QString)", self.onOverlay)
        self.enter()

    def enter(self):
        self.setParameterNode(self.logic.getParameterNode())

    def exit(self, *unused):
        self.setParameterNode(None)

    def cleanup(self):
        self.exit()
        self.removeObservers()

    def onSceneEndClose(self, *unused):
        self.showResult(None)
        if self.parent.isEntered:
            self.enter()

    def setParameterNode(self, node):
        """Bind the panel to a parameter node of the scene, or to none."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.updateApplyButton)
        self._parameterNode = node
        if node:
            self._parameterNodeGuiTag = node.connectGui(self.ui)
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.updateApplyButton)
            self.updateApplyButton()

    def patientFolder(self):
        """The folder chosen, or None for the built-in sample."""
        return None if self._parameterNode.useSample else Path(self.ui.patientFolderLineEdit.currentPath)

    def updateApplyButton(self, *unused):
        """Enable the button where the choices suffice; its tooltip says what is missing."""
        if self._parameterNode is None:
            return
        folder = self.patientFolder()
        self.ui.patientFolderLineEdit.setEnabled(folder is not None)
        # No path at all would read as the current folder.
        ready = folder is None or (bool(self.ui.patientFolderLineEdit.currentPath) and folder.is_dir())
        self.ui.applyButton.setEnabled(ready)
        self.ui.applyButton.setToolTip(_("Predict the dose.") if ready else _("Choose the patient's folder first."))

    def onApply(self, *unused):
        with slicer.util.tryWithErrorDisplay(_("The dose was not predicted."), waitCursor=True):
            self.logic.ensureDependencies(self.resourcePath("RTDigitalTwin/requirements.txt"))
            self.showResult(self.logic.run(self.patientFolder(), self._parameterNode.samples, self._parameterNode.seed))

    def showResult(self, nodes):
        """Offer a prediction's overlays and say what must be known of it; of None, nothing."""
        self._shown = None  # filling the box shall switch nothing
        self.ui.overlayComboBox.clear()
        self.ui.overlayComboBox.addItems(list(nodes.overlays) if nodes else [])
        self.ui.overlayComboBox.setEnabled(nodes is not None)
        self.ui.bandsLabel.setText(self.logic.bandWords(nodes) if nodes else "")
        self.ui.warningsLabel.setText("\n".join(nodes.findings.notes) if nodes else "")
        self._shown = nodes

    def onOverlay(self, name):
        """Lay another volume over the CT, where it is still there."""
        volume = self._shown.overlays.get(name) if self._shown else None
        if volume is not None and slicer.mrmlScene.IsNodePresent(volume):
            self.logic.showOverlay(self._shown, volume)


class RTDigitalTwinLogic(ScriptedLoadableModuleLogic):
    """What the module can do, also without its panel."""

    def getParameterNode(self):
        return RTDigitalTwinParameterNode(super().getParameterNode())

    def ensureDependencies(self, requirementsPath):
        """Install what the library needs and Slicer lacks, after asking the user."""
        if importlib.util.find_spec("torch") is None:
            import PyTorchUtils

            if PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True) is None:
                raise RTDigitalTwinError("PyTorch is not installed.", remedy="Install it with the PyTorch Util module.")
        packaging.pip_ensure(packaging.load_requirements(requirementsPath), requester="RT Digital Twin")

    def run(self, patientFolder=None, samples=32, seed=0):
        """Predict a patient's dose, or without a folder the built-in sample's, and show it in the scene.

        The sample's reference dose is planned first, which takes some seconds. Returns the nodes; their ``findings``
        have the metrics, the goals, and notes to read, such as that the patient is unlike those the network knows."""
        from RTDigitalTwinLib import Patient, Twin
        from RTDigitalTwinLib.dosimetry.planning import planned
        from RTDigitalTwinLib.report.tables import Findings
        from RTDigitalTwinLib.run import remarks
        from RTDigitalTwinLib.scene.nodes import show_prediction

        patient = planned(Patient.sample()) if patientFolder is None else Patient.load(patientFolder)
        twin = Twin(patient)
        prediction = twin.predict(samples=samples, seed=seed)
        findings = Findings(prediction, more_notes=remarks(twin))
        # The prediction's patient is perhaps on a coarser grid.
        return show_prediction(slicer.mrmlScene, prediction.patient, prediction, findings=findings)

    def bandWords(self, nodes):
        """What the bands of a prediction are, and what to do where they are not calibrated."""
        prediction = nodes.prediction
        words = prediction.band_words()
        if prediction.is_calibrated or prediction.calibration is None:
            return words
        fewest = (prediction.calibration.samples + 1) // 2
        return _("{words}; from {fewest} samples on they are calibrated").format(words=words, fewest=fewest)

    def showOverlay(self, nodes, volume):
        """Lay a volume of a prediction over the CT in every slice view."""
        from RTDigitalTwinLib.scene.nodes import show_in_views

        show_in_views(slicer.mrmlScene, nodes, volume)


class RTDigitalTwinTest(ScriptedLoadableModuleTest):
    """Self-test in the application: the sample patient from choice to scene."""

    def runTest(self):
        slicer.mrmlScene.Clear()
        RTDigitalTwinLogic().run(samples=2)
        self.assertTrue(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"))
        self.assertTrue(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
