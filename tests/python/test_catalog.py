"""What computers can be made of, and where: regions, sizes, prices and templates."""

import miosa
import pytest

DESKTOP = "miosa-desktop"


def test_regions(client: miosa.Miosa) -> None:
    regions = client.regions.list_regions()
    assert {"local", "us-east-ny"} <= {each["id"] for each in regions}
    assert all(each["available"] for each in regions)
    assert client.settings.regions() == regions


def test_sizes_and_prices(client: miosa.Miosa) -> None:
    sizes = {each["slug"]: each for each in client.regions.list_sizes()}
    assert list(sizes) == ["xs", "small", "medium", "large", "xl"]
    assert (sizes["small"]["vcpus"], sizes["small"]["memory_mb"]) == (1, 4096)
    prices = client.regions.pricing()["credits_per_hour"]
    assert prices == {slug: size["price_hour"] for slug, size in sizes.items()}
    assert client.settings.compute_pricing()["credits_per_hour"] == prices
    catalog = client.regions.catalog()
    assert [each["slug"] for each in catalog["sizes"]] == list(sizes)


def test_templates(client: miosa.Miosa) -> None:
    assert DESKTOP in {each["slug"] for each in client.regions.list_templates()}
    assert client.regions.get_template(DESKTOP)["slug"] == DESKTOP
    with pytest.raises(miosa.NotFoundError):
        client.regions.get_template("no-such-template")
    assert DESKTOP in {each["id"] for each in client.templates.catalog()["templates"]}
    assert [each["id"] for each in client.templates.list(product="computer")] == [DESKTOP]
    assert client.templates.list(product="sandbox") == []
    assert client.templates.get(DESKTOP)["primitive"] == "computer"
    states = {each["size"]: each["state"] for each in client.templates.readiness(DESKTOP)}
    assert set(states) == {"xs", "small", "medium", "large", "xl"}
    assert set(states.values()) <= {"fast_ready", "cold_boot_only"}
