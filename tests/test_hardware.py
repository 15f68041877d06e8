"""Cards are found by the whole name that they give themselves."""

import pytest

from jaxfusion.hardware import find_hardware


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
