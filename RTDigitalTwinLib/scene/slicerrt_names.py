"""Names SlicerRT and Slicer look for on our nodes, each once."""

from __future__ import annotations

# Volumes
DOSE_VOLUME = "DicomRtImport.DoseVolume"
DOSE_UNIT_NAME = "DicomRtImport.DoseUnitName"
DOSE_UNIT_VALUE = "DicomRtImport.DoseUnitValue"
GRAY = "GY"  # compared case-sensitively

# Segments
ROI_NUMBER = "DicomRtImport.RoiNumber"

# Dose-volume histograms (columns of their tables: RTDigitalTwinLib.outcome)
DVH = "DoseVolumeHistogram.DVH"
DVH_SEGMENT_ID = "DoseVolumeHistogram.SegmentID"
DVH_PLOT_NAME = "DoseVolumeHistogram.StructurePlotName"
DVH_TABLE_ROW = "DoseVolumeHistogram.TableRow"
DVH_VOLUME_CC = "DoseVolumeHistogram.Volume (cc)"
DVH_DOSE_VOLUME_REFERENCE = "doseVolumeRef"
DVH_SEGMENTATION_REFERENCE = "segmentationRef"
DVH_METRICS_TABLE_REFERENCE = "dvhMetricsTableRef"

# Isodoses
ISODOSE_MODEL = "DicomRtImport.IsodoseModel"
ISODOSE_COLOUR_TABLE_REFERENCE = "colorTableRef"
ISODOSE_COLOUR_TABLE_POSTFIX = "_IsodoseColorTable"

TRUE = "1"
