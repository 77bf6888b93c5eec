"""Kinds of devices: facts that are published of them, each kind with its sources."""

from typing import NamedTuple


class Card(NamedTuple):
    """What the CUDA compiler has to know of a GPU, which it asks where there is one.

    description      the card's name
    capability       the major compute capability; the minor one is 0
    accelerated      whether the compiler may use instructions of this architecture alone, such as sm_90a
    cores            multiprocessors
    lanes            float32 units of each of them
    clock            GHz
    shared_memory    bytes of each multiprocessor
    l2_cache         bytes
    """

    description: str
    capability: int
    accelerated: bool
    cores: int
    lanes: int
    clock: float
    shared_memory: int
    l2_cache: int


class Device(NamedTuple):
    """A kind of device.

    names      values of `jax.Device.device_kind`
    memory     bytes; of a GPU as the driver reports them
    bandwidth  of the memory, bytes/s
    bfloat16   FLOP/s of dense matrix products, at most
    float32    FLOP/s without tensor cores, at most; None where it is not published
    source     of these figures
    card       of a GPU
    cloud      of a TPU: what stands before the number in Google Cloud's name of a slice (v5litepod-16)
    cores      of a TPU: what one chip adds to that number
    slices     of a TPU: the shapes of its slices, one for each number of chips, smallest first
    """

    names: tuple[str, ...]
    memory: int
    bandwidth: float
    bfloat16: float
    float32: float | None
    source: str
    card: Card | None = None
    cloud: str = ""
    cores: int = 1
    slices: tuple[str, ...] = ()


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")

KINDS: dict[str, Device] = {
    "v4": Device(
        names=("TPU v4",),
        memory=32 * 2**30,
        bandwidth=1228e9,
        bfloat16=275e12,
        float32=None,
        source='Google Cloud\'s documentation, "TPU v4"',
        cloud="v4",
        cores=2,
        slices=DEEP[:-1],
    ),
    "v5e": Device(
        names=("TPU v5 lite", "TPU v5e"),
        memory=16 * 2**30,
        bandwidth=819e9,
        bfloat16=197e12,
        float32=None,
        source='Google Cloud\'s documentation, "TPU v5e"',
        cloud="v5litepod",
        slices=FLAT,
    ),
    "v5p": Device(
        names=("TPU v5", "TPU v5p"),
        memory=95 * 2**30,
        bandwidth=2765e9,
        bfloat16=459e12,
        float32=None,
        source='Google Cloud\'s documentation, "TPU v5p"',
        cloud="v5p",
        cores=2,
        slices=(*DEEP, "16x16x24"),
    ),
    "v6e": Device(
        names=("TPU v6 lite", "TPU v6e"),
        memory=32 * 2**30,
        bandwidth=1640e9,
        bfloat16=918e12,
        float32=None,
        source='Google Cloud\'s documentation, "TPU v6e"',
        cloud="v6e",
        slices=FLAT,
    ),
    "a100-40": Device(
        names=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        memory=42331013120,
        bandwidth=1555e9,
        bfloat16=312e12,
        float32=19.5e12,
        source="NVIDIA's data sheet \"A100 Tensor Core GPU\"; the card: a100_sxm_40 of OpenXLA's target configs",
        card=Card("NVIDIA A100-SXM4-40GB", 8, False, 108, 64, 1.41, 167936, 41943040),
    ),
    "a100-80": Device(
        names=("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
        memory=85100068864,
        bandwidth=2039e9,
        bfloat16=312e12,
        float32=19.5e12,
        source="NVIDIA's data sheet \"A100 Tensor Core GPU\"; the card: a100_sxm_80 of OpenXLA's target configs",
        card=Card("NVIDIA A100-SXM4-80GB", 8, False, 108, 64, 1.41, 167936, 41943040),
    ),
    "h100": Device(
        names=("NVIDIA H100 80GB HBM3",),
        memory=84942979072,
        bandwidth=3350e9,
        bfloat16=989e12,
        float32=67e12,
        source="NVIDIA's data sheet \"H100 Tensor Core GPU\", SXM; the card: h100_sxm of OpenXLA's target configs",
        card=Card("NVIDIA H100 80GB HBM3", 9, True, 132, 128, 1.98, 233472, 52428800),
    ),
    "h200": Device(
        names=("NVIDIA H200",),
        memory=151397597184,
        bandwidth=4800e9,
        bfloat16=989e12,
        float32=67e12,
        source="NVIDIA's data sheet \"H200 Tensor Core GPU\", SXM; the card: h200 of OpenXLA's target configs",
        card=Card("NVIDIA H200 141GB HBM3e", 9, True, 132, 128, 1.98, 233472, 52428800),
    ),
    "b200": Device(
        names=("NVIDIA B200",),
        memory=191514411008,
        bandwidth=7700e9,
        bfloat16=2250e12,
        float32=75e12,
        source="NVIDIA's data sheet \"Blackwell\", HGX B200; the card: b200 of OpenXLA's target configs",
        card=Card("NVIDIA B200", 10, True, 148, 128, 1.965, 233472, 132644864),
    ),
}
"""By the name that `experiments.compile --topology` gives them.

Data sheets of the H100 and later state the rates of tensor cores with sparsity, twice the dense ones that stand here.
TPUs have no published rate in float32: their matrix units multiply bfloat16.
"""

PEAKS = {name: device.bfloat16 for device in KINDS.values() for name in device.names}
"""FLOP/s of dense matrix products in bfloat16, at most, of one device, by `jax.Device.device_kind`."""
