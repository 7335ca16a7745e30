//! The guest's way out.
//!
//! ```text
//!  guest --virtio-net-- QEMU's user-mode NAT --sockets-- network namespace --tap0-- slirp4netns -- host
//!  10.0.2.15            (an ordinary process)            rules below               198.18.0.2/.3
//! ```
//!
//! QEMU's own user-mode network is made of sockets that QEMU opens, and maps its gateway to the loopback of
//! wherever QEMU runs. So QEMU runs in a network namespace of its own, where nothing listens. The only way
//! out of that namespace is `slirp4netns`, a second user-mode NAT that runs on the host side with its
//! mapping of the host's loopback switched off. No step needs root, and no port is opened on the host.
//!
//! Between the two, the namespace's routing rules decide what may be reached ([`policy`]). They are set by
//! the process that becomes QEMU before it becomes QEMU, when there is no way out yet; afterwards nobody
//! inside has the capability to change them. Rules rather than routes, because rules see ports:
//! slirp4netns forwards its name-server address to the host's name server **at any port**, and where that
//! is on the loopback (systemd-resolved, dnsmasq), that address would be a door to every service there.

mod namespace;
mod netlink;
mod uplink;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

pub use namespace::{EnterError, Namespace};
pub use netlink::host_networks;
pub use uplink::Uplink;

/// The network between the namespace and slirp4netns; reserved for benchmarks, so nobody's real network.
const LINK: Network = Network { address: Ipv4Addr::new(198, 18, 0, 0), prefix: 24 };
/// Where the guest finds a name server; the guest image names it in its resolv.conf.
const NAME_SERVER: Network = Network { address: Ipv4Addr::new(198, 18, 0, 3), prefix: 32 };

/// Private, shared, link-local, multicast and reserved space.
const NOT_THE_INTERNET: [Network; 7] = [
    Network { address: Ipv4Addr::new(10, 0, 0, 0), prefix: 8 },
    Network { address: Ipv4Addr::new(172, 16, 0, 0), prefix: 12 },
    Network { address: Ipv4Addr::new(192, 168, 0, 0), prefix: 16 },
    Network { address: Ipv4Addr::new(169, 254, 0, 0), prefix: 16 },
    Network { address: Ipv4Addr::new(100, 64, 0, 0), prefix: 10 },
    Network { address: Ipv4Addr::new(224, 0, 0, 0), prefix: 4 },
    Network { address: Ipv4Addr::new(240, 0, 0, 0), prefix: 4 },
];

/// An IPv4 network; bits of `address` beyond `prefix` are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: Ipv4Addr,
    prefix: u8,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetworkError {
    #[error("{0:?} is not an IPv4 network: write it like 10.1.0.0/16")]
    NotANetwork(String),
    #[error("{text:?} has address bits beyond its prefix: write {instead}")]
    HostBits { text: String, instead: Network },
}

impl Network {
    /// The network of this size that `address` is in. Prefixes over 32 count as 32.
    fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Network { address: Ipv4Addr::from_bits(address.to_bits() & mask), prefix }
    }

    fn contains(self, other: Network) -> bool {
        self.prefix <= other.prefix && Network::around(other.address, self.prefix) == self
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not_a_network = || NetworkError::NotANetwork(text.to_owned());
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| not_a_network())?;
        let prefix: u8 = prefix.parse().map_err(|_| not_a_network())?;
        if prefix > 32 {
            return Err(not_a_network());
        }
        let network = Network::around(address, prefix);
        if network.address != address {
            return Err(NetworkError::HostBits { text: text.to_owned(), instead: network });
        }
        Ok(network)
    }
}

/// One line of the namespace's policy. The first that matches decides; what none matches may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub to: Network,
    pub transport: Transport,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Any,
    Tcp,
    Udp,
    TcpPort(u16),
    UdpPort(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Refuse,
}

/// What a guest may reach on a host that is in the networks `host` (its addresses and what is directly
/// connected to it), when the operator allows `allow`.
pub fn policy(host: &[Network], allow: &[Network]) -> Vec<Rule> {
    let rule = |to, transport, verdict| Rule { to, transport, verdict };
    let mut rules = vec![
        rule(NAME_SERVER, Transport::UdpPort(53), Verdict::Pass),
        rule(NAME_SERVER, Transport::TcpPort(53), Verdict::Pass),
        // By transport, because the kernel consults the rules without one when slirp4netns names its
        // address as the gateway, and that must succeed.
        rule(LINK, Transport::Tcp, Verdict::Refuse),
        rule(LINK, Transport::Udp, Verdict::Refuse),
    ];
    rules.extend(allow.iter().map(|&network| rule(network, Transport::Any, Verdict::Pass)));
    let mut refused: Vec<Network> = NOT_THE_INTERNET.to_vec();
    for &network in host {
        if !refused.iter().any(|wider| wider.contains(network)) {
            refused.push(network);
        }
    }
    rules.extend(refused.into_iter().map(|network| rule(network, Transport::Any, Verdict::Refuse)));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn verdict(rules: &[Rule], to: &str, transport: Transport) -> Verdict {
        let to = network(to);
        let matches = |rule: &&Rule| {
            rule.to.contains(to)
                && match rule.transport {
                    Transport::Any => true,
                    Transport::Tcp => matches!(transport, Transport::Tcp | Transport::TcpPort(_)),
                    Transport::Udp => matches!(transport, Transport::Udp | Transport::UdpPort(_)),
                    exact => exact == transport,
                }
        };
        rules.iter().find(matches).map_or(Verdict::Pass, |rule| rule.verdict)
    }

    #[test]
    fn the_internet_passes_and_everything_near_is_refused() {
        let host = ["203.0.113.0/24", "203.0.113.7/32", "10.9.0.1/32"].map(network);
        let rules = policy(&host, &[network("10.1.0.0/16")]);
        for (to, transport, expected) in [
            ("1.1.1.1/32", Transport::TcpPort(443), Verdict::Pass),
            ("198.18.0.3/32", Transport::UdpPort(53), Verdict::Pass),
            ("198.18.0.3/32", Transport::TcpPort(53), Verdict::Pass),
            ("198.18.0.3/32", Transport::TcpPort(22), Verdict::Refuse),
            ("198.18.0.2/32", Transport::TcpPort(53), Verdict::Refuse),
            ("198.18.0.2/32", Transport::UdpPort(53), Verdict::Refuse),
            ("10.1.2.3/32", Transport::TcpPort(80), Verdict::Pass),
            ("10.2.0.1/32", Transport::TcpPort(80), Verdict::Refuse),
            ("172.16.0.1/32", Transport::TcpPort(80), Verdict::Refuse),
            ("172.32.0.1/32", Transport::TcpPort(80), Verdict::Pass),
            ("192.168.1.1/32", Transport::UdpPort(80), Verdict::Refuse),
            ("169.254.169.254/32", Transport::TcpPort(80), Verdict::Refuse),
            ("100.64.0.1/32", Transport::TcpPort(80), Verdict::Refuse),
            ("239.0.0.1/32", Transport::UdpPort(1900), Verdict::Refuse),
            ("255.255.255.255/32", Transport::UdpPort(67), Verdict::Refuse),
            ("203.0.113.7/32", Transport::TcpPort(22), Verdict::Refuse),
            ("203.0.113.200/32", Transport::TcpPort(22), Verdict::Refuse),
        ] {
            assert_eq!(verdict(&rules, to, transport), expected, "{to} {transport:?}");
        }
    }

    #[test]
    fn nothing_the_operator_allows_opens_the_way_to_the_host_side_of_the_link() {
        let rules = policy(&[], &[network("0.0.0.0/0")]);
        assert_eq!(verdict(&rules, "198.18.0.2/32", Transport::TcpPort(22)), Verdict::Refuse);
        assert_eq!(verdict(&rules, "198.18.0.3/32", Transport::TcpPort(22)), Verdict::Refuse);
        assert_eq!(verdict(&rules, "10.0.0.1/32", Transport::TcpPort(22)), Verdict::Pass);
    }

    #[test]
    fn networks_are_written_with_care() {
        assert_eq!(network("10.0.0.1"), network("10.0.0.1/32"));
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/0", "10.0.0.0/-1", "x/8"] {
            assert_eq!(bad.parse::<Network>(), Err(NetworkError::NotANetwork(bad.to_owned())));
        }
        assert_eq!(
            "10.1.2.3/8".parse::<Network>(),
            Err(NetworkError::HostBits { text: "10.1.2.3/8".to_owned(), instead: network("10.0.0.0/8") })
        );
        assert!(network("0.0.0.0/0").contains(network("255.0.0.0/8")));
        assert!(!network("10.0.0.0/8").contains(network("0.0.0.0/0")));
    }
}
