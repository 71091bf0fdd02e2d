"""What is an IP address."""

from ipaddress import ip_address


def is_ip(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address, without brackets, port and prefix."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
