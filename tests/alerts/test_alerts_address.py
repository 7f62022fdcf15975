"""Which addresses may be talked to: public ones, and those the operator allows."""

from ipaddress import ip_address

import pytest

from snc_service.alerts.address import AddressRefused, checked, is_allowed, networks

OURS = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "203.0.113.7", "224.0.0.1",
    "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd12::1", "fec0::1",
    "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "::127.0.0.1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", OURS)
def test_our_own_networks_are_refused(address):
    assert not is_allowed(ip_address(address), ())


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not(address):
    assert is_allowed(ip_address(address), ())


def test_what_the_operator_allows_is_allowed_and_nothing_beside_it():
    allowed = networks(["10.1.0.0/16", "127.0.0.1", "fd00::/8"])
    for address in ("10.1.2.3", "127.0.0.1", "fd12::1", "::ffff:10.1.2.3", "64:ff9b::7f00:1"):
        assert is_allowed(ip_address(address), allowed), address
    for address in ("10.2.0.1", "127.0.0.2", "fc00::1", "::1", "169.254.169.254"):
        assert not is_allowed(ip_address(address), allowed), address


def test_a_name_is_checked_by_what_it_resolves_to():
    with pytest.raises(AddressRefused, match="localhost has the address"):
        checked("localhost", 80, ())
    with pytest.raises(AddressRefused, match=r"SNC_ALERT_NETWORKS=127\.0\.0\.1"):
        checked("127.0.0.1", 80, networks(["10.0.0.0/8"]))
    assert set(checked("localhost", 80, networks(["127.0.0.0/8", "::1"]))) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0"])
def test_other_ways_of_writing_loopback_lead_nowhere_else(host):
    """What the system's resolver makes of it is what is checked, whatever it looks like."""
    with pytest.raises((AddressRefused, OSError)):
        checked(host, 80, ())


def test_a_name_that_does_not_resolve_is_an_error_of_the_system():
    with pytest.raises(OSError, match=r".+"):
        checked("nobody.invalid", 80, ())
