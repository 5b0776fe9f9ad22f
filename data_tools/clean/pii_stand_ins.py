"""Stand-ins for personal data: values of the same kind that belong to nobody.

A stand-in is a pure function of salt, kind and canonical form (keyed BLAKE2b, RFC 7693), so the same datum
has the same stand-in in every document and every worker, and without the salt it cannot be guessed from it.
"""

from __future__ import annotations

import hashlib
import ipaddress

_NETWORKS = (bytes([192, 0, 2]), bytes([198, 51, 100]), bytes([203, 0, 113]))  # RFC 5737
_IPV6_NETWORK = bytes.fromhex("20010db8")  # RFC 3849


class StandIns:
    """Makes stand-ins with one salt."""

    def __init__(self, salt: str) -> None:
        self._key = hashlib.blake2b(salt.encode()).digest()

    def make(self, kind: str, canonical: bytes) -> bytes:
        """The stand-in of a datum of a kind (the names in `PiiConfig.kinds`)."""
        digest = hashlib.blake2b(canonical, key=self._key, person=kind.encode()).digest()
        number = int.from_bytes(digest[:8], "big")
        letters = "".join(chr(97 + byte % 26) for byte in digest[8:24])
        match kind:
            case "email":  # RFC 2606 sets example.com aside
                return f"{letters[:10]}@example.com".encode()
            case "phone":  # 555-0100 to 555-0199 are set aside for fiction in every North American area
                area = 200 + number % 800
                area += area % 100 == 11
                return f"+1-{area}-555-01{number // 800 % 100:02}".encode()
            case "ip":
                return _ip(canonical, digest)
            case "credit_card":  # no issuer's numbers begin with 0
                digits = f"{number % 10**12:012}"
                return f"0000-{digits[:4]}-{digits[4:8]}-{digits[8:]}".encode()
            case "iban":  # check digits run from 02 to 98
                return canonical[:2] + b"00" + letters.upper().encode()
            case "secret":
                return f"secret_{letters}".encode()
        raise ValueError(f"no stand-ins for {kind}")


def _ip(canonical: bytes, digest: bytes) -> bytes:
    if b":" in canonical:
        return ipaddress.IPv6Address(_IPV6_NETWORK + digest[:12]).compressed.encode()
    packed = _NETWORKS[digest[0] % 3] + bytes([1 + digest[1] % 254])
    return ipaddress.IPv4Address(packed).compressed.encode()
