"""Monte Carlo prediction against the plain way: as many passes through the whole 128^3 grid, in one run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.networks.nets import UNet

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.model.features import ANATOMY_CHANNELS, build_features
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.solver.sampling import DECODED_TOGETHER, STRATIFIED_TOGETHER, sample_dose
from Testing.Benchmarks.framework import Benchmark, Case, Effort, Values, flops_of, seconds_of
from Testing.Benchmarks.patients import FULL_SIDE, chosen_patient, full_grid
from Testing.Benchmarks.peak import peak_rates

SAMPLES = 32
COMPARED = 4  # samples that are compared with whole-network passes


def against_monai(effort: Effort) -> Case:
    """MONAI's U-Net of the prototype as it comes: its layers, its dropout, the default layout, weights of no matter."""
    torch.manual_seed(0)
    network = UNet(3, len(ANATOMY_CHANNELS), 1, (32, 64, 128, 256, 512), (2,) * 4, num_res_units=2, dropout=0.2)
    network.train()  # so that the dropout drops
    channels = torch.rand(1, len(ANATOMY_CHANNELS), *FULL_SIDE)
    return _case(effort, lambda: network(channels))


def against_own_network(effort: Effort) -> Case:
    """Our network whole, in channels-last layout, dropout drawn anew."""
    network = DoseSurrogate.load(device="cpu").network
    channels = full_grid(chosen_patient(), network.configuration.channels)
    channels = channels.contiguous(memory_format=torch.channels_last_3d)
    generator = torch.Generator().manual_seed(0)
    return _case(effort, lambda: network(channels, network.draw_factors(1, generator)))


def _case(effort: Effort, one_pass: Any) -> Case:
    keep_freed_memory()
    patient = chosen_patient()
    surrogate = DoseSurrogate.load(device="cpu")
    passes = effort.of(4, 1)

    def ours() -> None:
        """From the features on, as the passes begin with theirs; nothing else is kept from the time before."""
        surrogate.forget()
        sample_dose(surrogate, patient, SAMPLES)

    def plain() -> None:
        with torch.inference_mode():
            for _ in range(passes):
                one_pass()

    return Case(
        ours,
        plain,
        effort.of(3, 1),
        SAMPLES / passes,
        counts_flops=True,
        facts=lambda: {
            "patient": patient.pseudonym,
            "voxels_in_the_mask": int(patient.dose_mask.mask.sum()),
            "crop": "x".join(map(str, surrogate.features(patient).crop.shape)),
            "samples": SAMPLES,
            "passes_timed": passes,
            "seconds_of_features": round(
                seconds_of(lambda: build_features(patient, surrogate.network.configuration.channels)), 2
            ),
            **agreement(surrogate),
        },
    )


def agreement(surrogate: DoseSurrogate) -> dict[str, Any]:
    """Largest difference of dose from whole-network passes on the same crop with the same dropout, and of the crop."""
    patient = chosen_patient()
    features, network = surrogate.features(patient), surrogate.network
    mask = torch.from_numpy(features.crop.mask)
    factors = network.draw_factors(COMPARED, torch.Generator().manual_seed(0), STRATIFIED_TOGETHER)
    encoded = surrogate.encoded(patient)
    ours = surrogate.decode(encoded, features, factors)
    with torch.inference_mode():
        channels = torch.from_numpy(features.channels)[None]
        passes = [
            network.decode(
                replace(network.encode(channels), baseline=encoded.baseline), [f[k : k + 1] for f in factors]
            )[0, mask].numpy()
            for k in range(COMPARED)
        ]
        whole = network(full_grid(patient, network.configuration.channels))[0].numpy()
    everywhere = patient.dose_mask.mask
    cropped = DoseSurrogate(network, surrogate.device).expected_dose(patient).values  # without coarse networks
    apart: dict[str, Any] = {
        "largest_difference_from_whole_passes_on_the_crop_gy": float(f"{np.abs(ours - np.stack(passes)).max():.2g}"),
        "mean_difference_that_cropping_makes_gy": round(float(np.abs(cropped - whole)[everywhere].mean()), 3),
    }
    if patient.plan.dose is not None:
        known = patient.plan.dose.values[everywhere]
        corrected = surrogate.expected_dose(patient).values
        apart["dose_score_gy"] = round(float(np.abs(corrected[everywhere] - known).mean()), 3)
        apart["dose_score_on_the_crop_without_coarse_networks_gy"] = round(
            float(np.abs(cropped[everywhere] - known).mean()), 3
        )
        apart["dose_score_on_the_full_grid_without_coarse_networks_gy"] = round(
            float(np.abs(whole[everywhere] - known).mean()), 3
        )
    return apart


def achieved(effort: Effort) -> Values:
    """Arithmetic a processor second of decoding, and the most that this machine is seen to do, in turn."""
    keep_freed_memory()
    patient, surrogate = chosen_patient(), DoseSurrogate.load(device="cpu")
    features, samples = surrogate.features(patient), effort.of(SAMPLES, 8)
    decode = surrogate.decoder(surrogate.encoded(patient), features)
    factors = surrogate.network.draw_factors(samples, torch.Generator().manual_seed(0), STRATIFIED_TOGETHER)
    together = DECODED_TOGETHER["cpu"]

    def decoded() -> None:
        for first in range(0, samples, together):
            decode([f[first : first + together] for f in factors])

    gflop = flops_of(decoded) / 1e9
    rates, peaks, faster = [], [], ""
    for _ in range(effort.of(5, 2)):
        rates.append(gflop / seconds_of(decoded, processor=True))
        found = peak_rates(processor=True)
        peaks.append(max(found.values()))
        faster = max(found, key=found.__getitem__)
    facts = {"gflop_a_sample": round(gflop / samples, 1), "samples": samples, "peak_is_of": faster}
    return Values(tuple(rates), tuple(peaks), facts)


BENCHMARKS = (
    Benchmark(
        "arithmetic of a sample",
        "decoding, whole",
        "the fastest large convolution or product",
        achieved,
        unit="GFLOP a processor s",
    ),
    Benchmark(
        "prediction",
        "32 samples, features known",
        "32 passes of MONAI's U-Net on 128^3",
        against_monai,
        target=8,
    ),
    Benchmark(
        "prediction, own network",
        "32 samples, features known",
        "32 passes of the same network on 128^3, channels-last",
        against_own_network,
    ),
)
