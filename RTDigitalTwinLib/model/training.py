"""Training of the dose network within a time budget, resumable."""

from __future__ import annotations

import json
import math
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from RTDigitalTwinLib.dosimetry.openkbp_score import cohort_scores_gy, score_patient
from RTDigitalTwinLib.errors import TrainingError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.model.network import PRESCRIPTION_SCALE_GY, DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.model.training_data import TrainingCase
from RTDigitalTwinLib.model.weights import save_weights
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent

CHECKPOINT, LOG, WEIGHTS = "checkpoint.pt", "log.json", "dose-unet.safetensors"


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes
    ----------
    minutes : the budget of training time; the schedules run on its elapsed share, over all resumed parts.
    learning_rate : peak of the cosine, reached after ``warm_up_ratio`` of the budget.
    average_decay : of the moving average of weights, at its end.
    validations : how often to score the validation patients on the way.
    """

    minutes: float
    seed: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up_ratio: float = 0.02
    gradient_norm: float = 1.0
    average_decay: float = 0.998
    validations: int = 8
    checkpoint_minutes: float = 5.0

    def rate_at(self, elapsed_ratio: float) -> float:
        """Learning rate after a share of the budget: linear warm-up, then a cosine to zero."""
        if elapsed_ratio < self.warm_up_ratio:
            return self.learning_rate * max(elapsed_ratio / self.warm_up_ratio, 0.01)
        along = (min(elapsed_ratio, 1.0) - self.warm_up_ratio) / (1 - self.warm_up_ratio)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * along))


def masked_l1(predicted_gy: Tensor, dose_gy: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over the mask's voxels, as a share of the highest prescription."""
    return (predicted_gy - dose_gy).abs()[mask].mean() / PRESCRIPTION_SCALE_GY


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


class Training:
    """The state of one training: network, its moving average, optimiser, random stream, elapsed time, log."""

    def __init__(
        self,
        settings: TrainingSettings,
        out: Path,
        device: torch.device,
        configuration: NetworkConfiguration | None = None,
    ) -> None:
        self.settings, self.out, self.device = settings, out, device
        torch.manual_seed(settings.seed)
        self.network = DoseUNet(configuration).to(device, memory_format=torch.channels_last_3d)
        self.average = deepcopy(self.network).eval()
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.steps, self.skipped, self.seconds = 0, 0, 0.0
        self.queue: list[int] = []
        self.log: list[dict] = []
        self.precision = faster_precision(self.network, device)

    @property
    def elapsed_ratio(self) -> float:
        return self.seconds / (60 * self.settings.minutes)

    def step(self, case: TrainingCase) -> float:
        """One optimisation step on one patient; returns its masked L1 in Gy before the step."""
        start = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate_at(self.elapsed_ratio)
        mirrored = bool(torch.rand((), generator=self.generator) < 0.5)
        features, dose, mask = (t.to(self.device) for t in case.tensors(mirrored=mirrored))
        factors = [f.to(self.device) for f in self.network.draw_factors(1, self.generator)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision is torch.bfloat16):
            predicted = self.network.decode_unclipped(self.network.encode(features), factors)
        loss = masked_l1(predicted, dose, mask)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_norm)
        if torch.isfinite(norm):  # a rare overflow in half precision must not end in the weights
            self.optimiser.step()
            self._update_average()
        else:
            self.skipped += 1
        self.steps += 1
        loss_gy = float(loss.detach()) * PRESCRIPTION_SCALE_GY
        self.seconds += time.perf_counter() - start
        if not math.isfinite(loss_gy):
            raise TrainingError(
                f"The loss is {loss_gy} at step {self.steps}.",
                where=case.pseudonym,
                remedy="Resume from the last checkpoint with a lower learning rate.",
            )
        return loss_gy

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.average_decay, (1 + self.steps) / (10 + self.steps))
        for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)

    def next_case(self, count: int) -> int:
        """Index of the next patient: every one once an epoch, in random order."""
        if not self.queue:
            self.queue = torch.randperm(count, generator=self.generator).tolist()
        return self.queue.pop()

    def validate(self, patients: list[Patient]) -> tuple[float, float]:
        """(dose score, DVH score) in Gy of the averaged weights without dropout."""
        surrogate = DoseSurrogate(self.average, self.device)
        return cohort_scores_gy([score_patient(p, surrogate.expected_dose(p).values) for p in patients])

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "steps": self.steps,
            "skipped": self.skipped,
            "precision": self.precision,
            "seconds": self.seconds,
            "queue": self.queue,
            "log": self.log,
            "configuration": self.network.configuration.as_dict(),
            "settings": asdict(self.settings),
        }
        with whole_file(self.out / CHECKPOINT) as aside:
            torch.save(state, aside)
        with whole_file(self.out / LOG) as aside:
            aside.write_text(json.dumps(self.log, indent=1) + "\n")

    def resume(self) -> None:
        """Go on from the checkpoint in the output folder.

        Raises TrainingError where there is none, it is damaged, or belongs to another configuration.
        """
        path = self.out / CHECKPOINT
        if not path.is_file():
            raise TrainingError("There is no checkpoint to resume.", where=path.name, remedy="Start without --resume.")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise TrainingError(
                "The checkpoint is damaged.", where=path.name, remedy="Start anew without --resume in another folder."
            ) from error
        if state["configuration"] != self.network.configuration.as_dict():
            raise TrainingError("The checkpoint is of another network configuration.", where=path.name)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.steps, self.skipped, self.seconds = state["steps"], state["skipped"], state["seconds"]
        self.queue, self.log, self.precision = state["queue"], state["log"], state["precision"]


def train(training: Training, cases: list[TrainingCase], validation: list[Patient], progress: Progress = silent) -> str:
    """Train until the budget is spent, validating on the way; returns the SHA-256 of the weights written.

    A checkpoint is written regularly and when interrupted (KeyboardInterrupt and Cancelled pass through).
    """
    settings = training.settings
    saved_at = training.seconds
    recent: list[float] = []
    validated = len(training.log)
    try:
        while training.elapsed_ratio < 1:
            recent = recent[-99:] + [training.step(cases[training.next_case(len(cases))])]
            progress(
                min(training.elapsed_ratio, 1.0),
                f"step {training.steps}, epoch {training.steps / len(cases):.1f}, loss {np.mean(recent):.2f} Gy",
            )
            if training.elapsed_ratio >= (validated + 1) / settings.validations:
                validated += 1
                dose, dvh = training.validate(validation)
                training.log.append(
                    {
                        "minutes": round(training.seconds / 60, 2),
                        "steps": training.steps,
                        "epochs": round(training.steps / len(cases), 2),
                        "training_l1_gy": round(float(np.mean(recent)), 3),
                        "validation_dose_score_gy": round(dose, 4),
                        "validation_dvh_score_gy": round(dvh, 4),
                    }
                )
                progress(min(training.elapsed_ratio, 1.0), f"validation: dose {dose:.3f} Gy, DVH {dvh:.3f} Gy")
            if training.seconds - saved_at >= 60 * settings.checkpoint_minutes:
                training.save()
                saved_at = training.seconds
    finally:
        training.save()
    about = {
        "training": {
            **asdict(settings),
            "steps": training.steps,
            "patients": len(cases),
            "precision": str(training.precision).removeprefix("torch."),
            "device": str(training.device),
            "torch": torch.__version__,
            "log": training.log,
        }
    }
    return save_weights(training.average, training.out / WEIGHTS, about)
