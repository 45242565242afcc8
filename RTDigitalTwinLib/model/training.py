"""Training of the dose network within a time budget, resumable."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from RTDigitalTwinLib.allocation import return_freed_memory
from RTDigitalTwinLib.dosimetry.openkbp_score import cohort_scores_gy, score_patient
from RTDigitalTwinLib.errors import OutputError, TrainingError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.model.augmentation import Augmentation
from RTDigitalTwinLib.model.dvh_loss import dvh_error_gy
from RTDigitalTwinLib.model.familiarity import FEWEST_PATIENTS, Familiarity
from RTDigitalTwinLib.model.features import Features
from RTDigitalTwinLib.model.network import PRESCRIPTION_SCALE_GY, DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.schedule import TrainingSettings
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.model.training_data import TrainingCase
from RTDigitalTwinLib.model.weights import save_weights
from RTDigitalTwinLib.model.workers import Workers
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent

CHECKPOINT, LOG, WEIGHTS = "checkpoint.pt", "log.json", "dose-unet.safetensors"
MOST_SKIPPED_IN_A_ROW = 20
LOSSES_AVERAGED = 100
CHANGEABLE_SETTINGS = {"minutes", "validations", "checkpoint_minutes"}
OTHER_FOLDER = "Start anew without --resume in another folder."


def masked_l1(predicted_gy: Tensor, dose_gy: Tensor, share: Tensor) -> Tensor:
    """Mean absolute error over the mask's voxels, as a share of the highest prescription.

    ``share``: of each voxel, or block of voxels, that lies in the mask.
    """
    return ((predicted_gy - dose_gy).abs() * share).sum() / share.sum() / PRESCRIPTION_SCALE_GY


def faster_precision(network: DoseUNet, device: torch.device) -> torch.dtype:
    """bfloat16 where a small training step of this network runs faster in it, measured here and now."""
    trial = deepcopy(network)
    values = torch.rand(1, len(network.configuration.channels), 32, 64, 64, device=device)
    values = values.contiguous(memory_format=torch.channels_last_3d)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        times = []
        for _ in range(4):
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
                loss = trial.decode_unclipped(trial.encode(values)).mean()
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return min(seconds, key=lambda dtype: seconds[dtype])


def refuse_to_overwrite(out: Path) -> None:
    """Raises TrainingError where the output folder holds an earlier training."""
    if (out / CHECKPOINT).exists():
        raise TrainingError(
            "The folder holds an earlier training.",
            where=out.name,
            remedy="Go on with --resume, or choose another folder.",
        )


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: within a step it would leave the state between two steps."""
    previous = signal.getsignal(signal.SIGINT)
    if previous is None or threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals, and None is a handler Python could not put back
        return
    held = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held:
        signal.raise_signal(signal.SIGINT)


def _stream(seed: int, number: int, use: int) -> torch.Generator:
    """Random numbers of their own for each seed, step or epoch, and use."""
    digest = sha256(f"{seed} {number} {use}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


class Training:
    """The state of one training: network, its moving average, optimiser, elapsed time, log.

    What is random in a step follows from the seed and the step's number alone, so that nothing of it needs keeping.

    Parameters
    ----------
    clock : seconds; the schedules follow what passes on it in steps.
    workers : with whom it trains; by default alone.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        out: Path,
        device: torch.device,
        configuration: NetworkConfiguration | None = None,
        clock: Callable[[], float] = time.perf_counter,
        workers: Workers | None = None,
    ) -> None:
        self.settings, self.out, self.device, self.clock = settings, out, device, clock
        self.workers = workers or Workers()
        torch.manual_seed(settings.seed)
        self.network = DoseUNet(configuration).to(device, memory_format=torch.channels_last_3d)
        self.average = deepcopy(self.network).eval()
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.steps, self.skipped, self.skipped_in_a_row = 0, 0, 0
        self.seconds, self.validated_seconds = 0.0, 0.0
        self.patients: list[str] = []
        self.recent_gy: list[float] = []
        self.log: list[dict] = []
        self._features: dict[str, Features] = {}

    @cached_property
    def precision(self) -> torch.dtype:
        """Of the convolutions in a step: measured once, and kept by the checkpoint."""
        is_half = faster_precision(self.network, self.device) is torch.bfloat16
        return torch.bfloat16 if self.workers.agreed(is_half, self.device) else torch.float32

    @property
    def elapsed_ratio(self) -> float:
        return self.seconds / (60 * self.settings.minutes)

    @property
    def validation_due(self) -> bool:
        """Whether a share of the budget passed since the last validation, or all of it and the weights are new."""
        if self.elapsed_ratio >= 1:
            return not self.log or self.log[-1]["steps"] != self.steps
        share = 60 * self.settings.minutes / self.settings.validations
        return self.seconds // share > self.validated_seconds // share

    def begin_from(self, network: DoseUNet) -> None:
        """Take over a network's weights. Raises ValueError where it differs in more than its inputs."""
        self.network.begin_from(network)
        self.average.begin_from(network)

    def require_patients(self, pseudonyms: Sequence[str]) -> None:
        """Raises TrainingError where the checkpoint was trained on other patients, or in another order."""
        if self.patients and self.patients != list(pseudonyms):
            missing = [name for name in self.patients if name not in pseudonyms]
            added = [name for name in pseudonyms if name not in self.patients]
            differences = [
                f"{len(names)} {how} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                for names, how in ((missing, "missing"), (added, "new"))
                if names
            ]
            raise TrainingError(
                f"It was trained on other patients: {', '.join(differences) or 'their order or number differs'}.",
                where=CHECKPOINT,
                remedy="Resume with the data it began with, or start anew without --resume in another folder.",
            )
        self.patients = list(pseudonyms)

    @interrupts_held()
    def next_step(self, cases: Sequence[TrainingCase]) -> float:
        """One step on the next patient: every one once an epoch, in random order."""
        epoch, position = divmod(self.steps * self.workers.count + self.workers.rank, len(cases))
        order = torch.randperm(len(cases), generator=_stream(self.settings.seed, epoch, 0))
        return self.step(cases[int(order[position])])

    def step(self, case: TrainingCase) -> float:
        """One optimisation step on one patient; returns its masked L1 in Gy before the step.

        A step whose loss or gradient is no finite number is skipped; many in a row raise TrainingError.
        """
        start = self.clock()
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate_at(self.elapsed_ratio)
        random = _stream(self.settings.seed, self.steps, 1 + self.workers.rank)
        s = self.settings
        turned, upended, deformed = s.moves_at(self.elapsed_ratio)
        augmentation = Augmentation.draw(random, s.mirrored_ratio, turned, s.pixel_range, upended, deformed)
        channels, block = self.network.configuration.channels, self.network.configuration.block
        first = torch.randint(block, (3,), generator=random).tolist() if block > 1 else (0, 0, 0)
        seen = augmentation(case.example(channels).in_blocks(block, first))
        factors = [f.to(self.device) for f in self.network.draw_factors(1, random)]
        half = self._precision_for(seen.channels) is torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            predicted = self.network.decode_unclipped(self.network.encode(seen.channels), factors)
        error = masked_l1(predicted, seen.dose_gy, seen.share)
        loss = error
        weight = self.settings.dvh_weight_at(self.elapsed_ratio)
        if weight > 0:
            dvh_gy = dvh_error_gy(predicted * seen.mask, seen.dose_gy, seen.structure_masks())
            if dvh_gy is not None:
                loss = error + weight * dvh_gy / PRESCRIPTION_SCALE_GY
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        error = error.detach()
        self.workers.mean([error, *(p.grad for p in self.network.parameters() if p.grad is not None)])
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_norm)
        loss_gy = float(error) * PRESCRIPTION_SCALE_GY
        self.steps += 1
        if math.isfinite(loss_gy) and bool(torch.isfinite(norm)):
            self.optimiser.step()
            self._update_average()
            self.skipped_in_a_row = 0
            self.recent_gy = [*self.recent_gy[1 - LOSSES_AVERAGED :], loss_gy]
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        self.seconds = self.workers.agreed(self.seconds + self.clock() - start, self.device)
        if self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"Loss or gradient were no finite numbers in {self.skipped_in_a_row} steps in a row.",
                where=case.pseudonym,
                remedy="Check this patient's CT and dose; if they are sound, start anew in another folder.",
            )
        return loss_gy

    def _precision_for(self, features: Tensor) -> torch.dtype:
        # oneDNN's bfloat16 weight gradient of a convolution over two slices, the bottleneck's here, holds memory
        # that was never written: huge or no numbers. The thinnest crops come to two a level higher.
        if self.device.type == "cpu" and features.shape[2] <= 2 * 2**self.network.configuration.halvings:
            return torch.float32
        return self.precision

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.average_decay, (1 + self.steps) / (10 + self.steps))
        for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)

    def validate(self, patients: Sequence[Patient]) -> dict:
        """Score the averaged weights without dropout; returns the entry it adds to the log."""
        surrogate = DoseSurrogate(self.average, self.device)
        scores = []
        for patient in patients:
            if patient.pseudonym not in self._features:
                self._features[patient.pseudonym] = surrogate.features(patient)
            dose = surrogate.expected_dose(patient, self._features[patient.pseudonym])
            scores.append(score_patient(patient, dose.values))
        dose_gy, dvh_gy = cohort_scores_gy(scores)
        entry = {
            "minutes": round(self.seconds / 60, 2),
            "steps": self.steps,
            "skipped": self.skipped,
            "epochs": round(self.steps * self.workers.count / len(self.patients), 2),
            "training_l1_gy": round(float(np.mean(self.recent_gy)), 3) if self.recent_gy else None,
            "validation_dose_score_gy": round(dose_gy, 4),
            "validation_dvh_score_gy": round(dvh_gy, 4),
        }
        self.log.append(entry)
        self.validated_seconds = self.seconds
        return entry

    @interrupts_held()
    def save(self) -> None:
        """Write the checkpoint, whole or not at all. Raises OutputError where it cannot be written."""
        if self.workers.rank:
            return
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
            "skipped": self.skipped,
            "processes": self.workers.count,
            "precision": self.precision,
            "seconds": self.seconds,
            "validated_seconds": self.validated_seconds,
            "patients": self.patients,
            "recent_gy": self.recent_gy,
            "log": self.log,
            "configuration": self.network.configuration.as_dict(),
            "settings": asdict(self.settings),
        }
        with whole_file(self.out / CHECKPOINT) as aside:
            try:
                torch.save(state, aside)
            except RuntimeError as error:  # torch's writer knows no OSError
                raise OutputError(
                    "The checkpoint cannot be written.",
                    where=CHECKPOINT,
                    remedy="Check permissions and free space; an earlier checkpoint is still there for --resume.",
                ) from error
        with whole_file(self.out / LOG) as aside:
            aside.write_text(json.dumps(self.log, indent=1) + "\n")

    def resume(self) -> None:
        """Go on from the checkpoint in the output folder.

        Raises TrainingError where there is none, it is damaged, or begun with another configuration or settings.
        """
        path = self.out / CHECKPOINT
        if not path.is_file():
            raise TrainingError("There is no checkpoint to resume.", where=path.name, remedy="Start without --resume.")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except PermissionError as error:
            raise TrainingError(
                f"The checkpoint cannot be read ({error.strerror}).", where=path.name, remedy="Check its permissions."
            ) from error
        except Exception as error:  # torch raises many kinds for a damaged file
            raise TrainingError("The checkpoint is damaged.", where=path.name, remedy=OTHER_FOLDER) from error
        try:
            self._go_on_from(dict(state))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise TrainingError(
                "The checkpoint was not written by this version.", where=path.name, remedy=OTHER_FOLDER
            ) from error

    def _go_on_from(self, state: dict) -> None:
        if NetworkConfiguration.from_dict(state["configuration"]) != self.network.configuration:
            raise TrainingError(
                "The checkpoint is of another network configuration.", where=CHECKPOINT, remedy=OTHER_FOLDER
            )
        if state["processes"] != self.workers.count:
            raise TrainingError(
                f"The training began with {state['processes']} processes, not {self.workers.count}.",
                where=CHECKPOINT,
                remedy="Resume with as many, or start anew without --resume in another folder.",
            )
        unknown_before = {"upended_ratio": 0.0, "deformed_ratio": 0.0, "settled_from_ratio": 1.0}
        begun, now = {**unknown_before, **state["settings"]}, asdict(self.settings)
        others = [f"{k} {begun[k]}, not {now[k]}" for k in now if k not in CHANGEABLE_SETTINGS and begun[k] != now[k]]
        if others:
            raise TrainingError(
                f"The training began with other settings: {'; '.join(others)}.",
                where=CHECKPOINT,
                remedy="Resume with those, or start anew without --resume in another folder.",
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps, self.skipped, self.precision = state["steps"], state["skipped"], state["precision"]
        self.seconds, self.validated_seconds = state["seconds"], state["validated_seconds"]
        self.patients, self.recent_gy, self.log = state["patients"], state["recent_gy"], state["log"]


def train(
    training: Training,
    cases: Sequence[TrainingCase],
    validation: Sequence[Patient],
    progress: Progress = silent,
    validated: Callable[[dict], None] = lambda entry: None,
) -> str:
    """Train until the budget is spent, validating on the way and at the end; returns the written weights' SHA-256.

    A checkpoint is written before the first step, so that a place that cannot hold it is known at once, regularly, and
    when interrupted (KeyboardInterrupt and Cancelled pass through). ``validated`` gets each entry of the log.

    Raises
    ------
    TrainingError : the checkpoint was trained on other patients, a validation patient has no dose, or the loss is no
        finite number again and again.
    OutputError : checkpoint or weights cannot be written.
    """
    training.require_patients([case.pseudonym for case in cases])
    _ = training.precision  # here, where every process comes by: they agree on it
    for patient in validation:
        if not patient.plans or patient.plan.dose is None:
            raise TrainingError("The patient has no reference dose (dose.csv).", where=patient.pseudonym)
    training.save()
    saved_at = training.seconds
    try:
        while True:
            if training.validation_due and training.workers.rank == 0:
                progress(min(training.elapsed_ratio, 1.0), f"step {training.steps}, validating")
                validated(training.validate(validation))
            if training.elapsed_ratio >= 1:
                break
            training.next_step(cases)
            loss = f"{np.mean(training.recent_gy):.2f} Gy" if training.recent_gy else "unknown"
            progress(
                min(training.elapsed_ratio, 1.0),
                f"step {training.steps}, epoch {training.steps * training.workers.count / len(cases):.1f}, loss {loss}",
            )
            if training.seconds - saved_at >= 60 * training.settings.checkpoint_minutes:
                training.save()
                saved_at = training.seconds
                return_freed_memory()  # patients and their moves come in many sizes
    finally:
        training.save()
    about: dict = {}
    described = [case.descriptors for case in cases if case.descriptors]
    if len(described) >= FEWEST_PATIENTS:
        about["familiarity"] = Familiarity.fit(described).as_dict()
    about |= {
        "training": {
            **asdict(training.settings),
            "steps": training.steps,
            "skipped": training.skipped,
            "processes": training.workers.count,
            "patients": len(cases),
            "pseudonyms": training.patients,
            "precision": str(training.precision).removeprefix("torch."),
            "device": str(training.device),
            "torch": torch.__version__,
            "log": training.log,
        }
    }
    digest = ""
    if training.workers.rank == 0:
        digest = _written(training, about)
    training.workers.agreed(0.0, training.device)  # leave together: one that leaves early takes the others' links along
    return digest


def _written(training: Training, about: dict) -> str:
    """Write the averaged weights; returns their SHA-256."""
    try:
        return save_weights(training.average, training.out / WEIGHTS, about)
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"{error.name} is not installed here, so the weights' file was not written. The checkpoint is complete.",
            where=training.out.name,
            remedy="Run the same command with --resume where the whole software is installed; it only writes them.",
        ) from error
