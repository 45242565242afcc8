"""Dose: predict, and lay what was predicted over the CT."""

import slicer
from slicer.i18n import tr as _

from RTDigitalTwinLib.outcome import ABSOLUTE, BEFORE, CHANGE, DIFFERENCE, MEAN, STD, WIDTH
from RTDigitalTwinLib.scene.outcome_nodes import show_overlay
from RTDigitalTwinLib.scene.scene_twin import overlays
from RTDigitalTwinLib.scene.volume_nodes import hide_below, show_legend
from RTDigitalTwinPanels.layout import showLayout


def overlayWords(role, isAction):
    words = {
        MEAN: _("Dose with the action (mean)") if isAction else _("Predicted dose (mean)"),
        STD: _("Sampled spread (standard deviation)"),
        WIDTH: _("Calibrated 95 % band, half width"),
        "reference": _("Reference dose"),
        DIFFERENCE: _("Difference to reference"),
        ABSOLUTE: _("Absolute difference to reference"),
        BEFORE: _("Dose if nothing is changed") if isAction else _("Dose before observing"),
        CHANGE: _("Change by the action") if isAction else _("Change by observing"),
    }
    return words[role]


class DosePanel:
    """Predicts and shows the dose."""

    def __init__(self, ui, shell):
        self.ui, self.shell = ui, shell
        self._roles, self._offered, self._applied = [], None, None
        ui.predictButton.connect("clicked(bool)", self.onPredict)
        ui.overlayComboBox.connect("currentIndexChanged(int)", self.onOverlay)

    def forget(self):
        self._applied = None

    def refresh(self):
        parameters = self.shell.parameters
        self.shell.enable(
            self.ui.predictButton,
            self.shell.reasonNotToCompute() or self.shell.reasonNoPatient(),
            _("Predict the dose with its uncertainty. It takes the place of the prediction before."),
        )
        nodes = self.shell.twin.shown
        known = overlays(nodes) if nodes else {}
        isAction = bool(parameters.shownAction)
        if [*known, isAction] != self._offered:
            self._roles = []  # filling the box shall switch nothing
            self.ui.overlayComboBox.clear()
            self.ui.overlayComboBox.addItems([overlayWords(role, isAction) for role in known])
            self._roles = list(known)
            self._offered = [*known, isAction]
        for widget in (self.ui.overlayComboBox, self.ui.opacitySlider, self.ui.thresholdSlider):
            widget.setEnabled(bool(known))
        self.ui.overlayComboBox.setToolTip(
            _("What lies over the CT.") if known else _("Predict the dose first: there is nothing to lay over the CT.")
        )
        for widget in (self.ui.isodosesCheckBox, self.ui.legendCheckBox):
            widget.setEnabled(bool(known))
        if known:
            role = parameters.overlay if parameters.overlay in known else MEAN
            self.ui.overlayComboBox.setCurrentIndex(self._roles.index(role))
            self._apply(nodes, known, role)
        self.ui.bandsLabel.setText(self._bandWords(nodes))
        self.ui.notesLabel.setText(nodes.mean.GetDescription() if nodes else "")

    def onPredict(self, *unused):
        parameters = self.shell.parameters
        errand = self.shell.twin.predicting(parameters.samples, parameters.seed, parameters.device.value)
        self.shell.run(errand, self.landed)

    def onOverlay(self, index):
        if self.shell.parameters is not None and 0 <= index < len(self._roles):
            self.shell.parameters.overlay = self._roles[index]

    def landed(self, mean):
        """A prediction came home: show it as chosen, in the module's layout."""
        showLayout()
        self._applied = None
        self.shell.twin.show()
        self.shell.refresh()

    def _apply(self, nodes, known, role):
        """Overlay, opacity, threshold, isodoses and legend as chosen, where any of it changed."""
        chosen = self.shell.parameters
        wanted = (nodes.mean.GetID(), role, chosen.opacity, chosen.threshold, chosen.isodoses, chosen.legend)
        if wanted == self._applied:
            return
        self._applied = wanted
        volume = known[role]
        hide_below(volume, chosen.threshold / 100)
        show_legend(volume, chosen.legend)
        show_overlay(slicer.mrmlScene, nodes, volume, opacity=chosen.opacity, isodoses=chosen.isodoses)

    def _bandWords(self, nodes):
        if nodes is None:
            return ""
        if WIDTH in nodes.volumes:
            return _("Calibrated: their coverage was measured on patients with known dose.")
        return _("Sampled only, not calibrated: too narrow as an error bar. More samples may help.")
