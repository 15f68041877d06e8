"""Cards are found by the whole name that they give themselves."""

from types import SimpleNamespace

import pytest

from jaxfusion.hardware import FP8_CAPABILITY, HARDWARE, find_hardware, has_fp8


@pytest.mark.parametrize(
    ("device_kind", "bf16_flops"),
    [("NVIDIA H200", 989.5e12), ("NVIDIA H100 80GB HBM3", 989.5e12), ("NVIDIA H100 PCIe", 756.5e12), ("cpu", None)],
)
def test_a_card_is_found_by_its_name(device_kind, bf16_flops):
    card = find_hardware(device_kind)
    assert (card and card.bf16_flops) == bf16_flops


def test_a_name_that_goes_on_is_another_card():
    assert find_hardware("NVIDIA L40S") is not find_hardware("NVIDIA L4")
    assert find_hardware("NVIDIA L40") is None and find_hardware("NVIDIA A100-SXM4-80GB").memory_bytes > 80e9


@pytest.mark.parametrize(("capability", "there"), [("8.0", False), ("8.9", True), ("12.0", True), ("gfx942", False)])
def test_fp8_goes_by_the_compute_capability(capability, there):
    assert has_fp8(SimpleNamespace(compute_capability=capability)) is there
    assert not has_fp8(SimpleNamespace())


@pytest.mark.parametrize("card", HARDWARE.values(), ids=HARDWARE)
def test_cards_with_fp8_products_have_their_rate(card):
    assert (card.fp8_flops > 0) == (card.compute_capability >= FP8_CAPABILITY)
