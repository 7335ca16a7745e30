//! Ranges of network addresses, as API keys are limited to them.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::{PartialSchema, ToSchema};

/// One address, or a network in CIDR form. An IPv4 address that is written as an IPv6 one is the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange(IpNet);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an address or a network such as 203.0.113.7, 10.0.0.0/8 or 2001:db8::/32")]
pub struct NotAnAddressRange;

/// Of an IPv6 address that holds an IPv4 one (`::ffff:0:0/96`).
const MAPPED_PREFIX: u8 = 96;

impl AddressRange {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// Whether every address of `other` is in this one.
    pub fn includes(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }
}

/// Whether a list of ranges leaves an address in: an empty one leaves in every address, and any other none that is not
/// known.
pub fn admits(ranges: &[AddressRange], address: Option<IpAddr>) -> bool {
    ranges.is_empty() || address.is_some_and(|address| ranges.iter().any(|range| range.contains(address)))
}

impl std::str::FromStr for AddressRange {
    type Err = NotAnAddressRange;

    fn from_str(text: &str) -> Result<Self, NotAnAddressRange> {
        let text = text.trim();
        let network = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address.to_canonical()),
            Err(_) => text.parse().map_err(|_| NotAnAddressRange)?,
        };
        Ok(Self(canonical(network).trunc()))
    }
}

fn canonical(network: IpNet) -> IpNet {
    let mapped = |network: Ipv6Net| {
        let length = network.prefix_len().checked_sub(MAPPED_PREFIX)?;
        Ipv4Net::new(Ipv6Addr::to_ipv4_mapped(&network.addr())?, length).ok()
    };
    match network {
        IpNet::V6(network) => mapped(network).map_or(IpNet::V6(network), IpNet::V4),
        IpNet::V4(_) => network,
    }
}

impl std::fmt::Display for AddressRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            return self.0.addr().fmt(f);
        }
        self.0.fmt(f)
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl PartialSchema for AddressRange {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("An address, or a network in CIDR form"))
            .into()
    }
}

impl ToSchema for AddressRange {}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> AddressRange {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_in_a_range() {
        for (text, inside, outside) in [
            ("203.0.113.7", "203.0.113.7", "203.0.113.8"),
            ("10.1.2.3/8", "10.255.0.1", "11.0.0.1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::1", "::1", "127.0.0.1"),
            ("::ffff:10.0.0.0/104", "10.9.9.9", "::a09:909"),
            ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "8.8.8.8", "::1"),
        ] {
            assert!(range(text).contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!range(text).contains(outside.parse().unwrap()), "{text} {outside}");
        }
        // As a socket for both families sees it.
        assert!(range("192.0.2.0/24").contains("::ffff:192.0.2.9".parse().unwrap()));
        for text in
            ["", "x", "10.0.0.0/33", "10.0.0", "10.0.0.0/", "::/129", "example.org", "10.0.0.1-10.0.0.9"]
        {
            assert!(text.parse::<AddressRange>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ranges_are_written_as_they_are_meant() {
        for (text, written) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            (" 203.0.113.7/32", "203.0.113.7"),
            ("2001:DB8::1/128", "2001:db8::1"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            assert_eq!(range(text).to_string(), written);
            assert_eq!(range(written), range(text));
        }
        assert!(range("10.0.0.0/8").includes(&range("10.1.0.0/16")));
        assert!(!range("10.1.0.0/16").includes(&range("10.0.0.0/8")));
        assert!(!range("0.0.0.0/0").includes(&range("::/0")));
    }

    #[test]
    fn an_unknown_address_is_in_no_list_but_the_empty_one() {
        assert!(admits(&[], None));
        assert!(!admits(&[range("0.0.0.0/0"), range("::/0")], None));
        assert!(admits(&[range("10.0.0.0/8"), range("::1")], Some("::1".parse().unwrap())));
    }
}
