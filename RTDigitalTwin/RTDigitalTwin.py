"""The module's thin shell in Slicer: it holds the panels together; what they do is the library's."""

import importlib.util
import sys
from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _, translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

# In a source checkout Slicer knows this module's folder only; installed, the library lies beside the module.
if importlib.util.find_spec("RTDigitalTwinLib") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from RTDigitalTwinPanels import dependencies
from RTDigitalTwinPanels.course_panel import CoursePanel
from RTDigitalTwinPanels.decide_panel import DecidePanel
from RTDigitalTwinPanels.dose_panel import DosePanel
from RTDigitalTwinPanels.dvh_panel import DvhPanel
from RTDigitalTwinPanels.logic import RTDigitalTwinLogic
from RTDigitalTwinPanels.patient_panel import PatientPanel
from RTDigitalTwinPanels.recalibrate_panel import RecalibratePanel
from RTDigitalTwinPanels.report_panel import ReportPanel
from RTDigitalTwinPanels.task import Task


class RTDigitalTwin(ScriptedLoadableModule):
    """Name, place and description of the module."""

    def __init__(self, parent):
        super().__init__(parent)
        self.parent.title = _("RT Digital Twin")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Radiotherapy")]
        self.parent.contributors = ["RTDigitalTwin contributors"]
        self.parent.helpText = _(
            "Predicts the dose of a radiotherapy patient with its uncertainty, absorbs measurements into it, and shows"
            " doses, histograms and goals in the scene."
            " <b>For research use only: not a medical device, not for clinical decisions.</b>"
        )
        self.parent.acknowledgementText = _(
            "Built on 3D Slicer, SlicerRT's conventions, MONAI and PyTorch; trained on the public OpenKBP data."
        )
        if slicer.app.palette().color(qt.QPalette.Window).lightness() < 128:
            self.parent.icon = qt.QIcon(self.resourcePath("Icons/RTDigitalTwin-dark.png"))
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Offer the built-in sample patient in the Sample Data module."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="RTDigitalTwin",
        sampleName="RTDigitalTwinHeadAndNeck",
        thumbnailFileName=str(Path(__file__).with_name("Resources") / "Icons" / "RTDigitalTwin.png"),
        customDownloader=lambda source: RTDigitalTwinLogic().loadSample(),
    )


class RTDigitalTwinWidget(ScriptedLoadableModuleWidget, slicer.util.VTKObservationMixin):
    """The module's window: binds the choices, runs one task at a time, and lets the panels show what there is."""

    # Of the class, for the base class calls setup from its constructor where there is no parent.
    parameters = _guiTag = None
    _isRefreshing = _isRefreshWanted = False

    def setup(self):
        super().setup()
        panel = slicer.util.loadUI(self.resourcePath("UI/RTDigitalTwin.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = RTDigitalTwinLogic()
        self.task = Task(self.refresh)
        self.source = None  # the patient's DICOM folder, for this session alone: no scene keeps a path
        self.missing = dependencies.missingPackages(self._requirements())
        self.dose = DosePanel(self.ui, self)
        self.panels = [
            PatientPanel(self.ui, self),
            self.dose,
            DvhPanel(self.ui, self),
            RecalibratePanel(self.ui, self),
            DecidePanel(self.ui, self),
            CoursePanel(self.ui, self),
            ReportPanel(self.ui, self),
        ]
        self.ui.cancelButton.connect("clicked(bool)", self.onCancel)
        self.ui.installButton.connect("clicked(bool)", self.onInstall)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        self.enter()

    def enter(self):
        self.setParameterNode(self.logic.getParameterNode())

    def exit(self, *unused):
        self.setParameterNode(None)

    def cleanup(self):
        self.task.close()
        self.exit()
        self.removeObservers()

    def onSceneStartClose(self, *unused):
        self.task.cancel()
        self.exit()

    def onSceneEndClose(self, *unused):
        for panel in self.panels:
            panel.forget()
        if self.parent.isEntered:
            self.enter()

    def onNodeRemoved(self, *unused):
        if self.parameters is not None and not slicer.mrmlScene.IsClosing():
            qt.QTimer.singleShot(0, self.refresh)

    def setParameterNode(self, node):
        """Bind the panel to a parameter node of the scene, or to none."""
        if self.parameters is not None:
            self.parameters.disconnectGui(self._guiTag)
            self.removeObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self.refresh)
        self.parameters = node
        if node is not None:
            self._guiTag = node.connectGui(self.ui)
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.refresh)
            self.refresh()

    # What the panels ask for

    @property
    def twin(self):
        return self.logic.twin()

    def run(self, errand, landed=None):
        """Begin an errand in the background; ``landed`` gets its result."""
        self.task.start(errand, landed)

    def say(self, words):
        self.ui.taskLabel.setText(words)

    def enable(self, button, reason, tip):
        """Enable a button, or disable it with the reason in its tooltip."""
        button.setEnabled(reason is None)
        button.setToolTip(tip if reason is None else reason)

    def reasonNotToCompute(self):
        """Why nothing can be computed now; None where it can."""
        if self.missing:
            return dependencies.words(self.missing)
        return _("Wait for the computation under way, or cancel it.") if self.task.isRunning else None

    def reasonNoPatient(self):
        if self.parameters.ct is None:
            return _("Choose the planning CT, or load a patient: structures and dose alone are not enough.")
        if self.parameters.segmentation is None:
            return _("Choose the segmentation with this CT's structures.")
        return None

    def refresh(self, *unused):
        """Let every panel show what there is; asked for meanwhile, once more."""
        if self.parameters is None:
            return
        if self._isRefreshing:
            self._isRefreshWanted = True
            return
        self._isRefreshing = True
        try:
            for _attempt in range(3):
                self._isRefreshWanted = False
                self._refreshTask()
                for panel in self.panels:
                    panel.refresh()
                if not self._isRefreshWanted:
                    break
        finally:
            self._isRefreshing = False

    def onCancel(self, *unused):
        self.task.cancel()

    def onInstall(self, *unused):
        with slicer.util.tryWithErrorDisplay(_("Not everything was installed."), waitCursor=True):
            self.task.close()  # the process that waits knows what was there before
            dependencies.install(self._requirements())
        self.missing = dependencies.missingPackages(self._requirements())
        self.refresh()

    def _requirements(self):
        return self.resourcePath("RTDigitalTwin/requirements.txt")

    def _refreshTask(self):
        self.ui.missingLabel.setVisible(bool(self.missing))
        self.ui.installButton.setVisible(bool(self.missing))
        self.ui.missingLabel.setText(dependencies.words(self.missing) if self.missing else "")
        running, left = self.task.isRunning, self.task.secondsLeft
        self.ui.taskWidget.setVisible(running)
        self.ui.taskProgressBar.setValue(int(1000 * self.task.done_ratio))
        more = "" if left is None or not running else _(" About {seconds:.0f} s left.").format(seconds=max(left, 1))
        self.ui.taskLabel.setText(self.task.message + more)


class RTDigitalTwinTest(ScriptedLoadableModuleTest):
    """Self-test in the application: the sample patient from choice to scene."""

    def runTest(self):
        slicer.mrmlScene.Clear()
        logic = RTDigitalTwinLogic()
        logic.loadSample()
        mean = logic.predict(samples=2)
        self.assertEqual(mean.GetAttribute("DicomRtImport.DoseVolume"), "1")
        self.assertTrue(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
        self.assertEqual(logic.getParameterNode().prediction, mean)
