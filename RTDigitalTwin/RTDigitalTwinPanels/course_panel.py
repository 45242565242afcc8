"""Course: a treatment simulated fraction by fraction, what the twin made of it, and the doses to play."""

import qt
import slicer
from slicer.i18n import tr as _

from RTDigitalTwinLib.jobs import LiveCourse
from RTDigitalTwinLib.scene.course_nodes import (
    SUMMARY_ATTRIBUTE,
    select_fraction,
    show_course_chart,
    show_course_dose,
)
from RTDigitalTwinLib.scene.dvh_curves import structures_of
from RTDigitalTwinLib.scene.outcome_nodes import show_table
from RTDigitalTwinLib.scene.table_nodes import words_of_column
from RTDigitalTwinPanels.layout import showLayout

_COLUMNS = ("Fraction", "Events", "Why")


class CoursePanel:
    """Lives through a simulated course."""

    def __init__(self, ui, shell):
        self.ui, self.shell = ui, shell
        self._listed, self._charts, self._offered = None, (), None
        ui.runCourseButton.connect("clicked(bool)", self.onRun)
        ui.courseNtcpComboBox.connect("currentIndexChanged(int)", self.onNtcp)
        ui.courseChartComboBox.connect("currentIndexChanged(int)", self.onChart)
        ui.courseDoseComboBox.addItems(
            [_("None of the course"), _("Accumulated (simulated)"), _("Of the fraction (simulated)")]
        )
        ui.courseDoseComboBox.connect("currentIndexChanged(int)", self.onDose)
        ui.fractionSlider.connect("valueChanged(int)", self.onFraction)
        ui.triggersTable.setColumnCount(len(_COLUMNS))
        ui.triggersTable.setHorizontalHeaderLabels([_("Fraction"), _("What was done"), _("Why")])
        ui.triggersTable.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)

    def forget(self):
        self._listed = self._offered = None
        self.ui.courseDoseComboBox.setCurrentIndex(0)

    def refresh(self, *unused):
        parameters = self.shell.parameters
        noDose = None
        if parameters.referenceDose is None:
            noDose = _("Choose the reference dose: the simulator delivers the plan's dose.")
        self.shell.enable(
            self.ui.runCourseButton,
            self.shell.reasonNotToCompute() or self.shell.reasonNoPatient() or noDose,
            _("Simulate the course and let the twin watch it. It takes the place of the course before."),
        )
        self._offerStructures()
        course = self.shell.twin.course
        for widget in (self.ui.courseChartComboBox, self.ui.courseDoseComboBox, self.ui.fractionSlider):
            widget.setEnabled(course is not None)
        self._list(course)

    def job(self):
        """The course as it is chosen."""
        chosen = self.shell.parameters
        return LiveCourse(
            fractions=chosen.courseFractions,
            shift_at=chosen.shiftAt,
            shift_mm=(chosen.shiftLeftMm, chosen.shiftPosteriorMm, chosen.shiftSuperiorMm),
            shrinkage_ratio=chosen.shrinkagePercent / 100,
            policy=chosen.policy.value,
            ntcp=chosen.courseNtcp,
            samples=chosen.samples,
            seed=chosen.seed,
            device=chosen.device.value,
        )

    def onRun(self, *unused):
        self.shell.run(self.shell.twin.living(self.job()), self.landed)

    def landed(self, nodes):
        """A course came home: its last chart, its trajectory and the accumulated dose in view."""
        showLayout()
        self._listed = None
        self.shell.refresh()
        self.ui.courseChartComboBox.setCurrentIndex(len(nodes.charts) - 1)
        self.onChart(len(nodes.charts) - 1)
        show_table(slicer.mrmlScene, nodes.trajectory)
        self.ui.courseDoseComboBox.setCurrentIndex(1)
        self.onDose(1)

    def onNtcp(self, index):
        if self._offered is not None and self.shell.parameters is not None:
            self.shell.parameters.courseNtcp = "" if index <= 0 else self._offered[index - 1]

    def onChart(self, index):
        if 0 <= index < len(self._charts):
            show_course_chart(slicer.mrmlScene, self._charts[index])

    def onDose(self, index):
        if self._listed is None or self.shell.parameters is None:
            return
        course = self.shell.twin.course
        if index > 0 and course is not None:
            show_course_dose(slicer.mrmlScene, course, index - 1, self.shell.parameters.opacity)
        elif self.shell.twin.outcome is not None:
            self.shell.dose.landed(self.shell.parameters.prediction)

    def onFraction(self, item):
        course = self.shell.twin.course if self.shell.parameters is not None else None
        if self._listed is not None and course is not None:
            select_fraction(course.browser, item)
            self._fractionWords(course)

    def _offerStructures(self):
        nodes = self.shell.twin.outcome
        names = structures_of(nodes) if nodes else []
        if names == self._offered:
            return
        self._offered = None  # filling the box shall choose nothing
        self.ui.courseNtcpComboBox.clear()
        self.ui.courseNtcpComboBox.addItems([_("A parotid, or the first there is"), *names])
        watched = self.shell.parameters.courseNtcp
        self.ui.courseNtcpComboBox.setCurrentIndex(names.index(watched) + 1 if watched in names else 0)
        self._offered = names

    def _fractionWords(self, course):
        item = course.browser.GetSelectedItemNumber()
        fractions = course.fractions
        self.ui.fractionValueLabel.setText(str(fractions[item]) if 0 <= item < len(fractions) else "")

    def _list(self, course):
        signature = course.browser.GetID() if course else ""
        if signature == self._listed:
            return
        self._listed = None  # filling shall move nothing
        summary = course.browser.GetAttribute(SUMMARY_ATTRIBUTE) if course else ""
        self.ui.courseSummaryLabel.setText(summary or "")
        self._charts = ()
        self.ui.courseChartComboBox.clear()
        charts = course.charts if course else ()
        self.ui.courseChartComboBox.addItems([chart.GetTitle() for chart in charts])
        self._charts = charts
        self.ui.fractionSlider.setMaximum(max(len(course.fractions) - 1, 0) if course else 0)
        self.ui.fractionSlider.setValue(course.browser.GetSelectedItemNumber() if course else 0)
        self.ui.fractionValueLabel.setText("")
        if course:
            self._fractionWords(course)
        table = course.triggers if course else None
        columns = [words_of_column(table, name) for name in _COLUMNS] if table else []
        shown = self.ui.triggersTable
        shown.setRowCount(0)
        shown.setRowCount(len(columns[0]) if columns else 0)
        for column, words in enumerate(columns):
            for row, word in enumerate(words):
                item = qt.QTableWidgetItem(word)
                item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
                shown.setItem(row, column, item)
        self._listed = signature
